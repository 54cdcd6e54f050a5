//! What was done to a cookie, step by step: the first steps and the last ones.

use std::collections::VecDeque;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::Serialize;

use super::ActorRef;
use crate::{
    event::{DmCommand, UeventAction},
    ids::{BootTime, DevNum},
};

/// Steps kept from the beginning of a cookie's life.
pub const HEAD_STEPS: usize = 16;
/// Steps kept from its end.
pub const TAIL_STEPS: usize = 16;

/// One call on a cookie.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, BorshSerialize, BorshDeserialize)]
pub struct TimelineStep {
    /// When.
    pub at: BootTime,
    /// Who; `None` for a kernel worker or an actor that was not captured.
    pub who: Option<ActorRef>,
    /// What.
    #[serde(flatten)]
    pub what: CookieCall,
    /// 0, or a positive errno.
    pub errno: i32,
    /// Value after the call, as far as the events make it known.
    pub value: Option<i32>,
}

/// A call on a cookie, in the terms of the protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, BorshSerialize, BorshDeserialize)]
#[serde(rename_all = "snake_case", tag = "call")]
pub enum CookieCall {
    /// `semget(IPC_CREAT | IPC_EXCL)` made it (libdm: `_udev_notify_sem_create`).
    Create,
    /// `semctl(SETVAL)`.
    SetVal,
    /// `semop +n` (libdm: `_udev_notify_sem_inc`).
    Up {
        /// n.
        by: i32,
    },
    /// `semop -n`.
    Down {
        /// n.
        by: i32,
        /// What the decrement stands for.
        meaning: DecrementMeaning,
    },
    /// `semop {0,0,0}` began: the thread waits for zero.
    Wait,
    /// `semop {0,0,0}` returned.
    Waited,
    /// Another `semop` (one that neither libdm nor devicemapper-rs makes).
    Other,
    /// A device-mapper ioctl with the cookie returned.
    Ioctl {
        /// Which.
        command: DmCommand,
        /// On this device; its name is in the cookie's list of devices.
        device: Option<DevNum>,
        /// The kernel sent a uevent: udev is to complete it.
        uevent: bool,
    },
    /// A uevent with the cookie is sent.
    Uevent {
        /// What it announces.
        action: UeventAction,
        /// For this device.
        device: Option<DevNum>,
    },
    /// Removed.
    Remove,
    /// A process that used the cookie ended.
    Exit,
}

/// What a decrement stands for. A user of the cookie decrements for two reasons with the same
/// call (libdm: `_udev_complete` and `_udev_wait`); they differ by what the thread does next.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, BorshSerialize, BorshDeserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecrementMeaning {
    /// By a process that did not use the cookie before: `dmsetup udevcomplete` for one uevent.
    Completion,
    /// By a user, and no wait followed (so far): the ioctl failed or produced no uevent.
    SelfCompletion,
    /// By a thread that began to wait right after.
    WaitEntry,
}

/// The first [`HEAD_STEPS`] and the last [`TAIL_STEPS`] steps.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, BorshSerialize, BorshDeserialize)]
pub struct Timeline {
    head: Vec<TimelineStep>,
    tail: VecDeque<TimelineStep>,
    skipped: u64,
}

impl Timeline {
    /// Steps in between that are not kept.
    pub const fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The first steps; complete if nothing was skipped and [`Timeline::tail`] is empty.
    pub fn head(&self) -> &[TimelineStep] {
        &self.head
    }

    /// The last steps, after the gap.
    pub fn tail(&self) -> impl Iterator<Item = &TimelineStep> {
        self.tail.iter()
    }

    /// Every kept step, in the order of arrival (events of two CPUs may be swapped).
    pub fn iter(&self) -> impl Iterator<Item = &TimelineStep> {
        self.head.iter().chain(&self.tail)
    }

    pub(super) fn push(&mut self, step: TimelineStep) {
        if self.head.len() < HEAD_STEPS {
            if self.head.is_empty() {
                self.head.reserve_exact(8);
            }
            self.head.push(step);
            return;
        }
        if self.tail.len() >= TAIL_STEPS {
            self.tail.pop_front();
            self.skipped = self.skipped.saturating_add(1);
        }
        self.tail.push_back(step);
    }

    /// Puts the last step to its time: it was told after the removal of its set.
    pub(super) fn in_time(&mut self) {
        let steps: &mut [TimelineStep] = if self.tail.is_empty() {
            &mut self.head
        } else {
            self.tail.make_contiguous()
        };
        if let Some(last) = steps.last().map(|step| step.at) {
            let earlier = steps.iter().rev().skip(1);
            let moved = earlier.take_while(|step| step.at > last).count();
            let from = steps.len() - 1 - moved;
            steps[from..].rotate_right(1);
        }
    }

    /// Creation learnt late goes to the front.
    pub(super) fn push_creation(&mut self, step: TimelineStep) {
        if self.head.len() >= HEAD_STEPS
            && let Some(displaced) = self.head.pop()
            && self.tail.len() < TAIL_STEPS
            && self.skipped == 0
        {
            self.tail.push_front(displaced);
        }
        self.head.insert(0, step);
    }

    /// The last decrement of a thread turns out to be the entry into a wait.
    pub(super) fn entered_wait(&mut self, tid: u32) {
        let steps = self.head.iter_mut().chain(self.tail.iter_mut()).rev();
        for step in steps {
            if step.who.as_ref().is_some_and(|who| who.tid == tid)
                && let CookieCall::Down { meaning, .. } = &mut step.what
            {
                *meaning = DecrementMeaning::WaitEntry;
                return;
            }
        }
    }
}
