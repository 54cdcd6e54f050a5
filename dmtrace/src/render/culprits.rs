//! Leaked cookies, ranked by who made them. They are those of now, or those of a history.

use std::collections::BTreeMap;

use dmtrace_core::{
    event::{CallSite, ProcessImage, workload::Workload},
    ledger::Device,
};
use serde::Serialize;
use serde_json::{Value, json};

use super::leak_end::LeakEnd;
use crate::render::row::{Row, confidence_word, describe_process};

/// Leaks in numbers: those that are there, and those that somebody has removed since.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct LeakCounts {
    /// In the list `leaked`: on a machine and in a recording those that are there, of a history all.
    pub(crate) leaked: usize,
    /// Of these, seen and not inferred.
    pub(crate) observed: usize,
    /// That somebody has removed since.
    pub(crate) removed: usize,
    /// All of them, there or not.
    pub(crate) total: usize,
    /// Who removed them: `name[pid]`, with counts.
    pub(crate) removed_by: BTreeMap<String, usize>,
    /// Of all, not seen but inferred.
    #[serde(skip)]
    pub(crate) inferred: usize,
}

impl LeakCounts {
    pub(crate) fn add_leak(&mut self, leak: &Leak) {
        self.total += 1;
        self.inferred += usize::from(!leak.observed);
        if leak.is_listed {
            self.leaked += 1;
            self.observed += usize::from(leak.observed);
        }
        if let Some(end) = leak.end.as_ref().filter(|end| end.is_removal()) {
            self.removed += 1;
            if let Some(by) = &end.by {
                *self.removed_by.entry(by.clone()).or_default() += 1;
            }
        }
    }
}

/// Leaks of one process, executable or container.
#[derive(Default, Serialize)]
pub(crate) struct CulpritGroup {
    /// What they have in common, for people.
    pub(crate) name: String,
    #[serde(flatten)]
    pub(crate) counts: LeakCounts,
    /// Age of the oldest, seconds.
    pub(crate) oldest_seconds: Option<u64>,
    /// What happened to them, with counts.
    pub(crate) how: BTreeMap<String, usize>,
    /// The first few, by key.
    pub(crate) examples: Vec<String>,
    /// Devices that they were used for, the first few.
    pub(crate) devices: Vec<String>,
    /// Details of one process behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) process: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) call_site: Option<Value>,
    #[serde(skip)]
    pub(crate) lines: Vec<String>,
    /// Processes that have the same here have done the same.
    #[serde(skip)]
    pub(crate) kind: Option<String>,
}

/// What to group a report by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GroupBy {
    Process,
    Executable,
    /// One container, or unit of systemd.
    Container,
    /// One call site: the chain of calls that made the cookie.
    Stack,
}

impl GroupBy {
    pub const ALL: [Self; 4] = [
        Self::Process,
        Self::Executable,
        Self::Container,
        Self::Stack,
    ];

    /// Its name, as options and JSON have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Executable => "executable",
            Self::Container => "container",
            Self::Stack => "stack",
        }
    }

    /// What it stands for.
    pub const fn description(self) -> &'static str {
        match self {
            Self::Process => "One process",
            Self::Executable => "One executable",
            Self::Container => "One container, or unit of systemd",
            Self::Stack => "One call site: the chain of calls that made the cookie",
        }
    }
}

/// What is needed of a leaked cookie.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leak {
    /// `name[pid]` of who made it, with its marks; `None` if that is not known.
    pub(crate) owner: Option<String>,
    /// Number of who made it.
    pub(crate) pid: Option<u32>,
    pub(crate) comm: String,
    /// What happened to it.
    pub(crate) how: String,
    /// Whether that was seen, and not inferred.
    pub(crate) observed: bool,
    /// Age in seconds.
    pub(crate) age_seconds: Option<u64>,
    /// The cookie, in hexadecimal.
    pub(crate) key: String,
    /// Devices, by name and number.
    pub(crate) devices: Vec<String>,
    pub(crate) image: Option<ProcessImage>,
    /// The calls that made it.
    pub(crate) site: Option<CallSite>,
    /// Whether the list `leaked` has it.
    pub(crate) is_listed: bool,
    /// How it ended; `None` while it is there.
    pub(crate) end: Option<LeakEnd>,
}

impl Leak {
    /// Of a cookie that is there, or that was removed.
    pub(crate) fn from_row(row: &Row<'_>) -> Self {
        let verdict = row.verdict.as_ref();
        Self {
            owner: row.pid().map(|_| row.owner_text()),
            pid: row.pid(),
            comm: row.comm().to_owned(),
            how: verdict.map_or_else(String::new, |verdict| leak_text(&verdict.class.to_string())),
            observed: verdict.is_some_and(|verdict| confidence_word(verdict) == "observed"),
            age_seconds: row.age.map(|age| age.as_secs()),
            key: format!("{:#010x}", row.semaphore.key.0),
            devices: row.devices().iter().map(Device::full_label).collect(),
            image: row.image.cloned(),
            site: row.call_site().cloned(),
            is_listed: row.semaphore.is_live(),
            end: row.semaphore.ending.as_ref().map(LeakEnd::from_ending),
        }
    }

    /// The program that made it: the path of its executable, or its name.
    pub(crate) fn program(&self) -> String {
        let exe = self.image.as_ref().and_then(|image| image.exe.as_deref());
        program_path(exe, &self.comm)
    }

    fn group_name(&self, by: GroupBy) -> String {
        match by {
            GroupBy::Process => self.owner.clone().unwrap_or_else(|| "unknown".to_owned()),
            GroupBy::Executable => self.program(),
            GroupBy::Container => match &self.image {
                Some(image) => match Workload::from_cgroup(&image.cgroup).to_string().as_str() {
                    "-" => format!("no container (cgroup {})", image.cgroup),
                    workload => workload.to_owned(),
                },
                None => "unknown".to_owned(),
            },
            GroupBy::Stack => self
                .site
                .as_ref()
                .map_or_else(|| "unknown".to_owned(), CallSite::chain_line),
        }
    }
}

/// The calls next to the one that made the cookie: a line, or one screen, is no place for all.
pub(crate) fn innermost_calls(calls: &str) -> String {
    const CALLS: usize = 6;
    match calls.match_indices(" < ").nth(CALLS - 1) {
        Some((end, _)) => format!("{} < ...", &calls[..end]),
        None => calls.to_owned(),
    }
}

/// Groups them in each way that was asked for.
pub(crate) fn group_all(
    leaked: &[Leak],
    asked: Option<GroupBy>,
) -> Vec<(GroupBy, Vec<CulpritGroup>)> {
    [GroupBy::Process, GroupBy::Executable, GroupBy::Container]
        .into_iter()
        .chain(asked.filter(|by| *by == GroupBy::Stack))
        .filter(|by| asked.is_none_or(|wanted| wanted == *by))
        .map(|by| (by, group_by(leaked, by)))
        .collect()
}

/// Groups them, the largest first.
fn group_by(leaked: &[Leak], by: GroupBy) -> Vec<CulpritGroup> {
    let mut groups: BTreeMap<String, CulpritGroup> = BTreeMap::new();
    for leak in leaked {
        let name = leak.group_name(by);
        let group = groups.entry(name.clone()).or_default();
        group.name = name;
        group.counts.add_leak(leak);
        if !leak.how.is_empty() {
            *group.how.entry(leak.how.clone()).or_default() += 1;
        }
        group.oldest_seconds = group.oldest_seconds.max(leak.age_seconds);
        if group.examples.len() < 3 {
            group.examples.push(leak.key.clone());
        }
        for device in &leak.devices {
            if group.devices.len() < 5 && !group.devices.contains(device) {
                group.devices.push(device.clone());
            }
        }
        if by == GroupBy::Process && group.process.is_none() {
            group.process = leak.image.as_ref().map(|image| json!(image));
            let site = leak.site.as_ref().map(CallSite::chain_line);
            group.kind = Some(format!(
                "{} {} {site:?} {:?}",
                leak.group_name(GroupBy::Executable),
                leak.group_name(GroupBy::Container),
                leak.image.as_ref().map(|image| image.uid)
            ));
            group.lines = leak.image.as_ref().map_or_else(Vec::new, |image| {
                let lines = describe_process(image).into_iter();
                lines
                    .map(|(label, text)| format!("{label:<10}{text}"))
                    .collect()
            });
            let site = leak.site.as_ref().map(CallSite::chain_line);
            group
                .lines
                .extend(site.map(|calls| format!("call site {calls}")));
        }
        if by == GroupBy::Stack && group.call_site.is_none() {
            group.call_site = leak.site.as_ref().map(CallSite::to_json);
            group.lines = leak
                .site
                .as_ref()
                .map(CallSite::chain_lines)
                .unwrap_or_default();
        }
    }
    let mut ranked: Vec<CulpritGroup> = groups.into_values().collect();
    ranked.sort_by(|a, b| {
        let more = b.counts.total.cmp(&a.counts.total);
        more.then_with(|| a.name.cmp(&b.name))
    });
    ranked
}

/// What stands for a program: the path of its executable, or its name.
pub(crate) fn program_path(exe: Option<&str>, comm: &str) -> String {
    match exe {
        Some(exe) => exe.to_owned(),
        None if comm.is_empty() => "unknown".to_owned(),
        None => format!("{comm} (path unknown)"),
    }
}

/// What happened, where it is clear that it leaked.
pub(crate) fn leak_text(text: &str) -> String {
    let mut prefixes = ["leaked: ", "cleaned up after a leak: "].into_iter();
    let rest = prefixes.find_map(|prefix| text.strip_prefix(prefix));
    rest.unwrap_or(text).to_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One of each process of a program, which were called with these command lines.
    pub(crate) fn sample_leaks(commands: &[&str]) -> Vec<Leak> {
        let leak = |(number, command): (usize, &&str)| Leak {
            owner: Some(format!("python3[{}]+", number + 1)),
            pid: u32::try_from(number + 1).ok(),
            comm: "python3".to_owned(),
            how: "owner exited".to_owned(),
            observed: true,
            is_listed: true,
            image: Some(ProcessImage {
                exe: Some("/usr/bin/python3".to_owned()),
                cmdline: Some(command.split(' ').map(str::to_owned).collect()),
                ns_pid: u32::try_from(number + 1).unwrap_or_default(),
                cgroup: "/".to_owned(),
                ..ProcessImage::default()
            }),
            ..Leak::default()
        };
        commands.iter().enumerate().map(leak).collect()
    }
}
