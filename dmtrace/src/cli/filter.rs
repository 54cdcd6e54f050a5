//! Filters: the same names and the same meaning in every verb that has them.
//!
//! What lacks the property that is asked for does not pass: a set whose creator is unknown is not
//! made by user 0, a set that was not judged is in no state.

use std::time::Duration;

use clap::{
    Args,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use dmtrace_core::{
    event::workload::Workload,
    ids::{IpcNs, Key},
    ledger::{Change, Device, Ledger, Process},
    verdict::State,
};

#[cfg(feature = "live")]
use super::row::devices;
use super::value;
#[cfg(feature = "live")]

/// Heading of the filters in `--help`.
pub const HEADING: &str = "Filters";

/// Which semaphores.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub struct Filters {
    /// Made by this process.
    #[arg(long, value_name = "PID", help_heading = HEADING)]
    pub pid: Option<u32>,
    /// Made by a process of this name.
    #[arg(long, value_name = "NAME", help_heading = HEADING)]
    pub comm: Option<String>,
    /// Made by this user: a name or a number.
    #[arg(long, value_name = "USER", value_parser = value::uid, help_heading = HEADING)]
    pub uid: Option<u32>,
    /// Made in this container or unit: the beginning of its identifier, or its name.
    #[arg(long, value_name = "ID", help_heading = HEADING)]
    pub container: Option<String>,
    /// Used for this device: its name, UUID, number (253:3) or node (dm-3).
    #[arg(long, value_name = "DEVICE", help_heading = HEADING)]
    pub device: Option<String>,
    /// In this IPC namespace: a number, `host`, `self`, or a file such as /proc/1234/ns/ipc.
    #[arg(long, value_name = "NS", value_parser = value::ipc_ns, help_heading = HEADING)]
    pub ipc_ns: Option<IpcNs>,
    /// With this key: a cookie, in hexadecimal (0x0d4d1234) or decimal.
    #[arg(long, value_name = "KEY", value_parser = value::key, allow_negative_numbers = true, help_heading = HEADING)]
    pub key: Option<Key>,
    /// With this semid.
    #[arg(long, value_name = "SEMID", help_heading = HEADING)]
    pub semid: Option<i32>,
    /// In this state, or one of these (separated by commas).
    #[arg(
        long,
        value_name = "STATE",
        value_delimiter = ',',
        value_parser = states(),
        ignore_case = true,
        help_heading = HEADING
    )]
    pub state: Vec<State>,
    /// Older than this, such as 10m; a bare number is seconds.
    #[arg(long, value_name = "TIME", value_parser = value::duration, help_heading = HEADING)]
    pub min_age: Option<Duration>,
}

/// A state as an option takes it.
fn possible_value(state: State) -> PossibleValue {
    // Metrics and JSON of earlier versions had these.
    let earlier: &[&str] = match state {
        State::SlowUdev => &["slow_udev"],
        State::OverCompleted => &["over_completed"],
        State::CleanedUp => &["cleaned_up"],
        _ => &[],
    };
    PossibleValue::new(state.name())
        .help(state.about())
        .aliases(earlier)
}

/// Reads the name of a state; what is none is a usage error that lists them.
fn states() -> impl TypedValueParser<Value = State> {
    PossibleValuesParser::new(State::ALL.map(possible_value)).try_map(|text| {
        let mut states = State::ALL.into_iter();
        let named = states.find(|state| possible_value(*state).matches(&text, true));
        named.ok_or("no such state")
    })
}

/// What filters look at. `None`: it is not known, or there is no such thing.
#[derive(Clone, Debug, Default)]
pub struct Candidate<'a> {
    /// Creator.
    pub pid: Option<u32>,
    /// Its name; empty if it is not known.
    pub comm: &'a str,
    /// Its real uid, or the set's creator's.
    pub uid: Option<u32>,
    /// Its cgroup; empty if it is not known.
    pub cgroup: &'a str,
    /// IPC namespace.
    pub ns: Option<IpcNs>,
    /// Key.
    pub key: Option<Key>,
    /// semid.
    pub semid: Option<i32>,
    /// State.
    pub state: Option<State>,
    /// Age.
    pub age: Option<Duration>,
    /// Devices that it was used for.
    pub devices: &'a [Device],
}

impl<'a> Candidate<'a> {
    /// A process that got no semaphore. It has no key, semid, state, age or device.
    pub fn victim(process: &'a Process) -> Self {
        let image = process.image.as_deref();
        Self {
            pid: Some(process.image_id.id.tgid),
            comm: process.name.as_str(),
            uid: image.map(|image| image.uid),
            cgroup: image.map_or("", |image| image.cgroup.as_str()),
            ns: image.map(|image| image.ipc_ns),
            ..Self::default()
        }
    }
}

#[cfg(feature = "live")]
impl<'a> Candidate<'a> {
    /// A step in the life of a set. It is in no state: only findings are.
    pub fn step(change: &Change, ledger: &'a Ledger) -> Self {
        let semaphore = ledger
            .semaphore(change.sem)
            .or_else(|| ledger.closed_cookie(change.sem));
        // Who failed to make one, or made one that is gone already, stands for its creator. Who
        // only uses a set of an unknown creator has not made it.
        let creator = match semaphore {
            Some(set) => set.creator.image(),
            None => change.who.as_ref().map(|who| who.image),
        };
        let process = creator.and_then(|image| ledger.process(image));
        let image = process.and_then(|process| process.image.as_deref());
        Self {
            pid: creator.map(|image| image.id.tgid),
            comm: process.map_or("", |process| process.name.as_str()),
            uid: image.map(|image| image.uid),
            cgroup: image.map_or("", |image| image.cgroup.as_str()),
            ns: Some(change.sem.ns),
            key: Some(change.key),
            semid: Some(change.sem.semid),
            state: None,
            age: semaphore.and_then(|set| Some(change.at.since(set.created?))),
            devices: semaphore.map_or(&[], devices),
        }
    }
}

impl Filters {
    /// Whether nothing is filtered out.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Behind a sentence on what is not there: it is only said of what the filters choose.
    pub fn scope(&self) -> &'static str {
        if self.is_empty() {
            ""
        } else {
            " among those that the filters choose"
        }
    }

    /// Whether a namespace is wanted.
    pub fn wants_ns(&self, ns: IpcNs) -> bool {
        self.ipc_ns.is_none_or(|wanted| wanted == ns)
    }

    /// Whether it passes.
    pub fn pass(&self, it: &Candidate<'_>) -> bool {
        let devices = |wanted: &str| it.devices.iter().any(|device| device.is(wanted));
        self.pass_with(it, devices)
    }

    /// Whether it passes, where somebody else knows its devices.
    pub fn pass_with(&self, it: &Candidate<'_>, has_device: impl Fn(&str) -> bool) -> bool {
        fn is<T: PartialEq>(wanted: Option<&T>, got: Option<&T>) -> bool {
            wanted.is_none() || wanted == got
        }
        // All of them: a new one that is not looked at does not compile.
        let Self {
            pid,
            comm,
            uid,
            container,
            device,
            ipc_ns,
            key,
            semid,
            state,
            min_age,
        } = self;
        is(pid.as_ref(), it.pid.as_ref())
            && comm.as_deref().is_none_or(|comm| comm == it.comm)
            && is(uid.as_ref(), it.uid.as_ref())
            && container
                .as_deref()
                .is_none_or(|wanted| in_container(wanted, it.cgroup))
            && device.as_deref().is_none_or(has_device)
            && is(ipc_ns.as_ref(), it.ns.as_ref())
            && is(key.as_ref(), it.key.as_ref())
            && is(semid.as_ref(), it.semid.as_ref())
            && (state.is_empty() || it.state.is_some_and(|is| state.contains(&is)))
            && min_age.is_none_or(|min| it.age.is_some_and(|age| age >= min))
    }
}

fn in_container(wanted: &str, cgroup: &str) -> bool {
    let workload = Workload::from_cgroup(cgroup);
    workload
        .container
        .as_deref()
        .is_some_and(|id| id.starts_with(wanted))
        || workload.pod.as_deref() == Some(wanted)
        || workload.unit.as_deref() == Some(wanted)
}

#[cfg(test)]
mod tests;
