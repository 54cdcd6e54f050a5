//! The store, without its thread and with a clock that the test turns.

mod damage;
mod disk;
mod kept;
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

use super::{Entry, Finding, HowGone, Note, Options, Query, Record, Stamp, book::Book, read_file};

const DAY: u64 = 86_400;

/// A moment: seconds since a boot that was at the second 1.8 billion.
fn at(seconds: u64) -> Stamp {
    Stamp {
        wall_ms: (1_800_000_000 + seconds as i64) * 1000,
        boot: BootTime(seconds * 1_000_000_000),
    }
}

fn sem(semid: i32) -> SemId {
    SemId {
        ns: IpcNs::HOST,
        semid,
    }
}

fn finding(semid: i32, state: &str, found: Stamp) -> Note {
    Note::Found(Box::new(Finding {
        version: Finding::VERSION,
        sem: sem(semid),
        key: Key(0x0d4d_0001),
        state: state.to_owned(),
        program: "/usr/sbin/lvm".to_owned(),
        found,
        gone: None,
        calls: None,
        story: Story {
            headline: noise(semid),
            ..Story::default()
        },
    }))
}

/// Text that does not become much smaller when it is packed.
fn noise(seed: i32) -> String {
    let mut state = seed as u32 | 1;
    let mut next = || {
        state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        char::from(b' ' + (state >> 24) as u8 % 90)
    };
    (0..300).map(|_| next()).collect()
}

fn gone(semid: i32, how: HowGone) -> Note {
    Note::Gone {
        sem: sem(semid),
        key: Some(Key(0x0d4d_0001)),
        how,
        by: Some("dmsetup[9]".to_owned()),
    }
}

fn began() -> Note {
    Note::Began {
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
        Self::with(options(path), now)
    }

    fn with(options: Options, now: Stamp) -> Self {
        let warned = Arc::new(Mutex::new(Vec::new()));
        let theirs = Arc::clone(&warned);
        let warn = move |text: &str| theirs.lock().unwrap().push(text.to_owned());
        Self {
            book: Book::open(options, now, Box::new(warn)),
            warned,
        }
    }

    fn note(&mut self, now: Stamp, note: Note) {
        self.book.note(now, note);
    }

    fn entries(&mut self, now: Stamp) -> Vec<Entry> {
        let mut entries = Vec::new();
        self.book.read(now, &Query::default(), &mut |entry| {
            entries.push(entry);
            ControlFlow::Continue(())
        });
        entries
    }

    fn warned(&self) -> Vec<String> {
        self.warned.lock().unwrap().clone()
    }
}

fn options(path: &Path) -> Options {
    Options {
        path: path.to_owned(),
        limit: 4 << 20,
        retention: Duration::from_secs(90 * DAY),
        boot_id: "first".to_owned(),
    }
}

fn of_file(path: &Path) -> Vec<Entry> {
    read_file(path, &Query::default()).unwrap().1
}

fn findings(entries: &[Entry]) -> Vec<&Finding> {
    let finding = |entry| match entry {
        &Entry {
            record: Record::Finding(ref finding),
            ..
        } => Some(&**finding),
        _ => None,
    };
    entries.iter().filter_map(finding).collect()
}
