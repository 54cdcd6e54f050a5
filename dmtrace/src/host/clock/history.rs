//! What is known of the wall clock since boot: what this process has watched, and what others wrote
//! down before it came.

use std::{
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use dmtrace_core::{
    ids::{BootTime, UnixTime},
    wall_clock::{ClockAnchor, ClockHistory, ClockOffset, Coverage},
};
use rustix::{
    io::Errno,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};

use super::{boot_now, read_nanos, sources, suspended_time};
use crate::host::Roots;

/// Both clocks at one moment, and what is known of the time before.
#[derive(Clone, Debug)]
pub struct ClockReading {
    /// Now.
    pub now: BootTime,
    /// The wall clock now,
    pub wall: UnixTime,
    /// and the nanoseconds of its second.
    pub wall_nanos: u32,
    /// What is known since boot; its last anchor is this reading.
    pub history: ClockHistory,
}

/// Whether the records of others are worth their time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Records {
    /// Some stamp has to be mapped.
    Needed,
    /// None has.
    NotNeeded,
}

/// One watch for the process: it is the longer, the more it knows.
static WATCH: Mutex<Option<ClockWatch>> = Mutex::new(None);

/// Reads both clocks. The first call begins to watch the wall clock; each further one knows whether
/// somebody has set it since the one before.
pub fn read_clocks(roots: &Roots, records: Records) -> ClockReading {
    let mut watch = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
    let watch = watch.get_or_insert_with(ClockWatch::start);
    if records == Records::Needed && !watch.records_read {
        watch.records_read = true;
        for anchor in sources::read_anchors(roots) {
            watch.history.add(anchor);
        }
    }
    watch.read()
}

/// Adds what another process of this boot has watched, such as a running trace.
pub fn merge_history(other: &ClockHistory) {
    let mut watch = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
    let watch = watch.get_or_insert_with(ClockWatch::start);
    watch.history.merge(other);
}

struct ClockWatch {
    /// The kernel cancels it when somebody sets the clock.
    timer: Option<OwnedFd>,
    history: ClockHistory,
    records_read: bool,
    /// When it was read last.
    suspended: Duration,
}

impl ClockWatch {
    fn start() -> Self {
        let mut watch = Self {
            timer: cancelled_timer().ok(),
            history: ClockHistory::default(),
            records_read: false,
            suspended: suspended_time(),
        };
        let first = read_pair(Coverage::Unwatched);
        watch.history.add(first);
        watch
    }

    fn read(&mut self) -> ClockReading {
        let mut before = self.coverage();
        let mut anchor = read_pair(before);
        // Set between the two: the reading may be from before or after.
        for _ in 0..8 {
            match self.coverage() {
                Coverage::Set => before = Coverage::Set,
                Coverage::Steady | Coverage::Unwatched => break,
            }
            anchor = read_pair(before);
        }
        let suspended = suspended_time();
        let slept = suspended.saturating_sub(self.suspended) > Duration::from_millis(100);
        if slept && anchor.before == Coverage::Set {
            // A resume cancels the timer, too: whether the offset is the same tells.
            anchor.before = Coverage::Unwatched;
        }
        self.suspended = suspended;
        self.history.add(anchor);
        let wall = i128::from(anchor.offset.0) + i128::from(anchor.at.0);
        let (seconds, nanos) = (wall.div_euclid(SECOND), wall.rem_euclid(SECOND));
        ClockReading {
            now: anchor.at,
            wall: UnixTime(i64::try_from(seconds).unwrap_or(0)),
            wall_nanos: u32::try_from(nanos).unwrap_or(0),
            history: self.history.clone(),
        }
    }

    /// Whether somebody has set the clock since the last call.
    fn coverage(&self) -> Coverage {
        let Some(timer) = &self.timer else {
            return Coverage::Unwatched;
        };
        match rustix::io::read(timer, &mut [0; 8]) {
            Err(Errno::AGAIN) => Coverage::Steady,
            Err(Errno::CANCELED) => Coverage::Set,
            _ => Coverage::Unwatched,
        }
    }
}

const SECOND: i128 = 1_000_000_000;

/// A timer that never expires, and is cancelled by every `settimeofday` (timerfd_create(2)).
fn cancelled_timer() -> rustix::io::Result<OwnedFd> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
    let never = Itimerspec {
        it_interval: Timespec::default(),
        it_value: Timespec {
            tv_sec: i64::MAX,
            tv_nsec: 0,
        },
    };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    timerfd_settime(&timer, flags, &never)?;
    Ok(timer)
}

/// Reads both clocks as closely as it comes.
fn read_pair(before: Coverage) -> ClockAnchor {
    let read = || {
        let first = boot_now();
        let wall = read_nanos(libc::CLOCK_REALTIME);
        let last = boot_now();
        let error = last.0.saturating_sub(first.0) / 2 + 1;
        let at = BootTime(first.0 + error - 1);
        let offset = ClockOffset(wall.saturating_sub_unsigned(at.0));
        ClockAnchor {
            at,
            offset,
            error,
            before,
        }
    };
    // The last one, unless that was interrupted: what comes later must not look earlier.
    let mut anchor = read();
    for _ in 0..8 {
        if anchor.error < 2000 {
            break;
        }
        anchor = read();
    }
    anchor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_knows_the_clock_since_it_began() {
        let mut watch = ClockWatch::start();
        let began = watch.history.anchors()[0];
        std::thread::sleep(Duration::from_millis(20));
        let reading = watch.read();
        assert_eq!(reading.history.anchors().len(), 2, "{reading:?}");
        let last = reading.history.anchors()[1];
        assert_eq!((last.at, last.before), (reading.now, Coverage::Steady));
        assert!(reading.now.0 - began.at.0 >= 20_000_000);
        let span = reading.history.locate(reading.wall, last);
        assert!(span.contains(reading.now), "{span:?} {reading:?}");
    }

    #[test]
    fn many_readings_are_few_anchors() {
        let mut watch = ClockWatch::start();
        for _ in 0..1000 {
            watch.read();
        }
        assert!(watch.history.anchors().len() < 50, "{:?}", watch.history);
    }
}
