//! The unit for systemd.

use std::{collections::BTreeSet, process::Command};

use anyhow::{Context as _, Result, ensure};
use dmtrace_tests::harness::{TestNeed, dmtrace_bin, new_trial};
use libtest_mimic::Trial;

use crate::{known_options, read_file};

const UNIT: &str = "packaging/dmtrace.service";

pub(crate) fn tests() -> Vec<Trial> {
    const SYSTEMD: &[TestNeed] = &[TestNeed::Program("systemd-analyze")];
    vec![
        new_trial(
            "unit::systemd_understands_all_of_it",
            SYSTEMD,
            systemd_understands_all_of_it,
        ),
        new_trial("unit::boot_does_not_wait_for_itself", SYSTEMD, no_cycle),
        new_trial("unit::its_options_exist", &[], its_options_exist),
    ]
}

/// Values of a setting, from all its lines.
pub(crate) fn unit_setting(name: &str) -> Result<BTreeSet<String>> {
    let unit = read_file(UNIT)?;
    let lines = unit.lines().filter_map(|line| line.split_once('='));
    let values = lines
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| value);
    let words = values.flat_map(str::split_whitespace).map(str::to_owned);
    Ok(words.collect())
}

/// What systemd says against starting a unit, when there are these and the one under test, which
/// gets the program of this build.
fn systemd_analyze(start: &str, others: &[(&str, &str)]) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let program = dmtrace_bin()?.display().to_string();
    let unit = read_file(UNIT)?.replace("/usr/sbin/dmtrace", &program);
    std::fs::write(dir.path().join("dmtrace.service"), unit)?;
    for (name, content) in others {
        std::fs::write(dir.path().join(name), content)?;
    }
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(dir.path().join(start))
        // Units of this machine may have faults of their own.
        .env("SYSTEMD_UNIT_PATH", format!("{}:", dir.path().display()))
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let ours = said
        .lines()
        .filter(|line| line.contains("dmtrace") || line.contains("cycle"));
    Ok(ours.collect::<Vec<_>>().join("\n"))
}

fn systemd_understands_all_of_it() -> Result<()> {
    let said = systemd_analyze("dmtrace.service", &[])?;
    ensure!(said.is_empty(), "{said}");
    Ok(())
}

/// Where /var is a logical volume of its own, it is mounted after LVM was started, and that after
/// this service: nothing in the unit may wait for /var.
fn no_cycle() -> Result<()> {
    let var = "[Unit]\nDefaultDependencies=no\nAfter=local-fs-pre.target\nBefore=local-fs.target\n\
               [Mount]\nWhat=/dev/vg/var\nWhere=/var\n";
    let target = "[Unit]\nRequires=var.mount\nAfter=var.mount\n";
    let lvm = "[Unit]\nDefaultDependencies=no\nBefore=local-fs-pre.target\n\
               [Service]\nExecStart=/bin/true\n";
    // systemd-remount-fs.service wants local-fs-pre.target.
    let boot =
        "[Unit]\nWants=dmtrace.service lvm2-monitor.service local-fs-pre.target local-fs.target\n";
    let said = systemd_analyze(
        "boot.target",
        &[
            ("boot.target", boot),
            ("local-fs-pre.target", "[Unit]\n"),
            ("var.mount", var),
            ("local-fs.target", target),
            ("lvm2-monitor.service", lvm),
        ],
    )?;
    ensure!(said.is_empty(), "{said}");
    Ok(())
}

fn its_options_exist() -> Result<()> {
    let unit = read_file(UNIT)?;
    let start = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="));
    let words: Vec<_> = start
        .context("ExecStart")?
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    ensure!(words[..2] == ["/usr/sbin/dmtrace", "serve"], "{words:?}");
    known_options(&words)
}
