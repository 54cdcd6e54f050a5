//! What a worker has at hand, and what it shows of its work.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

use dmtrace_core::search::{HolderClass, Needles, Place, Window};

use super::{mounts::MountTables, options::SearchOptions, target::Target};
use crate::host::Roots;

/// What programs were found to be, by device, inode and time of change.
pub(super) type ProgramCache = HashMap<(u64, u64, i64), Option<bool>>;

/// So much is read at once: it stays in the processor's cache until it is looked at.
pub(super) const PIECE: usize = 256 << 10;

/// What a worker has at hand.
pub(super) struct Shelf<'a> {
    pub roots: Roots,
    pub needles: &'a Needles,
    pub options: &'a SearchOptions,
    pub mounts: MountTables,
    pub programs: ProgramCache,
    /// Device and inode of dmtrace itself.
    pub own_program: Option<(u64, u64)>,
    pub page: u64,
    pub window: Window,
    pub slot: &'a Slot,
}

impl Shelf<'_> {
    /// Bytes were read: the parent sees that this goes on.
    pub(super) fn count_bytes(&self, bytes: usize) {
        self.slot.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes are in the window.
    pub(super) fn advance(&mut self, target: &mut Target, bytes: usize, place: Place) {
        self.count_bytes(bytes);
        let found = |it| target.note(it, place);
        self.window.advance(bytes, self.needles, found);
    }

    /// What follows belongs to something else.
    pub(super) fn finish(&mut self, target: &mut Target, place: Place) {
        let found = |it| target.note(it, place);
        self.window.finish(self.needles, found);
    }

    /// What the process at hand could do with a number.
    pub(super) fn set_class(&self, class: Option<HolderClass>) {
        let number = class.map_or(0, |class| class as u64 + 1);
        self.slot.class.store(number, Ordering::Relaxed);
    }
}

/// What a worker shows while it works.
#[derive(Default)]
#[repr(C)]
pub(super) struct Slot {
    bytes: AtomicU64,
    class: AtomicU64,
}

impl Slot {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn class(&self) -> Option<HolderClass> {
        const ALL: [HolderClass; 4] = [
            HolderClass::Actor,
            HolderClass::Capable,
            HolderClass::MentionOnly,
            HolderClass::Powerless,
        ];
        let number = self.class.load(Ordering::Relaxed);
        let number = usize::try_from(number).ok()?.checked_sub(1)?;
        ALL.into_iter().find(|class| *class as usize == number)
    }
}
