//! The service's side: from books and verdicts to what is kept.

use std::{cell::RefCell, time::Duration};

use dmtrace_core::{
    facts::HostFacts,
    ids::SemId,
    ledger::{Change, ChangeKind, EndKind, Ledger, Process},
    verdict::Judged,
};

use crate::{
    history::{Asker, Finding, Gone, History, HowGone, Lives, Note, Options, Stamp, Status, Stood},
    output::time::Clock,
    render::timeline::Telling,
    render::{culprits::executable, row::Row},
    stack::Symbolizer,
};

/// Keeps what a trace finds. Every method returns at once; see [`History`].
///
/// In the order of a service's life: [`began`](Self::began); then [`changes`](Self::changes) for
/// each batch of the books, and at each look [`found`](Self::found) for each finding that is new
/// (or not yet told by this process), [`cleared`](Self::cleared) for each that was told and is
/// none any more, [`ended`](Self::ended) for each that was gone before; [`settled`](Self::settled) after the first look;
/// [`close`](Self::close).
pub(crate) struct Chronicle {
    history: History,
}

impl Chronicle {
    /// Opens the history; see [`History::open`].
    pub(crate) fn open(options: Options, warn: impl FnMut(&str) + Send + 'static) -> Self {
        Self {
            history: History::open(options, warn),
        }
    }

    /// What an earlier run has told and left standing; see [`History::stood`].
    pub(crate) fn stood(&self, patience: Duration) -> Vec<Stood> {
        self.history.stood(patience)
    }

    /// Tracing has begun. `continuous`: the probes of the run before have stayed, nothing was
    /// missed.
    pub(crate) fn began(&self, backend: &str, kernel: &str, continuous: bool) {
        self.history.note(Note::Began {
            backend: backend.to_owned(),
            kernel: kernel.to_owned(),
            continuous,
        });
    }

    /// Counts cookies that were made, those that came to a normal end, and failed creations.
    pub(crate) fn changes(&self, changes: &[Change], ledger: &Ledger) {
        for change in changes {
            match counted(change, ledger) {
                Some(Counted::Lives(program, lives)) => self.history.lives(&program, &lives),
                Some(Counted::Starved(program)) => {
                    let at = Stamp::now().at(change.at);
                    self.history.starved(change.sem.ns, &program, at);
                }
                None => {}
            }
        }
    }

    /// A finding. To tell one again that stands already does no harm.
    pub(crate) fn found(
        &self,
        judged: &Judged<'_>,
        ledger: &Ledger,
        facts: &HostFacts,
        names: &RefCell<Symbolizer>,
    ) {
        let now = Stamp::now();
        let finding = finding(judged, ledger, facts, names, now);
        self.history.note(Note::Found(Box::new(finding)));
    }

    /// A finding that was told is none any more: the cookie is gone, or the verdict is another.
    pub(crate) fn cleared(&self, sem: SemId, ledger: &Ledger) {
        self.history.note(gone(sem, ledger));
    }

    /// A finding on a cookie that was gone when it was judged.
    pub(crate) fn ended(
        &self,
        judged: &Judged<'_>,
        ledger: &Ledger,
        facts: &HostFacts,
        names: &RefCell<Symbolizer>,
    ) {
        let finding = ended_finding(judged, ledger, facts, names, Stamp::now());
        self.history.note(Note::Found(Box::new(finding)));
    }

    /// Every finding that stands was told: what else an earlier run left standing is gone.
    pub(crate) fn settled(&self) {
        self.history.note(Note::Settled);
    }

    /// Messages of the kernel side were lost; `what` says in words what that means.
    pub(crate) fn lost(&self, what: &'static str, count: u64) {
        self.history.lost(what, count);
    }

    pub(crate) fn asker(&self) -> Asker {
        self.history.asker()
    }

    /// How the history is.
    pub(crate) fn status(&self) -> Status {
        self.history.status()
    }

    /// Tracing ends. Waits no longer than `patience` for the disk.
    pub(crate) fn close(self, patience: Duration) -> bool {
        self.history.note(Note::Stopped);
        self.history.close(patience)
    }
}

/// What is counted of a change.
pub(crate) enum Counted {
    /// A cookie of this program.
    Lives(String, Lives),
    /// A creation by this program that failed because the limits were reached.
    Starved(String),
}

/// What is counted of a change, if anything.
pub(crate) fn counted(change: &Change, ledger: &Ledger) -> Option<Counted> {
    let who = change.who.as_ref();
    let actor = || program(who.and_then(|who| ledger.process(who.image)));
    match change.kind {
        ChangeKind::Created { .. } if change.is_cookie() => {
            let one = Lives {
                created: 1,
                ..Lives::default()
            };
            Some(Counted::Lives(actor(), one))
        }
        ChangeKind::Destroyed {
            ending: EndKind::ByWaiter | EndKind::ByCreator,
        } if change.is_cookie() => {
            let closed = ledger.closed_cookie(change.sem);
            let maker = closed.and_then(|closed| closed.creator.image());
            let one = Lives {
                completed: 1,
                ..Lives::default()
            };
            let maker = program(maker.and_then(|image| ledger.process(image)));
            Some(Counted::Lives(maker, one))
        }
        ChangeKind::CreateFailed {
            errno: libc::ENOSPC,
        } => Some(Counted::Starved(actor())),
        _ => None,
    }
}

/// The end of a finding.
pub(crate) fn gone(sem: SemId, ledger: &Ledger) -> Note {
    if let Some(live) = ledger.semaphore(sem) {
        return Note::Gone {
            sem,
            key: Some(live.key),
            how: HowGone::OtherVerdict,
            by: None,
        };
    }
    // Of very many that end at once not all are remembered.
    let closed = ledger.closed_cookie(sem);
    let ending = closed.and_then(|closed| closed.ending.as_ref());
    let by = ending.and_then(|ending| ending.by.as_ref());
    Note::Gone {
        sem,
        key: closed.map(|closed| closed.key),
        how: how(ending.map(|ending| ending.kind)),
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
) -> Finding {
    let ending = judged.semaphore.ending.as_ref();
    Finding {
        gone: ending.map(|ending| Gone {
            at: now.at(ending.at),
            how: HowGone::AlreadyGone,
            by: ending.by.as_ref().map(ToString::to_string),
        }),
        ..finding(judged, ledger, facts, names, now)
    }
}

/// As it is kept.
pub(crate) fn finding(
    judged: &Judged<'_>,
    ledger: &Ledger,
    facts: &HostFacts,
    names: &RefCell<Symbolizer>,
    now: Stamp,
) -> Finding {
    let telling = Telling {
        ledger,
        facts,
        clock: Clock::now(),
        here: true,
    };
    finding_by_clock(judged, &telling, names, now)
}

/// The same, by a clock that is given.
pub(crate) fn finding_by_clock(
    judged: &Judged<'_>,
    telling: &Telling<'_>,
    names: &RefCell<Symbolizer>,
    now: Stamp,
) -> Finding {
    let semaphore = judged.semaphore;
    let set = judged.set;
    let mut row = Row::bare(telling.ledger, semaphore, set, telling.facts.now).with_names(names);
    row.judged(judged.verdict.clone());
    let mut story = telling.story(&row);
    // They are kept apart, as they can be shown in more than one way.
    let calls = story.cookie.call_site.take();
    Finding {
        version: Finding::VERSION,
        sem: semaphore.id,
        key: semaphore.key,
        state: judged.verdict.class.label().to_owned(),
        program: program(row.process),
        found: now,
        gone: None,
        calls,
        story,
    }
}

fn how(kind: Option<EndKind>) -> HowGone {
    match kind {
        Some(EndKind::WithNamespace | EndKind::NamespaceGone) => HowGone::WithNamespace,
        Some(EndKind::Vanished) | None => HowGone::Unseen,
        Some(_) => HowGone::Removed,
    }
}

/// What stands for a program.
fn program(process: Option<&Process>) -> String {
    process.map_or_else(
        || executable(None, ""),
        |process| {
            let image = process.image.as_ref();
            let exe = image.and_then(|image| image.exe.as_deref());
            executable(exe, process.name.as_str())
        },
    )
}
