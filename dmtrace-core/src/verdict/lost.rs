//! How many completions of a stuck waiter are lost for certain: so many may be made by hand.

use serde::{Deserialize, Serialize};

use super::{
    Class, Context, Obstacle, StuckCause, Subject, Verdict,
    life::Knowledge,
    stuck::lost_elsewhere,
    touched::{Touched, Unfinished},
};

/// Completions to be made in udev's place.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// Value of the semaphore: with any other nothing must be done.
    pub value: i32,
    /// How many of these are lost: 1 to `value`.
    pub count: i32,
    /// Why they are known to be lost. A plan from before this was written down has the one that
    /// asks more.
    #[serde(default)]
    pub proof: LossProof,
    /// Whether a person vouches for udev's work, as far as it is not known.
    #[serde(default)]
    pub vouched: Vouched,
}

/// Why completions are known to be lost.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossProof {
    /// udev runs, has nothing in its queue, and its time for the event is over.
    #[default]
    UdevGaveUp,
    /// Each was seen to be looked for in vain in another IPC namespace.
    LookedElsewhere,
}

impl Completion {
    /// Whether it can be made good on a semaphore with this value: it lowers it, and not below 0.
    pub const fn fits_value(self, value: i32) -> bool {
        self.value == value && 1 <= self.count && self.count <= value
    }
}

/// Whether a person vouches for what nobody has seen.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vouched {
    /// Only what is proven.
    #[default]
    No,
    /// Which devices the operation worked on need not be known.
    Yes,
}

/// How many completions are lost for certain, for a cookie that somebody waits on.
///
/// A failed lookup by udev's `dmsetup` in another IPC namespace is one that is lost. Beyond that
/// a completion is lost if udev runs, has nothing in its queue, and its time for the event is
/// over. What udev had to do must be done: a waiter that is let go too early finds no node.
///
/// # Errors
/// The rules that do not hold.
pub fn provably_lost(
    subject: &Subject<'_>,
    context: &Context<'_>,
    verdict: &Verdict,
    vouched: Vouched,
) -> Result<Completion, Vec<Obstacle>> {
    let facts = context.facts;
    let semaphore = subject.semaphore;
    let (_, state, cookie) = subject
        .readable_cookie()
        .map_err(|obstacle| vec![obstacle])?;
    let known = Knowledge::gather(subject, context);
    let mut obstacles = Vec::new();
    if !known.fresh {
        obstacles.push(Obstacle::NotRead);
    }
    if state.zcnt == 0 {
        obstacles.push(Obstacle::NoWaiter);
    }
    let Class::Stuck(cause) = verdict.class else {
        obstacles.push(Obstacle::NotStuck {
            class: verdict.class.to_string(),
        });
        return Err(obstacles);
    };
    if known.contradiction {
        obstacles.push(Obstacle::Contradiction);
    }
    if context.completeness.loss_evidence(semaphore).is_some() {
        obstacles.push(Obstacle::EventsLost);
    }
    // SEMVMX, the largest value of a semaphore, fits.
    let value = state.value;
    let elsewhere = match cause {
        // Each of these was seen, whatever else was not. A completion that came all the same may
        // have been made good by hand.
        StuckCause::NamespaceSplit { looked_in: Some(_) } => {
            let lost =
                u32::try_from(lost_elsewhere(cookie, semaphore.id.ns).count()).unwrap_or(u32::MAX);
            let rest = lost.saturating_sub(cookie.counts.completions);
            i32::try_from(rest).unwrap_or(i32::MAX)
        }
        _ => 0,
    };
    let over = known.quiet >= context.thresholds.udev_gives_up(facts);
    let mut proof = LossProof::UdevGaveUp;
    let count = if facts.udev.daemon.is_none() && elsewhere == 0 {
        obstacles.push(Obstacle::UdevdDown);
        0
    } else if facts.udev.daemon.is_some() && !facts.udev.queue_busy && over {
        value
    } else if elsewhere > 0 {
        proof = LossProof::LookedElsewhere;
        elsewhere.min(value)
    } else {
        obstacles.push(Obstacle::EventPending {
            count: value.unsigned_abs(),
        });
        0
    };
    let touched = Touched::from_cookie(cookie);
    match touched.first_unfinished(&facts.dm) {
        None => {}
        Some(Unfinished::Unknown) if vouched == Vouched::Yes => {}
        Some(Unfinished::Unknown) => obstacles.push(Obstacle::NodesUnknown),
        Some(Unfinished::Missing(name)) => obstacles.push(Obstacle::NodeMissing {
            name: name.to_owned(),
        }),
        Some(Unfinished::Left(name)) => obstacles.push(Obstacle::NodeLeft {
            name: name.to_owned(),
        }),
        Some(Unfinished::Suspended(name)) => obstacles.push(Obstacle::Suspended {
            name: name.to_owned(),
        }),
    }
    if value < 1 || count < 1 {
        if obstacles.is_empty() {
            obstacles.push(Obstacle::NothingLost);
        }
        return Err(obstacles);
    }
    if obstacles.is_empty() {
        Ok(Completion {
            value,
            count,
            proof,
            vouched,
        })
    } else {
        Err(obstacles)
    }
}
