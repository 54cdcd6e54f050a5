//! A verdict as one word: the same everywhere, on the command line, in JSON, in metrics.

use std::fmt;

use serde::Serialize;

use super::{Class, Healthy};

/// A verdict as one word.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// In use, nobody waits yet.
    Open,
    /// Its owner waits for udev, within the usual time.
    Waiting,
    /// Its owner waits for udev for longer than usual, within udev's timeout.
    SlowUdev,
    /// Its owner waits for what does not come.
    Stuck,
    /// Nobody will remove it.
    Leaked,
    /// Older than any trace, and no process holds its number.
    Orphaned,
    /// More was completed than there was to complete.
    OverCompleted,
    /// Removed while in use.
    Accident,
    /// A leak that somebody has removed.
    CleanedUp,
    /// Removed as the protocol says.
    Finished,
    /// The key is a cookie's, the set is not.
    Foreign,
    /// A set without a cookie's key.
    Ordinary,
    /// Not decided.
    Unknown,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Open,
        Self::Waiting,
        Self::SlowUdev,
        Self::Stuck,
        Self::Leaked,
        Self::Orphaned,
        Self::OverCompleted,
        Self::Accident,
        Self::CleanedUp,
        Self::Finished,
        Self::Foreign,
        Self::Ordinary,
        Self::Unknown,
    ];

    /// The word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Waiting => "waiting",
            Self::SlowUdev => "slow-udev",
            Self::Stuck => "stuck",
            Self::Leaked => "leaked",
            Self::Orphaned => "orphaned",
            Self::OverCompleted => "over-completed",
            Self::Accident => "accident",
            Self::CleanedUp => "cleaned-up",
            Self::Finished => "finished",
            Self::Foreign => "foreign",
            Self::Ordinary => "ordinary",
            Self::Unknown => "unknown",
        }
    }

    /// What it means, in a few words.
    pub const fn description(self) -> &'static str {
        match self {
            Self::Open => "in use, nobody waits yet",
            Self::Waiting => "its owner waits for udev",
            Self::SlowUdev => "waits for longer than usual",
            Self::Stuck => "waits for what does not come",
            Self::Leaked => "nobody will remove it",
            Self::Orphaned => "no process holds it",
            Self::OverCompleted => "completed too often",
            Self::Accident => "removed while in use",
            Self::CleanedUp => "a leak that was removed",
            Self::Finished => "removed in good order",
            Self::Foreign => "a cookie's key, but no cookie",
            Self::Ordinary => "no cookie's key",
            Self::Unknown => "not decided",
        }
    }

    /// Whether the administrator should look at it.
    pub const fn is_finding(self) -> bool {
        matches!(
            self,
            Self::Stuck | Self::Leaked | Self::Orphaned | Self::OverCompleted | Self::Accident
        )
    }

    /// The state of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

impl From<Class> for State {
    fn from(class: Class) -> Self {
        class.state()
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Class {
    /// The class as one word.
    pub const fn state(self) -> State {
        match self {
            Self::Healthy(Healthy::Open) => State::Open,
            Self::Healthy(Healthy::Waiting) => State::Waiting,
            Self::Healthy(Healthy::SlowUdev) => State::SlowUdev,
            Self::Healthy(Healthy::Finished) => State::Finished,
            Self::Stuck(_) => State::Stuck,
            Self::Leaked(_) => State::Leaked,
            Self::Orphaned(_) => State::Orphaned,
            Self::OverCompleted => State::OverCompleted,
            Self::Accident => State::Accident,
            Self::CleanedUp(_) => State::CleanedUp,
            Self::Foreign(_) => State::Foreign,
            Self::Ordinary => State::Ordinary,
            Self::Unknown(_) => State::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_the_same_wherever_it_is_written() {
        for state in State::ALL {
            assert_eq!(serde_json::json!(state), state.name());
            assert_eq!(State::from_name(state.name()), Some(state));
        }
    }
}
