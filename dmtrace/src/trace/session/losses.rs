//! What the kernel side has lost for good, and up to when.

use dmtrace_core::{
    ids::BootTime,
    verdict::{BookLosses, Completeness, Losses},
};

use super::{Session, accounting, ends};
use crate::host::clock::boot_now;

impl Session {
    /// What may be missing in the books.
    pub(crate) fn completeness(&self) -> Completeness {
        let BookLosses { live, ended } = self.losses_now();
        Completeness {
            lost: live,
            ended,
            blind: self.tracer.backend().blind_spots().to_vec(),
            earlier: self.earlier.clone(),
            ..Completeness::default()
        }
    }

    /// Records that the kernel side had no room for, since it began.
    pub(crate) fn lost_count(&self) -> u64 {
        let BookLosses { live, ended } = self.losses_now();
        live.count + ended.count
    }

    /// What was lost for good so far, in words.
    pub(super) fn lost_so_far(&self) -> Vec<String> {
        let counts = self.tracer.counts();
        let skipped = ends::subtract_made_good(self.tracer.skipped_runs(), self.ends_made_good());
        accounting::lost_texts(
            &counts,
            &self.received,
            skipped,
            &self.tracer.skipped_programs(),
        )
    }

    /// Remembers up to when something was lost: whatever is made after this moment lacks nothing
    /// of that.
    pub(super) fn note_losses(&mut self) {
        self.losses = self.losses_now();
    }

    /// What verdicts on the books may lack by now.
    pub(super) fn losses_now(&self) -> BookLosses {
        let counts = self.tracer.counts();
        // After the counts: they go up right after the loss.
        let now = boot_now();
        BookLosses {
            live: updated_losses(
                self.losses.live,
                counts.sem_map_full + counts.call_map_full,
                now,
            ),
            ended: updated_losses(self.losses.ended, counts.history_lost, now),
        }
    }
}

/// Losses now, when so many are counted.
fn updated_losses(seen: Losses, count: u64, now: BootTime) -> Losses {
    if count == seen.count {
        return seen;
    }
    Losses {
        count,
        until: Some(now),
        ..seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_moment_is_that_of_the_last_loss() {
        let none = updated_losses(Losses::default(), 0, BootTime(5));
        assert_eq!(none, Losses::default());
        let some = updated_losses(none, 3, BootTime(7));
        assert_eq!((some.count, some.until), (3, Some(BootTime(7))));
        assert_eq!(updated_losses(some, 3, BootTime(9)), some);
        let more = updated_losses(some, 4, BootTime(11));
        assert_eq!((more.count, more.until), (4, Some(BootTime(11))));
    }
}
