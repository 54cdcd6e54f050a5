//! Verdicts that are not final: what time decides, or the next call of a living owner.

use serde::{Deserialize, Serialize};

use super::{Class, Context, Healthy, Judged, Undecided};
use crate::ledger::UserStage;

/// Why a verdict is not final.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pending {
    /// Time decides, within seconds.
    Maturing,
    /// Its owner lives and has done its part, and has not touched it since: it may still wait for
    /// it, or never.
    OwnerSilent,
}

impl Pending {
    /// What a verdict waits for; `None` for one that is final, and for a cookie in ordinary use.
    pub fn of_judged(judged: &Judged<'_>, context: &Context<'_>) -> Option<Self> {
        let semaphore = judged.semaphore;
        let cookie = semaphore.cookie.as_deref()?;
        match judged.verdict.class {
            _ if !semaphore.is_live() => return None,
            Class::Unknown(Undecided::Young) => return Some(Self::Maturing),
            Class::Unknown(Undecided::MaybeStopped) => return Some(Self::OwnerSilent),
            Class::Healthy(Healthy::Open) => {}
            _ => return None,
        }
        let limits = context.thresholds;
        let done = |stage| {
            matches!(
                stage,
                UserStage::Done | UserStage::SelfCompleted | UserStage::Released
            )
        };
        cookie
            .users
            .iter()
            .filter(|user| user.exit.is_none() && done(cookie.user_stage(user)))
            .map(|user| context.facts.now.duration_since(user.last))
            .filter(|quiet| *quiet >= limits.young)
            .map(|quiet| {
                if quiet < limits.moved_on {
                    Self::Maturing
                } else {
                    Self::OwnerSilent
                }
            })
            .max()
    }
}
