//! What a service has found, for months: an embedded store of bounded size.
//!
//! [`History`] is what a service holds. Its methods never block and never fail: records go to a
//! thread of their own, which writes them together, once a second at most, and sleeps while there
//! is nothing. A disk that is full, slow, or not there costs history, never the trace.
//!
//! ```no_run
//! # use dmtrace::history::*;
//! # use std::time::Duration;
//! let history = History::open(
//!     HistoryOptions {
//!         path: "/var/lib/dmtrace/history.redb".into(),
//!         limit: 64 << 20,
//!         retention: Duration::from_secs(90 * 86_400),
//!         boot_id: "...".to_owned(),
//!     },
//!     |warning| eprintln!("{warning}"),
//! );
//! history.send_note(HistoryNote::Began {
//!     backend: "fentry".to_owned(),
//!     kernel: "6.12".to_owned(),
//!     continuous: false,
//! });
//! history.finish(Duration::from_secs(2));
//! ```

mod backend;
mod book;
mod layout;
pub(crate) mod query;
mod read;
mod record;
mod store;
mod tallies;
#[cfg(test)]
mod tests;

pub use book::{HistoryNote, HistoryOptions, HistoryStatus, PastFinding};
use dmtrace_core::ids::IpcNs;
pub use read::{ReadError, read_file};
pub use record::{
    AnswerHead, DowntimeReason, DowntimeRecord, EnospcRecord, FindingEnd, HistoryEntry,
    HistoryQuery, HistoryRecord, HowGone, LossRecord, OTHERS, PROGRAMS, ProgramCounts, RatesRecord,
    RunRecord, Stamp, StoredFinding, UnreadFinding,
};
pub(crate) use store::check_named_file;
pub use tallies::Tallies;

use std::{
    io::{self, Write},
    ops::ControlFlow,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{output::json::json_envelope, wording::cause_text};
pub(crate) use book::Book;

/// Where a service that runs is asked for it, and for everything else.
pub const SOCKET: &str = "/run/dmtrace/serve.sock";
/// Where a service keeps it.
pub const PATH: &str = "/var/lib/dmtrace/history.redb";
/// What a service without a history answers.
pub(crate) const NO_HISTORY: &str = "this service keeps no history (--no-history)";
/// Smallest limit for the size of the file.
pub const SMALLEST: u64 = 4 << 20;

/// Messages that wait for the thread.
const QUEUE: usize = 256;
/// Counts of healthy cookies are written so long after the first of them.
const COUNTS: Duration = Duration::from_secs(60);
/// Time for one answer.
const ANSWER: Duration = Duration::from_secs(20);

/// The history of a running service.
pub struct History {
    queue: SyncSender<KeeperMessage>,
    shared: Arc<SharedTallies>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct SharedTallies {
    tallies: Mutex<Tallies>,
    status: Mutex<HistoryStatus>,
    /// Messages that the queue could not take.
    refused: AtomicU64,
}

enum KeeperMessage {
    Note(Stamp, HistoryNote),
    /// There are counts; urgent ones among them.
    Counts {
        urgent: bool,
    },
    Ask(HistoryQuery, Box<dyn Write + Send>),
    /// Which findings stand, as far as is known.
    PastFindings(SyncSender<Vec<PastFinding>>),
    Close,
}

impl History {
    /// Opens it. Where the file cannot be opened or written, the history is kept in memory (a
    /// MiB of it), and the file is tried again; `warn` gets one line for each such change, on
    /// another thread.
    pub fn open(options: HistoryOptions, mut warn: impl FnMut(&str) + Send + 'static) -> Self {
        let (queue, messages) = sync_channel(QUEUE);
        let shared = Arc::new(SharedTallies::default());
        let theirs = Arc::clone(&shared);
        let warn = Arc::new(Mutex::new(move |text: &str| warn(text)));
        let their_warn = Arc::clone(&warn);
        let run = move || {
            let warn = Box::new(move |text: &str| {
                let mut warn = their_warn.lock().unwrap_or_else(PoisonError::into_inner);
                warn(text);
            });
            let book = Book::open(options, Stamp::now(), warn);
            HistoryKeeper {
                book,
                shared: theirs,
                counts_due: None,
            }
            .run_keeper(&messages);
        };
        let thread = thread::Builder::new().name("history".to_owned()).spawn(run);
        if let Err(error) = &thread {
            let mut warn = warn.lock().unwrap_or_else(PoisonError::into_inner);
            warn(&format!(
                "no history is kept: its thread cannot be started: {}",
                cause_text(&error)
            ));
        }
        Self {
            queue,
            shared,
            thread: thread.ok(),
        }
    }

    /// Keeps something. What the thread cannot take in time is counted.
    pub fn send_note(&self, note: HistoryNote) {
        self.send_message(KeeperMessage::Note(Stamp::now(), note));
    }

    /// Counts cookies of a program.
    pub fn count_lives(&self, program: &str, more: &ProgramCounts) {
        self.add_to_tallies(false, |tallies| tallies.count_lives(program, more));
    }

    /// A creation failed because the limits were reached.
    pub fn count_enospc(&self, ns: IpcNs, program: &str, at: Stamp) {
        self.add_to_tallies(true, |tallies| tallies.count_enospc(ns, program, at));
    }

    /// Messages were lost; `what` says in words what that means.
    pub fn count_lost(&self, what: &'static str, count: u64) {
        self.add_to_tallies(true, |tallies| {
            tallies.count_lost(what, count, Stamp::now());
        });
    }

    fn add_to_tallies(&self, urgent: bool, add: impl FnOnce(&mut Tallies)) {
        let news = {
            let mut tallies = self.shared.lock_tallies();
            let known = !tallies.is_empty() && (tallies.is_urgent() || !urgent);
            add(&mut tallies);
            !known
        };
        // Only the first count after they were taken over wakes the thread.
        if news {
            self.send_message(KeeperMessage::Counts { urgent });
        }
    }

    /// Asks it from elsewhere.
    pub fn new_asker(&self) -> HistoryAsker {
        HistoryAsker {
            queue: self.queue.clone(),
        }
    }

    /// Findings of this boot that an earlier run has told and left standing; none if that cannot
    /// be had within `patience`. To be asked before anything is told.
    pub fn past_findings(&self, patience: Duration) -> Vec<PastFinding> {
        let (send, receive) = sync_channel(1);
        self.send_message(KeeperMessage::PastFindings(send));
        receive.recv_timeout(patience).unwrap_or_default()
    }

    /// How it is, as of the last commit.
    pub fn status(&self) -> HistoryStatus {
        let status = self.shared.status.lock();
        status.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes what waits and ends the thread; does not wait for longer than `patience`. Returns
    /// whether it is done: a disk that hangs must not keep a service from ending.
    pub fn finish(mut self, patience: Duration) -> bool {
        let Some(thread) = self.thread.take() else {
            return false;
        };
        let until = Instant::now() + patience;
        let mut message = KeeperMessage::Close;
        while let Err(TrySendError::Full(back)) = self.queue.try_send(message) {
            if Instant::now() >= until {
                return false;
            }
            message = back;
            thread::sleep(Duration::from_millis(10));
        }
        while !thread.is_finished() {
            if Instant::now() >= until {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        thread.join().is_ok()
    }

    fn send_message(&self, message: KeeperMessage) {
        if self.queue.try_send(message).is_err() {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Asks the history of a running service.
#[derive(Clone)]
pub struct HistoryAsker {
    queue: SyncSender<KeeperMessage>,
}

impl HistoryAsker {
    /// Answers a query with lines of JSON: an [`AnswerHead`] (`"type":"history"`), then a
    /// [`HistoryEntry`] each (findings, then the rest, each from the oldest on), then
    /// `{"type":"end"}`, without which the answer is not complete: it is dropped where too much
    /// waits. On the thread of the history, so `out` must not block for long: a socket with a time
    /// limit for writing.
    pub fn send_query(&self, query: HistoryQuery, out: impl Write + Send + 'static) {
        let _too_much_waits = self
            .queue
            .try_send(KeeperMessage::Ask(query, Box::new(out)));
    }
}

impl SharedTallies {
    fn lock_tallies(&self) -> std::sync::MutexGuard<'_, Tallies> {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct HistoryKeeper {
    book: Book,
    shared: Arc<SharedTallies>,
    /// When counts are to be taken over.
    counts_due: Option<Instant>,
}

impl HistoryKeeper {
    fn run_keeper(mut self, messages: &Receiver<KeeperMessage>) {
        loop {
            self.tell_status();
            let message = match self.wait_time() {
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(wait) => messages.recv_timeout(wait),
            };
            match message {
                Ok(KeeperMessage::Note(at, note)) => self.book.add_note(at, note),
                Ok(KeeperMessage::Counts { urgent }) => {
                    let after = if urgent { book::COMMIT } else { COUNTS };
                    let due = Instant::now() + after;
                    self.counts_due = Some(self.counts_due.map_or(due, |old| old.min(due)));
                }
                Ok(KeeperMessage::Ask(query, out)) => {
                    self.take_counts();
                    // Whoever asked may have gone.
                    let _unheard = self.answer_query(&query, out);
                }
                Ok(KeeperMessage::PastFindings(to)) => {
                    let _too_late = to.send(self.book.past_findings());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Ok(KeeperMessage::Close) | Err(RecvTimeoutError::Disconnected) => {
                    self.take_counts();
                    self.book.commit_pending(Stamp::now());
                    return;
                }
            }
            // Where the queue was full nobody has said that there are counts.
            if self.counts_due.is_none() && !self.shared.lock_tallies().is_empty() {
                self.counts_due = Some(Instant::now() + COUNTS);
            }
            if self.counts_due.is_some_and(|due| due <= Instant::now()) {
                self.take_counts();
            }
            let refused = self.shared.refused.swap(0, Ordering::Relaxed);
            self.book.count_lost(refused);
            self.book.write_due(Stamp::now());
        }
    }

    /// Until there is something to do without a message; `None` while there is nothing.
    fn wait_time(&self) -> Option<Duration> {
        let book = self.book.next_due(Stamp::now().boot);
        let counts = self
            .counts_due
            .map(|due| due.saturating_duration_since(Instant::now()));
        [book, counts].into_iter().flatten().min()
    }

    fn take_counts(&mut self) {
        self.counts_due = None;
        let tallies = std::mem::take(&mut *self.shared.lock_tallies());
        if !tallies.is_empty() {
            self.book
                .add_note(Stamp::now(), HistoryNote::Tallies(tallies));
        }
    }

    fn tell_status(&self) {
        let mut status = self
            .shared
            .status
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *status = self.book.status();
    }

    fn answer_query(&mut self, query: &HistoryQuery, out: Box<dyn Write + Send>) -> io::Result<()> {
        let mut out = io::BufWriter::new(out);
        let until = Instant::now() + ANSWER;
        writeln!(
            out,
            "{}",
            json_envelope("history", &self.book.answer_head(Stamp::now()))
        )?;
        let mut failed = None;
        self.book.read_entries(Stamp::now(), query, &mut |entry| {
            let written = serde_json::to_writer(&mut out, &entry)
                .map_err(io::Error::from)
                .and_then(|()| out.write_all(b"\n"));
            if let Err(error) = written {
                failed = Some(error);
            } else if Instant::now() > until {
                failed = Some(io::ErrorKind::TimedOut.into());
            }
            match failed {
                None => ControlFlow::Continue(()),
                Some(_) => ControlFlow::Break(()),
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        writeln!(out, "{}", json!({"type": "end"}))?;
        out.flush()
    }
}
