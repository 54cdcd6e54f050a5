//! What the loop of a trace tells its verb.

use anyhow::Result;
use dmtrace_core::{
    facts::Snapshot,
    ids::SemId,
    ledger::{Change, Ledger},
    verdict::{Context, Judged},
};

use crate::trace::{ended::is_removed_leak, session::DmReport};

/// What the loop tells its verb.
pub(crate) trait Observer {
    /// Changes of the books; none where only a process became known.
    ///
    /// # Errors
    /// Whatever stops the verb, such as a reader that has gone.
    fn on_changes(&mut self, changes: &[Change], session: &BooksView<'_>) -> Result<()>;

    /// A verdict that is a finding, or that was one and is no more.
    ///
    /// # Errors
    /// As above.
    fn on_finding(&mut self, judged: &Judged<'_>, session: &BooksView<'_>) -> Result<()>;

    /// A finding that was told rests on more by now, such as how its owner ended: it is the same
    /// finding, with other words.
    ///
    /// # Errors
    /// As above.
    fn on_revised(&mut self, _judged: &Judged<'_>, _session: &BooksView<'_>) -> Result<()> {
        Ok(())
    }

    /// A finding on a cookie that was gone before it could be judged: an accident, or one that was
    /// completed too often. Each is told once. And every leak that was removed, of which most were
    /// told while they were there.
    ///
    /// # Errors
    /// As above.
    fn on_ended_finding(&mut self, judged: &Judged<'_>, session: &BooksView<'_>) -> Result<()> {
        if is_removed_leak(judged) {
            return Ok(());
        }
        self.on_finding(judged, session)
    }

    /// A finding that was told, under this label, is none any more: the cookie is gone, or the
    /// verdict is another one.
    ///
    /// # Errors
    /// As above.
    fn on_cleared(
        &mut self,
        _sem: SemId,
        _label: &'static str,
        _session: &BooksView<'_>,
    ) -> Result<()> {
        Ok(())
    }

    /// The books were compared with this snapshot, and these are all cookies, judged.
    fn on_survey(&mut self, _judged: &[Judged<'_>], _snapshot: &Snapshot) {}

    /// Everything that was there was told. What has ended since can be judged by this, too.
    ///
    /// # Errors
    /// As above.
    fn on_judged(&mut self, _session: &BooksView<'_>) -> Result<()> {
        Ok(())
    }

    /// device-mapper was loaded after the start, and is traced from now on.
    ///
    /// # Errors
    /// As above.
    fn on_device_mapper(&mut self, _report: &DmReport) -> Result<()> {
        Ok(())
    }

    /// Called when the ring is empty: a good moment to flush.
    ///
    /// # Errors
    /// As above.
    fn on_idle(&mut self) -> Result<()>;

    /// Whether the verb has had enough.
    fn should_stop(&self) -> bool;
}

/// What an observer may look at.
pub(crate) struct BooksView<'a> {
    pub ledger: &'a Ledger,
    /// What was judged by; `None` apart from a look at the whole.
    pub context: Option<&'a Context<'a>>,
}

/// Passes changes on to an observer, and keeps its first error for the end of the call.
pub(super) struct ObserverSink<'a> {
    observer: &'a mut dyn Observer,
    failure: Option<anyhow::Error>,
}

impl<'a> ObserverSink<'a> {
    pub(super) fn new(observer: &'a mut dyn Observer) -> Self {
        Self {
            observer,
            failure: None,
        }
    }

    pub(super) fn pass_changes(&mut self, changes: &[Change], ledger: &Ledger) {
        if self.failure.is_none() {
            self.failure = self
                .observer
                .on_changes(
                    changes,
                    &BooksView {
                        ledger,
                        context: None,
                    },
                )
                .err();
        }
    }

    pub(super) fn finish(self) -> Result<()> {
        self.failure.map_or(Ok(()), Err)
    }
}
