//! The loop behind `watch`, `record` and `exec`: messages into the books, changes to the printer,
//! a look at the whole once in a while, and an orderly end.

use std::{collections::BTreeMap, future::ready, io, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::yield_now,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{args::Tuning, failure::Failure};
use crate::{
    facts::{HostFacts, Snapshot},
    host::{self, Scope},
    ids::SemId,
    ledger::{Change, Ledger},
    probe::{Backend, Options, StartError},
    session::{Accounting, DmReport, Session, Tap},
    verdict::{self, Context, Judged, Thresholds},
};

/// How often the whole is looked at while there are cookies.
const LOOK: Duration = Duration::from_secs(1);
/// How long messages are taken in before others get a turn: signals, the look, the deadline.
const TURN: Duration = Duration::from_millis(100);
/// Every so many looks the books are compared even if nothing has changed.
const LOOKS_PER_COMPARISON: u32 = 10;

impl Tuning {
    /// As the tracer takes it.
    pub fn options(&self) -> Options {
        use super::args::BackendArg;
        Options {
            backend: self.backend.map(|backend| match backend {
                BackendArg::Fentry => Backend::Trampoline,
                BackendArg::Kprobe => Backend::Kprobe,
                BackendArg::Tracepoint => Backend::Tracepoint,
            }),
            ring_bytes: self.ring.saturating_mul(1024),
            max_sems: self.max_semaphores,
            max_procs: self.max_processes,
        }
    }
}

/// What the loop tells its verb.
pub trait Observer {
    /// Changes of the books; none where only a process became known.
    ///
    /// # Errors
    /// Whatever stops the verb, such as a reader that has gone.
    fn changes(&mut self, changes: &[Change], session: &View<'_>) -> Result<()>;

    /// A verdict that is a finding, or that was one and is no more.
    ///
    /// # Errors
    /// As above.
    fn finding(&mut self, judged: &Judged<'_>, session: &View<'_>) -> Result<()>;

    /// device-mapper was loaded after the start, and is traced from now on.
    ///
    /// # Errors
    /// As above.
    fn device_mapper(&mut self, _report: &DmReport) -> Result<()> {
        Ok(())
    }

    /// Called when the ring is empty: a good moment to flush.
    ///
    /// # Errors
    /// As above.
    fn idle(&mut self) -> Result<()>;

    /// Whether the verb has had enough.
    fn enough(&self) -> bool;
}

/// What an observer may look at.
pub struct View<'a> {
    /// The books.
    pub ledger: &'a Ledger,
}

/// Why the loop ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// Ctrl-C, or SIGTERM.
    Signal,
    /// The time was up, or the observer had enough.
    Enough,
    /// The child has ended.
    Child(std::process::ExitStatus),
}

/// A trace with its loop.
pub struct Tracing {
    session: Session,
    interrupt: Signal,
    terminate: Signal,
    /// Last class that was told, by cookie.
    told: BTreeMap<SemId, &'static str>,
    /// Whether there may be messages left in the ring: it tells of new ones only.
    backlog: bool,
    /// Changes since the last look.
    dirty: bool,
    looks: u32,
}

/// Everything at the end.
pub struct Ending {
    /// The books.
    pub session: Session,
    /// The balance.
    pub accounting: Accounting,
    /// The kernel's tables at the end.
    pub snapshot: Snapshot,
    /// What the host said at the end.
    pub facts: HostFacts,
}

impl Tracing {
    /// Attaches.
    ///
    /// # Errors
    /// A [`Failure::Environment`] where the machine does not allow it.
    pub fn start(
        tuning: &Tuning,
        tap: impl FnOnce(&crate::probe::Tracer, crate::ids::BootTime) -> Result<Option<Tap>, StartError>,
    ) -> Result<Self> {
        let interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
        let terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
        let session = Session::start(tuning.options(), Scope::default(), tap)
            .map_err(|error| Failure::Environment(error.to_string()))?;
        Ok(Self {
            session,
            interrupt,
            terminate,
            told: BTreeMap::new(),
            backlog: false,
            dirty: true,
            looks: 0,
        })
    }

    /// The trace.
    pub const fn session(&self) -> &Session {
        &self.session
    }

    /// Runs until a signal, the deadline, the end of the child, or until the observer has enough.
    ///
    /// # Errors
    /// Polling fails, or the observer fails.
    pub async fn run(
        &mut self,
        observer: &mut dyn Observer,
        duration: Option<Duration>,
        mut child: Option<&mut tokio::process::Child>,
    ) -> Result<Ended> {
        let now = Instant::now();
        let deadline = duration.and_then(|duration| now.checked_add(duration));
        let early = self.session.take_early();
        observer.changes(
            &early,
            &View {
                ledger: self.session.ledger(),
            },
        )?;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if observer.enough() {
                return Ok(Ended::Enough);
            }
            // Where something is ready all the time, nothing else lets the runtime see signals
            // and timers.
            yield_now().await;
            // While a child runs, Ctrl-C is its business: the terminal sends it to both.
            let follow_signals = child.is_none();
            tokio::select! {
                biased;
                _ = self.interrupt.recv(), if follow_signals => return Ok(Ended::Signal),
                _ = self.terminate.recv() => return Ok(Ended::Signal),
                status = wait(&mut child) => return Ok(Ended::Child(status.context("cannot wait for the command")?)),
                () = at(deadline) => return Ok(Ended::Enough),
                _ = look.tick(), if self.wants_look() || self.watches_dm() => {
                    if self.session.attend_dm() {
                        observer.device_mapper(&self.session.dm_report())?;
                    }
                    if self.wants_look() {
                        self.look(observer)?;
                    }
                }
                polled = self.session.readable() => {
                    polled.context("cannot poll the ring buffer")?;
                    self.drain(observer)?;
                }
                () = ready(()), if self.backlog => self.drain(observer)?,
            }
        }
    }

    /// Whether device-mapper may come, or go and come again, while nothing else happens.
    fn watches_dm(&self) -> bool {
        self.session.awaits_dm() || self.session.may_lose_dm()
    }

    fn wants_look(&self) -> bool {
        self.dirty || self.session.ledger().totals().sets.live > 0
    }

    fn drain(&mut self, observer: &mut dyn Observer) -> Result<()> {
        // Whoever makes a cookie has loaded dm_mod just before.
        let dm_came = self.session.awaits_dm() && self.session.attend_dm();
        let began = Instant::now();
        loop {
            let dirty = &mut self.dirty;
            let mut told = Told::new(observer);
            let mut sink = |changes: &[Change], ledger: &Ledger| {
                *dirty = true;
                told.tell(changes, ledger);
            };
            self.backlog = self.session.drain(&mut sink);
            self.session.resync_if_crowded(&mut sink);
            told.done()?;
            if !self.backlog || observer.enough() || began.elapsed() > TURN {
                break;
            }
        }
        self.session.place_sites();
        if dm_came {
            observer.device_mapper(&self.session.dm_report())?;
        }
        observer.idle()
    }

    /// Makes drops good, compares with the kernel, judges, and tells what is new.
    fn look(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let dirty = &mut self.dirty;
        let mut told = Told::new(observer);
        self.session.resync(&mut |changes, ledger| {
            *dirty |= !changes.is_empty();
            told.tell(changes, ledger);
        });
        told.done()?;
        for message in self.session.kernel_messages() {
            eprintln!("dmtrace: kernel side: {message}");
        }
        self.looks = self.looks.wrapping_add(1);
        let cookies = self.session.ledger().totals().cookies.live > 0 || !self.told.is_empty();
        if !(self.dirty && cookies || self.looks.is_multiple_of(LOOKS_PER_COMPARISON)) {
            self.dirty = false;
            return observer.idle();
        }
        let mut told = Told::new(observer);
        let snapshot = self
            .session
            .reconcile(&mut |changes, ledger| told.tell(changes, ledger));
        told.done()?;
        // A verdict may wait for time to pass: look again until nothing is pending.
        self.dirty = cookies && self.judge(observer, &snapshot)?;
        observer.idle()
    }

    /// Judges every cookie and tells new findings. Returns whether a verdict is still open.
    fn judge(&mut self, observer: &mut dyn Observer, snapshot: &Snapshot) -> Result<bool> {
        let facts = host::facts(&Scope::default(), snapshot);
        let mut told = Told::new(observer);
        self.session
            .observe(&facts, &mut |changes, ledger| told.tell(changes, ledger));
        told.done()?;
        let completeness = self.session.completeness();
        let context = Context {
            facts: &facts,
            completeness: &completeness,
            thresholds: &Thresholds::default(),
        };
        let ledger = self.session.ledger();
        let mut open = false;
        let mut seen = BTreeMap::new();
        for judged in verdict::survey(ledger, Some(snapshot), &context) {
            let class = judged.verdict.class;
            let id = judged.semaphore.id;
            if class.is_finding() {
                if self.told.get(&id) != Some(&class.label()) {
                    observer.finding(&judged, &View { ledger })?;
                }
                seen.insert(id, class.label());
            } else {
                open = true;
            }
        }
        self.told = seen;
        Ok(open)
    }

    /// Stops the probes, tells what is left to tell, and balances the accounts.
    ///
    /// # Errors
    /// The observer fails.
    pub fn finish(mut self, observer: &mut dyn Observer) -> Result<Ending> {
        let mut told = Told::new(observer);
        let (accounting, snapshot) = self
            .session
            .finish(&mut |changes, ledger| told.tell(changes, ledger));
        let facts = host::facts(&Scope::default(), &snapshot);
        self.session
            .observe(&facts, &mut |changes, ledger| told.tell(changes, ledger));
        told.done()?;
        observer.idle()?;
        Ok(Ending {
            session: self.session,
            accounting,
            snapshot,
            facts,
        })
    }
}

/// Passes changes on to an observer, and keeps its first error for the end of the call.
struct Told<'a> {
    observer: &'a mut dyn Observer,
    failure: Option<anyhow::Error>,
}

impl<'a> Told<'a> {
    fn new(observer: &'a mut dyn Observer) -> Self {
        Self {
            observer,
            failure: None,
        }
    }

    fn tell(&mut self, changes: &[Change], ledger: &Ledger) {
        if self.failure.is_none() {
            self.failure = self.observer.changes(changes, &View { ledger }).err();
        }
    }

    fn done(self) -> Result<()> {
        self.failure.map_or(Ok(()), Err)
    }
}

impl Ending {
    /// Every cookie, judged.
    pub fn judge(&self, thresholds: &Thresholds) -> Vec<Judged<'_>> {
        let completeness = self.session.completeness();
        let context = Context {
            facts: &self.facts,
            completeness: &completeness,
            thresholds,
        };
        verdict::survey(self.session.ledger(), Some(&self.snapshot), &context)
    }

    /// The remembered cookies that are gone, judged.
    pub fn judge_closed(&self, thresholds: &Thresholds) -> Vec<Judged<'_>> {
        let completeness = self.session.completeness();
        let context = Context {
            facts: &self.facts,
            completeness: &completeness,
            thresholds,
        };
        verdict::survey_closed(self.session.ledger(), &context)
    }
}

/// The runtime: one thread, no pool.
///
/// # Errors
/// The system refuses an epoll instance.
pub fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

async fn wait(
    child: &mut Option<&mut tokio::process::Child>,
) -> io::Result<std::process::ExitStatus> {
    match child {
        Some(child) => child.wait().await,
        None => std::future::pending().await,
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
