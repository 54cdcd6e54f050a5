//! What the host says of udevd.

use serde::{Deserialize, Serialize};

/// State of udevd, as far as it matters for cookies.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct UdevFacts {
    /// `/run/udev/control` exists: what makes libdm believe that udevd runs.
    pub control_socket: bool,
    /// The process, if one runs.
    pub daemon: Option<u32>,
    /// None runs, but somebody listens on its control socket: systemd starts it at the next event.
    #[serde(default)]
    pub activated: bool,
    /// `/run/udev/queue` exists: events are being processed.
    pub queue_busy: bool,
    /// Path of `95-dm-notify.rules`, if one is installed and not masked.
    pub notify_rule: Option<String>,
    /// Path of the empty file or link to `/dev/null` that masks it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify_rule_mask: Option<String>,
    /// Event timeout of udevd, seconds.
    pub event_timeout: u64,
    /// What keeps it from completing; looked for only while somebody waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<UdevDetails>,
}

impl UdevFacts {
    /// A daemon that runs and has its rules, for tests.
    #[doc(hidden)]
    pub fn new_working() -> Self {
        Self {
            control_socket: true,
            daemon: Some(1),
            notify_rule: Some("/usr/lib/udev/rules.d/95-dm-notify.rules".to_owned()),
            event_timeout: 180,
            ..Self::default()
        }
    }
}

/// What may keep udevd from completing cookies.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct UdevDetails {
    /// The daemon is stopped (SIGSTOP) or traced.
    pub frozen: bool,
    /// Start of the daemon, clock ticks since boot; 0 if not known.
    pub started_ticks: u64,
    /// Its workers.
    pub workers: Vec<UdevWorker>,
    /// The program that the notify rule runs, if it is there and executable.
    pub dmsetup: Option<String>,
    /// Rules that empty the list of programs to run: file, and line number.
    pub run_cleared: Vec<String>,
}

/// A worker of udevd.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct UdevWorker {
    /// Its number.
    pub pid: u32,
    /// The program that it runs for a rule now: its number and name.
    pub runs: Option<(u32, String)>,
}

impl UdevFacts {
    /// Whether events are handled, or may be at any moment.
    pub const fn is_there(&self) -> bool {
        self.daemon.is_some() || self.activated
    }
}
