//! What may keep udevd from completing cookies. Looked for while somebody waits, not otherwise: it
//! reads every file of rules.

use std::{collections::BTreeMap, path::PathBuf};

use dmtrace_core::facts::{UdevDetails, UdevFacts, UdevWorker};

use super::{NOTIFY_RULE, PLACES};
use crate::host::{
    Roots,
    processes::{self, ProcessList, Stat},
};

/// Where a rule's program is searched if the rule takes its directory from a variable.
const PROGRAM_DIRS: [&str; 4] = ["usr/sbin", "sbin", "usr/bin", "bin"];

/// Reads it.
pub fn read_details(roots: &Roots, list: &ProcessList, facts: &UdevFacts) -> UdevDetails {
    let daemon = facts
        .daemon
        .and_then(|pid| processes::read_stat(roots, pid).ok());
    let workers = list
        .processes
        .iter()
        .filter(|(_, process)| facts.daemon == Some(process.live.ppid))
        .map(|(&pid, _)| UdevWorker {
            pid,
            runs: list
                .processes
                .iter()
                .find(|(_, process)| process.live.ppid == pid)
                .map(|(&child, process)| (child, process.live.comm.clone())),
        });
    UdevDetails {
        frozen: daemon.as_ref().is_some_and(Stat::is_stopped),
        started_ticks: daemon.map_or(0, |stat| stat.start_ticks),
        workers: workers.collect(),
        dmsetup: find_completer(roots, facts.notify_rule.as_deref()),
        run_cleared: run_cleared(roots),
    }
}

/// The program of the notify rule, if it can be executed; `dmsetup` where there is no rule.
fn find_completer(roots: &Roots, rule: Option<&str>) -> Option<String> {
    let text = rule.and_then(|path| roots.read_fs(path).ok());
    let text = text.as_deref().map(String::from_utf8_lossy);
    let program = text
        .as_deref()
        .and_then(|text| {
            let lines = text.lines().filter(|line| !line.trim().starts_with('#'));
            lines
                .filter_map(|line| line.split_once("RUN+=\""))
                .map(|(_, value)| value)
                .find(|value| value.contains("udevcomplete"))
        })
        .and_then(|value| value.split([' ', '"']).next())
        .unwrap_or("$/dmsetup");
    let places: Vec<PathBuf> = if program.starts_with('/') {
        vec![PathBuf::from(program)]
    } else if program.starts_with('$') {
        let name = program.rsplit('/').next().unwrap_or("dmsetup");
        PROGRAM_DIRS.map(|dir| PathBuf::from(dir).join(name)).into()
    } else {
        ["usr/lib/udev", "lib/udev"]
            .map(|dir| PathBuf::from(dir).join(program))
            .into()
    };
    let found = places.iter().find(|path| roots.is_executable(path));
    found.map(|path| roots.display_path(path))
}

/// Rules that empty the list of programs, or fix it before the notify rule can add to it. Whether
/// they apply to a device is not evaluated beyond its kernel name and subsystem.
fn run_cleared(roots: &Roots) -> Vec<String> {
    let mut files: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for place in PLACES {
        let dir = PathBuf::from(place).join("udev/rules.d");
        for name in roots.read_names(&dir) {
            if name.extension().is_some_and(|it| it == "rules") {
                files.entry(name.clone()).or_insert_with(|| dir.join(name));
            }
        }
    }
    let mut found = Vec::new();
    for (name, path) in files {
        let text = roots.read_fs(&path).unwrap_or_default();
        let late = name.as_os_str() > NOTIFY_RULE;
        let (mut rule, mut first) = (String::new(), 0);
        for (number, line) in String::from_utf8_lossy(&text).lines().enumerate() {
            if rule.is_empty() {
                first = number + 1;
            }
            if rule.is_empty() && line.trim_start().starts_with('#') {
                continue;
            }
            if let Some(part) = line.strip_suffix('\\') {
                rule.push_str(part);
                continue;
            }
            rule.push_str(line);
            if clears_run(&rule, late) && may_match(&rule) {
                found.push(format!("{}:{first}", roots.display_path(&path)));
            }
            rule.clear();
        }
    }
    found
}

/// Whether a rule assigns to RUN in a way that drops what others added.
fn clears_run(rule: &str, late: bool) -> bool {
    rule_assignments(rule).any(|(name, operator, _)| {
        let run = name == "RUN" || name.starts_with("RUN{");
        run && (operator == ":=" || operator == "=" && late)
    })
}

/// Whether a rule may apply to a device of device-mapper.
fn may_match(rule: &str) -> bool {
    rule_assignments(rule).all(|(name, operator, value)| {
        let may = |fits: fn(&str) -> bool| operator != "==" || value.split('|').any(fits);
        match name {
            "KERNEL" => may(|glob| glob.starts_with(['d', '*', '?', '['])),
            "SUBSYSTEM" => may(|glob| glob == "block" || glob.contains(['*', '?', '['])),
            _ => true,
        }
    })
}

/// The parts of a rule: name, operator, value.
fn rule_assignments(rule: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    let mut rest = rule;
    std::iter::from_fn(move || {
        let (head, tail) = rest.split_once('"')?;
        let (value, after) = tail.split_once('"').unwrap_or((tail, ""));
        rest = after;
        let head = head.trim_matches([',', ' ', '\t']);
        let at = head.find([':', '+', '-', '=', '!']).unwrap_or(head.len());
        let (name, operator) = head.split_at(at);
        Some((name.trim(), operator.trim(), value))
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    struct FakeHost(tempfile::TempDir);

    impl FakeHost {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn roots(&self) -> Roots {
            Roots::below(self.0.path())
        }

        fn write(&self, path: &str, text: &str, mode: u32) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    #[test]
    fn rules_that_clear_the_list_are_found() {
        let host = FakeHost::new();
        let rules = |name: &str, text: &str| {
            host.write(&format!("etc/udev/rules.d/{name}"), text, 0o644);
        };
        rules("10-early.rules", "KERNEL==\"dm-*\", RUN=\"/bin/a\"\n");
        rules(
            "50-fixed.rules",
            "# RUN:=\"x\"\nKERNEL==\"sd*|dm-*\", \\\n  RUN{program}:=\"/bin/true\"\n",
        );
        rules("60-other.rules", "KERNEL==\"sd*\", RUN:=\"/bin/true\"\n");
        rules("61-net.rules", "SUBSYSTEM==\"net\", RUN:=\"/bin/true\"\n");
        rules("96-adds.rules", "RUN+=\"/bin/b\"\nENV{X}=\"RUN:=\"\n");
        rules("97-late.rules", "ACTION!=\"remove\", RUN=\"/bin/c\"\n");
        host.write(
            "usr/lib/udev/rules.d/97-late.rules",
            "RUN:=\"overridden\"",
            0o644,
        );
        assert_eq!(
            run_cleared(&host.roots()),
            [
                "/etc/udev/rules.d/50-fixed.rules:2",
                "/etc/udev/rules.d/97-late.rules:1"
            ]
        );
    }

    #[test]
    fn the_program_of_the_notify_rule() {
        let host = FakeHost::new();
        let rule = |text: &str| {
            host.write("lib/udev/rules.d/95-dm-notify.rules", text, 0o644);
            find_completer(&host.roots(), Some("/lib/udev/rules.d/95-dm-notify.rules"))
        };
        let fixed = "ENV{DM_COOKIE}==\"?*\", RUN+=\"/sbin/dmsetup udevcomplete $env{DM_COOKIE}\"";
        let variable = "RUN+=\"$env{DM_SBIN_PATH}/dmsetup udevcomplete $env{DM_COOKIE}\"";
        assert_eq!(rule(fixed), None);
        host.write("sbin/dmsetup", "", 0o644);
        assert_eq!(rule(fixed), None, "not executable");
        host.write("sbin/dmsetup", "", 0o755);
        assert_eq!(rule(fixed), Some("/sbin/dmsetup".to_owned()));
        assert_eq!(rule(variable), Some("/sbin/dmsetup".to_owned()));
        assert_eq!(
            find_completer(&host.roots(), None),
            Some("/sbin/dmsetup".to_owned())
        );
    }
}
