//! Live tracing: the kernel side, the books, and the exact accounting between the two.

mod accounting;
mod devices;
mod dm_watch;
mod ends;
pub(crate) mod health;
mod losses;
mod meters;
mod order;
mod pace;
mod resync;
mod sites;
mod takeover;
mod tap;

use std::{io, path::PathBuf, time::Instant};

use aya::maps::{MapData, RingBuf};
use dmtrace_common::{Kind, SemEvent};
use dmtrace_core::{
    event::{Event, EventKind, as_bytes, decode_event},
    facts::{HostFacts, Snapshot},
    ids::{BootTime, ProcId},
    ledger::{Change, DriftKind, Ledger, Reconciliation, Retention},
    verdict::{BookLosses, EarlierFinding, Thresholds},
    wall_clock::ClockHistory,
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    host::{self, Scope},
    probe::{
        Continuity, DmState, KernelCounts, Options, PinnedPast, SeedReason, StartError, Tracer,
        registry,
    },
};

use super::books::TraceMoment;
pub(crate) use accounting::{Accounting, ReceivedCounts};
pub(crate) use devices::DeviceDirectory;
pub(crate) use devices::DmReport;
pub(crate) use pace::{Outlook, Pace, PaceRhythm, Urgency};
pub(crate) use registry::registered_tracers;
pub(crate) use tap::{Tap, TappedInput};

/// Messages taken from the ring before other work gets a turn.
const MAX_BATCH: usize = 4096;

/// Gets the changes of the books as they are made: a process that has ended is forgotten soon.
pub(crate) type ChangeSink<'a> = &'a mut dyn FnMut(&[Change], &Ledger);

/// A record of a process younger than this is not searched for in the process list, nanoseconds.
const REAP_AFTER: u64 = 10_000_000_000;

/// What a trace waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum InputKind {
    /// Messages in the ring, or call sites that were found.
    Messages,
    /// device-mapper may have come or gone: [`Session::try_attach_dm`].
    Module,
}

pub(crate) struct Session {
    tracer: Tracer,
    ring: AsyncFd<RingBuf<MapData>>,
    ledger: Ledger,
    scope: Scope,
    received: ReceivedCounts,
    /// Messages dropped at the last look into the maps.
    dropped_seen: u64,
    /// When that was.
    resynced: Instant,
    /// Records of ended processes that are left in the map on purpose.
    victims_kept: u64,
    /// Changes between attaching and the end of the start.
    early: Vec<Change>,
    /// Processes seen when the process map was last searched for dead ones.
    procs_reaped_at: u64,
    began: BootTime,
    /// Sets that were there before.
    preexisting: u64,
    /// Differences found when comparing with the kernel, in sum.
    drift: u64,
    last: Option<Reconciliation>,
    tap: Option<Tap>,
    /// Makes this trace known to `list`, `report` and `clean` as long as it lives.
    registration: Option<registry::Registration>,
    sites: Option<sites::SiteWorker>,
    /// Numbers of devices by name.
    devices: DeviceDirectory,
    /// When device-mapper was attached to.
    dm_since: Option<BootTime>,
    /// Cookies made while it was not.
    dm_missed: u64,
    /// Tells when it comes or goes.
    dm_watch: dm_watch::DmWatch,
    /// Where the kernel side outlives this process: what it has begun with.
    continuity: Option<Continuity>,
    /// Stacks that an earlier process has taken.
    stacks_before: u64,
    /// What the maps do not make good.
    losses: BookLosses,
    /// Records of processes whose end the kernel side has missed, and that were removed since.
    ends_missed: u64,
    /// Puts changes into the order in which they came about.
    order: order::ChangeOrder,
    /// What an earlier trace has found, by set.
    earlier: Vec<EarlierFinding>,
}

impl Session {
    /// Attaches, enters what is there already, and makes the trace known to other commands.
    ///
    /// # Errors
    /// See [`StartError`].
    pub(crate) fn start(
        options: Options,
        scope: Scope,
        tap: impl FnOnce(&Tracer, BootTime) -> Result<Option<Tap>, StartError>,
    ) -> Result<Self, StartError> {
        let mut tracer = Tracer::start(options)?;
        // Not before: what happens while the probes are being attached may be missed.
        let began = host::clock::boot_now();
        let tap = tap(&tracer, began)?;
        // After attaching: what is made between a snapshot and attaching would stay unknown.
        let snapshot = host::take_snapshot(&scope);
        tracer.seed_sets(&snapshot, SeedReason::Older);
        let mut session = Self::from_tracer(tracer, began, scope, tap, None)?;
        let mut early = Vec::new();
        session.drain_all(&mut |changes, _| early.extend_from_slice(changes));
        session.early = early;
        session.preexisting = session.compare_books(&snapshot).preexisting;
        Ok(session)
    }

    /// Makes a session of a tracer, and makes it known.
    fn from_tracer(
        mut tracer: Tracer,
        began: BootTime,
        scope: Scope,
        tap: Option<Tap>,
        continuity: Option<Continuity>,
    ) -> Result<Self, StartError> {
        let other =
            |error: &dyn std::fmt::Display| StartError::Other(crate::wording::cause_text(error));
        let ring = tracer
            .take_ring()
            .ok_or_else(|| other(&"the ring buffer is gone"))?;
        // SAFETY: the descriptor belongs to the map inside `ring`, lives as long as it, and is the
        // same at every call.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(|_| other(&"cannot poll the ring buffer"))?;
        let remember = continuity
            .as_ref()
            .map_or(Retention::FULL, |_| Retention::THRIFTY);
        let stacks_before = tracer.counts().counts_of(Kind::Stack).submitted;
        let sites = sites::SiteWorker::start(
            &mut tracer,
            tap.is_some(),
            continuity.as_ref().map(|_| crate::stack::BINARY_CACHE_TTL),
        )?;
        let recording = tap.as_ref().and_then(|tap| (tap.place)());
        let registration = registry::register_trace(&tracer, began, recording);
        let mut session = Self {
            tracer,
            ring,
            ledger: Ledger::with_retention(remember),
            scope,
            received: ReceivedCounts::default(),
            dropped_seen: 0,
            resynced: Instant::now(),
            victims_kept: 0,
            procs_reaped_at: 0,
            early: Vec::new(),
            began,
            preexisting: 0,
            drift: 0,
            last: None,
            tap,
            registration,
            sites,
            devices: DeviceDirectory::default(),
            dm_since: None,
            dm_missed: 0,
            dm_watch: dm_watch::DmWatch::open(),
            continuity,
            stacks_before,
            losses: BookLosses::default(),
            ends_missed: 0,
            order: order::ChangeOrder::default(),
            earlier: Vec::new(),
        };
        if matches!(session.tracer.dm_state(), DmState::Attached { .. }) {
            let past = session.continuity.as_ref().map(|it| &it.past);
            let fresh = matches!(past, None | Some(PinnedPast::New));
            session.dm_since = Some(match fresh || session.tracer.dm_was_adopted() {
                true => began,
                false => host::clock::boot_now(),
            });
            session.devices.read_devices();
        }
        Ok(session)
    }

    pub(crate) const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub(crate) const fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// Changes between attaching and the end of the start; once.
    pub(crate) fn take_early(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.early)
    }

    /// Diagnostics of the kernel side since the last time, one line each.
    pub(crate) fn kernel_messages(&mut self) -> Vec<String> {
        self.tracer.kernel_messages()
    }

    /// When tracing began.
    pub(crate) const fn trace_start(&self) -> BootTime {
        self.began
    }

    /// Sets that were there when tracing began.
    pub(crate) const fn preexisting_sets(&self) -> u64 {
        self.preexisting
    }

    /// Whether other commands can find this trace.
    pub(crate) const fn is_registered(&self) -> bool {
        self.registration.is_some()
    }

    /// What an earlier trace of this boot has found stands, as far as this one does not know better.
    pub(crate) fn recall_findings(&mut self, mut earlier: Vec<EarlierFinding>) {
        earlier.sort_by_key(|it| it.sem);
        self.earlier = earlier;
    }

    /// Where to answer those who ask for these books; `None` where others cannot find this trace.
    pub(crate) fn books_socket(&self) -> Option<PathBuf> {
        self.registration.as_ref()?.books_socket()
    }

    /// What the books are judged with now.
    pub(crate) fn describe_moment(&self, facts: HostFacts, thresholds: Thresholds) -> TraceMoment {
        TraceMoment {
            facts,
            completeness: self.completeness(),
            thresholds,
            since: self.watched_since(),
            losses: self.lost_so_far(),
        }
    }

    /// Waits until there is something to do; no timer runs meanwhile.
    ///
    /// # Errors
    /// Polling fails.
    pub(crate) async fn wait_ready(&mut self) -> io::Result<InputKind> {
        let wanted = self.dm_attach_pending() || self.dm_may_unload();
        let found = async {
            match &self.sites {
                Some(sites) => sites.wait_sites().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ready = self.ring.readable() => {
                ready?.clear_ready();
                Ok(InputKind::Messages)
            }
            () = found => Ok(InputKind::Messages),
            () = self.dm_watch.wait_due(wanted) => Ok(InputKind::Module),
        }
    }

    /// Takes messages from the ring into the books, a bounded number; tells whether there may be
    /// more.
    pub(crate) fn drain_ring(&mut self, sink: ChangeSink<'_>) -> bool {
        let mut changes = Vec::new();
        let mut gone = Vec::new();
        let ring = self.ring.get_mut();
        let mut more = true;
        for _ in 0..MAX_BATCH {
            let Some(item) = ring.next() else {
                more = false;
                break;
            };
            let completed = self.devices.complete_message(&item);
            let message = completed.as_ref().map_or(&*item, as_bytes);
            if let Some(tap) = &mut self.tap {
                (tap.write)(TappedInput::Message(message));
            }
            match decode_event(message) {
                Ok(event) => {
                    self.received.count_message(item.first_chunk());
                    if makes_cookie(&event) && self.dm_since.is_none_or(|since| event.at < since) {
                        self.dm_missed += 1;
                    }
                    changes.clear();
                    self.ledger.apply_into(&event, &mut changes);
                    self.order.arrange_changes(&mut changes, &self.ledger);
                    if let EventKind::Destroyed { sem, key } = event.what
                        && key.has_cookie_magic()
                    {
                        gone.push(sem);
                    }
                    if !changes.is_empty() {
                        sink(&changes, &self.ledger);
                    }
                }
                Err(_) => self.received.undecodable += 1,
            }
        }
        for sem in gone {
            self.forget_site(sem);
        }
        self.tell_held(sink, false);
        more
    }

    /// Tells what waits in vain for an earlier change; `everything` at the end.
    fn tell_held(&mut self, sink: ChangeSink<'_>, everything: bool) {
        let held = self.order.give_up(everything);
        if !held.is_empty() {
            sink(&held, &self.ledger);
        }
    }

    /// Takes everything that is in the ring now: no more than fits in, because it may never be empty.
    pub(crate) fn drain_all(&mut self, sink: ChangeSink<'_>) {
        let messages = self.tracer.ring_bytes() as usize / size_of::<SemEvent>();
        let _more = (0..=messages / MAX_BATCH).all(|_| self.drain_ring(sink));
    }

    /// Compares the books with the kernel's own tables. Differences are counted and told, and the
    /// maps are corrected where the kernel side missed a removal.
    pub(crate) fn reconcile_books(&mut self, sink: ChangeSink<'_>) -> Snapshot {
        let snapshot = host::take_snapshot(&self.scope);
        self.drain_all(sink);
        self.resync_maps(sink);
        self.await_teardown(&snapshot, sink);
        let report = self.compare_books(&snapshot);
        for drift in &report.drifts {
            if matches!(drift.kind, DriftKind::Vanished | DriftKind::Rekeyed { .. }) {
                self.tracer.forget_set(drift.sem.into());
            }
        }
        if report.unknown > 0 {
            self.tracer.seed_sets(&snapshot, SeedReason::Missed);
        }
        sink(&report.changes, &self.ledger);
        self.reap_processes();
        self.note_losses();
        self.drift += report.drift_count();
        self.last = Some(report);
        snapshot
    }

    /// Removes records of processes that are gone and own nothing, and that the kernel side cannot
    /// remove: the end of a process finds the record of its last image only, not of those before
    /// `execve`. Done when so many processes came that it may matter.
    fn reap_processes(&mut self) {
        let seen = self.tracer.counts().counts_of(Kind::Proc).seen;
        if seen - self.procs_reaped_at < u64::from(self.tracer.max_procs() / 4) {
            return;
        }
        let list = host::processes::list_processes(&self.scope.roots);
        if list.incomplete.is_some() {
            return;
        }
        self.procs_reaped_at = seen;
        let horizon = host::clock::boot_now().0.saturating_sub(REAP_AFTER);
        for (key, record) in self.tracer.maps().proc_records() {
            let id = ProcId::from(key);
            let alive = list
                .processes
                .get(&id.tgid)
                .is_some_and(|process| process.live.start_ticks == id.start_ticks());
            let idle = record.live == 0 && record.exited == 0 && record.header.ts < horizon;
            if idle && !alive {
                self.tracer.forget_process(key);
                // Of a process that has replaced many images the first ones are left over.
                let announced = self
                    .ledger
                    .images_of(id)
                    .any(|image| image.exit.is_some_and(|exit| exit.status.is_some()));
                self.ends_missed += u64::from(!announced);
            }
        }
    }

    fn compare_books(&mut self, snapshot: &Snapshot) -> Reconciliation {
        self.tap_input(TappedInput::Snapshot(snapshot));
        self.ledger.reconcile(snapshot)
    }

    fn tap_input(&mut self, what: TappedInput<'_>) {
        if let Some(tap) = &mut self.tap {
            (tap.write)(what);
        }
    }

    /// Learns from the process list which processes have ended unseen.
    pub(crate) fn observe_exits(&mut self, facts: &HostFacts, sink: ChangeSink<'_>) {
        // A process leaves the list after its end went into the ring: the ring says how it ended.
        self.drain_all(sink);
        let changes = self.ledger.observe_exits(facts);
        sink(&changes, &self.ledger);
    }

    /// Writes down, for other commands, what the verdicts of this trace rest on besides the maps.
    pub(crate) fn publish_activity(&mut self) {
        if let Some(registration) = &mut self.registration {
            registration.write_activity(self.ledger.process_activities());
        }
    }

    /// Writes down, for other commands, what this process has watched of the wall clock.
    pub(crate) fn publish_clock(&mut self, clock: &ClockHistory) {
        if let Some(registration) = &mut self.registration {
            registration.write_clock(clock);
        }
    }

    /// Stops the probes, takes in what is left and balances the accounts.
    pub(crate) fn finish(&mut self, sink: ChangeSink<'_>) -> (Accounting, Snapshot) {
        // Compared while the probes still see what others do: after detaching, every change by
        // anybody would count as a difference.
        let snapshot = self.reconcile_books(sink);
        let ends_made_good = self.ends_made_good();
        self.tracer.unpin();
        self.tracer.detach();
        let counts = self.settled_counts();
        self.drain_all(sink);
        self.resync_maps(sink);
        self.tell_held(sink, true);
        if let Some(sites) = &mut self.sites {
            sites.finish_work();
            self.received.kinds[Kind::Stack as usize] = sites.received_count() + self.stacks_before;
        }
        self.place_sites();
        let mut accounting = Accounting::from_counts(
            &counts,
            &self.received,
            self.ledger.totals(),
            self.last.as_ref(),
            self.drift,
            ends::subtract_made_good(self.tracer.skipped_runs(), ends_made_good),
            &self.tracer.skipped_programs(),
        );
        accounting.losses = self.losses_now();
        (accounting, snapshot)
    }

    /// Detaching does not wait for a program that runs on another CPU at this moment: the counts
    /// are final once what was seen has either been submitted or dropped, twice in a row.
    fn settled_counts(&self) -> KernelCounts {
        let mut counts = self.tracer.counts();
        for _ in 0..50 {
            std::thread::sleep(std::time::Duration::from_millis(2));
            let again = self.tracer.counts();
            let total = again.total_counts();
            if again == counts && total.seen == total.submitted + total.dropped {
                break;
            }
            counts = again;
        }
        counts
    }
}

fn makes_cookie(event: &Event) -> bool {
    matches!(&event.what, EventKind::Created { key, .. } if key.has_cookie_magic())
}
