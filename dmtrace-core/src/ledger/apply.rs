//! One event into the books.

use dmtrace_common::SemKey;

use super::{
    ActorRef, Change, ChangeKind, Cookie, Creator, EndKind, FailedLookup, ImageId, Ledger, Origin,
    ProcessExit, Semaphore, cookie, operate::CallSeen,
};
use crate::{
    event::{Event, EventKind},
    ids::{BootTime, IpcNs, Key, SemId},
};

/// What a new set is entered with.
#[derive(Clone, Copy)]
pub(super) struct NewSet {
    pub(super) id: SemId,
    pub(super) key: Key,
    pub(super) nsems: u32,
    pub(super) semflg: Option<u32>,
    pub(super) origin: Origin,
    pub(super) created: Option<BootTime>,
    pub(super) seen: BootTime,
    pub(super) creator: Creator,
}

impl Ledger {
    /// Enters one event; returns what changed by it.
    pub fn apply(&mut self, event: &Event) -> Vec<Change> {
        let mut changes = Vec::new();
        self.apply_into(event, &mut changes);
        changes
    }

    /// As [`Ledger::apply`], appending to a vector that the caller reuses.
    pub fn apply_into(&mut self, event: &Event, out: &mut Vec<Change>) {
        if let EventKind::Created { .. } | EventKind::Destroyed { .. } = event.what {
            let (first, last) = self.observed_span.unwrap_or((event.at, event.at));
            self.observed_span = Some((first.min(event.at), last.max(event.at)));
        }
        match &event.what {
            EventKind::Process(image) => {
                let id = ImageId {
                    id: image.id,
                    exec: image.exec,
                };
                if let Some(process) = self.processes.enter_process(id, &image.comm, event.at) {
                    process.learn_image(image);
                }
            }
            EventKind::Created {
                sem,
                key,
                nsems,
                semflg,
            } => self.apply_created(event, *sem, *key, *nsems, *semflg, out),
            EventKind::CreateFailed { ns, key, errno } => {
                self.create_failed(event, *ns, *key, *errno, out);
            }
            EventKind::SetVal {
                sem,
                key,
                value,
                errno,
            } => self.apply_call(event, *sem, *key, *errno, out, |cookie, call| {
                cookie.apply_setval(call, *value)
            }),
            EventKind::Op {
                sem,
                key,
                ops,
                errno,
            } => self.apply_call(event, *sem, *key, *errno, out, |cookie, call| {
                cookie.apply_operation(call, ops)
            }),
            EventKind::WaitBegin { sem, key, ops } => {
                if ops.iter().any(|op| op.waits_for_zero()) {
                    self.apply_call(event, *sem, *key, 0, out, Cookie::wait_begins);
                }
            }
            EventKind::Destroyed { sem, key } => self.apply_destroyed(event, *sem, *key, out),
            EventKind::Exit { status } => {
                let exit = ProcessExit {
                    at: event.at,
                    status: Some(*status),
                };
                for image in self.processes.image_ids(event.actor.id) {
                    self.image_exited(image, exit, out);
                }
            }
            EventKind::LookupFailed { ns, key, errno } => {
                self.lookup_failed(event, *ns, *key, *errno, out);
            }
            EventKind::Ioctl(ioctl) => self.apply_ioctl(event, ioctl, out),
            EventKind::Uevent(uevent) => self.apply_uevent(event, uevent, out),
        }
    }

    pub(super) fn actor_of_event(&mut self, event: &Event) -> Option<ActorRef> {
        let process = self.processes.touch_actor(&event.actor, event.at)?;
        Some(process.actor_ref(event.actor.tid))
    }

    /// The creator of a live set gets it into its tally and is remembered for it.
    pub(super) fn credit_creator(&mut self, sem: SemId, key: Key, creator: Creator) {
        let Some(image) = creator.image() else {
            return;
        };
        let created = self.live.get(&sem).and_then(|set| set.created);
        if let Some(process) = self.processes.get_mut(image) {
            process.tally.count_created(key);
            if key.has_cookie_magic() {
                process.cookies.insert(sem);
                if let (Some(tid), Some(at)) = (creator.tid(), created) {
                    process.trail_mut(tid, at).cookie_made(at);
                }
            }
        }
        self.hold_image(sem, image, false);
    }

    /// A set refers to an image. For an ordinary set only its creator counts; a cookie refers to
    /// everybody who took part, once.
    pub(super) fn hold_image(&mut self, sem: SemId, image: ImageId, closed: bool) {
        let semaphore = if closed {
            self.history.latest_mut(sem)
        } else {
            self.live.get_mut(&sem).map(Box::as_mut)
        };
        let Some(semaphore) = semaphore else {
            return;
        };
        if let Some(cookie) = &mut semaphore.cookie {
            if cookie.held.contains(&image) || cookie.held.len() >= cookie::MAX_HELD_IMAGES {
                return;
            }
            cookie.held.push(image);
        }
        self.processes.hold_image(image);
    }

    pub(super) fn cookie_mut(&mut self, sem: SemId) -> Option<&mut Cookie> {
        self.live.get_mut(&sem)?.cookie.as_deref_mut()
    }

    /// Opens the account of a set.
    pub(super) fn enter_set(&mut self, entry: NewSet) {
        let NewSet {
            id,
            key,
            nsems,
            semflg,
            origin,
            created,
            seen,
            creator,
        } = entry;
        self.totals.update_both(key, |count| {
            count.live += 1;
            if created.is_some() {
                count.created += 1;
            } else {
                count.found += 1;
            }
        });
        let cookie = key.has_cookie_magic().then(Box::<Cookie>::default);
        if cookie.is_some() {
            self.by_key.insert((key, id));
        }
        self.live.insert(
            id,
            Box::new(Semaphore {
                id,
                key,
                nsems,
                semflg,
                origin,
                created,
                first_seen: created.map_or(seen, |created| created.min(seen)),
                last_seen: seen,
                creator,
                ending: None,
                cookie,
            }),
        );
        self.credit_creator(id, key, creator);
    }

    fn create_failed(
        &mut self,
        event: &Event,
        ns: IpcNs,
        key: Key,
        errno: i32,
        out: &mut Vec<Change>,
    ) {
        let starved = errno == libc::ENOSPC;
        if starved {
            self.totals.enospc_failures += 1;
        } else {
            self.totals.failed += 1;
        }
        let process = self.processes.touch_actor(&event.actor, event.at);
        let who = process.map(|process| {
            if starved {
                process.tally.enospc_failures += 1;
            } else {
                process.tally.failed += 1;
            }
            if key.has_cookie_magic() {
                process.active_on(event.actor.tid, event.at);
            }
            process.actor_ref(event.actor.tid)
        });
        out.push(Change {
            at: event.at,
            sem: no_set(ns),
            key,
            who,
            kind: ChangeKind::CreateFailed { errno },
        });
    }

    /// A call on a cookie.
    fn apply_call(
        &mut self,
        event: &Event,
        sem: SemId,
        key: Key,
        errno: i32,
        out: &mut Vec<Change>,
        action: impl FnOnce(&mut Cookie, CallSeen<'_>) -> Option<ChangeKind>,
    ) {
        let key = self.resolve_key(event, sem, key);
        if !key.has_cookie_magic() {
            return;
        }
        let at = event.at;
        let who = self.actor_of_event(event);
        if self
            .live
            .get(&sem)
            .is_some_and(|known| known.key != key && known.last_seen < at)
        {
            self.close_set(sem, at, EndKind::Vanished, None, out);
        }
        let exists = !matches!(errno, libc::EIDRM | libc::EINVAL);
        if !self.live.contains_key(&sem) {
            let began = event.began.unwrap_or(at);
            let closed = self.marks.get(sem).map(|mark| mark.closed);
            let late = closed.is_some_and(|closed| {
                closed >= began || !exists || matches!(event.what, EventKind::WaitBegin { .. })
            });
            if late || !exists {
                self.call_late(event, sem, key, errno, who, action, out);
                return;
            }
            self.enter_unseen(sem, key, at);
            out.push(Change {
                at,
                sem,
                key,
                who: None,
                kind: ChangeKind::Found,
            });
        }
        let Some(known) = self.live.get_mut(&sem) else {
            return;
        };
        if known.key != key || known.created.is_some_and(|created| created > at) {
            self.totals.late += 1;
            return;
        }
        known.first_seen = known.first_seen.min(at);
        known.last_seen = known.last_seen.max(at);
        let creator = known.creator.image().map(|image| image.id);
        let Some(cookie) = known.cookie.as_deref_mut() else {
            return;
        };
        let call = CallSeen {
            at,
            began: event.began.unwrap_or(at),
            who: who.as_ref(),
            creator,
            quality: event.quality,
            errno,
        };
        let owed = cookie.gaps.late;
        let kind = action(cookie, call);
        let at = match kind {
            // It was carried out before the wait ended that was told first.
            Some(ChangeKind::Down { .. }) if owed => call.began,
            _ => at,
        };
        if let Some(who) = &who {
            let image = who.image;
            let uses = cookie.user(image).is_some();
            self.hold_image(sem, image, false);
            self.follow_trail(image, who.tid, at, sem, uses);
        }
        if let Some(kind) = kind {
            out.push(Change {
                at,
                sem,
                key,
                who,
                kind,
            });
        }
    }

    /// The kernel side does not know the key of a set that it does not track: a waiter's EIDRM
    /// after the removal, a removal seen by the syscall backend. The books may.
    pub(super) fn resolve_key(&self, event: &Event, sem: SemId, key: Key) -> Key {
        if key.0 != 0 || !event.quality.untracked {
            return key;
        }
        let known = self.semaphore(sem).or_else(|| self.history.latest(sem));
        known.map_or(key, |known| known.key)
    }

    /// Keeps the trail of a cookie user.
    pub(super) fn follow_trail(
        &mut self,
        image: ImageId,
        tid: u32,
        at: BootTime,
        sem: SemId,
        uses: bool,
    ) {
        let Some(process) = self.processes.get_mut(image) else {
            return;
        };
        if !uses {
            return;
        }
        process.trail_mut(tid, at);
        process.cookies.insert(sem);
        let Some(exit) = process.exit else {
            return;
        };
        // The process had ended before this (late) call arrived.
        if let Some(cookie) = self.cookie_mut(sem) {
            cookie.user_exited(image, exit);
        }
    }

    fn lookup_failed(
        &mut self,
        event: &Event,
        ns: IpcNs,
        key: Key,
        errno: i32,
        out: &mut Vec<Change>,
    ) {
        let at = event.at;
        self.totals.lookups_failed += 1;
        let who = self.actor_of_event(event);
        let elsewhere: Option<SemId> = self.ids_with_key(key).find(|&sem| {
            // A map may tell of a lookup that another cookie with this key was meant by.
            let made = self.semaphore(sem).and_then(|set| set.created);
            sem.ns != ns && made.is_none_or(|made| made <= at)
        });
        if elsewhere.is_none() {
            // After an accident: a next operation, or udev's completion, that finds it gone.
            let failed = FailedLookup {
                who: who.clone(),
                at,
                ns,
                errno,
            };
            if let (Some(sem), Some(who)) = (self.history.looked_up(key, failed), &who) {
                self.hold_image(sem, who.image, true);
            }
        }
        if let Some(sem) = elsewhere {
            if let Some(cookie) = self.cookie_mut(sem) {
                if cookie.lookups.len() >= cookie::MAX_LOOKUPS {
                    cookie.lookups.remove(0);
                }
                cookie.lookups.push(FailedLookup {
                    who: who.clone(),
                    at,
                    ns,
                    errno,
                });
            }
            if let Some(who) = &who {
                self.hold_image(sem, who.image, false);
            }
        }
        out.push(Change {
            at,
            sem: no_set(ns),
            key,
            who,
            kind: ChangeKind::LookupFailed {
                errno,
                lives_in: elsewhere.map(|sem| sem.ns),
            },
        });
    }

    pub(super) fn image_exited(
        &mut self,
        image: ImageId,
        exit: ProcessExit,
        out: &mut Vec<Change>,
    ) {
        let Some(process) = self.processes.get_mut(image) else {
            return;
        };
        if process.exit.is_some_and(|known| known.status.is_some()) {
            return;
        }
        process.exit = Some(exit);
        let cookies = std::mem::take(&mut process.cookies);
        for &sem in &cookies {
            let Some(known) = self.live.get_mut(&sem) else {
                continue;
            };
            let key = known.key;
            let Some(cookie) = known.cookie.as_deref_mut() else {
                continue;
            };
            if let Some((who, stage)) = cookie.user_exited(image, exit) {
                out.push(Change {
                    at: exit.at,
                    sem,
                    key,
                    who: Some(who),
                    kind: ChangeKind::OwnerExited {
                        status: exit.status,
                        stage,
                    },
                });
            }
        }
        if let Some(process) = self.processes.get_mut(image) {
            process.cookies = cookies;
        }
    }
}

/// The id of "no set" in a namespace.
pub(super) fn no_set(ns: IpcNs) -> SemId {
    SemKey {
        ns: ns.0,
        semid: -1,
    }
    .into()
}
