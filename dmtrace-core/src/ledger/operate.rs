//! What one call does to the books of a cookie.

use super::{Call, ChangeKind, Cookie, Meaning, Stage, WaitEnd, Waiting, Who, cookie};
use crate::{
    event::{Operation, Quality},
    ids::{BootTime, ProcId},
};

/// A call on a cookie as the handlers see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallSeen<'a> {
    pub(super) at: BootTime,
    /// When it was entered: it took effect between then and `at`.
    pub(super) began: BootTime,
    pub(super) who: Option<&'a Who>,
    /// The creator's process, if known.
    pub(super) creator: Option<ProcId>,
    pub(super) quality: Quality,
    pub(super) errno: i32,
}

impl CallSeen<'_> {
    fn by_creator(&self) -> bool {
        match (self.who, self.creator) {
            (Some(who), Some(creator)) => who.image.id == creator,
            _ => false,
        }
    }
}

impl Cookie {
    /// `semctl(SETVAL)`.
    pub(super) fn set(&mut self, call: CallSeen<'_>, value: i32) -> Option<ChangeKind> {
        if call.errno == 0 && call.at > self.synced {
            self.counts.setvals = self.counts.setvals.saturating_add(1);
            // Operations that happened after this call may have arrived before it.
            if self.first_op.is_none_or(|first| first <= call.at) {
                self.sum = 0;
                self.first_op = None;
                self.forgive();
            }
            self.base = Some(value);
            if let Some(who) = call.who {
                self.operated(who, call.began, call.at);
                let user = self.user_mut(who, call.at, Stage::Created);
                if user.stage == Stage::Created {
                    user.stage = Stage::Ready;
                }
            }
        }
        self.note(call.at, call.who, Call::SetVal, call.errno);
        (call.errno == 0).then_some(ChangeKind::Set { to: value })
    }

    /// `semop` returned.
    pub(super) fn operate(&mut self, call: CallSeen<'_>, ops: &[Operation]) -> Option<ChangeKind> {
        if call.quality.no_result {
            self.gaps.results = true;
        }
        let first = ops.iter().filter(|op| op.num == 0);
        let delta: i32 = first.map(|op| i32::from(op.op)).sum();
        let zero = ops.iter().any(|op| op.op == 0);
        if zero && delta == 0 {
            return self.waited(call, ops.len() == 1);
        }
        if call.errno != 0 {
            return self.refused(call, delta);
        }
        let before_release = delta < 0 && self.owed > 0;
        let call = if before_release {
            // Carried out before the wait ended that was told first.
            CallSeen {
                at: self.not_synced(call.began, call.at),
                ..call
            }
        } else {
            call
        };
        if call.at > self.synced {
            let delta = self.pay(delta);
            self.sum = self.sum.saturating_add(delta);
            if !before_release {
                self.first_op = Some(self.first_op.map_or(call.at, |first| first.min(call.at)));
                if let Some(who) = call.who {
                    self.operated(who, call.began, call.at);
                }
            }
        }
        if delta > 0 {
            self.up(call, delta)
        } else {
            self.down(call, delta.saturating_neg(), before_release)
        }
    }

    /// An earlier time for a call that was seen at `at`, on the same side of what was taken over
    /// from the kernel map.
    pub(super) fn not_synced(&self, earlier: BootTime, at: BootTime) -> BootTime {
        earlier
            .max(BootTime(self.synced.0.saturating_add(1)))
            .min(at)
    }

    /// An operation has succeeded.
    fn operated(&mut self, who: &Who, began: BootTime, ended: BootTime) {
        self.last_actor = Some(who.image);
        self.operators.note(who.image.id.tgid, began.0, ended.0);
    }

    /// What a call changes beyond what the release before it has told already.
    fn pay(&mut self, delta: i32) -> i32 {
        let paid = delta.saturating_neg().clamp(0, self.owed);
        self.owed -= paid;
        if delta > 0 && self.owed > 0 {
            // From here on a decrement may be a later one.
            self.forgive();
            self.gaps.operations = true;
        }
        self.gaps.late = self.owed > 0;
        delta.saturating_add(paid)
    }

    /// The value is certain by other means.
    pub(super) fn forgive(&mut self) {
        self.owed = 0;
        self.gaps.late = false;
    }

    fn up(&mut self, call: CallSeen<'_>, by: i32) -> Option<ChangeKind> {
        if call.at > self.synced {
            let count = if call.by_creator() {
                &mut self.counts.owner_inc
            } else {
                &mut self.counts.other_inc
            };
            *count = count.saturating_add(by.unsigned_abs());
            if let Some(who) = call.who {
                let user = self.user_mut(who, call.at, Stage::Ready);
                user.incs = user.incs.saturating_add(by.unsigned_abs());
                if user.last == call.at {
                    user.stage = Stage::Armed;
                }
            }
        }
        self.note(call.at, call.who, Call::Up { by }, 0);
        Some(ChangeKind::Up { to: self.value() })
    }

    fn down(&mut self, call: CallSeen<'_>, by: i32, late: bool) -> Option<ChangeKind> {
        let user = call.who.and_then(|who| self.user(who.image));
        let meaning = if user.is_some() || call.by_creator() {
            Meaning::SelfCompletion
        } else {
            Meaning::Completion
        };
        if call.at > self.synced {
            let n = by.unsigned_abs();
            let count = if call.by_creator() {
                &mut self.counts.owner_dec
            } else {
                &mut self.counts.other_dec
            };
            *count = count.saturating_add(n);
            if meaning == Meaning::Completion {
                self.counts.completions = self.counts.completions.saturating_add(n);
                self.last_completion = Some(
                    self.last_completion
                        .map_or(call.at, |last| last.max(call.at)),
                );
                if let Some(who) = call.who {
                    if self.completers.len() >= cookie::COMPLETERS {
                        self.completers.pop_front();
                    }
                    self.completers.push_back(who.clone());
                }
            } else if let Some(who) = call.who {
                let user = self.user_mut(who, call.at, Stage::Ready);
                user.decs = user.decs.saturating_add(n);
                if user.last == call.at {
                    user.stage = Stage::SelfCompleted;
                }
            }
        }
        self.note(call.at, call.who, Call::Down { by, meaning }, 0);
        if late {
            self.timeline.in_time();
        }
        Some(ChangeKind::Down {
            // Of those that are told after the wait's end, the value was what still is to come.
            to: self.value().map(|value| value.saturating_add(self.owed)),
            meaning,
        })
    }

    fn refused(&mut self, call: CallSeen<'_>, delta: i32) -> Option<ChangeKind> {
        let what = if delta > 0 {
            Call::Up { by: delta }
        } else {
            Call::Down {
                by: delta.saturating_neg(),
                meaning: Meaning::Completion,
            }
        };
        let starved = delta < 0 && call.errno == libc::EAGAIN;
        if starved {
            self.counts.starved = self.counts.starved.saturating_add(1);
            if let Some(who) = call.who
                && self.user(who.image).is_some()
            {
                self.user_mut(who, call.at, Stage::Starved).stage = Stage::Starved;
            }
        }
        self.note(call.at, call.who, what, call.errno);
        starved.then_some(ChangeKind::Starved)
    }

    /// A thread is about to wait for zero.
    pub(super) fn wait_begins(&mut self, call: CallSeen<'_>) -> Option<ChangeKind> {
        let who = call.who?;
        let ended_later = self
            .last_wait
            .as_ref()
            .is_some_and(|end| end.who.tid == who.tid && end.at >= call.at);
        if call.at > self.synced {
            self.counts.waits = self.counts.waits.saturating_add(1);
            self.enter_wait(call, who);
            let user = self.user_mut(who, call.at, Stage::Ready);
            if user.last == call.at && !ended_later {
                user.stage = Stage::Waiting;
            }
        }
        self.note(call.at, call.who, Call::Wait, 0);
        if ended_later {
            return None;
        }
        let known = self
            .waiters
            .iter()
            .any(|waiting| waiting.who.tid == who.tid && waiting.who.image == who.image);
        if !known && self.waiters.len() < cookie::WAITERS {
            self.waiters.push(Waiting {
                who: who.clone(),
                since: call.at,
            });
        }
        Some(ChangeKind::Waiting {
            value: self.value(),
        })
    }

    /// The decrement of the same thread right before was the entry into this wait.
    fn enter_wait(&mut self, call: CallSeen<'_>, who: &Who) {
        match self
            .users
            .iter_mut()
            .find(|user| user.who.image == who.image)
        {
            Some(user) => {
                if user.stage != Stage::SelfCompleted || user.who.tid != who.tid {
                    return;
                }
                user.wait_entries = user.wait_entries.saturating_add(1);
            }
            None => {
                // Until now it looked like a completer: `dmsetup udevreleasecookie`.
                let last = self.completers.back();
                if last.is_none_or(|last| last.image != who.image || last.tid != who.tid) {
                    return;
                }
                self.completers.pop_back();
                self.counts.completions = self.counts.completions.saturating_sub(1);
                let user = self.user_mut(who, call.at, Stage::Ready);
                user.decs = 1;
                user.wait_entries = 1;
            }
        }
        self.counts.wait_entries = self.counts.wait_entries.saturating_add(1);
        self.timeline.entered_wait(who.tid);
    }

    fn waited(&mut self, call: CallSeen<'_>, certain: bool) -> Option<ChangeKind> {
        if let Some(who) = call.who {
            self.waiters
                .retain(|waiting| waiting.who.tid != who.tid || waiting.who.image != who.image);
            if call.at > self.synced {
                self.counts.waits_done = self.counts.waits_done.saturating_add(1);
                let user = self.user_mut(who, call.at, Stage::Ready);
                if user.last == call.at {
                    user.stage = match call.errno {
                        0 => Stage::Released,
                        libc::EINTR => Stage::Interrupted,
                        _ => Stage::WaitFailed,
                    };
                }
                self.last_wait = Some(WaitEnd {
                    who: who.clone(),
                    at: call.at,
                    errno: call.errno,
                });
            }
        }
        if call.errno == 0 && call.at > self.synced && certain && !call.quality.no_result {
            if let Some(who) = call.who {
                // It took effect when the wait ended, not when it began: no earlier than the
                // decrement that ended it.
                self.operated(who, call.at, call.at);
            }
            if let Some(value) = self.value().filter(|&value| value != 0)
                && self.first_op.is_none_or(|first| first <= call.at)
            {
                // The kernel says zero: operations were missed, or arrive late.
                if value > 0 {
                    self.owed = value;
                    self.gaps.late = true;
                } else {
                    self.gaps.operations = true;
                }
            }
            self.base = Some(0);
            self.sum = 0;
            self.first_op = None;
        }
        self.note(call.at, call.who, Call::Waited, call.errno);
        Some(match call.errno {
            0 => ChangeKind::Released,
            errno => ChangeKind::WaitFailed { errno },
        })
    }
}
