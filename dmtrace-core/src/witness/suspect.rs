//! Who is suspected, why, and what speaks against it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Witness;

/// How sure it is. Nothing here is observed.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grade {
    /// It fits, and so may others.
    Possible,
    /// It fits, and nobody else does as well.
    Inferred,
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Possible => "possible",
            Self::Inferred => "inferred",
        })
    }
}

/// What a suspect has done.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It made the cookie and should have waited for it.
    Owner,
    /// It had `dmsetup` make it.
    Script,
    /// It starts at such times.
    Schedule,
}

/// Who: as much as the witnesses say.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Who {
    /// Number of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Path of its program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// Its user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its unit of systemd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Its container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// It still runs.
    #[serde(default)]
    pub alive: bool,
}

impl fmt::Display for Who {
    /// `lvcreate[812] (nightly.service)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = match (&self.name, self.pid) {
            (Some(name), Some(pid)) => format!("{name}[{pid}]"),
            (Some(name), None) => name.clone(),
            (None, Some(pid)) => format!("process {pid}"),
            (None, None) => String::new(),
        };
        if let Some(place) = self.container.as_ref().or(self.unit.as_ref()) {
            text = match text.is_empty() {
                true => place.clone(),
                false => format!("{text} ({place})"),
            };
        }
        f.pad(&text)
    }
}

/// What makes it one.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ground")]
pub enum Ground {
    /// It is the kernel's last operator of a cookie on which nobody else can have acted last.
    LastOperator,
    /// It made this very set: number, key and second are those of a record.
    Made {
        /// Who says so.
        witness: Witness,
    },
    /// It lives since before the cookie was made.
    LivedThen,
    /// It has the number in its memory.
    HoldsNumber,
    /// It was killed while the cookie was there.
    Killed {
        /// By which signal; 0 where that is not known.
        signal: u8,
        /// Who says so.
        witness: Witness,
    },
    /// It ran when the cookie was made.
    RanThen {
        /// Who says so.
        witness: Witness,
    },
    /// It ran the `dmsetup` that made it.
    RanDmsetup {
        /// Number of that one.
        pid: u32,
        /// Who says so.
        witness: Witness,
    },
    /// A witness has a line of it from that time.
    Line {
        /// Who.
        witness: Witness,
        /// The line.
        line: String,
    },
    /// It is started whenever such cookies are made.
    StartsThen {
        /// Where that stands.
        source: String,
    },
    /// Its text runs programs that make cookies.
    UsesCookies,
}

impl Ground {
    /// Whether it is a line of a log, and nothing that follows from one.
    pub const fn is_line(&self) -> bool {
        matches!(self, Self::Line { .. })
    }
}

impl fmt::Display for Ground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::LastOperator => "the kernel's last operator of the cookie".to_owned(),
            Self::LivedThen => "lives since before the cookie was made".to_owned(),
            Self::Made { witness } => format!("{witness}: made the cookie"),
            Self::HoldsNumber => "has the cookie's number in its memory".to_owned(),
            Self::Killed { signal: 0, witness } => format!("{witness}: killed at that time"),
            Self::Killed { signal, witness } => {
                format!("{witness}: killed by signal {signal} at that time")
            }
            Self::RanThen { witness } => format!("{witness}: ran when the cookie was made"),
            Self::RanDmsetup { pid, witness } => {
                format!("{witness}: parent of the dmsetup[{pid}] that made or changed the cookie")
            }
            Self::Line { witness, line } => format!("{witness}: {line}"),
            Self::StartsThen { source } => format!("{source}: starts whenever such cookies appear"),
            Self::UsesCookies => "runs programs that make cookies".to_owned(),
        };
        f.pad(&text)
    }
}

/// What speaks against it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "doubt")]
pub enum Doubt {
    /// Somebody without the rights of root can have written what speaks for it.
    Forgeable,
    /// Nobody watched the clock: it may have been set, and set back.
    ClockUnwatched,
    /// It began after the cookie was made.
    BeganLater,
    /// It is not the kernel's last operator.
    NotLastOperator,
    /// Others fit as well.
    OthersFit {
        /// How many.
        count: usize,
    },
    /// It can have left one cookie, and is named for several.
    ManyCookies {
        /// For how many.
        count: usize,
    },
    /// Nothing says that it has to do with device-mapper.
    NoDeviceMapper,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Forgeable => "any user could have written that line".to_owned(),
            Self::ClockUnwatched => "the clock may have been set meanwhile".to_owned(),
            Self::BeganLater => "it began after the cookie was made".to_owned(),
            Self::NotLastOperator => "it is not the last operator".to_owned(),
            Self::OthersFit { count } => format!("{count} others fit as well"),
            Self::ManyCookies { count } => {
                format!("it can have left one cookie, and fits {count}")
            }
            Self::NoDeviceMapper => "nothing says that it uses device-mapper".to_owned(),
        };
        f.pad(&text)
    }
}

/// One who may have been it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Suspect {
    /// Who.
    pub who: Who,
    /// What it has done.
    pub role: Role,
    /// How sure that is.
    pub grade: Grade,
    /// What speaks for it.
    pub grounds: Vec<Ground>,
    /// What speaks against it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doubts: Vec<Doubt>,
}

/// Why nobody is named.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownReason {
    /// No witness says anything of that time.
    NoWitness,
    /// The last operator has ended, and no witness knows what it was.
    OperatorUnknown,
    /// The wall clock was set: the cookie's stamps may be of another time.
    ClockInDoubt,
    /// The last operator is, or may be, udev's own `dmsetup`.
    CompletedByUdev,
    /// The last operator's number belongs to another process by now.
    NumberReused,
    /// The process with the last operator's number began in the second in which the cookie was made.
    NumberMayBeReused,
    /// The last operator began after the cookie was made.
    OnlyParticipant,
    /// `dmsetup` made it for somebody who is not known.
    ParentUnknown,
    /// Several fit equally.
    Ambiguous,
    /// Who fits can have left one cookie only, and fits several.
    OneForMany,
    /// Somebody was killed then, of whom nothing says that it uses device-mapper.
    OnlyKilled,
}

impl fmt::Display for UnknownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NoWitness => "no witness says anything of that time",
            Self::OperatorUnknown => {
                "the last operator has ended, and no witness knows what it was"
            }
            Self::ClockInDoubt => "the clock was set: its stamps may be of another time",
            Self::CompletedByUdev => "the last operator is, or may be, udev's own dmsetup",
            Self::NumberReused => "the last operator's number has another process by now",
            Self::NumberMayBeReused => {
                "who has the last operator's number began in that second, and may be another"
            }
            Self::OnlyParticipant => "the last operator began after the cookie was made",
            Self::ParentUnknown => "dmsetup made it for somebody who is not known",
            Self::Ambiguous => "several fit equally",
            Self::OneForMany => "who fits can have left only one of these cookies",
            Self::OnlyKilled => "who was killed then is not known to use device-mapper",
        })
    }
}

/// Who it was.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub enum Answer {
    /// This one, inferred.
    Named {
        /// Who.
        suspect: Box<Suspect>,
    },
    /// Nobody can be named.
    Unknown {
        /// Why.
        reason: UnknownReason,
        /// Who may have been it.
        possible: Vec<Suspect>,
    },
}

impl Answer {
    /// Who is named.
    pub fn suspect(&self) -> Option<&Suspect> {
        match self {
            Self::Named { suspect } => Some(suspect),
            Self::Unknown { .. } => None,
        }
    }

    /// Everybody who is mentioned, the named one first.
    pub fn suspects(&self) -> impl Iterator<Item = &Suspect> {
        let (named, possible) = match self {
            Self::Named { suspect } => (Some(suspect.as_ref()), &[][..]),
            Self::Unknown { possible, .. } => (None, possible.as_slice()),
        };
        named.into_iter().chain(possible)
    }
}
