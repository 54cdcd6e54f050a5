//! What a search found, and what it could not look at.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use super::{Form, HolderClass, HolderTrait, counts_as_holder};
use crate::{
    facts::pairs,
    ids::{BootTime, Key, ProcId, UnixTime},
};

/// Where a number was.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The stack of the first thread, with what the program was started with.
    Stack,
    /// What `brk` gives.
    Heap,
    /// Variables of a program or a library.
    Data,
    /// Other memory of its own: heaps of most languages, stacks of threads.
    Anonymous,
    /// Memory that is shared with others.
    SharedMemory,
    /// A `memfd`, mapped or not.
    Memfd,
    /// A file that it maps.
    FileMapping,
    /// A pipe that it reads.
    Pipe,
    /// A file without a name that it has open.
    UnlinkedFile,
}

impl Place {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Stack,
        Self::Heap,
        Self::Data,
        Self::Anonymous,
        Self::SharedMemory,
        Self::Memfd,
        Self::FileMapping,
        Self::Pipe,
        Self::UnlinkedFile,
    ];
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Stack => "stack",
            Self::Heap => "heap",
            Self::Data => "data",
            Self::Anonymous => "memory",
            Self::SharedMemory => "shared memory",
            Self::Memfd => "memfd",
            Self::FileMapping => "mapped file",
            Self::Pipe => "pipe",
            Self::UnlinkedFile => "unlinked file",
        })
    }
}

/// How often a number was somewhere in some form.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Spot {
    /// How it was written.
    pub form: Form,
    /// Where.
    pub place: Place,
    /// How often.
    pub count: u32,
}

/// A process in which numbers were.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct HolderProcess {
    /// Which; the start is that of `/proc/PID/stat`.
    pub id: ProcId,
    /// Its name.
    pub comm: String,
    /// Path of its program; empty where it could not be read.
    pub exe: String,
    /// What it could do with a number.
    pub class: HolderClass,
    /// Why.
    pub traits: BTreeSet<HolderTrait>,
}

/// One number in one process.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Holding {
    /// The process: its place in [`Search::processes`].
    pub process: usize,
    /// Where it has the number.
    pub spots: Vec<Spot>,
}

/// Why a process was not, or not wholly, searched.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "why")]
pub enum UnsearchedReason {
    /// The kernel does not allow it.
    Denied,
    /// Pages are there that nobody else can read (`memfd_secret`).
    Opaque {
        /// How much.
        bytes: u64,
    },
    /// Its reading took longer than allowed, or stood still.
    TimedOut,
    /// More of it is swapped out than may be brought back.
    Swapped {
        /// How much was left out.
        bytes: u64,
    },
    /// It starts one program after another.
    Changing,
    /// Something else failed.
    Failed {
        /// What.
        cause: String,
    },
}

/// A process that was not, or not wholly, searched.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct NotSearched {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// What it could do with a number, where that is known.
    pub class: Option<HolderClass>,
    /// Why.
    pub reason: UnsearchedReason,
}

impl NotSearched {
    /// Whether a holder may have been missed.
    pub const fn matters(&self) -> bool {
        !matches!(
            self.class,
            Some(HolderClass::MentionOnly | HolderClass::Powerless)
        )
    }
}

/// Where a search looked besides the memory of processes.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    /// Pipes, and unlinked files and memfds that are open.
    pub descriptors: bool,
    /// Files that were modified at this time or later, all of them.
    pub files_since: Option<UnixTime>,
    /// Why files were not all searched, where that was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files_failed: Option<String>,
}

/// What one search found.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Search {
    /// When it began.
    pub began: BootTime,
    /// When it ended.
    pub ended: BootTime,
    /// The numbers that it looked for.
    pub needles: BTreeSet<Key>,
    /// Where it looked.
    pub coverage: Coverage,
    /// How often the list of processes was gone through.
    pub rounds: u32,
    /// Whether no process was new the last time.
    pub stable: bool,
    /// Somebody stopped it before its end.
    pub cancelled: bool,
    /// Why there may be processes that it did not see; empty if it saw all.
    pub hidden: Option<String>,
    /// So many processes were searched.
    pub searched: u64,
    /// So many can do nothing with a number, and were not.
    pub powerless: u64,
    /// Memory that was read.
    pub bytes: u64,
    /// Swapped memory of processes that are no actors, which was left where it is.
    pub swapped: u64,
    /// Processes in which numbers were.
    pub processes: Vec<HolderProcess>,
    /// What of which they have.
    #[serde(with = "pairs")]
    pub found: BTreeMap<Key, Vec<Holding>>,
    /// Files with numbers in them, not all where there are many.
    #[serde(with = "pairs")]
    pub files: BTreeMap<Key, Vec<String>>,
    /// What could not be searched.
    pub not_searched: Vec<NotSearched>,
}

impl Search {
    /// The processes that hold a number and could act on it, with where they have it.
    pub fn holders(&self, key: Key) -> impl Iterator<Item = (&HolderProcess, &[Spot])> {
        self.of(key)
            .filter(|(process, spots)| is_held(process, spots))
    }

    /// The processes that have a number and mean nothing by it.
    pub fn mentions(&self, key: Key) -> impl Iterator<Item = (&HolderProcess, &[Spot])> {
        self.of(key)
            .filter(|(process, spots)| !is_held(process, spots))
    }

    fn of(&self, key: Key) -> impl Iterator<Item = (&HolderProcess, &[Spot])> {
        self.found
            .get(&key)
            .into_iter()
            .flatten()
            .filter_map(|it| Some((self.processes.get(it.process)?, &it.spots[..])))
    }

    /// Forgets what these processes have.
    pub(super) fn forget_holders(&mut self, pids: &[u32]) {
        let processes = &self.processes;
        let stays = |it: &Holding| {
            let process = processes.get(it.process);
            process.is_none_or(|process| !pids.contains(&process.id.tgid))
        };
        for holdings in self.found.values_mut() {
            holdings.retain(stays);
        }
    }

    /// Notes what one process has.
    pub fn add(&mut self, process: HolderProcess, found: impl IntoIterator<Item = (Key, Spot)>) {
        let number = self.processes.len();
        let mut any = false;
        for (key, spot) in found {
            any = true;
            let holdings = self.found.entry(key).or_default();
            match holdings.last_mut() {
                Some(last) if last.process == number => last.spots.push(spot),
                _ => holdings.push(Holding {
                    process: number,
                    spots: vec![spot],
                }),
            }
        }
        if any {
            self.processes.push(process);
        }
    }
}

fn is_held(process: &HolderProcess, spots: &[Spot]) -> bool {
    spots
        .iter()
        .any(|spot| counts_as_holder(process.class, spot.form))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn process(tgid: u32, class: HolderClass) -> HolderProcess {
        HolderProcess {
            id: ProcId {
                tgid,
                start: BootTime(10),
            },
            comm: "c".to_owned(),
            exe: "/usr/bin/c".to_owned(),
            class,
            traits: BTreeSet::new(),
        }
    }

    #[test]
    fn holders_and_mentions_are_kept_apart() {
        const KEY: Key = Key(0x0d4d_0001);
        let spot = |form| Spot {
            form,
            place: Place::Heap,
            count: 1,
        };
        let mut search = Search::default();
        search.add(
            process(1, HolderClass::Actor),
            [(KEY, spot(Form::Unaligned))],
        );
        search.add(
            process(2, HolderClass::Capable),
            [(KEY, spot(Form::Unaligned))],
        );
        search.add(
            process(3, HolderClass::MentionOnly),
            [(KEY, spot(Form::Hex))],
        );
        search.add(process(4, HolderClass::Actor), []);
        let found = [(KEY, spot(Form::Unaligned)), (KEY, spot(Form::Aligned4))];
        search.add(process(5, HolderClass::Capable), found);
        let pids = |it: Vec<(&HolderProcess, &[Spot])>| -> Vec<u32> {
            it.iter().map(|(process, _)| process.id.tgid).collect()
        };
        assert_eq!(pids(search.holders(KEY).collect()), [1, 5]);
        assert_eq!(pids(search.mentions(KEY).collect()), [2, 3]);
        assert_eq!(search.holders(Key(0x0d4d_0002)).count(), 0);
        let text = serde_json::to_string(&search).unwrap();
        assert_eq!(serde_json::from_str::<Search>(&text).unwrap(), search);
    }
}
