//! Whether a user has left its cookie behind: what shows that it went on without it.
//!
//! The answer for a user that has ended is that of the moment of its end: being killed later does
//! not undo that it had left.

use std::time::Duration;

use super::{Cycle, Ledger, Process, User, UserStage};
use crate::ids::BootTime;

/// What shows that somebody has gone on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DepartureProof {
    /// It completed a whole later cookie.
    LaterCycle {
        /// That cookie.
        cycle: Cycle,
        /// On the very thread.
        same_thread: bool,
    },
    /// It did something else, such as making other cookies.
    ActiveSince {
        /// When, the last time.
        at: BootTime,
        /// On the very thread.
        same_thread: bool,
    },
}

/// Whether a user has left its cookie behind.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Departure {
    /// Nothing shows it.
    NotSeen,
    /// Its wait ended without a result and was not begun again: it has left, or it is stopped.
    WaitNotResumed,
    /// It has.
    Left {
        /// What shows it.
        proof: DepartureProof,
        /// Its wait had been interrupted, or had failed.
        gave_up: bool,
        /// No other explanation is left.
        certain: bool,
    },
}

/// Times that tell a departure from a pause.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DepartureLimits {
    /// See [`Thresholds::moved_on`](crate::verdict::Thresholds::moved_on).
    pub moved_on: Duration,
    /// See [`Thresholds::abandoned`](crate::verdict::Thresholds::abandoned).
    pub abandoned: Duration,
}

impl Default for DepartureLimits {
    fn default() -> Self {
        Self {
            moved_on: Duration::from_secs(5),
            abandoned: Duration::from_secs(60),
        }
    }
}

impl Ledger {
    /// Whether a user that lives has left its cookie behind. `quiet`: the time that it has not touched
    /// the cookie.
    pub fn departure_of(&self, user: &User, quiet: Duration, limits: DepartureLimits) -> Departure {
        self.process(user.who.image)
            .map_or(Departure::NotSeen, |process| {
                process.departure_of(user, quiet, limits)
            })
    }

    /// As [`Ledger::departure_of`], of a user that has ended: as it was then.
    pub fn departure_before_end(&self, user: &User, limits: DepartureLimits) -> Departure {
        self.process(user.who.image)
            .map_or(Departure::NotSeen, |process| {
                process.departure_before_end(user, limits)
            })
    }
}

impl Process {
    /// Whether this user, a process of this image, has left its cookie behind. `quiet`: the time
    /// that it has not touched the cookie; of one that has ended, until then.
    fn departure_of(&self, user: &User, quiet: Duration, limits: DepartureLimits) -> Departure {
        let left = |proof, gave_up, certain| Departure::Left {
            proof,
            gave_up,
            certain,
        };
        let trail = self.thread_trail(user.who.tid);
        let active_here = trail.map(|it| it.active).filter(|&at| at > user.last);
        let since = |at, same_thread| DepartureProof::ActiveSince { at, same_thread };
        if matches!(user.stage, UserStage::Interrupted | UserStage::WaitFailed) {
            // libdm begins the wait again at once; a process that is stopped (SIGSTOP makes semop
            // return EINTR too) or traced does so much later. What shows the difference is that the
            // thread went on with something else.
            let elsewhere = Some(self.active)
                .filter(|at| *at > user.last && at.duration_since(user.last) >= limits.abandoned);
            return match (active_here, elsewhere) {
                (Some(at), _) => left(since(at, true), true, true),
                (None, Some(at)) => left(since(at, false), true, false),
                (None, None) => Departure::WaitNotResumed,
            };
        }
        // After its own decrement, or after the wait, the ioctl is over: the thread that completes a
        // whole later cookie has left this one behind. Before, it may serve two cookies in turn.
        let ioctl_over = matches!(user.stage, UserStage::SelfCompleted | UserStage::Released);
        let long = quiet >= limits.abandoned;
        if let Some(cycle) = self.later_cycle_of_thread(user)
            && (ioctl_over || long)
        {
            let proof = DepartureProof::LaterCycle {
                cycle,
                same_thread: true,
            };
            return left(proof, false, ioctl_over);
        }
        // No later cookie came to its end either, as when every ioctl fails (moby in 2017): the
        // thread made or tried to make other cookies since, and did not wait for this one. To come
        // back after two of them it would have to hold three at once.
        if user.stage == UserStage::SelfCompleted
            && quiet >= limits.moved_on
            && let Some(at) = active_here
        {
            let two_since = trail.is_some_and(|it| it.made_before > user.last);
            let one_since = trail.is_some_and(|it| it.made > user.last);
            return left(since(at, true), false, two_since || one_since && long);
        }
        if !ioctl_over || !long {
            return Departure::NotSeen;
        }
        // Another thread, long after: Go and tokio move work between threads, and the process was
        // not stopped. A thread that still is in its ioctl can take as long as the device.
        if let Some(cycle) = self.later_cycle(user, limits.abandoned) {
            let proof = DepartureProof::LaterCycle {
                cycle,
                same_thread: false,
            };
            return left(proof, false, false);
        }
        let made = self.trails.values().map(|it| it.made).max();
        match made.filter(|at| at.duration_since(user.last) >= limits.abandoned) {
            Some(at) if user.stage == UserStage::SelfCompleted => {
                left(since(at, false), false, false)
            }
            _ => Departure::NotSeen,
        }
    }

    /// As `departure_of`, of a user that has ended: as it was then.
    fn departure_before_end(&self, user: &User, limits: DepartureLimits) -> Departure {
        // The absence of a process is noticed long after its end: what it did last counts then.
        let end = match user.exit {
            Some(exit) if exit.status.is_some() => exit.at,
            _ => self.active.max(user.last),
        };
        let departure = self.departure_of(user, end.duration_since(user.last), limits);
        let trail = self
            .thread_trail(user.who.tid)
            .filter(|it| it.made > user.last);
        match (departure, trail) {
            // A thread is not about to wait for several cookies in turn.
            (Departure::NotSeen, Some(trail)) if user.stage == UserStage::SelfCompleted => {
                Departure::Left {
                    proof: DepartureProof::ActiveSince {
                        at: trail.active,
                        same_thread: true,
                    },
                    gave_up: false,
                    certain: false,
                }
            }
            (departure, _) => departure,
        }
    }
}
