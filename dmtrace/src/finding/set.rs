//! A set, and what was found out about it.

use dmtrace_core::{
    event::{CallSite, ProcessImage, workload::Workload},
    ids::{BootTime, IpcNs, Key},
    ledger::{Device, ProcessExit},
    verdict::{Class, Culprit, MissingStep, Pending},
};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::lenient::{key, lenient, lenient_list};

/// How something is known.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Known {
    /// It was seen.
    Observed,
    /// It is the best explanation of what was seen.
    Inferred,
    /// Every process that could act was searched.
    Searched,
    /// It is not known.
    #[default]
    Unknown,
}

/// A semaphore set with its verdict.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SetReport {
    /// Where it is.
    #[serde(deserialize_with = "lenient")]
    pub ipc_ns: IpcNs,
    /// Its number there.
    #[serde(deserialize_with = "lenient")]
    pub semid: i32,
    /// Its key: for a cookie, the cookie.
    #[serde(with = "key")]
    pub key: Key,
    /// Whether it is a cookie, by its key.
    #[serde(deserialize_with = "lenient")]
    pub cookie: bool,
    /// Semaphores in it.
    #[serde(deserialize_with = "lenient")]
    pub nsems: u32,
    /// Value of the first one.
    #[serde(deserialize_with = "lenient")]
    pub value: Option<i32>,
    /// Threads that wait.
    #[serde(deserialize_with = "lenient")]
    pub waiting: Option<u32>,
    /// Its age.
    #[serde(deserialize_with = "lenient")]
    pub age_seconds: Option<u64>,
    /// When it was made, if that was seen.
    #[serde(deserialize_with = "lenient")]
    pub created_boot_ns: Option<BootTime>,
    /// What it is, in one word; `-` if it was not judged.
    #[serde(deserialize_with = "lenient")]
    pub state: String,
    /// Why that is not final, if it is not.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
    /// How it is known who made it.
    #[serde(deserialize_with = "lenient")]
    pub owner_known: Known,
    /// Who made it, or is held responsible.
    #[serde(deserialize_with = "lenient")]
    pub owner: Option<SetOwner>,
    /// What a cookie was used for.
    #[serde(flatten)]
    pub usage: Option<CookieUsage>,
    /// The calls that made it. Where findings are stored they are kept apart, with what is not
    /// shown here.
    #[serde(
        serialize_with = "calls_as_shown",
        skip_deserializing,
        skip_serializing_if = "Option::is_none"
    )]
    pub call_site: Option<CallSite>,
    /// What the kernel says of it, for a set that is there.
    #[serde(flatten)]
    pub fields: Option<SetFields>,
    /// What was captured of who made it.
    #[serde(flatten)]
    pub maker: Option<Maker>,
    /// The judgement, if there is one.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub verdict: Option<VerdictReport>,
}

/// Who made a set.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct SetOwner {
    /// Number of the process.
    pub pid: u32,
    /// Its name; empty if that is not known.
    #[serde(default, deserialize_with = "lenient")]
    pub comm: String,
    /// Whether it has ended, if that is known.
    #[serde(default, deserialize_with = "lenient")]
    pub ended: Option<bool>,
    /// Its end.
    #[serde(default, deserialize_with = "lenient")]
    pub exit: Option<ProcessExit>,
}

/// What a cookie was used for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CookieUsage {
    /// Devices, the last one last.
    #[serde(deserialize_with = "lenient_list")]
    pub devices: Vec<Device>,
    /// Further ones, not kept.
    #[serde(default, deserialize_with = "lenient")]
    pub devices_more: u32,
    /// Ioctls with the cookie.
    #[serde(default, deserialize_with = "lenient")]
    pub ioctls: IoctlCounts,
}

/// Counts of device-mapper ioctls with a cookie.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IoctlCounts {
    /// That have returned.
    pub returned: u32,
    /// Of these, failed.
    pub failed: u32,
    /// Of these, with a uevent.
    pub uevents: u32,
}

/// What the kernel says of a set.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct SetFields {
    /// Permission bits, in octal digits.
    pub mode: String,
    /// Owner.
    #[serde(default, deserialize_with = "lenient")]
    pub uid: Option<u32>,
    /// Creator.
    #[serde(default, deserialize_with = "lenient")]
    pub cuid: Option<u32>,
    /// When it was made or changed, RFC 3339.
    #[serde(default, deserialize_with = "lenient")]
    pub ctime: Option<String>,
    /// Its last operation, RFC 3339.
    #[serde(default, deserialize_with = "lenient")]
    pub otime: Option<String>,
    /// Process of that operation.
    #[serde(default, deserialize_with = "lenient")]
    pub last_pid: Option<u32>,
}

/// What was captured of who made a set.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Maker {
    /// The process.
    pub process: ProcessImage,
    /// Container, pod or unit that it belongs to.
    #[serde(default, deserialize_with = "lenient")]
    pub workload: Workload,
}

/// The judgement on a set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VerdictReport {
    /// What it is.
    #[serde(deserialize_with = "lenient")]
    pub class: Option<Class>,
    /// The same in words.
    #[serde(deserialize_with = "lenient")]
    pub text: String,
    /// How sure that is.
    #[serde(deserialize_with = "lenient")]
    pub confidence: Known,
    /// Why it is not known, in words.
    #[serde(deserialize_with = "lenient")]
    pub reason: Option<String>,
    /// What it rests on, most important first.
    #[serde(deserialize_with = "lenient_list")]
    pub evidence: Vec<String>,
    /// The step of the protocol that did not happen.
    #[serde(deserialize_with = "lenient")]
    pub missing_step: Option<MissingStep>,
    /// Who is responsible, if that is established.
    #[serde(deserialize_with = "lenient")]
    pub culprit: Option<Culprit>,
}

impl SetReport {
    /// The JSON object.
    pub(crate) fn to_json(&self) -> Value {
        // The types have no maps with keys that are no strings, the only cause.
        serde_json::to_value(self).unwrap_or_default()
    }

    /// `name[pid]` of who made it, with `?` if that is inferred and `+` if it has ended.
    pub(crate) fn owner_label(&self) -> Option<String> {
        let SetOwner { pid, comm, .. } = self.owner.as_ref()?;
        let name = if comm.is_empty() { "?" } else { comm };
        Some(format!("{name}[{pid}]{}", self.owner_mark()))
    }

    /// What stands behind a name that is inferred, or has ended.
    pub(crate) fn owner_mark(&self) -> &'static str {
        let ended = self.owner.as_ref().and_then(|owner| owner.ended);
        owner_mark(self.owner_known, ended)
    }

    /// Devices that it was used for.
    pub(crate) fn devices(&self) -> &[Device] {
        self.usage.as_ref().map_or(&[], |usage| &usage.devices)
    }

    /// The process that made it, as far as it was captured.
    pub(crate) fn image(&self) -> Option<&ProcessImage> {
        self.maker.as_ref().map(|maker| &maker.process)
    }
}

/// What stands behind the name of a process.
pub(crate) const fn owner_mark(known: Known, ended: Option<bool>) -> &'static str {
    match (known, ended) {
        (Known::Inferred, _) => "?",
        (_, Some(true)) => "+",
        _ => "",
    }
}

fn calls_as_shown<S: Serializer>(calls: &Option<CallSite>, to: S) -> Result<S::Ok, S::Error> {
    calls.as_ref().map(CallSite::to_json).serialize(to)
}
