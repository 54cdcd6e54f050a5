//! The service's side: from books and verdicts to what is kept.

use std::{cell::RefCell, collections::BTreeSet, time::Duration};

use dmtrace_core::{
    facts::HostFacts,
    ids::{Key, SemId},
    ledger::{Change, ChangeKind, EndKind, Ledger, Process},
    verdict::{Class, Completeness, Judged, State},
};

use crate::{
    history::{
        FindingEnd, History, HistoryAsker, HistoryNote, HistoryOptions, HistoryStatus, HowGone,
        PastFinding, ProgramCounts, Stamp, StoredFinding,
    },
    output::time::Clock,
    render::{culprits::program_path, leak_end::how_gone, row::Row, timeline::StoryContext},
    stack::Symbolizer,
};

/// Keeps what a trace finds. Every method returns at once; see [`History`].
///
/// In the order of a service's life: [`trace_started`](Self::trace_started); then
/// [`count_changes`](Self::count_changes) for each batch of the books, and at each survey
/// [`add_finding`](Self::add_finding) for each finding that is new (or not yet reported by this
/// process), [`clear_finding`](Self::clear_finding) for each that was reported and is none any
/// more, [`add_ended_finding`](Self::add_ended_finding) for each that was gone before;
/// [`settle_past`](Self::settle_past) after the first survey; [`finish`](Self::finish).
pub(crate) struct Chronicle {
    history: History,
}

impl Chronicle {
    /// Opens the history; see [`History::open`].
    pub(crate) fn open(options: HistoryOptions, warn: impl FnMut(&str) + Send + 'static) -> Self {
        Self {
            history: History::open(options, warn),
        }
    }

    /// What an earlier run has told and left standing; see [`History::past_findings`].
    pub(crate) fn past_findings(&self, patience: Duration) -> Vec<PastFinding> {
        self.history.past_findings(patience)
    }

    /// Tracing has begun. `continuous`: the probes of the run before have stayed, nothing was
    /// missed.
    pub(crate) fn trace_started(&self, backend: &str, kernel: &str, continuous: bool) {
        self.history.send_note(HistoryNote::Began {
            backend: backend.to_owned(),
            kernel: kernel.to_owned(),
            continuous,
        });
    }

    /// Counts cookies that were made, those that came to a normal end, and failed creations.
    pub(crate) fn count_changes(&self, changes: &[Change], ledger: &Ledger) {
        for change in changes {
            match counted_change(change, ledger) {
                Some(CountedChange::Program(program, lives)) => {
                    self.history.count_lives(&program, &lives);
                }
                Some(CountedChange::CreationFailed(program)) => {
                    let at = Stamp::now().at_boot(change.at);
                    self.history.count_enospc(change.sem.ns, &program, at);
                }
                None => {}
            }
        }
    }

    /// A finding. To tell one again that stands already does no harm.
    pub(crate) fn add_finding(
        &self,
        judged: &Judged<'_>,
        ledger: &Ledger,
        facts: &HostFacts,
        names: &RefCell<Symbolizer>,
    ) {
        let now = Stamp::now();
        let finding = stored_finding(judged, ledger, facts, names, now);
        self.history
            .send_note(HistoryNote::Found(Box::new(finding)));
    }

    /// A finding that was told, under this label, is none any more: the cookie is gone, or the
    /// verdict is another. `None`: under whatever label.
    pub(crate) fn clear_finding(&self, sem: SemId, label: Option<&'static str>, ledger: &Ledger) {
        self.history.send_note(end_note(sem, label, ledger));
    }

    /// A finding on a cookie that was gone when it was judged.
    pub(crate) fn add_ended_finding(
        &self,
        judged: &Judged<'_>,
        ledger: &Ledger,
        facts: &HostFacts,
        names: &RefCell<Symbolizer>,
    ) {
        let finding = ended_finding(judged, ledger, facts, names, Stamp::now());
        self.history
            .send_note(HistoryNote::Found(Box::new(finding)));
    }

    /// Every finding that stands was told, but for those in `left`: what else an earlier run left
    /// standing is gone.
    pub(crate) fn settle_past(&self, left: BTreeSet<(SemId, Key)>) {
        self.history.send_note(HistoryNote::Settled { left });
    }

    /// Messages of the kernel side were lost; `what` says in words what that means.
    pub(crate) fn count_lost(&self, what: &'static str, count: u64) {
        self.history.count_lost(what, count);
    }

    pub(crate) fn new_asker(&self) -> HistoryAsker {
        self.history.new_asker()
    }

    /// How the history is.
    pub(crate) fn status(&self) -> HistoryStatus {
        self.history.status()
    }

    /// Tracing ends. Waits no longer than `patience` for the disk.
    pub(crate) fn finish(self, patience: Duration) -> bool {
        self.history.send_note(HistoryNote::Stopped);
        self.history.finish(patience)
    }
}

/// What is counted of a change.
pub(crate) enum CountedChange {
    /// A cookie of this program.
    Program(String, ProgramCounts),
    /// A creation by this program that failed because the limits were reached.
    CreationFailed(String),
}

/// What is counted of a change, if anything.
pub(crate) fn counted_change(change: &Change, ledger: &Ledger) -> Option<CountedChange> {
    let who = change.who.as_ref();
    let actor = || program_name(who.and_then(|who| ledger.process(who.image)));
    match change.kind {
        ChangeKind::Created { .. } if change.is_cookie() => {
            let one = ProgramCounts {
                created: 1,
                ..ProgramCounts::default()
            };
            Some(CountedChange::Program(actor(), one))
        }
        ChangeKind::Destroyed {
            ending: EndKind::ByWaiter | EndKind::ByCreator,
        } if change.is_cookie() => {
            let closed = ledger.closed_cookie(change.sem);
            let maker = closed.and_then(|closed| closed.creator.image());
            let one = ProgramCounts {
                completed: 1,
                ..ProgramCounts::default()
            };
            let maker = program_name(maker.and_then(|image| ledger.process(image)));
            Some(CountedChange::Program(maker, one))
        }
        ChangeKind::CreateFailed {
            errno: libc::ENOSPC,
        } => Some(CountedChange::CreationFailed(actor())),
        _ => None,
    }
}

/// The end of a finding. `label`: what it was found to be.
pub(crate) fn end_note(sem: SemId, label: Option<&'static str>, ledger: &Ledger) -> HistoryNote {
    if let Some(live) = ledger.semaphore(sem) {
        return HistoryNote::Gone {
            sem,
            key: Some(live.key),
            // The other verdict may be a finding as well, which stands.
            state: label,
            how: HowGone::OtherVerdict,
            by: None,
        };
    }
    // Of very many that end at once not all are remembered.
    let closed = ledger.closed_cookie(sem);
    let ending = closed.and_then(|closed| closed.ending.as_ref());
    let by = ending.and_then(|ending| ending.by.as_ref());
    // Whoever made it has come back and removed it: it had not been left behind.
    let maker = closed.and_then(|closed| closed.creator.image());
    let taken_back = label == Some(State::Leaked.name())
        && by.is_some_and(|by| maker.is_some_and(|maker| maker.id == by.image.id));
    HistoryNote::Gone {
        sem,
        key: closed.map(|closed| closed.key),
        state: None,
        how: if taken_back {
            HowGone::OtherVerdict
        } else {
            how_gone(ending.map(|ending| ending.kind))
        },
        by: by.map(ToString::to_string),
    }
}

/// A finding on a cookie that was gone when it was judged, as it is kept.
pub(crate) fn ended_finding(
    judged: &Judged<'_>,
    ledger: &Ledger,
    facts: &HostFacts,
    names: &RefCell<Symbolizer>,
    now: Stamp,
) -> StoredFinding {
    let ending = judged.semaphore.ending.as_ref();
    let found = stored_finding(judged, ledger, facts, names, now);
    // A leak that was removed before anybody looked is a leak like any other.
    let (state, how) = match judged.verdict.class {
        Class::CleanedUp(_) => (State::Leaked.name().to_owned(), HowGone::Removed),
        _ => (found.state, HowGone::AlreadyGone),
    };
    StoredFinding {
        state,
        gone: ending.map(|ending| FindingEnd {
            at: now.at_boot(ending.at),
            how,
            by: ending.by.as_ref().map(ToString::to_string),
        }),
        ..found
    }
}

/// As it is kept.
pub(crate) fn stored_finding(
    judged: &Judged<'_>,
    ledger: &Ledger,
    facts: &HostFacts,
    names: &RefCell<Symbolizer>,
    now: Stamp,
) -> StoredFinding {
    // Where something is missing the verdict says so.
    let completeness = Completeness::default();
    let telling = StoryContext {
        ledger,
        facts,
        completeness: &completeness,
        clock: Clock::now(),
        here: true,
        source: String::new(),
    };
    finding_by_clock(judged, &telling, names, now)
}

/// The same, by a clock that is given.
pub(crate) fn finding_by_clock(
    judged: &Judged<'_>,
    telling: &StoryContext<'_>,
    names: &RefCell<Symbolizer>,
    now: Stamp,
) -> StoredFinding {
    let semaphore = judged.semaphore;
    let set = judged.set;
    let mut row =
        Row::from_books(telling.ledger, semaphore, set, telling.facts.now).with_names(names);
    row.set_judged(judged.clone());
    let mut story = telling.build_story(&row);
    // They are kept apart, as they can be shown in more than one way.
    let calls = story.cookie.call_site.take();
    StoredFinding {
        version: StoredFinding::VERSION,
        sem: semaphore.id,
        key: semaphore.key,
        state: judged.verdict.class.label().to_owned(),
        program: program_name(row.process),
        found: now,
        gone: None,
        calls,
        story,
    }
}

/// What stands for a program.
fn program_name(process: Option<&Process>) -> String {
    process.map_or_else(
        || program_path(None, ""),
        |process| {
            let image = process.image.as_ref();
            let exe = image.and_then(|image| image.exe.as_deref());
            program_path(exe, process.name.as_str())
        },
    )
}
