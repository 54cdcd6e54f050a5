//! When to look at the whole: soon after something has changed, when a verdict waits for time to
//! pass, and ever more rarely when nothing happens.

use std::time::{Duration, Instant};

/// How eager a trace is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct PaceRhythm {
    /// Looks are at least so far apart, unless something ends.
    pub at_least: Duration,
    /// Longest pause while cookies are there whose fate is open.
    pub open: Duration,
    /// Longest pause while only sets are there that nothing is to be said about; 0 for none.
    pub quiet: Duration,
    /// One part in so many of a processor's time may go into looks in the long run; 0 for no
    /// limit.
    pub share: u32,
}

impl PaceRhythm {
    /// Somebody watches: a look each second while there is anything to look at.
    pub(crate) const WATCH: Self = Self {
        at_least: Duration::from_secs(1),
        open: Duration::from_secs(1),
        quiet: Duration::from_secs(1),
        share: 0,
    };
    /// For months: the pauses double up to a minute, and grow faster up to an hour where only the comparison
    /// with the kernel's tables is left to do.
    pub(crate) const SERVE: Self = Self {
        at_least: Duration::from_secs(1),
        open: Duration::from_secs(60),
        quiet: Duration::from_secs(3600),
        share: 10,
    };
}

/// After the end of a process that leaves cookies, others may end as well.
const URGENT_DELAY: Duration = Duration::from_millis(100);

/// So much may be spent on looks before any pause is made: a leak is told soon although the look
/// before has just read the names of some program's calls.
const FREE_WORK: Duration = Duration::from_secs(2);

/// Longest pause for the sake of the processor.
const MAX_REST: Duration = Duration::from_secs(10);

/// What a change calls for.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Urgency {
    /// A look in due time.
    Normal,
    /// The end of a process, or of a wait: a verdict can be final now.
    Final,
}

/// What a look has left open.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Outlook {
    pub sets: bool,
    /// Cookies are there whose fate is open.
    pub open: bool,
    /// A verdict may change by time alone after this.
    pub due: Option<Duration>,
}

/// The clock of looks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    rhythm: PaceRhythm,
    next: Option<Instant>,
    last: Option<Instant>,
    pause: Duration,
    /// Time of a processor that looks have taken beyond their share.
    debt: Duration,
}

impl Pace {
    /// The first look is due at once.
    pub(crate) const fn new(rhythm: PaceRhythm, now: Instant) -> Self {
        Self {
            rhythm,
            next: Some(now),
            last: None,
            pause: rhythm.at_least,
            debt: Duration::ZERO,
        }
    }

    /// When the next look is due; `None` while there is nothing to look at.
    pub(crate) const fn next_survey(&self) -> Option<Instant> {
        self.next
    }

    /// The books have changed.
    pub(crate) fn note_change(&mut self, urgency: Urgency, now: Instant) {
        self.pause = self.rhythm.at_least;
        let gap = match urgency {
            Urgency::Normal => self.rhythm.at_least,
            Urgency::Final => URGENT_DELAY,
        };
        let gap = gap.max(self.rest_time());
        let earliest = self.last.map_or(now, |last| last + gap).max(now);
        if self.next.is_none_or(|next| next > earliest) {
            self.next = Some(earliest);
        }
    }

    /// A look has begun: the time from which the next one is counted.
    pub(crate) fn begin_survey(&mut self, now: Instant) {
        let pause = self
            .last
            .map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        let earned = pause.checked_div(self.rhythm.share).unwrap_or(pause);
        self.debt = self.debt.saturating_sub(earned);
        self.last = Some(now);
        self.next = None;
    }

    /// The look is over; `work`: the time of a processor that it took.
    pub(crate) fn survey_done(&mut self, outlook: Outlook, work: Duration, now: Instant) {
        let last = self.last.unwrap_or(now);
        if self.rhythm.share != 0 {
            self.debt = (self.debt + work).min(FREE_WORK + MAX_REST / self.rhythm.share);
        }
        let longest = if outlook.open {
            self.rhythm.open
        } else if outlook.sets {
            self.rhythm.quiet
        } else {
            Duration::ZERO
        };
        let regular = (!longest.is_zero()).then(|| now + self.pause.min(longest));
        let due = outlook.due.map(|due| now + due);
        if due.is_some() && due < regular {
            // Times of the kernel have seconds: look again soon after.
            self.pause = self.rhythm.at_least;
        } else {
            // Where nothing is open only the unlikely is looked for.
            let factor = if outlook.open { 2 } else { 4 };
            self.pause = self.pause.saturating_mul(factor).min(self.rhythm.quiet);
        }
        let next = [regular, due, self.next].into_iter().flatten().min();
        // What has changed during the look waits its turn, too.
        let earliest = last + self.rest_time();
        self.next = next.map(|next| next.max(earliest));
    }

    /// The pause that looks so far call for, from the beginning of the last one.
    fn rest_time(&self) -> Duration {
        let over = self.debt.saturating_sub(FREE_WORK);
        over.saturating_mul(self.rhythm.share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn start_pace(rhythm: PaceRhythm) -> (Pace, Instant) {
        let now = Instant::now();
        (Pace::new(rhythm, now), now)
    }

    /// Looks at every moment that is due, without any change; returns the pauses.
    fn pause_seconds(
        pace: &mut Pace,
        mut now: Instant,
        outlook: Outlook,
        count: usize,
    ) -> Vec<u64> {
        let mut pauses = Vec::new();
        while let Some(next) = pace.next_survey().filter(|_| pauses.len() < count) {
            pauses.push(next.saturating_duration_since(now).as_secs());
            now = next;
            pace.begin_survey(now);
            pace.survey_done(outlook, Duration::ZERO, now);
        }
        pauses
    }

    #[test]
    fn nothing_there_means_no_look_after_the_first() {
        for rhythm in [PaceRhythm::WATCH, PaceRhythm::SERVE] {
            let (mut pace, now) = start_pace(rhythm);
            assert_eq!(pause_seconds(&mut pace, now, Outlook::default(), 9), [0]);
            assert_eq!(pace.next_survey(), None);
        }
    }

    #[test]
    fn a_service_looks_ever_more_rarely_while_nothing_changes() {
        let (mut pace, now) = start_pace(PaceRhythm::SERVE);
        let sets = Outlook {
            sets: true,
            ..Outlook::default()
        };
        let all = pause_seconds(&mut pace, now, sets, 20);
        assert_eq!(all[..8], [0, 1, 4, 16, 64, 256, 1024, 3600]);
        assert_eq!(all[19], 3600);
        let (mut pace, now) = start_pace(PaceRhythm::SERVE);
        let open = Outlook { open: true, ..sets };
        let all = pause_seconds(&mut pace, now, open, 20);
        assert_eq!(all[..8], [0, 1, 2, 4, 8, 16, 32, 60]);
        assert_eq!(all[19], 60);
    }

    #[test]
    fn who_watches_sees_it_each_second() {
        let (mut pace, now) = start_pace(PaceRhythm::WATCH);
        let outlook = Outlook {
            sets: true,
            open: true,
            due: None,
        };
        assert_eq!(pause_seconds(&mut pace, now, outlook, 5), [0, 1, 1, 1, 1]);
    }

    #[test]
    fn an_end_is_looked_at_within_a_second_whatever_the_pause() {
        let (mut pace, mut now) = start_pace(PaceRhythm::SERVE);
        let outlook = Outlook {
            sets: true,
            ..Outlook::default()
        };
        now += pause_seconds(&mut pace, now, outlook, 20)
            .iter()
            .sum::<u64>() as u32
            * SECOND;
        now += 10 * SECOND;
        assert_eq!(pace.next_survey(), Some(now + 3590 * SECOND));
        pace.note_change(Urgency::Final, now);
        assert_eq!(pace.next_survey(), Some(now));
        pace.begin_survey(now);
        pace.survey_done(outlook, Duration::ZERO, now);
        // The next one, in a burst, waits a little.
        pace.note_change(Urgency::Final, now);
        assert_eq!(pace.next_survey(), Some(now + URGENT_DELAY));
        // An ordinary change does not put it off.
        pace.note_change(Urgency::Normal, now);
        assert_eq!(pace.next_survey(), Some(now + URGENT_DELAY));
    }

    #[test]
    fn a_verdict_that_waits_for_time_is_looked_at_in_time() {
        let (mut pace, now) = start_pace(PaceRhythm::SERVE);
        pace.begin_survey(now);
        let outlook = Outlook {
            sets: true,
            open: true,
            due: Some(Duration::from_millis(300)),
        };
        pace.survey_done(outlook, Duration::ZERO, now);
        assert_eq!(pace.next_survey(), Some(now + Duration::from_millis(300)));
    }

    /// Looks as often as it may, each time after an end; returns the pauses in milliseconds.
    fn pressed_pauses(
        pace: &mut Pace,
        mut now: Instant,
        work: Duration,
        count: usize,
    ) -> Vec<u128> {
        let open = Outlook {
            sets: true,
            open: true,
            due: None,
        };
        let mut pauses = Vec::new();
        for _ in 0..count {
            pace.begin_survey(now);
            pace.survey_done(open, work, now + work);
            pace.note_change(Urgency::Final, now + work);
            let next = pace.next_survey().unwrap();
            pauses.push((next - now).as_millis());
            now = next;
        }
        pauses
    }

    #[test]
    fn one_look_that_takes_long_keeps_no_leak_waiting() {
        let (mut pace, now) = start_pace(PaceRhythm::SERVE);
        let work = Duration::from_millis(900);
        assert_eq!(pressed_pauses(&mut pace, now, work, 2), [900, 900]);
    }

    #[test]
    fn looks_that_take_long_leave_the_host_in_peace() {
        let (mut pace, now) = start_pace(PaceRhythm::SERVE);
        let work = Duration::from_millis(500);
        let all = pressed_pauses(&mut pace, now, work, 100);
        assert_eq!(all[..3], [500, 500, 500]);
        // A tenth of one processor.
        assert_eq!(all[99], 5000);
        // And after a time of rest it answers at once again.
        let (mut pace, now) = start_pace(PaceRhythm::SERVE);
        pressed_pauses(&mut pace, now, work, 100);
        assert_eq!(
            pressed_pauses(&mut pace, now + 1000 * SECOND, work, 2)[0],
            500
        );
    }

    #[test]
    fn there_is_an_end_to_every_pause() {
        let (mut pace, now) = start_pace(PaceRhythm::SERVE);
        let all = pressed_pauses(&mut pace, now, 100 * SECOND, 3);
        assert_eq!(all, [100_000; 3]);
        let (mut pace, now) = start_pace(PaceRhythm::SERVE);
        let all = pressed_pauses(&mut pace, now, 3 * SECOND, 9);
        assert_eq!(all[8], MAX_REST.as_millis());
    }

    #[test]
    fn who_watches_is_not_kept_waiting() {
        let (mut pace, now) = start_pace(PaceRhythm::WATCH);
        assert_eq!(pressed_pauses(&mut pace, now, SECOND, 9), [1000; 9]);
    }
}
