//! Process accounting: the kernel's own record of every process that has ended.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt as _,
    path::Path,
};

use dmtrace_core::witness::{
    ACCOUNTING_RECORD, AccountingRecord, Testimony, When, is_cookie_program, read_accounting_record,
};

use super::Hearing;
use crate::wording::cause_text;

/// Where distributions have it, and its predecessor of the day before; the newest first.
const FILES: [&str; 6] = [
    "var/log/account/pacct",
    "var/log/account/pacct.0",
    "var/log/account/pacct.1",
    "var/account/pacct",
    "var/account/pacct-1",
    "var/account/pacct.1",
];

const WHAT: &str = "process accounting";

/// Parents are looked for so often: a shell's child may be a shell.
const ROUNDS: usize = 4;

/// Records are in the order in which processes ended; what is further back is of a clock that was set.
const MAX_STEP_BACK: i64 = 5;

const BYTES_AT_ONCE: usize = 1024 * ACCOUNTING_RECORD;

pub(super) fn read(hearing: &mut Hearing<'_>) {
    let mut left = hearing.limits.accounting_bytes;
    let mut any = false;
    for path in FILES {
        let file = match hearing.roots.open_regular(Path::new(path)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                hearing.cannot_read(WHAT, format!("/{path} is not a regular file"));
                continue;
            }
            Err(error) => {
                hearing.cannot_read(WHAT, format!("/{path}: {}", cause_text(&error)));
                continue;
            }
        };
        any = true;
        match read_file(hearing, &file, path, left) {
            Ok(used) => left = left.saturating_sub(used),
            Err(error) => hearing.cannot_read(WHAT, format!("/{path}: {}", cause_text(&error))),
        }
    }
    if !any {
        hearing.cannot_read(WHAT, "it is not kept on this host (package acct or psacct)");
    }
}

/// Reads the end of a file; returns how much that was.
fn read_file(hearing: &mut Hearing<'_>, file: &File, path: &str, most: u64) -> io::Result<u64> {
    let record = ACCOUNTING_RECORD as u64;
    let length = file.metadata()?.len() / record * record;
    let begin = length.saturating_sub(most / record * record);
    if begin == length {
        return Ok(0);
    }
    let source = format!("/{path}");
    let mut kept: Vec<Testimony> = Vec::new();
    let mut wanted = hearing.pids.clone();
    let mut doubtful: Option<(i64, i64)> = None;
    for round in 0..ROUNDS {
        let mut found = Vec::new();
        let mut newest = i64::MIN;
        let mut damaged = 0_u64;
        let mut at = begin;
        let mut bytes = vec![0; BYTES_AT_ONCE];
        while at < length && !hearing.is_late() {
            let part = usize::try_from(length - at).unwrap_or(usize::MAX);
            let part = part.min(BYTES_AT_ONCE);
            file.read_exact_at(&mut bytes[..part], at)?;
            at += part as u64;
            for record in bytes[..part].as_chunks::<ACCOUNTING_RECORD>().0 {
                let testimony = match read_accounting_record(&source, record) {
                    AccountingRecord::Read(testimony) => testimony,
                    AccountingRecord::OtherVersion(version) if round == 0 && damaged == 0 => {
                        hearing.cannot_read(
                            WHAT,
                            format!(
                                "/{path} is of version {version}, which has no process numbers"
                            ),
                        );
                        return Ok(length - begin);
                    }
                    AccountingRecord::OtherVersion(_) | AccountingRecord::Damaged => {
                        damaged += 1;
                        continue;
                    }
                };
                let When::Life { ended, .. } = testimony.when else {
                    continue;
                };
                if ended.0 < newest.saturating_sub(MAX_STEP_BACK) {
                    let (from, to) = doubtful.unwrap_or((ended.0, newest));
                    doubtful = Some((from.min(ended.0), to.max(newest)));
                }
                newest = newest.max(ended.0);
                let keep = if round == 0 {
                    matters(hearing, &testimony)
                } else {
                    testimony.pid.is_some_and(|pid| wanted.contains(&pid))
                        && overlaps(hearing, &testimony)
                };
                if keep && found.len() < hearing.limits.testimonies {
                    found.push(*testimony);
                }
            }
        }
        if at < length {
            hearing.cannot_read(WHAT, format!("/{path}: there was no time for all of it"));
        }
        if damaged > 0 && round == 0 {
            hearing.cannot_read(WHAT, format!("/{path}: damaged records: {damaged}"));
        }
        found.retain(|it| !kept.contains(it));
        let parents: BTreeSet<u32> = found.iter().filter_map(|it| it.parent).collect();
        wanted = parents.into_iter().filter(|&pid| pid > 1).collect();
        kept.extend(found);
        if wanted.is_empty() {
            break;
        }
    }
    if let Some((from, to)) = doubtful
        && hearing.windows.overlaps(from, to)
    {
        let in_doubt = |it: &Testimony| match it.when {
            When::Life { ended, .. } => (from..=to).contains(&ended.0),
            _ => false,
        };
        kept.retain(|it| !in_doubt(it));
        hearing.cannot_read(
            WHAT,
            format!("/{path}: its times run backwards, as when the clock is set"),
        );
    }
    for testimony in kept {
        hearing.add(testimony);
    }
    Ok(length - begin)
}

fn life(testimony: &Testimony) -> Option<(i64, i64)> {
    let When::Life { ended, lasted_ms } = testimony.when else {
        return None;
    };
    let lasted = i64::try_from(lasted_ms / 1000).unwrap_or(i64::MAX);
    Some((ended.0.saturating_sub(lasted), ended.0))
}

fn overlaps(hearing: &Hearing<'_>, testimony: &Testimony) -> bool {
    life(testimony).is_some_and(|(begun, ended)| hearing.windows.overlaps(begun, ended))
}

/// Last operators, and those who were killed while a cookie of theirs may have been there.
fn matters(hearing: &Hearing<'_>, testimony: &Testimony) -> bool {
    if !overlaps(hearing, testimony) {
        return false;
    }
    let operator = testimony.pid.is_some_and(|pid| hearing.pids.contains(&pid));
    let user = testimony.name.as_deref().is_some_and(is_cookie_program);
    let then = life(testimony).is_some_and(|(_, ended)| hearing.windows.contains(ended));
    operator || (testimony.tells_kill() && (user || then))
}
