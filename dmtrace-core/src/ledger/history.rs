//! What is remembered of sets that are gone.

use std::collections::{BTreeMap, VecDeque};

use super::{EndKind, FailedLookup, MAX_LOOKUPS, Origin, Semaphore};
use crate::ids::{BootTime, Key, SemId};
use borsh::{BorshDeserialize, BorshSerialize};

/// How much is remembered of what is gone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Retention {
    /// Closed cookies that came to a normal end.
    pub closed: usize,
    /// All other closed cookies, such as leaks that were removed: who counts them wants them all.
    pub removed: usize,
    /// Processes that have nothing to do with a remembered cookie.
    pub idle: usize,
}

impl Retention {
    /// For a trace of minutes or hours, and for a recording: some ten MiB, and more where thousands of
    /// leaks are removed.
    pub const FULL: Self = Self {
        closed: 1024,
        removed: 16_384,
        idle: 4096,
    };
    /// For what is replayed from a file, once: all that a host's tables can hold.
    pub const REPLAY: Self = Self {
        closed: 65_536,
        removed: 65_536,
        idle: 4096,
    };
    /// For a service: some MiB. Late events are placed all the same.
    pub const THRIFTY: Self = Self {
        closed: 256,
        removed: 256,
        idle: 512,
    };
}

impl Default for Retention {
    fn default() -> Self {
        Self::FULL
    }
}

/// So many removals that were no normal ends are searched for a lookup in vain.
const MAX_SEARCHED_REMOVALS: usize = 64;

/// Slots of the memory of removals.
const MARK_SLOTS: usize = 4096;

/// Removals of sets whose creation no event has told: a map record of each is still to come, after
/// any number of other removals.
const MAX_OWED_RECORDS: usize = 16_384;

/// A removal, remembered for events that arrive after it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RemovalMark {
    pub(super) sem: SemId,
    pub(super) key: Key,
    /// Creation, if it was seen.
    pub(super) created: Option<BootTime>,
    pub(super) closed: BootTime,
    /// Whether the removal itself was seen.
    pub(super) observed: bool,
    used: bool,
}

/// The last removals, in bounded space: a newer one overwrites an older one that has the same
/// slot, and those that a map record must follow stay until it has come.
#[derive(Clone, Debug)]
pub(super) struct RemovalMarks {
    slots: Vec<RemovalMark>,
    owed: BTreeMap<SemId, RemovalMark>,
    /// The order of those; settled ones may still stand in it.
    order: VecDeque<SemId>,
}

impl Default for RemovalMarks {
    fn default() -> Self {
        Self {
            slots: vec![RemovalMark::default(); MARK_SLOTS],
            owed: BTreeMap::new(),
            order: VecDeque::new(),
        }
    }
}

impl RemovalMarks {
    fn slot_of(sem: SemId) -> usize {
        let mixed = (u64::from(sem.ns.0) << 32 | u64::from(sem.semid as u32))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 52) as usize % MARK_SLOTS
    }

    pub(super) fn get(&self, sem: SemId) -> Option<&RemovalMark> {
        let owed = self.owed.get(&sem);
        owed.or_else(|| {
            self.slots
                .get(Self::slot_of(sem))
                .filter(|mark| mark.used && mark.sem == sem)
        })
    }

    pub(super) fn get_mut(&mut self, sem: SemId) -> Option<&mut RemovalMark> {
        if let Some(mark) = self.owed.get_mut(&sem) {
            return Some(mark);
        }
        self.slots
            .get_mut(Self::slot_of(sem))
            .filter(|mark| mark.used && mark.sem == sem)
    }

    pub(super) fn add_removal(&mut self, semaphore: &Semaphore, at: BootTime, kind: EndKind) {
        let mark = RemovalMark {
            sem: semaphore.id,
            key: semaphore.key,
            created: semaphore.created,
            closed: at,
            observed: kind.is_observed(),
            used: true,
        };
        if matches!(semaphore.origin, Origin::Map | Origin::Use) {
            if self.owed.insert(mark.sem, mark).is_none() {
                self.order.push_back(mark.sem);
            }
            while self.order.len() > MAX_OWED_RECORDS {
                if let Some(oldest) = self.order.pop_front() {
                    self.record_arrived(oldest);
                }
            }
        } else {
            self.owed.remove(&mark.sem);
            self.put_forgettable(mark);
        }
    }

    /// The map record has come.
    pub(super) fn record_arrived(&mut self, sem: SemId) {
        if let Some(mark) = self.owed.remove(&sem) {
            self.put_forgettable(mark);
        }
    }

    fn put_forgettable(&mut self, mark: RemovalMark) {
        if let Some(slot) = self.slots.get_mut(Self::slot_of(mark.sem)) {
            *slot = mark;
        }
    }
}

/// Cookies that are gone.
#[derive(Clone, Debug, Default, BorshSerialize, BorshDeserialize)]
pub(super) struct ClosedCookies {
    by_number: BTreeMap<u64, Box<Semaphore>>,
    latest: BTreeMap<SemId, u64>,
    normal: VecDeque<u64>,
    special: VecDeque<u64>,
    next: u64,
    most_normal: usize,
    most_special: usize,
    /// Those that no longer fit and had come to no normal end.
    pub(super) forgotten: u64,
}

impl ClosedCookies {
    pub(super) fn new(remember: Retention) -> Self {
        Self {
            most_normal: remember.closed,
            most_special: remember.removed,
            ..Self::default()
        }
    }

    /// Keeps a closed cookie; returns one that no longer fits.
    pub(super) fn push(&mut self, semaphore: Box<Semaphore>) -> Option<Box<Semaphore>> {
        let normal = semaphore
            .ending
            .as_ref()
            .is_some_and(|ending| matches!(ending.kind, EndKind::ByWaiter | EndKind::ByCreator));
        let number = self.next;
        self.next += 1;
        self.latest.insert(semaphore.id, number);
        self.by_number.insert(number, semaphore);
        let (queue, most) = if normal {
            (&mut self.normal, self.most_normal)
        } else {
            (&mut self.special, self.most_special)
        };
        queue.push_back(number);
        if queue.len() <= most {
            return None;
        }
        let oldest = queue.pop_front()?;
        self.forgotten += u64::from(!normal);
        let evicted = self.by_number.remove(&oldest)?;
        if self.latest.get(&evicted.id) == Some(&oldest) {
            self.latest.remove(&evicted.id);
        }
        Some(evicted)
    }

    /// The last closed incarnation of a semid.
    pub(super) fn latest_mut(&mut self, sem: SemId) -> Option<&mut Semaphore> {
        let number = self.latest.get(&sem)?;
        self.by_number.get_mut(number).map(Box::as_mut)
    }

    pub(super) fn latest(&self, sem: SemId) -> Option<&Semaphore> {
        let number = self.latest.get(&sem)?;
        self.by_number.get(number).map(Box::as_ref)
    }

    /// Notes a lookup in vain with the cookie that was removed last under this key, if that was no
    /// normal end. Tells which set it was.
    pub(super) fn looked_up(&mut self, key: Key, lookup: FailedLookup) -> Option<SemId> {
        let number = self
            .special
            .iter()
            .rev()
            .take(MAX_SEARCHED_REMOVALS)
            .copied()
            .find(|number| {
                self.by_number
                    .get(number)
                    .is_some_and(|closed| closed.key == key && closed.id.ns == lookup.ns)
            })?;
        let closed = self.by_number.get_mut(&number)?;
        let cookie = closed.cookie.as_deref_mut()?;
        if cookie.lookups.len() >= MAX_LOOKUPS {
            return None;
        }
        cookie.lookups.push(lookup);
        // Only the latest incarnation of a semid can be held on to.
        (self.latest.get(&closed.id) == Some(&number)).then_some(closed.id)
    }

    /// As [`ClosedCookies::iter`].
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Box<Semaphore>> {
        self.by_number.values_mut()
    }

    /// In the order of closing.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Semaphore> {
        self.by_number.values().map(Box::as_ref)
    }
}
