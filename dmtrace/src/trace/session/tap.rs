//! What a recording is made from.

use std::path::PathBuf;

use dmtrace_common::{ProcRecord, SemKey, SemRecord};
use dmtrace_core::{
    event::as_bytes,
    facts::{HostFacts, Snapshot},
    ledger::{MapRecord, in_order},
    verdict::BookLosses,
};

use super::{ChangeSink, Session};
use crate::{host, stack::FoundSite};

/// Something that the books were made from, for a recording.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TappedInput<'a> {
    /// A message of the ring.
    Message(&'a [u8]),
    /// A record of the semaphore map, read because messages were dropped.
    Sem(SemKey, &'a SemRecord),
    /// A record of the process map, likewise.
    Proc(&'a ProcRecord),
    Snapshot(&'a Snapshot),
    /// The call site of a cookie.
    Site(&'a FoundSite),
    /// This file ends. The next one begins with the books as they are now, up to
    /// [`TappedInput::BooksWritten`].
    NextFile {
        /// What the host says.
        facts: &'a HostFacts,
        /// What was lost so far, in words.
        deficits: &'a [String],
        /// What verdicts on the books may lack so far.
        losses: BookLosses,
    },
    /// The next file can be read by itself.
    BooksWritten,
}

/// Gets everything that the books are made from.
pub(crate) struct Tap {
    pub write: Box<dyn FnMut(TappedInput<'_>)>,
    /// Whether the next file is due.
    pub is_full: Box<dyn Fn() -> bool>,
    /// Where it goes now, for other commands to read.
    pub place: Box<dyn Fn() -> Option<PathBuf>>,
}

impl Session {
    /// Begins the next file of the recording if the current one is full. Its first entries are the
    /// kernel side's maps: what they say of a set is what a reader needs to judge it.
    pub(crate) fn rotate_if_full(&mut self, sink: ChangeSink<'_>) {
        if !self.tap.as_ref().is_some_and(|tap| (tap.is_full)()) {
            return;
        }
        let snapshot = self.reconcile_books(sink);
        let facts = host::read_facts(&self.scope, &snapshot);
        self.observe_exits(&facts, sink);
        self.tap_input(TappedInput::NextFile {
            facts: &facts,
            deficits: &self.lost_so_far(),
            losses: self.losses_now(),
        });
        let procs = self.tracer.maps().proc_records();
        let sets = self.tracer.maps().sem_records();
        for record in in_order(procs, sets) {
            match record {
                MapRecord::Process(_, record) => self.tap_input(TappedInput::Proc(&record)),
                MapRecord::Set(key, record) => self.tap_input(TappedInput::Sem(key, &record)),
            }
        }
        for device in self.tracer.maps().last_ioctls() {
            let completed = self.devices.complete_message(as_bytes(&device));
            let device = completed.unwrap_or(device);
            self.tap_input(TappedInput::Message(as_bytes(&device)));
        }
        for lookup in self.tracer.maps().failed_lookups() {
            self.tap_input(TappedInput::Message(as_bytes(&lookup)));
        }
        for found in self.placed_sites() {
            self.tap_input(TappedInput::Site(&found));
        }
        self.tap_input(TappedInput::Snapshot(&snapshot));
        self.tap_input(TappedInput::BooksWritten);
        let place = self.tap.as_ref().and_then(|tap| (tap.place)());
        if let Some(registration) = &self.registration {
            registration.set_recording(place);
        }
    }

    /// Call sites of the cookies that are there.
    fn placed_sites(&self) -> Vec<FoundSite> {
        let placed = self.ledger.live_cookies().filter_map(|set| {
            Some(FoundSite {
                sem: set.id,
                key: set.key,
                at: set.created?,
                maker: set.creator.image()?.id,
                site: set.cookie.as_ref()?.call_site.clone()?,
            })
        });
        placed.collect()
    }
}
