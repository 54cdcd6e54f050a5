//! What was installed or changed shortly before the first cookie appeared.

use dmtrace_core::{
    ids::UnixTime,
    witness::{Testimony, Witness},
};

use super::{Hearing, Zone, text_file::Tail};
use crate::wording::cause_text;

const FILES: [&str; 6] = [
    "var/log/dpkg.log.1",
    "var/log/dpkg.log",
    "var/log/dnf.rpm.log.1",
    "var/log/dnf.rpm.log",
    "var/log/pacman.log",
    "var/log/zypp/history",
];

const WHAT: &str = "package log";

/// So long before the first cookie: a change often takes effect with the next start.
const BEFORE: i64 = 3 * 86_400;

/// So many are kept, the last ones.
const MAX_UPDATES: usize = 32;

/// Packages that have to do with cookies, by a part of their name.
const RELEVANT: [&str; 21] = [
    "blivet",
    "containerd",
    "cri-o",
    "cryptsetup",
    "device-mapper",
    "devmapper",
    "dmeventd",
    "dmsetup",
    "docker",
    "kernel",
    "kpartx",
    "linux-image",
    "lvm2",
    "moby",
    "multipath",
    "parted",
    "podman",
    "stratis",
    "systemd",
    "udev",
    "udisks",
];

/// What package managers do.
const CHANGES: [&str; 14] = [
    " install ",
    " upgrade ",
    " remove ",
    "Installed:",
    "Upgraded:",
    "Upgrade:",
    "Install:",
    "Erase:",
    "Removed:",
    "] installed ",
    "] upgraded ",
    "] removed ",
    "|install|",
    "|remove |",
];

pub(super) fn read(hearing: &mut Hearing<'_>) {
    let first = hearing.windows.first();
    for path in FILES {
        if hearing.is_late() {
            return hearing.cannot_read(WHAT, format!("/{path}: there was no time for it"));
        }
        let tail = match Tail::read(hearing.roots, path, hearing.limits.text_bytes) {
            Ok(Some(tail)) => tail,
            Ok(None) => continue,
            Err(error) => {
                hearing.cannot_read(WHAT, format!("/{path}: {}", cause_text(&error)));
                continue;
            }
        };
        let source = format!("/{path}");
        let lines = tail.lines().filter(|line| {
            CHANGES.iter().any(|it| line.contains(it))
                && RELEVANT.iter().any(|it| line.contains(it))
        });
        for line in lines {
            let Some(at) = stamp_of(hearing, &line) else {
                continue;
            };
            if (first.saturating_sub(BEFORE)..=first).contains(&at) {
                let update = Testimony::of_line(Witness::PackageLog, &source, UnixTime(at), &line);
                hearing.found.updates.push(update);
            }
        }
    }
    let updates = &mut hearing.found.updates;
    updates.sort_by_key(|it| match it.when {
        dmtrace_core::witness::When::Second { at } => at,
        _ => UnixTime(0),
    });
    let surplus = updates.len().saturating_sub(MAX_UPDATES);
    updates.drain(..surplus);
}

/// `2026-11-30 21:00:01 `, `2026-11-30T21:00:01+0000 `, `[2026-11-30T21:00:01+0000] `,
/// `2026-11-30 21:00:01|`.
fn stamp_of(hearing: &Hearing<'_>, line: &str) -> Option<i64> {
    let line = line.trim_start_matches('[');
    let (date, time) = (line.get(..10)?, line.get(11..19)?);
    let zone = line.get(19..24)?;
    let at = if zone.starts_with(['+', '-']) {
        let (hours, minutes) = (zone.get(..3)?, zone.get(3..5)?);
        Zone::parse_absolute(&format!("{date}T{time}{hours}:{minutes}"))
    } else if zone.starts_with('Z') {
        Zone::parse_absolute(&format!("{date}T{time}Z"))
    } else {
        hearing.limits.zone.parse_local(&format!("{date}T{time}"))
    };
    Some(at?.0)
}
