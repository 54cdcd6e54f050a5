//! What a clean-up would do with one cookie, and which options make it act: for advice, which must
//! not name a command that does nothing.

use super::plan::{OLDER_THAN, PlanOptions, PlannedAction, decide_action};
use crate::{
    ledger::Ledger,
    verdict::{Context, Judged, Obstacle, RemovalRules},
};

/// Options beyond the defaults. The words are those of the command line.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CleanFlags {
    /// `--abandoned`.
    pub abandoned: bool,
    /// `--complete`.
    pub complete: bool,
    /// `--force-unknown`.
    pub force_unknown: bool,
}

impl CleanFlags {
    const NONE: Self = Self {
        abandoned: false,
        complete: false,
        force_unknown: false,
    };
    /// `--abandoned` alone.
    pub const ABANDONED: Self = Self {
        abandoned: true,
        ..Self::NONE
    };
    /// `--complete` alone.
    pub const COMPLETE: Self = Self {
        complete: true,
        ..Self::NONE
    };
    /// `--force-unknown` alone.
    pub const FORCE_UNKNOWN: Self = Self {
        force_unknown: true,
        ..Self::NONE
    };

    /// No option first, then as few as possible; what a person must vouch for comes last.
    const ALL: [Self; 5] = [
        Self::NONE,
        Self::ABANDONED,
        Self::COMPLETE,
        Self::FORCE_UNKNOWN,
        Self {
            complete: true,
            ..Self::FORCE_UNKNOWN
        },
    ];

    /// All that a command needs which was given other options before.
    pub const fn with_options(self, options: PlanOptions) -> Self {
        Self {
            abandoned: options.abandoned || self.abandoned,
            complete: options.complete || self.complete,
            force_unknown: options.force_unknown || self.force_unknown,
        }
    }

    const fn added_to(self, options: PlanOptions) -> PlanOptions {
        let all = self.with_options(options);
        PlanOptions {
            abandoned: all.abandoned,
            complete: all.complete,
            force_unknown: all.force_unknown,
            ..options
        }
    }
}

/// What a clean-up would do with a cookie.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Prospect {
    /// The options with which it acts; `None` if it keeps the cookie with each of them.
    pub flags: Option<CleanFlags>,
    /// What still keeps it with these, and ends by itself.
    pub waits: Vec<Obstacle>,
    /// Why it is kept without further options; empty if it is not.
    pub obstacles: Vec<Obstacle>,
    /// Why it is not completed, if that was asked for; empty if it is.
    pub completion_obstacles: Vec<Obstacle>,
}

impl Prospect {
    /// Asks the plan itself. `None`: the options of a clean-up that was given none.
    pub fn ask_plan(
        judged: &Judged<'_>,
        ledger: &Ledger,
        context: &Context<'_>,
        options: Option<PlanOptions>,
    ) -> Self {
        let options = options.unwrap_or_else(|| PlanOptions {
            rules: RemovalRules {
                inferred: false,
                older_than: OLDER_THAN,
            },
            ..PlanOptions::default()
        });
        let mut found = Self {
            flags: None,
            waits: Vec::new(),
            obstacles: Vec::new(),
            completion_obstacles: Vec::new(),
        };
        for flags in CleanFlags::ALL {
            let action = decide_action(judged, ledger, context, flags.added_to(options));
            let PlannedAction::Keep { obstacles } = action else {
                found.flags = Some(flags);
                return found;
            };
            let passes = obstacles.iter().all(passes_by_itself);
            let waits = passes.then(|| {
                let mut waits = obstacles.clone();
                waits.retain(|it| !is_done_by_clean(it));
                waits
            });
            if flags == CleanFlags::NONE {
                found.obstacles = obstacles;
            } else if flags == CleanFlags::COMPLETE {
                found.completion_obstacles = obstacles;
            }
            if let Some(waits) = waits {
                found.flags = Some(flags);
                found.waits = waits;
                return found;
            }
        }
        found
    }
}

/// Whether an obstacle is only a matter of time, or the clean-up itself does what is missing.
const fn passes_by_itself(obstacle: &Obstacle) -> bool {
    matches!(
        obstacle,
        Obstacle::TooYoung { .. } | Obstacle::EventPending { .. }
    ) || is_done_by_clean(obstacle)
}

/// A search that the clean-up makes before it acts.
const fn is_done_by_clean(obstacle: &Obstacle) -> bool {
    match obstacle {
        Obstacle::NotProvenBySearch { why } => why.is_formality(),
        _ => false,
    }
}
