//! The store, without its thread and with a clock that the test turns.

mod damage;
mod disk;
mod kept;
mod once;
mod releases;
mod unread;

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use dmtrace_core::ids::{BootTime, IpcNs, Key, SemId};

use crate::finding::Story;

use super::{
    HistoryEntry, HistoryNote, HistoryOptions, HistoryQuery, HistoryRecord, HowGone, Stamp,
    StoredFinding, book::Book, read_file,
};

const DAY: u64 = 86_400;

/// A moment: seconds since a boot that was at the second 1.8 billion.
fn stamp_at(seconds: u64) -> Stamp {
    Stamp {
        wall_ms: (1_800_000_000 + seconds as i64) * 1000,
        boot: BootTime(seconds * 1_000_000_000),
    }
}

fn sem_id(semid: i32) -> SemId {
    SemId {
        ns: IpcNs::HOST,
        semid,
    }
}

fn finding_note(semid: i32, state: &str, found: Stamp) -> HistoryNote {
    HistoryNote::Found(Box::new(StoredFinding {
        version: StoredFinding::VERSION,
        sem: sem_id(semid),
        key: Key(0x0d4d_0001),
        state: state.to_owned(),
        program: "/usr/sbin/lvm".to_owned(),
        found,
        gone: None,
        calls: None,
        story: Story {
            headline: random_text(semid),
            ..Story::default()
        },
    }))
}

/// Text that does not become much smaller when it is packed.
fn random_text(seed: i32) -> String {
    let mut state = seed as u32 | 1;
    let mut next = || {
        state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        char::from(b' ' + (state >> 24) as u8 % 90)
    };
    (0..300).map(|_| next()).collect()
}

fn end_note(semid: i32, how: HowGone) -> HistoryNote {
    HistoryNote::Gone {
        sem: sem_id(semid),
        key: Some(Key(0x0d4d_0001)),
        state: None,
        how,
        by: Some("dmsetup[9]".to_owned()),
    }
}

fn run_note() -> HistoryNote {
    HistoryNote::Began {
        backend: "fentry".to_owned(),
        kernel: "6.12".to_owned(),
        continuous: false,
    }
}

/// A book, and what it has warned of.
struct Desk {
    book: Book,
    warned: Arc<Mutex<Vec<String>>>,
}

impl Desk {
    fn open(path: &Path, now: Stamp) -> Self {
        Self::with_options(history_options(path), now)
    }

    fn with_options(options: HistoryOptions, now: Stamp) -> Self {
        let warned = Arc::new(Mutex::new(Vec::new()));
        let theirs = Arc::clone(&warned);
        let warn = move |text: &str| theirs.lock().unwrap().push(text.to_owned());
        Self {
            book: Book::open(options, now, Box::new(warn)),
            warned,
        }
    }

    fn add_note(&mut self, now: Stamp, note: HistoryNote) {
        self.book.add_note(now, note);
    }

    fn read_entries(&mut self, now: Stamp) -> Vec<HistoryEntry> {
        let mut entries = Vec::new();
        self.book
            .read_entries(now, &HistoryQuery::default(), &mut |entry| {
                entries.push(entry);
                ControlFlow::Continue(())
            });
        entries
    }

    fn warnings(&self) -> Vec<String> {
        self.warned.lock().unwrap().clone()
    }
}

fn history_options(path: &Path) -> HistoryOptions {
    HistoryOptions {
        path: path.to_owned(),
        limit: 4 << 20,
        retention: Duration::from_secs(90 * DAY),
        boot_id: "first".to_owned(),
    }
}

fn of_file(path: &Path) -> Vec<HistoryEntry> {
    read_file(path, &HistoryQuery::default()).unwrap().1
}

fn stored_findings(entries: &[HistoryEntry]) -> Vec<&StoredFinding> {
    let finding = |entry| match entry {
        &HistoryEntry {
            record: HistoryRecord::Finding(ref finding),
            ..
        } => Some(&**finding),
        _ => None,
    };
    entries.iter().filter_map(finding).collect()
}
