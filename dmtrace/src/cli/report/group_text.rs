//! Who leaks, for people: ranked by process, executable, container or call site.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;

use super::{
    ReportLimit,
    culprit::{self, ReportCulprit},
};
use crate::{
    output::{Out, time, wrap_text},
    render::{
        culprits::{CulpritGroup, GroupBy, LeakCounts},
        removal,
    },
};

/// Who leaks: grouped in the way that was asked for, else on one screen.
pub(crate) fn who_leaks(
    culprits: &[ReportCulprit],
    groups: &[(GroupBy, Vec<CulpritGroup>)],
    limit: ReportLimit,
    out: &mut Out,
) -> Result<()> {
    let [(by, groups)] = groups else {
        return culprit::print_culprits(culprits, limit.0, out);
    };
    if groups.is_empty() {
        return Ok(());
    }
    out.print_line(&format!("LEAKED COOKIES BY {}", group_title(*by)))?;
    let mut told: BTreeMap<String, &CulpritGroup> = BTreeMap::new();
    for group in groups.iter().take(limit.0) {
        // Processes that did the same are described once.
        let kind = group.kind.as_ref();
        let kind = kind.map(|kind| format!("{kind} {:?}", group.how.keys()));
        let same = kind.as_ref().and_then(|kind| told.get(kind)).copied();
        print_group(group, same, out)?;
        if let Some(kind) = kind {
            told.entry(kind).or_insert(group);
        }
    }
    limit.print_rest(groups.len(), out)?;
    Ok(out.print_line("")?)
}

/// `same`: a group that was printed in full, of a process that did the same.
fn print_group(group: &CulpritGroup, same: Option<&CulpritGroup>, out: &mut Out) -> Result<()> {
    let age = group.oldest_seconds.map_or_else(String::new, |seconds| {
        format!(", oldest {}", time::age_text(Duration::from_secs(seconds)))
    });
    out.print_line(&format!("  {:>6}  {}{age}", group.counts.total, group.name))?;
    if let Some(same) = same {
        return print_difference(group, same, out);
    }
    for (how, count) in &group.how {
        let times = if group.how.len() > 1 {
            format!("{count} x ")
        } else {
            String::new()
        };
        out.print_line(&format!("          {times}{how}"))?;
    }
    let LeakCounts {
        total, inferred, ..
    } = group.counts;
    if inferred > 0 {
        out.print_line(&format!(
            "          {inferred} of {total} inferred, not seen"
        ))?;
    }
    print_removed(group, out)?;
    print_devices(&group.devices, out)?;
    for line in &group.lines {
        out.print_line(&format!("          {line}"))?;
    }
    Ok(())
}

/// How many of its leaks were removed, and by whom.
fn print_removed(group: &CulpritGroup, out: &mut Out) -> Result<()> {
    let text = removal::removed_text(&group.counts);
    for (number, line) in text.iter().flat_map(|text| wrap_text(text, 60)).enumerate() {
        let label = if number == 0 { "removed" } else { "" };
        out.print_line(&format!("          {label:<10}{line}"))?;
    }
    Ok(())
}

/// What a process has of its own that did the same as one that was told in full.
fn print_difference(group: &CulpritGroup, same: &CulpritGroup, out: &mut Out) -> Result<()> {
    print_removed(group, out)?;
    if group.devices != same.devices {
        print_devices(&group.devices, out)?;
    }
    let own = |line: &&String| {
        // Its number in its namespace says nothing more.
        !line.starts_with("runs as") && !same.lines.contains(*line)
    };
    for line in group.lines.iter().filter(own) {
        out.print_line(&format!("          {line}"))?;
    }
    Ok(out.print_line(&format!("          otherwise the same as {}", same.name))?)
}

fn print_devices(devices: &[String], out: &mut Out) -> Result<()> {
    if !devices.is_empty() {
        // A device is not broken between its name and its number.
        let names = devices.iter().map(|name| name.replace(' ', "\u{2060}"));
        let lines = wrap_text(&names.collect::<Vec<_>>().join(", "), 60);
        for (number, line) in lines.iter().enumerate() {
            let label = if number == 0 { "devices" } else { "" };
            let line = line.replace('\u{2060}', " ");
            out.print_line(&format!("          {label:<10}{line}"))?;
        }
    }
    Ok(())
}

const fn group_title(by: GroupBy) -> &'static str {
    match by {
        GroupBy::Process => "PROCESS",
        GroupBy::Executable => "EXECUTABLE",
        GroupBy::Container => "CONTAINER",
        GroupBy::Stack => "CALL SITE",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        output::testing::capture_output,
        render::culprits::{group_all, tests::sample_leaks},
    };

    #[test]
    fn what_processes_that_did_the_same_do_not_share_is_told_of_each() {
        // The same program with other arguments, and once more with those of the first.
        let groups = group_all(
            &sample_leaks(&["mk.py 2", "mk.py 1", "mk.py 2"]),
            Some(GroupBy::Process),
        );
        let told = capture_output(None, |out| who_leaks(&[], &groups, ReportLimit(20), out));
        let of = |pid: u32| {
            let rest = told.split(&format!("python3[{pid}]+")).nth(1);
            let lines: Vec<&str> = rest.unwrap_or_default().lines().collect();
            lines.join("\n")
        };
        assert!(of(1).contains("command   mk.py 2"), "{told}");
        assert!(of(2).contains("command   mk.py 1"), "{told}");
        assert_eq!(told.matches("mk.py 2").count(), 1, "{told}");
        assert_eq!(
            told.matches("otherwise the same as python3[1]+").count(),
            2,
            "{told}"
        );
    }
}
