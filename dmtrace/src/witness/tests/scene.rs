//! A host in a folder.

use std::{fs, io, path::Path, time::Instant};

use dmtrace_core::{
    facts::{HostFacts, LiveProcess},
    ids::{BootTime, IpcNs, Key, SemId, UnixTime},
    wall_clock::{ClockHistory, ClockOffset},
    witness::{Answer, CookieMoment, UnknownReason},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    host::Roots,
    witness::{Journal, Limits, Witnesses, Zone, call_with, journal::JournalPart},
};

pub(super) const SECOND: u64 = 1_000_000_000;

/// The wall clock at boot: 2026-11-20 00:00:00 UTC.
pub(super) const BOOT: i64 = 1_795_132_800;

/// A million seconds later somebody asks.
pub(super) const NOW: i64 = 1_000_000;

pub(super) const AXSIG: u8 = 0x10;
pub(super) const AFORK: u8 = 0x01;

pub(super) struct Host {
    pub(super) dir: TempDir,
    pub(super) facts: HostFacts,
    entries: Vec<(i64, Value)>,
    accounting: Vec<u8>,
}

/// Lines of a journal from a test.
struct FakeJournal<'a>(&'a [(i64, Value)]);

impl Journal for FakeJournal<'_> {
    fn read(&self, from: i64, to: i64, _: &Limits, _: Instant) -> Result<JournalPart, String> {
        if self.0.is_empty() {
            return Err("it is not kept on this host".to_owned());
        }
        let entries = self.0.iter().filter(|(at, _)| (from..=to).contains(at));
        Ok(JournalPart {
            entries: entries.map(|(_, it)| it.to_string().into_bytes()).collect(),
            cut: None,
        })
    }
}

pub(super) fn limits() -> Limits {
    Limits {
        zone: Zone::utc(),
        ..Limits::default()
    }
}

/// A cookie; times in seconds after boot, 0 for never.
pub(super) fn cookie(number: u32, ctime: i64, otime: i64, value: i32, pid: u32) -> CookieMoment {
    let stamp = |at: i64| UnixTime(if at == 0 { 0 } else { BOOT + at });
    CookieMoment {
        sem: SemId {
            ns: IpcNs::HOST,
            semid: number.cast_signed(),
        },
        key: Key(0x0d4d_0000 + number),
        ctime: stamp(ctime),
        otime: stamp(otime),
        value: Some(value),
        last_pid: pid,
    }
}

impl Host {
    pub(super) fn new() -> Self {
        let now = BootTime(NOW.unsigned_abs() * SECOND);
        let wall = UnixTime(BOOT + NOW);
        let facts = HostFacts {
            now,
            wall,
            clock: ClockHistory::steady(now, ClockOffset::between(now, wall, 0)),
            processes_complete: true,
            ..HostFacts::default()
        };
        Self {
            dir: tempfile::tempdir().unwrap(),
            facts,
            entries: Vec::new(),
            accounting: Vec::new(),
        }
    }

    pub(super) fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(super) fn path(&self, path: &str) -> std::path::PathBuf {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    /// A process that runs: its start in seconds after boot.
    pub(super) fn runs(&mut self, pid: u32, name: &str, start: u64) {
        let live = LiveProcess {
            start_ticks: start * 100,
            comm: name.to_owned(),
            ppid: 1,
            ..LiveProcess::default()
        };
        self.facts.processes.insert(pid, live);
    }

    /// A process that has ended, by accounting: begin and end in seconds after boot. `how`: flags, and
    /// the signal or the exit code as `wait(2)` has it.
    pub(super) fn ended(
        &mut self,
        (pid, parent): (u32, u32),
        name: &str,
        (from, to): (i64, i64),
        how: (u8, u32),
    ) {
        let mut record = [0_u8; 64];
        record[0] = how.0;
        record[1] = 3;
        let mut put = |at: usize, value: u32| {
            record[at..at + 4].copy_from_slice(&value.to_le_bytes());
        };
        put(4, how.1);
        put(16, pid);
        put(20, parent);
        put(24, u32::try_from(BOOT + from).unwrap());
        put(28, ((to - from) as f32 * 100.0).to_bits());
        record[48..48 + name.len()].copy_from_slice(name.as_bytes());
        self.accounting.extend_from_slice(&record);
    }

    pub(super) fn journal(&mut self, at: i64, mut entry: Value) {
        entry["__REALTIME_TIMESTAMP"] = json!(format!("{}000000", BOOT + at));
        self.entries.push((BOOT + at, entry));
    }

    pub(super) fn write_accounting(&self) {
        if !self.accounting.is_empty() {
            self.write("var/log/account/pacct", &self.accounting);
        }
    }

    pub(super) fn hear(&self, moments: &[CookieMoment]) -> Witnesses {
        self.write_accounting();
        self.hear_as_is(moments)
    }

    pub(super) fn hear_as_is(&self, moments: &[CookieMoment]) -> Witnesses {
        let roots = Roots::below(self.dir.path());
        call_with(moments, &roots, &limits(), &FakeJournal(&self.entries))
    }

    pub(super) fn ask(&self, moment: CookieMoment) -> Answer {
        self.hear(&[moment]).inquire(&self.facts).weigh(&moment)
    }
}

/// Who is named, as `name[pid] (unit)`.
pub(super) fn named(answer: &Answer) -> String {
    match answer {
        Answer::Named { suspect } => suspect.who.to_string(),
        Answer::Unknown { reason, possible } => {
            let possible: Vec<String> = possible.iter().map(|it| it.who.to_string()).collect();
            format!("unknown {reason:?} {possible:?}")
        }
    }
}

pub(super) fn reason(answer: &Answer) -> Option<UnknownReason> {
    match answer {
        Answer::Named { .. } => None,
        Answer::Unknown { reason, .. } => Some(*reason),
    }
}

/// A FIFO in place of a file.
pub(super) fn make_fifo(path: &Path) -> io::Result<()> {
    crate::host::regular_file::make_fifo(path);
    Ok(())
}
