//! Filters: the same names and the same meaning in every verb that has them.
//!
//! What lacks the property that is asked for does not pass: a set whose creator is unknown is not
//! made by user 0, a set that was not judged is in no state.

pub(super) use crate::wording::shell_word;

use std::{collections::BTreeMap, time::Duration};

use clap::{
    Args,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use dmtrace_core::{
    event::workload::Workload,
    facts::{NsSnapshot, SetSnapshot},
    ids::{IpcNs, Key, SemId},
    verdict::State,
};

use super::value;
use crate::{
    case::Case,
    render::{candidate::Candidate, row::Row},
    wording::count_noun,
};

/// Heading of the filters in `--help`.
pub(super) const HEADING: &str = "Filters";

/// Which semaphores.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub struct Filters {
    /// Made by this process.
    #[arg(long, value_name = "PID", value_parser = value::parse_number::<u32>, help_heading = HEADING)]
    pub pid: Option<u32>,
    /// Made by a process of this name.
    #[arg(long, value_name = "NAME", help_heading = HEADING)]
    pub comm: Option<String>,
    /// Made by this user: a name or a number.
    #[arg(long, value_name = "USER", value_parser = value::parse_uid, help_heading = HEADING)]
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
    #[arg(long, value_name = "KEY", value_parser = value::parse_key, allow_negative_numbers = true, help_heading = HEADING)]
    pub key: Option<Key>,
    /// With this semid.
    #[arg(long, value_name = "SEMID", value_parser = value::parse_number::<i32>, help_heading = HEADING)]
    pub semid: Option<i32>,
    /// In this state, or one of these (separated by commas).
    #[arg(
        long,
        value_name = "STATE",
        value_delimiter = ',',
        value_parser = state_parser(),
        ignore_case = true,
        help_heading = HEADING
    )]
    pub state: Vec<State>,
    /// Older than this, such as 10m; a bare number is seconds.
    #[arg(long, value_name = "TIME", value_parser = value::duration_arg, help_heading = HEADING)]
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
        .help(state.description())
        .aliases(earlier)
}

/// Reads the name of a state; what is none is a usage error that lists them.
fn state_parser() -> impl TypedValueParser<Value = State> {
    PossibleValuesParser::new(State::ALL.map(possible_value)).try_map(|text| {
        let mut states = State::ALL.into_iter();
        let named = states.find(|state| possible_value(*state).matches(&text, true));
        named.ok_or("no such state")
    })
}

impl Filters {
    /// Whether nothing is filtered out.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Behind a sentence on what is not there: it is only said of what the filters choose.
    pub fn scope_text(&self) -> &'static str {
        if self.is_empty() {
            ""
        } else {
            " matching the filters"
        }
    }

    /// That cookies were left out because nobody knows who made them. `None` if there are none, or
    /// if nothing was asked for that only a trace tells.
    pub(super) fn unknown_makers_text(&self, case: &Case) -> Option<String> {
        let by_maker = self.pid.is_some()
            || self.comm.is_some()
            || self.container.is_some()
            || self.device.is_some();
        if !by_maker {
            return None;
        }
        let others = Self {
            pid: None,
            comm: None,
            container: None,
            device: None,
            state: Vec::new(),
            ..self.clone()
        };
        let cookies = case.ledger.live_sets().filter(|set| set.is_cookie());
        let sets: BTreeMap<SemId, &SetSnapshot> = case.snapshot.sets().collect();
        let unknown = cookies.filter(|set| {
            let known = sets.get(&set.id).copied();
            let row = Row::from_books(&case.ledger, set, known, case.facts.now);
            let it = row.candidate();
            it.pid.is_none() && it.comm.is_empty() && others.passes(&it)
        });
        match unknown.count() {
            0 => None,
            count => Some(format!(
                "not looked at: {}, whose maker is not known; dmtrace watch or record knows those \
                 that are made while it runs",
                count_noun(count, "cookie", "cookies")
            )),
        }
    }

    /// As they are given on a command line, each after a space: for the next command.
    pub fn args_text(&self) -> String {
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
        let states: Vec<&str> = state.iter().map(|state| state.name()).collect();
        let given = [
            ("pid", pid.map(|pid| pid.to_string())),
            ("comm", comm.clone()),
            ("uid", uid.map(|uid| uid.to_string())),
            ("container", container.clone()),
            ("device", device.clone()),
            ("ipc-ns", ipc_ns.map(|ns| ns.to_string())),
            ("key", key.map(|key| key.to_string())),
            ("semid", semid.map(|semid| semid.to_string())),
            ("state", (!states.is_empty()).then(|| states.join(","))),
            ("min-age", min_age.map(value::duration_word)),
        ];
        let words = given.into_iter().filter_map(|(name, value)| {
            let value = value?;
            Some(format!(" --{name} {}", shell_word(&value)))
        });
        words.collect()
    }

    /// Whether a namespace is wanted.
    pub fn wants_ns(&self, ns: IpcNs) -> bool {
        self.ipc_ns.is_none_or(|wanted| wanted == ns)
    }

    /// That the namespace that is asked for was not read, if so.
    pub fn missing_ns_text(&self, read: &[NsSnapshot]) -> Option<String> {
        let ns = self.ipc_ns?;
        let missing = !read.iter().any(|read| read.ns == ns);
        missing.then(|| format!("--ipc-ns: no IPC namespace {ns} was read; it may have ended"))
    }

    /// Whether it passes.
    pub fn passes(&self, it: &Candidate<'_>) -> bool {
        let has_device = |wanted: &str| it.devices.iter().any(|device| device.matches(wanted));
        fn is_wanted<T: PartialEq>(wanted: Option<&T>, got: Option<&T>) -> bool {
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
        is_wanted(pid.as_ref(), it.pid.as_ref())
            && comm.as_deref().is_none_or(|comm| comm == it.comm)
            && is_wanted(uid.as_ref(), it.uid.as_ref())
            && container
                .as_deref()
                .is_none_or(|wanted| in_container(wanted, it.cgroup))
            && device.as_deref().is_none_or(has_device)
            && is_wanted(ipc_ns.as_ref(), it.ns.as_ref())
            && is_wanted(key.as_ref(), it.key.as_ref())
            && is_wanted(semid.as_ref(), it.semid.as_ref())
            && (state.is_empty()
                || [it.state, it.later_state]
                    .iter()
                    .flatten()
                    .any(|is| state.contains(is)))
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
