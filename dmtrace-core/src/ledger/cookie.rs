//! The life of one set with the cookie magic, in the terms of the protocol.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use borsh::{BorshDeserialize, BorshSerialize};
use dmtrace_common::Operators;
use serde::{Deserialize, Serialize};

use super::{
    ActorRef, CookieCall, Device, ImageId, ProcessExit, Timeline, TimelineStep, operator_bytes,
};
use crate::{
    event::{CallSite, ExitStatus},
    ids::{BootTime, IpcNs},
};

/// Users of a cookie that are told apart; more make the cookie "crowded".
pub const MAX_USERS: usize = 32;
/// Last completers that are named.
pub const MAX_COMPLETERS: usize = 8;
/// Failed lookups that are kept.
pub const MAX_LOOKUPS: usize = 4;
/// Devices that are told apart; of more the last ones are kept.
pub const MAX_DEVICES: usize = 16;
/// Images that one cookie keeps in the books.
pub(super) const MAX_HELD_IMAGES: usize = 64;
/// Waiting threads that are kept.
pub const MAX_WAITERS: usize = 32;

/// From the EINTR of a killed waiter to the end of its process, at most.
const KILL_DELAY: Duration = Duration::from_secs(1);

/// What is known of a cookie beyond its identity.
#[derive(Clone, Debug, Default, Serialize, BorshSerialize, BorshDeserialize)]
pub struct Cookie {
    /// Sums over its life.
    pub counts: CookieCounts,
    /// Processes that made it, incremented it or waited for it; the creator first if known.
    pub users: Vec<User>,
    /// The last processes that only decremented it: `dmsetup udevcomplete`, one for each uevent.
    pub completers: VecDeque<ActorRef>,
    /// Threads that wait for zero.
    pub waiters: Vec<WaitingThread>,
    /// The last wait that ended.
    pub last_wait: Option<WaitEnd>,
    /// Last call that reached it, failed ones included.
    pub last_call: Option<BootTime>,
    /// Last completion.
    pub last_completion: Option<BootTime>,
    /// Who was the last to be seen to have done a successful operation.
    pub last_actor: Option<ImageId>,
    /// Who may have done the last one: what `sempid` should show.
    #[serde(skip)]
    #[borsh(
        serialize_with = "operator_bytes::write_operators",
        deserialize_with = "operator_bytes::read_operators"
    )]
    pub operators: Operators,
    /// Lookups of its key that failed in another namespace while it was there.
    pub lookups: Vec<FailedLookup>,
    /// Devices that ioctls with this cookie worked on, the last one last.
    pub devices: Vec<Device>,
    /// Further devices, not kept.
    pub devices_more: u32,
    /// Last ioctl that returned or uevent that was sent.
    pub last_dm: Option<BootTime>,
    /// The calls that led to its creation, once they are known.
    #[serde(skip)]
    #[borsh(skip)]
    pub call_site: Option<Arc<CallSite>>,
    /// What is missing in these books.
    pub gaps: Gaps,
    /// Step by step.
    pub timeline: Timeline,
    /// Value at the last point where it was certain; `None` if there was none yet.
    pub(super) base: Option<i32>,
    /// Sum of the successful operations since.
    pub(super) sum: i32,
    /// The first operation since that point.
    pub(super) first_op: Option<BootTime>,
    /// Decrements before the last release that are not told yet: whoever decrements to zero wakes
    /// the waiter, whose message may come first.
    pub(super) owed: i32,
    /// Operations up to here are contained in the counts taken over from the kernel map.
    pub(super) synced: BootTime,
    /// The same for device-mapper's ioctls.
    pub(super) dm_synced: BootTime,
    /// The kernel side itself has missed operations: they are not in its record either.
    #[serde(skip)]
    pub(super) doubt: bool,
    /// Images that this cookie holds in the books.
    #[serde(skip)]
    pub(super) held: Vec<ImageId>,
}

/// Sums over the life of a cookie. Without a known creator everything is "other".
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, BorshSerialize, BorshDeserialize,
)]
pub struct CookieCounts {
    /// Increments by the creator.
    pub owner_inc: u32,
    /// Decrements by the creator.
    pub owner_dec: u32,
    /// Increments by others.
    pub other_inc: u32,
    /// Decrements by others.
    pub other_dec: u32,
    /// Of all decrements: completions by processes that did not use the cookie otherwise.
    pub completions: u32,
    /// Of all decrements: entries into a wait.
    pub wait_entries: u32,
    /// `SETVAL` calls.
    pub setvals: u32,
    /// Waits for zero that began.
    pub waits: u32,
    /// Waits for zero that ended, whatever the result.
    pub waits_done: u32,
    /// Decrements that found the value at 0 (EAGAIN).
    #[serde(rename = "starved")]
    pub failed_decrements: u32,
    /// Device-mapper ioctls with the cookie.
    pub ioctls: u32,
    /// Of these, failed.
    pub ioctls_failed: u32,
    /// Of these, with a uevent: completions to come from udev.
    pub uevents: u32,
}

impl CookieCounts {
    /// Increments that nobody has completed yet: operations under way, or lost uevents. Negative
    /// when more was completed than there was.
    pub const fn outstanding_increments(&self) -> i64 {
        let up = self.owner_inc as i64 + self.other_inc as i64;
        let down = self.owner_dec as i64 + self.other_dec as i64;
        up - (down - self.wait_entries as i64)
    }

    /// Decrements by users that no wait followed: they completed their own operation.
    pub const fn self_completions(&self) -> u32 {
        let down = self.owner_dec.saturating_add(self.other_dec);
        down.saturating_sub(self.completions)
            .saturating_sub(self.wait_entries)
    }
}

/// A process that uses a cookie.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, BorshSerialize, BorshDeserialize)]
pub struct User {
    /// Who; the thread is that of its last call.
    #[serde(flatten)]
    pub who: ActorRef,
    /// Increments by it.
    pub incs: u32,
    /// Decrements by it.
    pub decs: u32,
    /// Of these, entries into a wait.
    pub wait_entries: u32,
    /// Its last call.
    pub last: BootTime,
    /// How far it has come.
    pub stage: UserStage,
    /// Its end, once known.
    pub exit: Option<ProcessExit>,
}

/// How far a user of a cookie has come in the protocol.
#[derive(
    Clone,
    Copy,
    Debug,
    Eq,
    Hash,
    Ord,
    PartialEq,
    PartialOrd,
    Serialize,
    Deserialize,
    BorshSerialize,
    BorshDeserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum UserStage {
    /// Made the set; `SETVAL` has not happened.
    Created,
    /// Set it to 1; nothing is announced yet.
    Ready,
    /// Incremented: its ioctl is under way, or its uevents are.
    Armed,
    /// As [`UserStage::Armed`], and udev has completed everything.
    Done,
    /// Decremented, and no wait followed (so far).
    SelfCompleted,
    /// Waits for zero.
    Waiting,
    /// Its wait was interrupted (EINTR) and not begun again.
    Interrupted,
    /// Its wait failed otherwise.
    WaitFailed,
    /// Its own decrement found the value at 0 (EAGAIN).
    #[serde(rename = "starved")]
    DecrementFailed,
    /// Its wait succeeded; what remains is the removal.
    Released,
}

/// A thread that waits for zero.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, BorshSerialize, BorshDeserialize)]
pub struct WaitingThread {
    /// Who.
    #[serde(flatten)]
    pub who: ActorRef,
    /// Since when.
    pub since: BootTime,
}

/// The end of a wait.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, BorshSerialize, BorshDeserialize)]
pub struct WaitEnd {
    /// Who had waited.
    #[serde(flatten)]
    pub who: ActorRef,
    /// When the wait ended.
    pub at: BootTime,
    /// 0, or a positive errno: EINTR, EIDRM.
    pub errno: i32,
}

/// A lookup of the cookie's key that failed in another IPC namespace.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, BorshSerialize, BorshDeserialize)]
pub struct FailedLookup {
    /// Who looked.
    pub who: Option<ActorRef>,
    /// When.
    pub at: BootTime,
    /// Where it looked.
    pub ns: IpcNs,
    /// Positive errno.
    pub errno: i32,
}

/// What is missing in the books of a cookie.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, BorshSerialize, BorshDeserialize,
)]
#[expect(clippy::struct_excessive_bools, reason = "independent gaps")]
pub struct Gaps {
    /// Operations were not seen: messages lost, a drift found, or older than the tracer.
    pub operations: bool,
    /// Results of calls were not seen (backend).
    pub results: bool,
    /// More users than can be told apart.
    pub crowded: bool,
    /// A wait for zero has ended, and decrements that must have come before are not told yet.
    pub late: bool,
    /// The order of the owner's increments and decrements: a map record has their sums only. How
    /// far a transaction of several operations has come is then not known.
    pub order: bool,
    /// Messages of device-mapper were lost: the list of devices is not complete. No verdict rests
    /// on it.
    pub devices: bool,
}

impl Gaps {
    /// Whether anything is missing that every verdict rests on.
    pub const fn affects_verdicts(self) -> bool {
        self.operations || self.results || self.crowded || self.late
    }
}

/// The state of a cookie in the protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Phase {
    /// Made, not set yet.
    New,
    /// Set to 1.
    Ready,
    /// Incremented, nothing completed yet.
    Armed {
        /// Operations not completed.
        outstanding: u32,
    },
    /// Some uevents are completed, others are not.
    Pending {
        /// Operations not completed.
        outstanding: u32,
    },
    /// All is completed; nobody waits yet.
    Done,
    /// Somebody waits for zero.
    Waiting {
        /// Operations not completed.
        outstanding: u32,
    },
    /// Zero after use: about to be removed.
    Zero,
    /// Not known.
    Unknown,
}

impl Cookie {
    /// Value as the seen operations make it; `None` if it was never certain.
    pub const fn value(&self) -> Option<i32> {
        match self.base {
            Some(base) => Some(base.saturating_add(self.sum)),
            None => None,
        }
    }

    /// State in the protocol.
    pub fn phase(&self) -> Phase {
        let outstanding = self
            .counts
            .outstanding_increments()
            .clamp(0, i64::from(u32::MAX)) as u32;
        if !self.waiters.is_empty() {
            return Phase::Waiting { outstanding };
        }
        let used = self.counts.owner_inc > 0 || self.counts.other_inc > 0;
        match self.value() {
            None => Phase::Unknown,
            Some(0) if self.counts.setvals == 0 && !used => Phase::New,
            Some(0) => Phase::Zero,
            Some(1) if !used => Phase::Ready,
            Some(_) if outstanding == 0 => Phase::Done,
            Some(_) if self.counts.completions == 0 => Phase::Armed { outstanding },
            Some(_) => Phase::Pending { outstanding },
        }
    }

    /// The user entry of an image.
    pub fn user(&self, image: ImageId) -> Option<&User> {
        self.users.iter().find(|user| user.who.image == image)
    }

    /// How far a user has come, completions considered.
    pub fn user_stage(&self, user: &User) -> UserStage {
        let completed = self.counts.completions > 0 && self.counts.outstanding_increments() <= 0;
        let before_end = match (user.exit, self.last_completion) {
            (Some(exit), Some(completion)) => completion <= exit.at,
            _ => true,
        };
        match user.stage {
            UserStage::Armed if completed && before_end => UserStage::Done,
            // A fatal signal ends the wait with EINTR a moment before it ends the process.
            UserStage::Interrupted
                if user.exit.is_some_and(|exit| {
                    matches!(exit.status, Some(ExitStatus::Signal(_)))
                        && exit.at.duration_since(user.last) < KILL_DELAY
                }) =>
            {
                UserStage::Waiting
            }
            stage => stage,
        }
    }

    pub(super) fn user_mut(&mut self, who: &ActorRef, at: BootTime, stage: UserStage) -> &mut User {
        let found = self
            .users
            .iter()
            .position(|user| user.who.image == who.image);
        let index = found.unwrap_or_else(|| {
            if self.users.len() >= MAX_USERS {
                self.drop_user();
            }
            self.users.push(User {
                who: who.clone(),
                incs: 0,
                decs: 0,
                wait_entries: 0,
                last: at,
                stage,
                exit: None,
            });
            self.users.len() - 1
        });
        let user = &mut self.users[index];
        if at >= user.last {
            user.last = at;
            user.who.tid = who.tid;
        }
        user
    }

    /// Makes room for a user: one that has ended, the creator excepted; else the books are crowded.
    fn drop_user(&mut self) {
        let ended = self
            .users
            .iter()
            .skip(1)
            .position(|user| user.exit.is_some());
        let index = ended.map_or(1, |index| index + 1);
        if ended.is_none() {
            self.gaps.crowded = true;
        }
        if index < self.users.len() {
            self.users.remove(index);
        }
    }

    pub(super) fn push_step(
        &mut self,
        at: BootTime,
        who: Option<&ActorRef>,
        what: CookieCall,
        errno: i32,
    ) {
        if what != CookieCall::Exit {
            self.last_call = Some(self.last_call.map_or(at, |last| last.max(at)));
        }
        let value = self.value();
        self.timeline.push(TimelineStep {
            at,
            who: who.cloned(),
            what,
            errno,
            value,
        });
    }

    /// Marks a user as ended; its waits end with it. Returns its stage if that is news.
    pub(super) fn user_exited(
        &mut self,
        image: ImageId,
        exit: ProcessExit,
    ) -> Option<(ActorRef, UserStage)> {
        self.waiters.retain(|waiting| waiting.who.image != image);
        let index = self.users.iter().position(|user| user.who.image == image)?;
        let user = self.users.get_mut(index)?;
        let known = user.exit;
        // Its absence may have been noticed first: then this says how it ended.
        if known.is_some_and(|known| known.status.is_some() || exit.status.is_none()) {
            return None;
        }
        user.exit = Some(exit);
        let who = user.who.clone();
        let stage = self.users.get(index).map(|user| self.user_stage(user))?;
        if known.is_none() {
            self.push_step(exit.at, Some(&who), CookieCall::Exit, 0);
        }
        Some((who, stage))
    }
}
