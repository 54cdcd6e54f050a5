//! What a witness says, and of what the question is.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    event::text::escape_controls,
    ids::{BootTime, Key, SemId, UnixTime},
};

/// What the kernel keeps of a cookie whose creator nobody saw.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct CookieMoment {
    /// The set.
    pub sem: SemId,
    /// Its key, which is the cookie.
    pub key: Key,
    /// When it was made, or set to a value.
    pub ctime: UnixTime,
    /// The last `semop`; 0 for never.
    pub otime: UnixTime,
    /// Its value; `None` where it could not be read.
    pub value: Option<i32>,
    /// Last process that changed it (`GETPID`); 0 for none.
    pub last_pid: u32,
}

impl CookieMoment {
    /// The last thing that happened to it, as far as the kernel's stamps say.
    pub fn last_touch(&self) -> UnixTime {
        if self.otime.0 == 0 {
            self.ctime
        } else {
            self.otime
        }
    }
}

/// Who says it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Witness {
    /// The kernel's process accounting (`acct(2)`, version 3).
    Accounting,
    /// The kernel's audit, by the log of `auditd`.
    Audit,
    /// systemd's journal.
    Journal,
    /// A text file of syslog.
    Syslog,
    /// The kernel's log.
    KernelLog,
    /// The log of a package manager.
    PackageLog,
}

impl fmt::Display for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Accounting => "process accounting",
            Self::Audit => "audit",
            Self::Journal => "journal",
            Self::Syslog => "syslog",
            Self::KernelLog => "kernel log",
            Self::PackageLog => "package log",
        })
    }
}

/// Who wrote a line.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Author {
    /// A program, or a record that is no line.
    #[default]
    Program,
    /// The kernel.
    Kernel,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// By a signal; 0 where it is not known by which.
    Killed {
        /// Its number.
        signal: u8,
    },
    /// By itself.
    Exited {
        /// Its exit code.
        code: u8,
    },
}

/// When something was, on the clock of who says it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// In this second of the wall clock.
    Second {
        /// Which.
        at: UnixTime,
    },
    /// The life of a process.
    Life {
        /// Its last second.
        ended: UnixTime,
        /// How long it was, in milliseconds, the time of a suspended machine not included.
        lasted_ms: u64,
    },
    /// Since boot: suspends make it inexact.
    SinceBoot {
        /// No earlier than this,
        from: BootTime,
        /// and no later.
        to: BootTime,
    },
}

/// A set that a system call made.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct MadeSet {
    /// Its key.
    pub key: Key,
    /// Its number, in whichever namespace.
    pub semid: i32,
}

/// What one witness says.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Testimony {
    /// Who says it.
    pub witness: Witness,
    /// Where it stands: a path, or `journal`.
    pub source: String,
    /// Of which time.
    pub when: When,
    /// Number of the process that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its parent's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<u32>,
    /// Its name, cut at 15 bytes as the kernel does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Path of its program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// Its user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its unit of systemd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Its container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<Ending>,
    /// It has made this set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<MadeSet>,
    /// It has called `fork`, and no `execve` since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forked: bool,
    /// It had and used the rights of root, whatever its user was.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub privileged: bool,
    /// Somebody without the rights of root can have written it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forgeable: bool,
    /// Who wrote it, as far as the witness knows.
    #[serde(default)]
    pub author: Author,
    /// The line itself, or what a record says in words.
    pub line: String,
}

impl Testimony {
    /// Of a second, with a line and nothing else.
    pub fn of_line(witness: Witness, source: &str, at: UnixTime, line: &str) -> Self {
        Self {
            witness,
            source: source.to_owned(),
            when: When::Second { at },
            pid: None,
            parent: None,
            name: None,
            command: None,
            exe: None,
            uid: None,
            unit: None,
            container: None,
            ending: None,
            made: None,
            forked: false,
            privileged: false,
            forgeable: false,
            author: Author::Program,
            line: bounded_text(line),
        }
    }

    /// Whether it says that a process, or the first one of a unit, was killed.
    pub const fn tells_kill(&self) -> bool {
        matches!(self.ending, Some(Ending::Killed { .. }))
    }
}

/// So many bytes of a line are kept.
pub const MAX_LINE: usize = 400;

/// Text that others chose: as much as is kept of it, with what steers a terminal made visible.
pub fn bounded_text(text: &str) -> String {
    let text = text.trim_end_matches(['\n', '\r', ' ', '\0']);
    if text.len() <= MAX_LINE {
        return escape_controls(text);
    }
    let end = text.floor_char_boundary(MAX_LINE);
    format!("{}…", escape_controls(&text[..end]))
}
