//! What the host says at one moment: plain data, filled by `host`, read by the pure parts.

mod udev;

pub use udev::{UdevDetails, UdevFacts, UdevWorker};

use std::collections::{BTreeMap, BTreeSet};

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::{
    event::CommandPrint,
    ids::{BootTime, IpcNs, Key, ProcId, SemId, UnixTime},
    wall_clock::{ClockAnchor, ClockHistory, ClockOffset, Coverage, StampSpan, started_by},
};

/// All semaphore sets of all IPC namespaces, as far as they can be reached.
#[derive(
    Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize, BorshSerialize, BorshDeserialize,
)]
pub struct Snapshot {
    /// When the reading began.
    pub began: BootTime,
    /// When the reading ended.
    pub ended: BootTime,
    /// Wall clock at the end of the reading.
    pub wall: UnixTime,
    /// One entry for each namespace, the host's first.
    pub namespaces: Vec<NsSnapshot>,
    /// Namespaces that are known to exist and could not be read, with the reason.
    pub unreadable: Vec<(IpcNs, String)>,
    /// Why further namespaces may exist; empty when all were found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<String>,
}

impl Snapshot {
    /// Every set with its identity, by namespace.
    pub fn sets(&self) -> impl Iterator<Item = (SemId, &SetSnapshot)> {
        self.namespaces.iter().flat_map(|namespace| {
            namespace.sets.iter().map(|set| {
                let sem = SemId {
                    ns: namespace.ns,
                    semid: set.semid,
                };
                (sem, set)
            })
        })
    }
}

/// What could not be read, and what would help, as one line; `None` when everything was read. "No
/// cookie is leaked" is certain only then.
pub fn unread_summary(snapshot: &Snapshot, facts: &HostFacts) -> Option<String> {
    let mut causes: Vec<&str> = Vec::new();
    let namespaces = snapshot.unreadable.iter().map(|(_, why)| why);
    let rest = snapshot.incomplete.iter().chain(&facts.incomplete);
    for cause in namespaces.take(MAX_NAMED_NAMESPACES).chain(rest) {
        if !causes.contains(&cause.as_str()) {
            causes.push(cause);
        }
    }
    let more = snapshot
        .unreadable
        .len()
        .saturating_sub(MAX_NAMED_NAMESPACES);
    let more = (more > 0).then(|| format!("{more} more IPC namespaces"));
    causes.extend(more.as_deref());
    let hidden = snapshot
        .sets()
        .filter(|(_, set)| set.key.has_cookie_magic() && set.first.is_none())
        .count();
    let hidden = match hidden {
        0 => None,
        1 => Some("the value of 1 cookie; run as root".to_owned()),
        count => Some(format!("the values of {count} cookies; run as root")),
    };
    causes.extend(hidden.as_deref());
    if causes.is_empty() {
        return None;
    }
    // What helps stands at the end of each cause, mostly the same.
    let mut what = Vec::new();
    let mut fixes = Vec::new();
    for cause in causes {
        let (cause, fix) = cause.rsplit_once("; ").unwrap_or((cause, ""));
        what.push(cause);
        if !fix.is_empty() && !fixes.contains(&fix) {
            fixes.push(fix);
        }
    }
    // `run as root` is said by `run as root in the user namespace of the host`, too.
    let said = |fix: &str| {
        fixes
            .iter()
            .any(|it| it.len() > fix.len() && it.starts_with(fix))
    };
    let fixes: Vec<&str> = fixes.iter().copied().filter(|fix| !said(fix)).collect();
    let line = format!("not everything could be read: {}", what.join(", "));
    Some(match fixes.as_slice() {
        [] => line,
        fixes => format!("{line}; {}", fixes.join("; ")),
    })
}

/// So many namespaces that cannot be read are named.
const MAX_NAMED_NAMESPACES: usize = 3;

/// The semaphores of one IPC namespace.
#[derive(
    Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize, BorshSerialize, BorshDeserialize,
)]
pub struct NsSnapshot {
    /// Which.
    pub ns: IpcNs,
    /// What keeps it alive: processes, or a pinned file.
    pub holder: NsHolder,
    /// `kernel.sem` in it.
    pub limits: SemLimits,
    /// Sets in it.
    pub sets: Vec<SetSnapshot>,
}

/// What keeps an IPC namespace alive.
#[derive(
    Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize, BorshSerialize, BorshDeserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum NsHolder {
    /// Processes in it: how many, and one of them.
    Processes {
        /// How many processes.
        count: usize,
        /// The one with the lowest number.
        first: u32,
    },
    /// A file descriptor of a process outside.
    Descriptor {
        /// Process number.
        pid: u32,
    },
    /// A bind mount of its nsfs file.
    Mount {
        /// Absolute path.
        path: String,
    },
    /// Not established.
    #[default]
    Unknown,
}

/// `kernel.sem`: SEMMSL, SEMMNS, SEMOPM, SEMMNI.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    Eq,
    PartialEq,
    Serialize,
    Deserialize,
    BorshSerialize,
    BorshDeserialize,
)]
pub struct SemLimits {
    /// Semaphores in a set.
    pub semmsl: u32,
    /// Semaphores in the namespace.
    pub semmns: u32,
    /// Operations in a call.
    pub semopm: u32,
    /// Sets in the namespace.
    pub semmni: u32,
}

/// One semaphore set.
#[derive(
    Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize, BorshSerialize, BorshDeserialize,
)]
pub struct SetSnapshot {
    /// What `semget(2)` returned.
    pub semid: i32,
    /// System V key.
    pub key: Key,
    /// Permission bits.
    pub mode: u32,
    /// Semaphores in the set.
    pub nsems: u32,
    /// Owner.
    pub uid: u32,
    /// Group of the owner.
    pub gid: u32,
    /// Creator's uid.
    pub cuid: u32,
    /// Creator's gid.
    pub cgid: u32,
    /// Last successful `semop`; 0 for never.
    pub otime: UnixTime,
    /// Creation, or the last SETVAL/IPC_SET.
    pub ctime: UnixTime,
    /// Semaphore 0 of a set with the cookie magic; `None` where it was not read.
    pub first: Option<SemState>,
}

/// `GETVAL`, `GETPID`, `GETNCNT`, `GETZCNT` of one semaphore.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    Eq,
    PartialEq,
    Serialize,
    Deserialize,
    BorshSerialize,
    BorshDeserialize,
)]
pub struct SemState {
    /// Value.
    pub value: i32,
    /// Last process that changed it, in the reader's PID namespace; 0 for none or invisible. The
    /// number may belong to another process by now.
    pub pid: u32,
    /// Threads that wait for it to grow.
    pub ncnt: u32,
    /// Threads that wait for it to become zero.
    pub zcnt: u32,
}

impl SetSnapshot {
    /// Whether the set looks as libdm and devicemapper-rs make their cookies: magic key, one
    /// semaphore, mode 0600, made and owned by root.
    pub const fn looks_like_cookie(&self) -> bool {
        self.key.has_cookie_magic()
            && self.nsems == 1
            && self.mode & 0o777 == 0o600
            && self.uid == 0
            && self.cuid == 0
    }
}

/// What verdicts need to know of the host besides the semaphores.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct HostFacts {
    /// When these facts were gathered.
    pub now: BootTime,
    /// Wall clock at that moment.
    pub wall: UnixTime,
    /// Nanoseconds of that second; 0 in recordings of 0.1.0.
    #[serde(default)]
    pub wall_nanos: u32,
    /// What is known of the wall clock since boot. Older recordings do not have it.
    #[serde(default, skip_serializing_if = "ClockHistory::is_empty")]
    pub clock: ClockHistory,
    /// Whether the list of processes is complete (no `hidepid`, readable `/proc`).
    pub processes_complete: bool,
    /// Every process: number to start in clock ticks since boot (field 22 of `/proc/PID/stat`).
    /// Zombies are not in it: all their threads have ended.
    pub processes: BTreeMap<u32, LiveProcess>,
    /// Threads blocked in `semop` on a set, from `/proc/PID/task/TID/syscall`.
    #[serde(with = "pairs")]
    pub waiters: BTreeMap<SemId, Vec<Waiter>>,
    /// Processes that carry a cookie in `DM_UDEV_COOKIE` or `--udevcookie`.
    pub carriers: BTreeMap<Key, Vec<u32>>,
    /// Whether environments and command lines of all processes could be read.
    pub carriers_complete: bool,
    /// Processes whose environment or command line could not be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carriers_unread: Vec<u32>,
    /// State of udevd.
    pub udev: UdevFacts,
    /// Device-mapper devices.
    #[serde(default)]
    pub dm: DmFacts,
    /// Command lines of processes that wait on a semaphore.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub commands: BTreeMap<u32, String>,
    /// What could not be read and why, one line each; empty when everything was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<String>,
}

/// A process in the process list.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct LiveProcess {
    /// Start, clock ticks since boot.
    pub start_ticks: u64,
    /// Name.
    pub comm: String,
    /// Parent's number.
    pub ppid: u32,
    /// Session leader's number.
    pub session: u32,
    /// Its IPC namespace, where readable.
    pub ipc_ns: Option<IpcNs>,
    /// Its command line, where readable. Older recordings do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandPrint>,
    /// None of its threads has memory any more (`exit_mm`): it runs no program, and is about to end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ending: bool,
}

impl LiveProcess {
    /// Whether it may have been there when something was stamped; `second`: the begin of the stamp's
    /// second.
    pub const fn may_have_acted_by(&self, second: BootTime) -> bool {
        // Ticks of a hundredth of a second.
        started_by(
            BootTime(self.start_ticks.saturating_mul(10_000_000)),
            second,
        )
    }
}

/// A thread that waits on a semaphore.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Waiter {
    /// Its process.
    pub tgid: u32,
    /// The thread.
    pub tid: u32,
}

/// What the host says of its device-mapper devices.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct DmFacts {
    /// Devices that are suspended now: I/O on them waits until somebody resumes them.
    pub suspended: Vec<SuspendedDevice>,
    /// Names in `/dev/mapper`; `None` if it could not be read.
    pub nodes: Option<BTreeSet<String>>,
}

/// A suspended device.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct SuspendedDevice {
    /// Node, such as `dm-3`.
    pub node: String,
    /// Its name, such as `vg-root`.
    pub name: String,
}

impl HostFacts {
    /// Whether this very process still runs: same number and same start.
    pub fn is_alive(&self, id: ProcId) -> bool {
        self.processes
            .get(&id.tgid)
            .is_some_and(|live| live.start_ticks == id.start_ticks())
    }

    /// When a stamp of the wall clock can have been made.
    pub fn locate_stamp(&self, stamp: UnixTime) -> StampSpan {
        self.clock.locate(stamp, self.current_clock())
    }

    /// When a set was touched last, by the kernel's stamps.
    pub fn locate_last_touch(&self, set: &SetSnapshot) -> StampSpan {
        let set_at = self.locate_stamp(set.ctime);
        if set.otime.0 == 0 {
            return set_at;
        }
        set_at.later_of(self.locate_stamp(set.otime))
    }

    /// The least that the wall clock can have shown since something was stamped; `None` if it may
    /// have shown anything.
    pub fn least_wall_since(&self, stamp: UnixTime) -> Option<UnixTime> {
        let span = self.locate_stamp(stamp);
        let since = || {
            self.clock
                .least_shown_since(span.earliest, self.current_clock())
        };
        let least = span.explained.then(since).flatten()?;
        Some(least.min(stamp))
    }

    /// By how many seconds the wall clock was set since boot, the last time that shows.
    pub fn last_clock_step(&self) -> Option<i64> {
        self.clock.last_step(self.current_clock())
    }

    /// Both clocks at the time of these facts.
    fn current_clock(&self) -> ClockAnchor {
        // Facts of 0.1.0 have no fraction of the second.
        let coarse = self.wall_nanos == 0 && self.clock.is_empty();
        let (nanos, error) = if coarse {
            (500_000_000, 500_000_000)
        } else {
            (self.wall_nanos, 0)
        };
        ClockAnchor {
            at: self.now,
            offset: ClockOffset::between(self.now, self.wall, nanos),
            error,
            before: Coverage::Unwatched,
        }
    }

    /// Whether a process that could not be read may carry a cookie made at `made`. One that had
    /// started earlier cannot, as long as it has not called `execve` since.
    pub fn carrier_may_be_hidden(&self, made: BootTime) -> bool {
        let made = made.0 / 10_000_000;
        !self.processes_complete
            || self.carriers_unread.iter().any(|pid| {
                self.processes
                    .get(pid)
                    .is_none_or(|live| live.start_ticks >= made)
            })
    }
}

/// Maps whose keys are no strings, which JSON does not have: as lists of pairs.
pub(crate) mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<K, V, S>(map: &BTreeMap<K, V>, to: S) -> Result<S::Ok, S::Error>
    where
        K: Serialize,
        V: Serialize,
        S: Serializer,
    {
        to.collect_seq(map)
    }

    pub(crate) fn deserialize<'de, K, V, D>(from: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::deserialize(from)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_read_is_one_line_that_says_nothing_twice() {
        let mut snapshot = Snapshot::default();
        let mut facts = HostFacts::default();
        assert_eq!(unread_summary(&snapshot, &facts), None);
        snapshot.incomplete = vec!["a is hidden; run as root".to_owned()];
        facts.incomplete = vec![
            "a is hidden; run as root".to_owned(),
            "b: denied; run as root".to_owned(),
            "no c; mount it".to_owned(),
        ];
        assert_eq!(
            unread_summary(&snapshot, &facts).as_deref(),
            Some(
                "not everything could be read: a is hidden, b: denied, no c; run as root; mount it"
            )
        );
        facts.incomplete = vec!["b: denied; run as root in the host".to_owned()];
        assert_eq!(
            unread_summary(&snapshot, &facts).as_deref(),
            Some("not everything could be read: a is hidden, b: denied; run as root in the host")
        );
        snapshot.incomplete.clear();
        facts.incomplete.clear();
        snapshot.unreadable = (0..9).map(|ns| (IpcNs(ns), format!("{ns}"))).collect();
        assert_eq!(
            unread_summary(&snapshot, &facts).as_deref(),
            Some("not everything could be read: 0, 1, 2, 6 more IPC namespaces")
        );
        let cookie = SetSnapshot {
            key: Key(0x0d4d_0001),
            ..SetSnapshot::default()
        };
        snapshot.unreadable.clear();
        snapshot.namespaces = vec![NsSnapshot {
            sets: vec![cookie],
            ..NsSnapshot::default()
        }];
        let line = unread_summary(&snapshot, &facts).unwrap();
        assert!(line.contains("the value of 1 cookie"), "{line}");
    }

    #[test]
    fn facts_with_waiters_and_carriers_survive_json() {
        let facts = HostFacts {
            waiters: [(SemId::default(), vec![Waiter { tgid: 7, tid: 8 }])].into(),
            carriers: [(Key(0x0d4d_0001), vec![9])].into(),
            ..HostFacts::default()
        };
        let text = serde_json::to_string(&facts).unwrap();
        let back: HostFacts = serde_json::from_str(&text).unwrap();
        assert_eq!(back, facts);
    }
}
