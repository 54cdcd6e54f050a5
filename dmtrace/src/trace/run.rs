//! The loop behind `watch`, `record` and `exec`: messages into the books, changes to the printer,
//! a look at the whole once in a while, and an orderly end.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    time::{Duration, Instant as Moment},
};

use anyhow::{Context as _, Result};
use dmtrace_core::{
    facts::{self, HostFacts, Snapshot},
    ids::SemId,
    ledger::{Change, ChangeKind, EndKind},
    verdict::{self, Class, Confidence, Context, EarlierFinding, Thresholds},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};

use super::observer::ObserverSink;
use super::{
    books::{BooksQuestions, BooksSocket},
    readiness::{wait_child, wait_end, wait_ready, wait_until},
};
pub(crate) use super::{
    ending::TraceEnd,
    observer::{BooksView, Observer},
    readiness::Readiness,
};
use crate::{
    host::{self, Scope, clock::cpu_spent},
    output::print_remark,
    probe::{Options, StartError},
    trace::ended::EndedCookies,
    trace::session::{ChangeSink, InputKind, Outlook, Pace, PaceRhythm, Session, Tap, Urgency},
};

/// The books are compared with the kernel so often at least, if there is a look at all.
const COMPARE_PERIOD: Duration = Duration::from_secs(10);
/// How long messages are taken in before others get a turn: signals, the look, the deadline.
const DRAIN_TURN: Duration = Duration::from_millis(100);

/// Why the loop ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum EndReason {
    /// Ctrl-C, or SIGTERM.
    Signal,
    /// The time was up, or the observer had enough.
    Enough,
    /// The child has ended.
    Child(std::process::ExitStatus),
}

/// A trace with its loop.
pub(crate) struct Tracing {
    session: Session,
    /// When everything was attached.
    began: Moment,
    interrupt: Signal,
    terminate: Signal,
    ended: EndedCookies,
    /// What was told last, by cookie.
    reported: BTreeMap<SemId, (Class, Confidence)>,
    /// Whether there may be messages left in the ring: it tells of new ones only.
    backlog: bool,
    /// Changes since the last look.
    dirty: bool,
    pace: Pace,
    thresholds: Thresholds,
    compared: Option<Moment>,
    /// Whether there were cookies at the last look: that there are none any more is told, too.
    shown: bool,
    /// What the last look could not read.
    unread: Option<String>,
    /// Where others ask for the books; `None` where that could not be.
    books: Option<BooksSocket>,
}

impl Tracing {
    /// Attaches.
    ///
    /// # Errors
    /// A [`StartError`] where the machine does not allow it.
    pub(crate) fn start(
        options: Options,
        tap: impl FnOnce(
            &crate::probe::Tracer,
            dmtrace_core::ids::BootTime,
        ) -> Result<Option<Tap>, StartError>,
    ) -> Result<Self> {
        let session = Session::start(options, Scope::default(), tap)?;
        Self::from_session(session)
    }

    /// As [`Tracing::start`], with a kernel side that outlives this process, pinned under `root`.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn start_kept(options: Options, root: &Path) -> Result<Self> {
        let session = Session::start_kept(options, Scope::default(), root)?;
        Self::from_session(session)
    }

    fn from_session(session: Session) -> Result<Self> {
        let interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
        let terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
        // Without it others do with the maps, and say so.
        let books = session.books_socket();
        let books = books.and_then(|path| BooksSocket::open(&path).ok());
        Ok(Self {
            session,
            books,
            began: Moment::now(),
            interrupt,
            terminate,
            ended: EndedCookies::default(),
            reported: BTreeMap::new(),
            backlog: false,
            dirty: true,
            pace: Pace::new(PaceRhythm::WATCH, Moment::now()),
            thresholds: Thresholds::default(),
            compared: None,
            shown: false,
            unread: None,
        })
    }

    /// For a long time: rare looks while nothing happens, and these limits of time.
    #[must_use]
    pub(crate) fn with_service_pacing(mut self, thresholds: Thresholds) -> Self {
        self.pace = Pace::new(PaceRhythm::SERVE, Moment::now());
        self.thresholds = thresholds;
        self
    }

    /// See [`Session::recall_findings`].
    pub(crate) fn recall_findings(&mut self, earlier: Vec<EarlierFinding>) {
        self.session.recall_findings(earlier);
    }

    pub(crate) const fn session(&self) -> &Session {
        &self.session
    }

    /// Findings as they were told last.
    pub(crate) const fn reported_findings(&self) -> &BTreeMap<SemId, (Class, Confidence)> {
        &self.reported
    }

    /// What the last look could not read, in one line; `None` when it read everything.
    pub(crate) fn unread_summary(&self) -> Option<&str> {
        self.unread.as_deref()
    }

    /// Runs until a signal, the deadline, the end of the child, or until the observer has enough.
    ///
    /// # Errors
    /// Polling fails, or the observer fails.
    pub(crate) async fn run(
        &mut self,
        observer: &mut dyn Observer,
        duration: Option<Duration>,
        mut child: Option<&mut tokio::process::Child>,
    ) -> Result<EndReason> {
        let now = Instant::now();
        let deadline = duration.and_then(|duration| now.checked_add(duration));
        self.report_backlog(observer)?;
        loop {
            if observer.should_stop() {
                return Ok(EndReason::Enough);
            }
            // While a child runs, Ctrl-C is its business: the terminal sends it to both.
            let follow_interrupt = child.is_none();
            let ready = tokio::select! {
                biased;
                () = wait_end(&mut self.interrupt, &mut self.terminate, follow_interrupt) => {
                    return Ok(EndReason::Signal);
                }
                status = wait_child(&mut child) => {
                    return Ok(EndReason::Child(status.context("cannot wait for the command")?));
                }
                () = wait_until(deadline) => return Ok(EndReason::Enough),
                ready = wait_ready(&self.pace, self.backlog, &mut self.session, &mut self.books) => ready?,
            };
            self.handle_readiness(ready, observer)?;
        }
    }

    /// Tells what has happened while the trace was being started.
    ///
    /// # Errors
    /// The observer fails.
    pub(crate) fn report_backlog(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let early = self.session.take_early();
        observer.on_changes(
            &early,
            &BooksView {
                ledger: self.session.ledger(),
                context: None,
            },
        )
    }

    /// Waits until there is something to do; `None` for a signal that ends the trace. May be
    /// dropped and called again: nothing is lost.
    ///
    /// # Errors
    /// Polling fails.
    pub(crate) async fn next_readiness(&mut self) -> Result<Option<Readiness>> {
        tokio::select! {
            biased;
            () = wait_end(&mut self.interrupt, &mut self.terminate, true) => Ok(None),
            ready = wait_ready(&self.pace, self.backlog, &mut self.session, &mut self.books) => {
                ready.map(Some)
            }
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// The observer fails.
    pub(crate) fn handle_readiness(
        &mut self,
        what: Readiness,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        match what {
            Readiness::Input(InputKind::Messages) => self.drain_ring(observer),
            Readiness::SurveyDue => self.survey(observer, None),
            Readiness::BooksAsked(questions) => self.survey(observer, Some(questions)),
            Readiness::Input(InputKind::Module) => {
                if self.session.try_attach_dm() {
                    observer.on_device_mapper(&self.session.dm_report())?;
                }
                Ok(())
            }
        }
    }

    fn drain_ring(&mut self, observer: &mut dyn Observer) -> Result<()> {
        // Whoever makes a cookie has loaded dm_mod just before.
        let dm_came = self.session.dm_attach_pending() && self.session.try_attach_dm();
        let began = Moment::now();
        loop {
            self.backlog = self.ingest(observer, |session, sink| {
                let more = session.drain_ring(sink);
                session.resync_if_crowded(sink);
                more
            })?;
            if !self.backlog || observer.should_stop() || began.elapsed() > DRAIN_TURN {
                break;
            }
        }
        // Before the maps are full of what the ring did not take.
        self.ingest(observer, Session::resync_in_time)?;
        self.session.place_sites();
        self.ingest(observer, Session::rotate_if_full)?;
        if dm_came {
            observer.on_device_mapper(&self.session.dm_report())?;
        }
        observer.on_idle()
    }

    /// Lets the books take something in, and tells what has changed.
    fn ingest<T>(
        &mut self,
        observer: &mut dyn Observer,
        take: impl FnOnce(&mut Session, ChangeSink<'_>) -> T,
    ) -> Result<T> {
        let mut urgency = None;
        let mut sink = ObserverSink::new(observer);
        let taken = take(&mut self.session, &mut |changes, ledger| {
            urgency = urgency.max(changes.iter().map(urgency_of).max());
            sink.pass_changes(changes, ledger);
        });
        if let Some(urgency) = urgency {
            self.dirty = true;
            self.pace.note_change(urgency, Moment::now());
        }
        sink.finish()?;
        Ok(taken)
    }

    /// Makes drops good, compares with the kernel, judges, and tells what is new.
    fn survey(
        &mut self,
        observer: &mut dyn Observer,
        questions: Option<BooksQuestions>,
    ) -> Result<()> {
        self.pace.begin_survey(Moment::now());
        let before = cpu_spent();
        let outlook = self.survey_changes(observer, questions)?;
        let work = cpu_spent().saturating_sub(before);
        self.pace.survey_done(outlook, work, Moment::now());
        self.ingest(observer, Session::rotate_if_full)?;
        observer.on_idle()
    }

    fn survey_changes(
        &mut self,
        observer: &mut dyn Observer,
        questions: Option<BooksQuestions>,
    ) -> Result<Outlook> {
        self.ingest(observer, Session::resync_maps)?;
        for message in self.session.kernel_messages() {
            print_remark(&format!("kernel side: {message}"));
        }
        let ledger = self.session.ledger();
        let cookies = ledger.totals().cookies.live > 0
            || self.shown
            || !self.reported.is_empty()
            || self.ended.has_unjudged(ledger);
        let stale = self
            .compared
            .is_none_or(|compared| compared.elapsed() >= COMPARE_PERIOD);
        let mut outlook = Outlook::default();
        if self.dirty && cookies || stale || questions.is_some() {
            let mut sink = ObserverSink::new(observer);
            let snapshot = self
                .session
                .reconcile_books(&mut |changes, ledger| sink.pass_changes(changes, ledger));
            sink.finish()?;
            self.compared = Some(Moment::now());
            if cookies || questions.is_some() {
                let facts = self.read_facts(observer, &snapshot)?;
                outlook = self.judge_cookies(observer, &snapshot, &facts)?;
                if let Some(questions) = questions {
                    let moment = self.session.describe_moment(facts, self.thresholds);
                    let given = questions.send_books(self.session.ledger(), &snapshot, &moment);
                    given.context("the books cannot be written down")?;
                }
            } else {
                // What hides processes hides namespaces, too.
                self.unread = facts::unread_summary(&snapshot, &HostFacts::default());
                observer.on_survey(&[], &snapshot);
            }
        }
        // A verdict may wait for time to pass: look again until nothing is pending.
        self.dirty = outlook.open;
        outlook.open |= self.session.is_behind();
        outlook.sets = self.session.ledger().totals().sets.live > 0;
        Ok(outlook)
    }

    /// Reads what the host says besides its semaphores, and learns from it who has ended.
    fn read_facts(
        &mut self,
        observer: &mut dyn Observer,
        snapshot: &Snapshot,
    ) -> Result<HostFacts> {
        let facts = host::read_facts(&Scope::default(), snapshot);
        self.unread = facts::unread_summary(snapshot, &facts);
        let mut sink = ObserverSink::new(observer);
        self.session.observe_exits(&facts, &mut |changes, ledger| {
            sink.pass_changes(changes, ledger);
        });
        sink.finish()?;
        self.session.publish_activity();
        self.session.publish_clock(&facts.clock);
        Ok(facts)
    }

    /// Judges every cookie and tells new findings. Returns whether a verdict is still open.
    fn judge_cookies(
        &mut self,
        observer: &mut dyn Observer,
        snapshot: &Snapshot,
        facts: &HostFacts,
    ) -> Result<Outlook> {
        let completeness = self.session.completeness();
        let context = Context {
            facts,
            completeness: &completeness,
            thresholds: &self.thresholds,
        };
        let ledger = self.session.ledger();
        let view = BooksView {
            ledger,
            context: Some(&context),
        };
        let mut outlook = Outlook::default();
        let mut seen = BTreeMap::new();
        let survey = verdict::survey_cookies(ledger, Some(snapshot), &context);
        self.shown = !survey.is_empty();
        observer.on_survey(&survey, snapshot);
        for judged in &survey {
            let class = judged.verdict.class;
            let id = judged.semaphore.id;
            if class.is_finding() {
                let finding = (class, judged.verdict.confidence);
                match self.reported.get(&id) {
                    Some(told) if *told == finding => {}
                    Some((told, _)) if told.label() == class.label() => {
                        observer.on_revised(judged, &view)?;
                    }
                    _ => observer.on_finding(judged, &view)?,
                }
                seen.insert(id, finding);
            } else {
                outlook.open = true;
                let due = verdict::next_due(judged, &context);
                outlook.due = [outlook.due, due].into_iter().flatten().min();
            }
        }
        for (id, (was, _)) in std::mem::replace(&mut self.reported, seen) {
            let stands = |(is, _): &(Class, Confidence)| is.label() == was.label();
            if !self.reported.get(&id).is_some_and(stands) {
                observer.on_cleared(id, was.label(), &view)?;
            }
        }
        for judged in self.ended.take_findings(ledger, &context) {
            observer.on_ended_finding(&judged, &view)?;
        }
        observer.on_judged(&view)?;
        Ok(outlook)
    }

    /// Tells what is left to tell, and lets tracing go on for a later process. `false` where that
    /// cannot be: then [`Tracing::finish`].
    ///
    /// # Errors
    /// The observer fails.
    pub(crate) fn hand_over(&mut self, observer: &mut dyn Observer) -> Result<bool> {
        let mut sink = ObserverSink::new(observer);
        let left = self
            .session
            .hand_over(&mut |changes, ledger| sink.pass_changes(changes, ledger));
        sink.finish()?;
        observer.on_idle()?;
        Ok(left)
    }

    /// Stops the probes, tells what is left to tell, and balances the accounts.
    ///
    /// # Errors
    /// The observer fails.
    pub(crate) fn finish(mut self, observer: &mut dyn Observer) -> Result<TraceEnd> {
        let ran = self.began.elapsed();
        // Nobody is to wait for an answer that does not come.
        self.books = None;
        let mut sink = ObserverSink::new(observer);
        let (accounting, snapshot) = self
            .session
            .finish(&mut |changes, ledger| sink.pass_changes(changes, ledger));
        let facts = host::read_facts(&Scope::default(), &snapshot);
        self.session.observe_exits(&facts, &mut |changes, ledger| {
            sink.pass_changes(changes, ledger);
        });
        sink.finish()?;
        let ending = TraceEnd {
            session: self.session,
            accounting,
            ran,
            snapshot,
            facts,
        };
        let ledger = ending.session.ledger();
        ending.with_context(&self.thresholds, |context| {
            let view = BooksView {
                ledger,
                context: Some(context),
            };
            let mut found = self.ended.take_findings(ledger, context).into_iter();
            found.try_for_each(|judged| observer.on_ended_finding(&judged, &view))
        })?;
        observer.on_idle()?;
        Ok(ending)
    }
}

/// The runtime: one thread, no pool.
///
/// # Errors
/// The system refuses an epoll instance.
pub(crate) fn build_runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// What a change calls for.
const fn urgency_of(change: &Change) -> Urgency {
    match change.kind {
        ChangeKind::OwnerExited { .. }
        | ChangeKind::WaitFailed { .. }
        | ChangeKind::Destroyed {
            ending: EndKind::WhileLive,
        } => Urgency::Final,
        _ => Urgency::Normal,
    }
}
