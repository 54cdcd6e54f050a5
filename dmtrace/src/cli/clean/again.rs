//! Plans that are made again a little later, because time itself is in doubt: stamps of the kernel have
//! whole seconds, and the wall clock may have been set.

use std::{thread, time::Duration};

use anyhow::Result;
use dmtrace_core::{
    cleanup::plan::{PlanEntry, PlannedAction},
    facts::HostFacts,
    verdict::Obstacle,
};

use super::{Attempt, PlanDraft, draft_once};
use crate::cli::args::CleanArgs;

/// The kernel's times have seconds: only after two of them does every later call show.
const TICK: Duration = Duration::from_secs(2);

/// So long the clock is watched for a plan that needs no greater age than that.
const CLOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Gathers everything and decides.
pub(super) fn draft_plan(args: &CleanArgs) -> Result<PlanDraft> {
    let mut draft = draft_once(args, Duration::ZERO, Attempt::First)?;
    if draft.fresh {
        // Something was touched in this very second, and could be again without a trace in
        // its times. What is touched while we wait is left for another time.
        thread::sleep(TICK);
        draft = draft_once(args, TICK, Attempt::Again)?;
    }
    let needed = draft.plan().entries.iter().filter_map(needed_watch).max();
    match needed.filter(|needed| *needed <= CLOCK_PATIENCE) {
        // The clock was set before we came. Since then we watch it.
        Some(needed) => {
            thread::sleep(needed + TICK);
            draft_once(args, TICK, Attempt::Again)
        }
        None => Ok(draft),
    }
}

/// Whether a cookie may have been touched so recently that its times do not tell it from one that is
/// touched now.
pub(super) fn is_fresh(entry: &PlanEntry, facts: &HostFacts) -> bool {
    let identity = &entry.identity;
    [identity.ctime, identity.otime]
        .into_iter()
        .filter(|stamp| stamp.0 != 0)
        .any(|stamp| facts.locate_stamp(stamp).least_age(facts.now) < TICK)
}

/// For how long the wall clock must be watched before this cookie's age is known to be enough.
fn needed_watch(entry: &PlanEntry) -> Option<Duration> {
    let PlannedAction::Keep { obstacles } = &entry.action else {
        return None;
    };
    obstacles.iter().find_map(|obstacle| match obstacle {
        Obstacle::ClockSet { needed } => Some(Duration::from_secs(*needed)),
        _ => None,
    })
}
