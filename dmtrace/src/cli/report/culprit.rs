//! Who leaks, on one screen: processes that did the same are one entry.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Result;
use dmtrace_core::event::{CallSite, workload::Workload};
use serde::Serialize;
use serde_json::Value;

use crate::{
    output::{Out, time, wrap_text},
    render::{
        culprits::{Leak, LeakCounts, innermost_calls},
        removal::{self, first_few},
        row::ancestors_line,
    },
    wording::count_noun,
};

/// Columns of the text, and of what stands before it in the lines of an entry.
const WIDTH: usize = 80;
const INDENT: usize = 10;
/// So many of a kind are named in one entry.
const NAMED: usize = 3;

/// Leaks of processes that did the same: the same program, the same end, the same calls.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ReportCulprit {
    /// Path of the executable, or its name.
    pub(crate) executable: String,
    pub(crate) how: String,
    /// The calls, in one line.
    pub(crate) calls: Option<String>,
    #[serde(flatten)]
    pub(crate) counts: LeakCounts,
    /// Processes that left them.
    pub(crate) processes: usize,
    /// Their numbers, as far as they are known.
    pub(crate) pids: BTreeSet<u32>,
    /// Containers and units of systemd that they ran in, with their cookies.
    pub(crate) workloads: BTreeMap<String, usize>,
    /// Age of the oldest, seconds.
    pub(crate) oldest_seconds: Option<u64>,
    /// Devices that they were used for, the first few.
    pub(crate) devices: Vec<String>,
    pub(crate) call_site: Option<Value>,
    /// `name[pid]` of each; one is named where there is only one.
    #[serde(skip)]
    owners: BTreeSet<String>,
    /// What they were called with.
    #[serde(skip)]
    commands: BTreeSet<String>,
    /// What they ran below.
    #[serde(skip)]
    parents: BTreeSet<String>,
    /// Others did the same, and their calls are known.
    #[serde(skip)]
    calls_missing: bool,
}

/// Puts together what did the same. The program that leaks most comes first.
pub(crate) fn group_culprits(leaked: &[Leak]) -> Vec<ReportCulprit> {
    let mut found: BTreeMap<(String, String, Option<String>), ReportCulprit> = BTreeMap::new();
    let mut programs: BTreeMap<String, usize> = BTreeMap::new();
    for leak in leaked {
        let image = leak.image.as_ref();
        let program = leak.program();
        *programs.entry(program.clone()).or_default() += 1;
        let calls = leak.site.as_ref().map(CallSite::chain_line);
        let key = (program, leak.how.clone(), calls);
        let culprit = found.entry(key.clone()).or_insert_with(|| ReportCulprit {
            executable: key.0,
            how: key.1,
            calls: key.2,
            call_site: leak.site.as_ref().map(CallSite::to_json),
            ..ReportCulprit::default()
        });
        culprit.counts.add_leak(leak);
        culprit.oldest_seconds = culprit.oldest_seconds.max(leak.age_seconds);
        culprit.pids.extend(leak.pid);
        culprit.owners.extend(leak.owner.clone());
        for device in &leak.devices {
            if culprit.devices.len() < 5 && !culprit.devices.contains(device) {
                culprit.devices.push(device.clone());
            }
        }
        if let Some(image) = image {
            let workload = Workload::from_cgroup(&image.cgroup).to_string();
            if workload != "-" {
                *culprit.workloads.entry(workload).or_default() += 1;
            }
            culprit.commands.insert(image.command_line());
            culprit.parents.extend(ancestors_line(image));
        }
    }
    let mut ranked: Vec<ReportCulprit> = found.into_values().collect();
    for culprit in &mut ranked {
        culprit.processes = culprit.owners.len();
    }
    let with_calls: BTreeSet<(String, String)> = ranked
        .iter()
        .filter(|culprit| culprit.calls.is_some())
        .map(|culprit| (culprit.executable.clone(), culprit.how.clone()))
        .collect();
    for culprit in ranked.iter_mut().filter(|it| it.calls.is_none()) {
        let same = (culprit.executable.clone(), culprit.how.clone());
        culprit.calls_missing = with_calls.contains(&same);
    }
    ranked.sort_by(|a, b| {
        let whole = |it: &ReportCulprit| programs.get(&it.executable).copied();
        whole(b)
            .cmp(&whole(a))
            .then_with(|| a.executable.cmp(&b.executable))
            .then_with(|| b.counts.total.cmp(&a.counts.total))
    });
    ranked
}

/// Prints so many of them, and what is left out.
pub(crate) fn print_culprits(culprits: &[ReportCulprit], most: usize, out: &mut Out) -> Result<()> {
    if culprits.is_empty() {
        return Ok(());
    }
    out.print_line("WHO LEAKS")?;
    for culprit in culprits.iter().take(most) {
        print_culprit(culprit, out)?;
    }
    let rest = culprits.get(most..).unwrap_or_default();
    if !rest.is_empty() {
        let cookies: usize = rest.iter().map(|it| it.counts.total).sum();
        let processes: usize = rest.iter().map(|it| it.processes).sum();
        let text = format!(
            "and {} of {} more: --all",
            count_noun(cookies, "cookie", "cookies"),
            count_noun(processes, "process", "processes")
        );
        out.print_line(&format!("  {text}"))?;
    }
    Ok(out.print_line("")?)
}

fn print_culprit(culprit: &ReportCulprit, out: &mut Out) -> Result<()> {
    let place = match first_few(culprit.workloads.keys().map(String::as_str)) {
        text if text.is_empty() => text,
        text => format!(", in {text}"),
    };
    let head = format!("{}{place}", culprit.executable);
    for (number, line) in wrap_text(&head, WIDTH - INDENT).iter().enumerate() {
        if number == 0 {
            out.print_line(&format!("  {:>6}  {line}", culprit.counts.total))?;
        } else {
            out.print_line(&format!("{:INDENT$}{line}", ""))?;
        }
    }
    let mut line = |label: &str, text: &str| -> Result<()> {
        for (number, part) in wrap_text(text, WIDTH - 2 * INDENT).iter().enumerate() {
            let label = if number == 0 { label } else { "" };
            out.print_line(&format!("{:INDENT$}{label:<10}{part}", ""))?;
        }
        Ok(())
    };
    if let Some(calls) = &culprit.calls {
        line("calls", &innermost_calls(calls))?;
    }
    if culprit.calls_missing {
        line(
            "calls",
            "not captured: their messages were lost, or the stack could not be read",
        )?;
    }
    line("what", &culprit.how)?;
    let LeakCounts {
        total, inferred, ..
    } = culprit.counts;
    if inferred > 0 {
        line("", &format!("{inferred} of {total} inferred, not seen"))?;
    }
    if let Some(text) = removal::removed_text(&culprit.counts) {
        line("removed", &text)?;
    }
    let age = culprit.oldest_seconds.map_or_else(String::new, |seconds| {
        format!("; oldest {}", time::age_text(Duration::from_secs(seconds)))
    });
    let who = match (culprit.processes, culprit.owners.first()) {
        (0, _) => "who it was is not known".to_owned(),
        (1, Some(owner)) => owner.clone(),
        (processes, _) => {
            let pids: Vec<String> = culprit.pids.iter().map(ToString::to_string).collect();
            let pids = first_few(pids.iter().map(String::as_str));
            format!("{}: {pids}", count_noun(processes, "process", "processes"))
        }
    };
    line("who", &format!("{who}{age}"))?;
    if !culprit.devices.is_empty() {
        line("devices", &culprit.devices.join(", "))?;
    }
    for (label, kind, all) in [
        ("command", "command", &culprit.commands),
        ("below", "chain", &culprit.parents),
    ] {
        for (number, text) in all.iter().take(NAMED).enumerate() {
            line(if number == 0 { label } else { "" }, text)?;
        }
        if let Some(more @ 1..) = all.len().checked_sub(NAMED) {
            line(
                "",
                &format!(
                    "and {}",
                    count_noun(more, &format!("more {kind}"), &format!("more {kind}s"))
                ),
            )?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::culprits::tests::sample_leaks;
    use dmtrace_core::event::ProcessImage;

    fn sample_leak(pid: u32, exe: &str, how: &str, cgroup: &str) -> Leak {
        Leak {
            owner: Some(format!("actor[{pid}]+")),
            pid: Some(pid),
            comm: "actor".to_owned(),
            how: how.to_owned(),
            observed: true,
            is_listed: true,
            age_seconds: Some(u64::from(pid)),
            key: format!("0x0d4d{pid:04x}"),
            image: Some(ProcessImage {
                exe: Some(exe.to_owned()),
                cmdline: Some(vec!["actor".to_owned(), "cycle".to_owned()]),
                cgroup: cgroup.to_owned(),
                ..ProcessImage::default()
            }),
            ..Leak::default()
        }
    }

    fn printed_text(leaked: &[Leak], most: usize) -> String {
        let page = crate::cli::tests::TestPage::default();
        let mut out = page.out();
        print_culprits(&group_culprits(leaked), most, &mut out).unwrap();
        out.flush().unwrap();
        page.text()
    }

    #[test]
    fn equal_processes_are_one_entry_on_one_screen() {
        let killed = "owner killed by SIGKILL before waiting";
        let mut leaks: Vec<Leak> = (1..=128)
            .map(|pid| {
                sample_leak(
                    pid,
                    "/usr/sbin/lvcreate",
                    killed,
                    "/system.slice/lvm.service",
                )
            })
            .collect();
        // One of them left a second one.
        leaks.push(sample_leak(
            7,
            "/usr/sbin/lvcreate",
            killed,
            "/system.slice/lvm.service",
        ));
        let text = printed_text(&leaks, 5);
        assert!(text.lines().count() <= 10, "{text}");
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        let first = text.lines().nth(1).unwrap();
        assert!(
            first.contains("129  /usr/sbin/lvcreate, in lvm.service"),
            "{text}"
        );
        assert!(
            text.contains("128 processes: 1, 2, 3 and 125 more; oldest"),
            "{text}"
        );
        assert_eq!(text.matches(killed).count(), 1, "{text}");
        assert!(!text.contains("--all"), "{text}");
    }

    #[test]
    fn what_differs_is_told_apart_and_what_is_left_out_is_counted() {
        let mut leaks = Vec::new();
        for program in 0..9 {
            for pid in 0..=program {
                let exe = format!("/bin/{program}");
                leaks.push(sample_leak(100 * program + pid, &exe, "owner exited", "/"));
            }
        }
        leaks.push(sample_leak(
            899,
            "/bin/8",
            "owner went on and never waited",
            "/",
        ));
        let found = group_culprits(&leaks);
        assert_eq!(found.len(), 10);
        // The program that leaks most, with both of its entries.
        assert_eq!(found[0].executable, "/bin/8");
        assert_eq!(found[1].executable, "/bin/8");
        assert_eq!((found[0].counts.total, found[1].counts.total), (9, 1));
        let short = printed_text(&leaks, 5);
        // 46 cookies, of which 9 + 1 + 8 + 7 + 6 are shown.
        assert!(
            short.contains("and 15 cookies of 15 processes more: --all"),
            "{short}"
        );
        let all = printed_text(&leaks, usize::MAX);
        assert!(!all.contains("more: --all"), "{all}");
        for program in 0..9 {
            assert!(all.contains(&format!("/bin/{program}")), "{all}");
        }
    }

    #[test]
    fn each_command_of_an_entry_is_told_up_to_a_few() {
        let told = |commands: &[&str]| printed_text(&sample_leaks(commands), 5);
        let two = told(&["mk.py 1", "mk.py 2", "mk.py 1"]);
        assert!(two.contains("3 processes"), "{two}");
        assert!(two.contains("command   mk.py 1\n"), "{two}");
        assert!(two.contains("          mk.py 2\n"), "{two}");
        assert_eq!(two.matches("mk.py 1").count(), 1, "{two}");
        let many: Vec<String> = (0..130).map(|it| format!("mk.py {it}")).collect();
        let many = told(&many.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(many.contains("and 127 more commands"), "{many}");
        assert!(many.lines().count() <= 10, "{many}");
    }

    #[test]
    fn calls_that_were_lost_are_said_to_be() {
        let mut leaks = sample_leaks(&["mk.py", "mk.py"]);
        let alone = printed_text(&leaks, 5);
        assert!(!alone.contains("not captured"), "{alone}");
        leaks[0].site = Some(CallSite::default());
        let text = printed_text(&leaks, 5);
        assert_eq!(
            text.matches("calls     not captured: ").count(),
            1,
            "{text}"
        );
    }

    #[test]
    fn nobody_is_named_where_nobody_is_known() {
        let leaks = [Leak {
            how: "owner gone".to_owned(),
            ..Leak::default()
        }];
        let text = printed_text(&leaks, 5);
        assert!(text.contains("who it was is not known"), "{text}");
        assert!(text.contains("1 of 1 inferred"), "{text}");
    }
}
