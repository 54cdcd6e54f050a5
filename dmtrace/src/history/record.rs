//! What is kept: findings, failed creations, gaps, losses, rates. Plain data, stored as JSON.

use std::collections::BTreeMap;

use dmtrace_core::{
    event::CallSite,
    ids::{BootTime, IpcNs, Key, SemId},
};
use serde::{Deserialize, Serialize};

use crate::{
    finding::{Story, lenient},
    host::clock,
    output::time::Moment,
};

/// Programs that are told apart in one record; more are summed up.
pub const PROGRAMS: usize = 64;
/// What stands for the programs beyond [`PROGRAMS`].
pub const OTHERS: &str = "(others)";

/// A moment on both clocks. The boot that the second one counts from is in the [`HistoryEntry`].
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(into = "StampText", try_from = "StampText")]
pub struct Stamp {
    /// Milliseconds since 1970 in UTC. The clock may have been set in between.
    pub wall_ms: i64,
    /// Since boot.
    pub boot: BootTime,
}

#[derive(Serialize, Deserialize)]
struct StampText {
    time: String,
    boot_ns: BootTime,
}

impl From<Stamp> for StampText {
    fn from(stamp: Stamp) -> Self {
        Self {
            time: stamp.to_rfc3339(),
            boot_ns: stamp.boot,
        }
    }
}

impl TryFrom<StampText> for Stamp {
    type Error = &'static str;

    fn try_from(text: StampText) -> Result<Self, Self::Error> {
        Ok(Self {
            wall_ms: Moment::parse(&text.time).ok_or("not a time")?.as_millis(),
            boot: text.boot_ns,
        })
    }
}

impl Stamp {
    /// This machine, now.
    pub fn now() -> Self {
        Self {
            wall_ms: Moment::now().as_millis(),
            boot: clock::boot_now(),
        }
    }

    /// RFC 3339 in UTC.
    pub fn to_rfc3339(self) -> String {
        Moment::of_ms(self.wall_ms).to_rfc3339(3)
    }

    /// Another moment of the same boot.
    #[must_use]
    pub fn at_boot(self, boot: BootTime) -> Self {
        let ms = (i128::from(boot.0) - i128::from(self.boot.0)) / 1_000_000;
        Self {
            wall_ms: self
                .wall_ms
                .saturating_add(i64::try_from(ms).unwrap_or_default()),
            boot,
        }
    }
}

/// Something that is kept, with what it belongs to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Its number: greater is later. Never used twice in one file.
    pub id: u64,
    /// The boot in which it happened: semids, process numbers and boot times mean nothing in
    /// another one. Empty if it is not known.
    pub boot_id: String,
    /// What it is.
    #[serde(flatten)]
    pub record: HistoryRecord,
}

impl HistoryEntry {
    /// From what somebody has stored or sent. A finding that cannot be read is there as
    /// [`UnreadFinding`]; `None` for anything else that cannot be.
    pub(super) fn from_json(json: &[u8]) -> Option<Self> {
        /// The part of a finding that every version has.
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct FindingLabel {
            #[serde(deserialize_with = "lenient")]
            id: u64,
            #[serde(deserialize_with = "lenient")]
            boot_id: String,
            #[serde(rename = "type", deserialize_with = "lenient")]
            kind: String,
            #[serde(flatten)]
            unread: UnreadFinding,
        }
        let read = serde_json::from_slice::<Self>(json);
        let newest = StoredFinding::VERSION;
        let is_newer =
            |it: &HistoryRecord| matches!(it, HistoryRecord::Finding(f) if f.version > newest);
        match read {
            Ok(entry) if !is_newer(&entry.record) => return Some(entry),
            _ => {}
        }
        let label: FindingLabel = serde_json::from_slice(json).ok()?;
        (label.kind == "finding").then_some(Self {
            id: label.id,
            boot_id: label.boot_id,
            record: HistoryRecord::Unread(label.unread),
        })
    }
}

/// What is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum HistoryRecord {
    /// A cookie that needed attention.
    Finding(Box<StoredFinding>),
    /// One that this program cannot read. It stays as it is in the file.
    Unread(UnreadFinding),
    /// Creations that failed because the limits of `kernel.sem` were reached.
    #[serde(rename = "starved")]
    CreationsFailed(EnospcRecord),
    /// Tracing was down.
    Gap(DowntimeRecord),
    /// Messages of the kernel side were lost.
    Loss(LossRecord),
    /// What became of the cookies of an hour, by program.
    Rates(RatesRecord),
    /// The service ran.
    Run(RunRecord),
}

/// A cookie that needed attention.
///
/// What is stored is [`Story`] and the type here, and both outlive the program: a field that is new
/// has a default, one that has another meaning raises [`VERSION`](Self::VERSION).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredFinding {
    /// By which version of this type it was written; release 0.1.0 has not said.
    #[serde(default = "StoredFinding::first_version")]
    pub version: u32,
    /// Namespace and semid.
    #[serde(flatten)]
    pub sem: SemId,
    /// The cookie.
    pub key: Key,
    /// What it was: `leaked`, `stuck`, `over-completed`, `accident`, `foreign`.
    pub state: String,
    /// Who made it: path of the executable, or the name; empty if that is not known.
    #[serde(default, deserialize_with = "lenient")]
    pub program: String,
    /// When it was found.
    pub found: Stamp,
    /// Its end; `None` while it stands, as far as is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<FindingEnd>,
    /// The calls that made it, with their names.
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub calls: Option<CallSite>,
    /// Everything that `explain` says of it; the calls are left out.
    #[serde(default, deserialize_with = "lenient")]
    pub story: Story,
}

impl StoredFinding {
    /// What this program writes, and the newest that it reads.
    pub const VERSION: u32 = 1;

    const fn first_version() -> u32 {
        1
    }
}

/// A finding that this program cannot read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnreadFinding {
    /// By which version of [`StoredFinding`] it was written; 0 if that is not known.
    #[serde(deserialize_with = "lenient")]
    pub version: u32,
    /// The cookie, if that is known.
    #[serde(deserialize_with = "lenient")]
    pub key: Option<Key>,
    /// Its semid, likewise.
    #[serde(deserialize_with = "lenient")]
    pub semid: Option<i32>,
    /// When it was found, likewise.
    #[serde(deserialize_with = "lenient")]
    pub found: Option<Stamp>,
}

impl UnreadFinding {
    /// Whether a newer dmtrace has kept it, which can read it.
    pub const fn is_newer(&self) -> bool {
        self.version > StoredFinding::VERSION
    }
}

/// The end of a finding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FindingEnd {
    /// When; for an end that was not seen, when that was noticed.
    #[serde(flatten)]
    pub at: Stamp,
    /// In which way.
    pub how: HowGone,
    /// Who removed it: `name[pid]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// In which way a finding came to its end.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HowGone {
    /// Somebody removed the cookie.
    Removed,
    /// The cookie went with its IPC namespace.
    WithNamespace,
    /// It was gone already when it was judged: an accident, or completed too often.
    AlreadyGone,
    /// The cookie is there, and the verdict is another one.
    OtherVerdict,
    /// The machine was started again.
    Rebooted,
    /// It is not there any more; its end was not seen.
    Unseen,
}

/// Creations that failed because the limits were reached, in one go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EnospcRecord {
    /// Where.
    pub ipc_ns: IpcNs,
    /// The first.
    pub from: Stamp,
    /// The last so far.
    pub to: Stamp,
    /// How many.
    pub count: u64,
    /// By program.
    pub programs: BTreeMap<String, u64>,
}

/// Tracing was down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DowntimeRecord {
    /// The last that is known of the trace before.
    pub from: Stamp,
    /// When tracing began again.
    pub to: Stamp,
    /// Why.
    pub why: DowntimeReason,
}

/// Why tracing was down.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DowntimeReason {
    /// The service was stopped.
    Stopped,
    /// The service ended without a word: killed, or the power failed. The gap began after `from`.
    Killed,
    /// The machine was started again.
    Rebooted,
}

/// Messages of the kernel side were lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossRecord {
    /// When it was noticed first.
    pub from: Stamp,
    /// When it was noticed last.
    pub to: Stamp,
    /// How many.
    pub count: u64,
    /// What that means, in words.
    pub what: String,
}

/// What became of the cookies of an hour.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RatesRecord {
    /// The first count.
    pub from: Stamp,
    /// The last count so far.
    pub to: Stamp,
    /// By program: path of the executable, or the name.
    pub programs: BTreeMap<String, ProgramCounts>,
}

/// Lives of cookies in sum.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct ProgramCounts {
    /// Made.
    pub created: u64,
    /// Removed as the protocol says.
    pub completed: u64,
    /// Found to be leaked.
    pub leaked: u64,
}

impl ProgramCounts {
    /// Adds them up.
    pub const fn add_counts(&mut self, other: &Self) {
        self.created += other.created;
        self.completed += other.completed;
        self.leaked += other.leaked;
    }
}

/// The service ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Tracing began.
    pub began: Stamp,
    /// Its end, once known; of one that was killed, the last that is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Stamp>,
    /// Whether it ended in good order.
    pub orderly: bool,
    /// Version of dmtrace.
    pub version: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Name of the backend.
    pub backend: String,
}

impl HistoryRecord {
    /// From when to when it lasts, milliseconds since 1970; `i64::MAX` while it stands.
    pub fn time_span(&self) -> (i64, i64) {
        let end = |stamp: Option<Stamp>| stamp.map_or(i64::MAX, |stamp| stamp.wall_ms);
        match self {
            Self::Finding(finding) => (
                finding.found.wall_ms,
                end(finding.gone.as_ref().map(|gone| gone.at)),
            ),
            Self::Unread(it) => match it.found {
                Some(found) => (found.wall_ms, i64::MAX),
                None => (i64::MIN, i64::MAX),
            },
            Self::CreationsFailed(it) => (it.from.wall_ms, it.to.wall_ms),
            Self::Gap(it) => (it.from.wall_ms, it.to.wall_ms),
            Self::Loss(it) => (it.from.wall_ms, it.to.wall_ms),
            Self::Rates(it) => (it.from.wall_ms, it.to.wall_ms),
            Self::Run(it) => (it.began.wall_ms, end(it.ended)),
        }
    }
}

/// Which records. All conditions must hold; those on a cookie leave findings only.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HistoryQuery {
    /// Not over before this, milliseconds since 1970.
    pub since_ms: Option<i64>,
    /// Begun before this, milliseconds since 1970.
    pub until_ms: Option<i64>,
    /// With this key or (if both are given) this semid.
    pub key: Option<Key>,
    /// With this semid.
    pub semid: Option<i32>,
}

impl HistoryQuery {
    /// Whether something of this time can be meant.
    pub fn covers_time(&self, (from, to): (i64, i64)) -> bool {
        self.since_ms.is_none_or(|since| to >= since)
            && self.until_ms.is_none_or(|until| from < until)
    }

    /// Whether a record is meant.
    pub fn matches(&self, record: &HistoryRecord) -> bool {
        if !self.covers_time(record.time_span()) {
            return false;
        }
        let (has_key, has_semid) = match record {
            HistoryRecord::Finding(finding) => (Some(finding.key), Some(finding.sem.semid)),
            HistoryRecord::Unread(it) => (it.key, it.semid),
            _ => (None, None),
        };
        match (self.key, self.semid) {
            (None, None) => true,
            (key, semid) => {
                key.is_some() && key == has_key || semid.is_some() && semid == has_semid
            }
        }
    }
}

/// What comes before the entries of an answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AnswerHead {
    /// Records that made room for newer ones, since the file was begun.
    pub dropped_for_space: u64,
    /// Records that were older than the retention, likewise.
    pub dropped_for_age: u64,
    /// Of those dropped for space, when the last one had ended; what is older may be incomplete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete_since_ms: Option<i64>,
    /// The last word of the service, milliseconds since 1970; now, while it runs.
    pub alive_ms: i64,
    /// What is wrong with it, one line each.
    pub notes: Vec<String>,
}

#[cfg(test)]
mod tests;
