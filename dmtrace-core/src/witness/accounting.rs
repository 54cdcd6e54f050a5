//! Records of process accounting, version 3 (`struct acct_v3`): one for each process that has ended.

use super::{Ending, Testimony, When, Witness, bounded_text};
use crate::{event::text::decode_c_string, ids::UnixTime};

/// Bytes of a record.
pub const ACCOUNTING_RECORD: usize = 64;

/// It was forked, and has not called `execve`.
const AFORK: u8 = 0x01;

/// It used the rights of root.
const ASU: u8 = 0x02;

/// It was killed by a signal.
const AXSIG: u8 = 0x10;

/// The byte order of the machine that wrote it.
const BIG_ENDIAN: u8 = 0x80;

/// Units of times in a second, on every machine.
const AHZ: f64 = 100.0;

/// What a record is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AccountingRecord {
    /// One that could be read.
    Read(Box<Testimony>),
    /// One of another version, which has no number of the process.
    OtherVersion(u8),
    /// It is no such record.
    Damaged,
}

/// Reads a record.
pub fn read_accounting_record(source: &str, record: &[u8; ACCOUNTING_RECORD]) -> AccountingRecord {
    let (flag, version) = (record[0], record[1]);
    let big = version & BIG_ENDIAN != 0;
    match version & !BIG_ENDIAN {
        3 => {}
        other => return AccountingRecord::OtherVersion(other),
    }
    let word = |at: usize| {
        let bytes = [record[at], record[at + 1], record[at + 2], record[at + 3]];
        if big {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        }
    };
    let [code, uid, pid, parent, began] = [4, 8, 16, 20, 24].map(word);
    let lasted = f64::from(f32::from_bits(word(28)));
    // No process has lived longer than the oldest machine: ten years.
    if !(0.0..3.2e10).contains(&lasted) || pid == 0 {
        return AccountingRecord::Damaged;
    }
    // Not negative, and small enough: both have just been checked.
    let lasted_ms = (lasted * (1000.0 / AHZ)) as u64;
    let ended = i64::from(began).saturating_add((lasted_ms / 1000).cast_signed());
    let name = decode_c_string(&record[48..]);
    let ending = if flag & AXSIG != 0 {
        Ending::Killed {
            signal: (code & 0x7f) as u8,
        }
    } else {
        Ending::Exited {
            code: (code >> 8 & 0xff) as u8,
        }
    };
    let how = match ending {
        Ending::Killed { signal } => format!("killed by signal {signal}"),
        Ending::Exited { code } => format!("exit code {code}"),
    };
    let (seconds, millis) = (lasted_ms / 1000, lasted_ms % 1000);
    let line = format!("{name}[{pid}], parent {parent}, ran {seconds}.{millis:03} s, {how}");
    AccountingRecord::Read(Box::new(Testimony {
        when: When::Life {
            ended: UnixTime(ended),
            lasted_ms,
        },
        pid: Some(pid),
        parent: Some(parent),
        name: Some(bounded_text(&name)),
        uid: Some(uid),
        ending: Some(ending),
        forked: flag & AFORK != 0,
        privileged: flag & ASU != 0,
        ..Testimony::of_line(Witness::Accounting, source, UnixTime(0), &line)
    }))
}
