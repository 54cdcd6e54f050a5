//! The kernel's log: whom it has killed for want of memory.

use std::{
    fs::OpenOptions,
    io::Read as _,
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    time::Duration,
};

use dmtrace_core::{
    ids::{BootTime, UnixTime},
    witness::{Author, Message, Testimony, When, Witness, is_device_mapper_line, read_message},
};

use super::{Hearing, journal::testify};
use crate::{host::clock::suspended_time, wording::cause_text};

const WHAT: &str = "kernel log";

const FILE: &str = "dev/kmsg";

/// Records that are read.
const MAX_RECORDS: usize = 50_000;

/// A record is cut to this (`PRINTKRB_RECORD_MAX`).
const MAX_RECORD: usize = 8192;

const SECOND: u64 = 1_000_000_000;

pub(super) fn read(hearing: &mut Hearing<'_>) {
    let path = hearing.roots.fs.join(FILE);
    // In a container it may be anything.
    let is_log = path
        .metadata()
        .is_ok_and(|it| it.file_type().is_char_device() || it.is_file());
    if !is_log {
        return hearing.cannot_read(WHAT, format!("there is no /{FILE}"));
    }
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path);
    let mut log = match opened {
        Ok(log) => log,
        Err(error) => return hearing.cannot_read(WHAT, cause_text(&error)),
    };
    let suspended = suspended_time();
    let mut record = vec![0; MAX_RECORD];
    for _ in 0..MAX_RECORDS {
        let length = match log.read(&mut record) {
            Ok(0) => return,
            Ok(length) => length,
            // The oldest was overwritten meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => continue,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(error) => return hearing.cannot_read(WHAT, cause_text(&error)),
        };
        let text = String::from_utf8_lossy(&record[..length]);
        for line in text.lines() {
            if let Some(testimony) = parse_record(line, suspended) {
                hearing.add(testimony);
            }
        }
        if hearing.is_late() {
            return hearing.cannot_read(WHAT, "there was no time for all of it");
        }
    }
}

/// `PRIORITY,SEQUENCE,MICROSECONDS,FLAGS;MESSAGE`. Its clock stands still while the machine is
/// suspended, and nobody corrects it.
fn parse_record(record: &str, suspended: Duration) -> Option<Testimony> {
    let (head, message) = record.split_once(';')?;
    let mut fields = head.split(',');
    let priority: u32 = fields.next()?.parse().ok()?;
    let micros: u64 = fields.nth(1)?.parse().ok()?;
    // The facility: what programs write there is not of the kernel (`LOG_KERN`).
    (priority >> 3 == 0).then_some(())?;
    let told = read_message(Message::Kernel(message));
    let about_dm = is_device_mapper_line(message);
    (told.is_some() || about_dm).then_some(())?;
    let at = micros.checked_mul(1000)?;
    let error = SECOND / 10 + at / 10_000;
    let suspended = u64::try_from(suspended.as_nanos()).ok()?;
    let to = at.checked_add(error)?.checked_add(suspended)?;
    let when = When::SinceBoot {
        from: BootTime(at.saturating_sub(error)),
        to: BootTime(to),
    };
    let said = Testimony {
        when,
        author: Author::Kernel,
        ..Testimony::of_line(Witness::KernelLog, "/dev/kmsg", UnixTime(0), message)
    };
    Some(match told {
        Some(told) => testify(told, None, false, said),
        None => said,
    })
}
