//! A session that outlives its process: its successor goes on with the maps.

use std::path::Path;

use dmtrace_common::{KINDS, Kind, SEM_TOMBSTONE};
use dmtrace_core::{
    event::{as_bytes, decode_event},
    ids::BootTime,
    ledger::{DriftKind, MapRecord, in_order},
};

use super::{ChangeSink, Session};
use crate::{
    host::{self, Scope},
    probe::{Continuity, Options, PinnedPast, SeedReason, StartError, Tracer},
};

/// Tries to find the ring at rest.
const MAX_REST_TRIES: u32 = 1000;

impl Session {
    /// As [`Session::start`], with a kernel side that outlives this process: pinned under `root`.
    /// What an earlier process has left there is taken over.
    ///
    /// # Errors
    /// See [`StartError`].
    pub(crate) fn start_kept(
        options: Options,
        scope: Scope,
        root: &Path,
    ) -> Result<Self, StartError> {
        let (mut tracer, continuity) = Tracer::start_kept(options, root)?;
        // Not before: what happens while the probes are being attached may be missed.
        let now = host::clock::boot_now();
        let new = matches!(continuity.past, PinnedPast::New) || tracer.trace_start() == BootTime(0);
        if new {
            let snapshot = host::take_snapshot(&scope);
            tracer.seed_sets(&snapshot, SeedReason::Older);
            tracer.mark_started(now);
            let mut session = Self::from_tracer(tracer, now, scope, None, Some(continuity))?;
            let mut early = Vec::new();
            session.drain_all(&mut |changes, _| early.extend_from_slice(changes));
            session.early = early;
            session.preexisting = session.compare_books(&snapshot).preexisting;
            if let Some(PinnedPast::Gap(gap)) = session.continuity.as_mut().map(|it| &mut it.past) {
                gap.created_unseen = session.preexisting;
            }
            return Ok(session);
        }
        let began = tracer.trace_start();
        tracer.mark_started(began);
        let mut session = Self::from_tracer(tracer, began, scope, None, Some(continuity))?;
        session.take_over();
        Ok(session)
    }

    /// Whether this trace goes on with that of an earlier process, and whether a later one will
    /// go on with it; `None` for one that ends with its process.
    pub(crate) const fn tracing_continuity(&self) -> Option<&Continuity> {
        self.continuity.as_ref()
    }

    /// From when on everything was seen: the start, or the end of the last gap.
    pub(crate) fn watched_since(&self) -> BootTime {
        match self.continuity.as_ref().map(|it| &it.past) {
            Some(PinnedPast::Gap(gap)) => self.began.max(gap.to),
            _ => self.began,
        }
    }

    /// Ends this process's part: what is in the ring is taken in, and tracing goes on for a later
    /// one. `false` where it cannot.
    pub(crate) fn hand_over(&mut self, sink: ChangeSink<'_>) -> bool {
        if self.tracer.pin_dir().is_none() {
            return false;
        }
        self.drain_all(sink);
        self.resync_maps(sink);
        if let Some(registration) = self.registration.take() {
            registration.leave_file();
        }
        true
    }

    /// The books are made from the maps; what nobody has read is in the ring.
    fn take_over(&mut self) {
        let mut sets = self.tracer.maps().sem_records();
        // What is gone comes after the messages that tell of it.
        sets.retain(|(_, record)| record.state & SEM_TOMBSTONE == 0);
        let live = sets.len() as u64;
        for record in in_order(self.tracer.maps().proc_records(), sets) {
            match record {
                MapRecord::Process(_, record) => self.ledger.adopt_process(&record),
                MapRecord::Set(key, record) => self.ledger.adopt_record(key.into(), &record),
            };
        }
        self.preexisting = live;
        for device in self.tracer.maps().last_ioctls() {
            let completed = self.devices.complete_message(as_bytes(&device));
            if let Ok(event) = decode_event(as_bytes(&completed.unwrap_or(device))) {
                self.ledger.apply(&event);
            }
        }
        for lookup in self.tracer.maps().failed_lookups() {
            if let Ok(event) = decode_event(as_bytes(&lookup)) {
                self.ledger.apply(&event);
            }
        }
        for (key, created, site) in self.tracer.maps().call_sites() {
            let created = BootTime(created);
            self.ledger.adopt_call_site(key.into(), created, site);
        }
        let mut early = Vec::new();
        let mut sink = |changes: &[_], _: &_| early.extend_from_slice(changes);
        self.count_from_here(&mut sink);
        self.resync_maps(&mut sink);
        self.tracer.recount_tombstones();
        let gap = matches!(
            self.continuity.as_ref().map(|it| &it.past),
            Some(PinnedPast::Gap(_))
        );
        if gap {
            self.ledger.was_blind();
        }
        self.ledger.mark_reconciled();
        let drift = self.drift;
        self.reconcile_books(&mut sink);
        self.early = early;
        let report = self.last.clone().unwrap_or_default();
        if let Some(Continuity {
            past: PinnedPast::Gap(gap),
            ..
        }) = &mut self.continuity
        {
            // Explained by the gap.
            self.drift = drift;
            let rekeyed =
                |it: &&dmtrace_core::ledger::Drift| matches!(it.kind, DriftKind::Rekeyed { .. });
            let rekeyed = report.drifts.iter().filter(rekeyed).count() as u64;
            gap.created_unseen = report.unknown + rekeyed;
            gap.ended_unseen = report.vanished + rekeyed;
            gap.used = report.revalued;
        }
    }

    /// Takes what is in the ring, and counts from there: what an earlier process has received is
    /// as good as received here, because the maps hold it.
    fn count_from_here(&mut self, sink: ChangeSink<'_>) {
        let submitted = |session: &Self| -> [u64; KINDS] {
            Kind::ALL.map(|kind| session.tracer.counts().counts_of(kind).submitted)
        };
        // A message is counted right after it was submitted. Once nothing is submitted while the
        // ring is emptied, everything counted is here.
        let mut before = submitted(self);
        for _ in 0..MAX_REST_TRIES {
            self.drain_all(sink);
            let after = submitted(self);
            if after == before {
                break;
            }
            before = after;
        }
        self.received.kinds = before;
        // All drops so far are looked for in the maps.
        self.dropped_seen = u64::MAX;
    }
}
