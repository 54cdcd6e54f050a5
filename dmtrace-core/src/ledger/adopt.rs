//! Records of the kernel maps into the books: after messages were lost, or when a tracer that
//! runs already is joined. Adopting a record twice changes nothing the second time.

use dmtrace_common::{
    Operators, ProcRecord, SEM_ANNOUNCED, SEM_DM_DROPPED, SEM_MAYBE_FOUND, SEM_MISSED,
    SEM_NS_TEARDOWN, SEM_OPS_DROPPED, SEM_PREEXISTING, SEM_TOMBSTONE, SemRecord,
};

use super::{
    ActorRef, Change, ChangeKind, Cookie, CookieCounts, Creator, EndKind, ImageId, Ledger, Origin,
    ProcessExit, UserStage, WaitEnd, WaitingThread, WhyUnknown, apply::NewSet,
};
use crate::{
    event::{ExitStatus, ProcessImage},
    ids::{BootTime, Key, ProcKey, SemId},
};

impl Ledger {
    /// Takes over the record of a set. A record of a removed set ("tombstone") opens and closes
    /// its account. The record's counts replace those of the books where the books have none or
    /// operations were dropped.
    ///
    /// Adopt its creator right before, so that it has a name and an end: [`in_order`].
    ///
    /// [`in_order`]: super::in_order
    pub fn adopt_record(&mut self, sem: SemId, record: &SemRecord) -> Vec<Change> {
        let mut out = Vec::new();
        let key = Key(record.key);
        let created = (record.created != 0 && record.state & SEM_PREEXISTING == 0)
            .then_some(BootTime(record.created));
        let closed = (record.closed != 0 || record.state & SEM_TOMBSTONE != 0)
            .then_some(BootTime(record.closed));
        if let Some(mark) = self.marks.get(sem)
            && mark.key == key
            && !self.live.contains_key(&sem)
            && (mark.observed || closed.is_some())
            && (mark.created.is_none() || created.is_none() || mark.created == created)
        {
            // Its removal was seen, its creation was not.
            if let (None, Some(created)) = (mark.created, created) {
                let creator = self.creator_of_record(record);
                if self.created_late(sem, key, created, creator) {
                    out.push(self.creation_of(sem, key, created, creator, record));
                }
            }
            if closed.is_some() {
                self.marks.record_arrived(sem);
            }
            return out;
        }
        if let Some(closed) = closed
            && record.state & SEM_ANNOUNCED != 0
            && !self.live.contains_key(&sem)
            && self.has_observed(created.unwrap_or(closed))
        {
            // Its creation was told, and it is not there: its removal was, too.
            return out;
        }
        if self.live.get(&sem).is_some_and(|known| {
            known.key != key
                || matches!((known.created, created), (Some(old), Some(new)) if old < new)
        }) {
            let at = created.unwrap_or(BootTime(record.last_op));
            self.close_set(sem, at, EndKind::Vanished, None, &mut out);
        }
        if let Some(known) = self.live.get(&sem)
            && let (Some(old), Some(new)) = (known.created, created)
            && old > new
        {
            return out;
        }
        let creator = self.creator_of_record(record);
        let seen = BootTime(record.created.max(record.last_op).max(record.wait_since));
        // Others knew of it before its creation was told: its first operations, or a snapshot.
        let overtaken = self
            .live
            .get(&sem)
            .is_some_and(|known| known.created.is_none());
        match self.live.get(&sem).map(|known| known.creator.image()) {
            None => {
                self.enter_set(NewSet {
                    id: sem,
                    key,
                    nsems: record.nsems,
                    semflg: (record.state & SEM_PREEXISTING == 0).then_some(record.semflg),
                    origin: Origin::Map,
                    created,
                    seen,
                    creator,
                });
                self.take_over(sem, record, seen);
                if let Some(at) = created
                    && let Some(process) = creator
                        .image()
                        .and_then(|image| self.processes.get_mut(image))
                {
                    process.active_on(record.tid, at);
                }
                if created.is_none() {
                    self.mark_missed_operations(sem);
                }
                let mut change =
                    self.creation_of(sem, key, created.unwrap_or(seen), creator, record);
                if created.is_none() {
                    change.kind = ChangeKind::Found;
                }
                out.push(change);
            }
            Some(known_creator) => {
                self.merge_record(sem, record, created, creator, known_creator.is_none());
                let complete = overtaken && created.is_some();
                if complete || record.state & SEM_OPS_DROPPED != 0 {
                    self.take_over(sem, record, seen);
                }
            }
        }
        // A record has every operation from the creation on, whether its message was dropped or
        // not. What was before the tracer is in neither.
        if record.state & SEM_OPS_DROPPED != 0 && record.state & SEM_PREEXISTING != 0 {
            self.mark_missed_operations(sem);
        }
        if let Some(cookie) = self.cookie_mut(sem) {
            cookie.take_over_dm(record);
        }
        if let Some(closed) = closed {
            let by = self.actor_of_key(record.closer, "");
            let kind = if record.state & SEM_NS_TEARDOWN != 0 {
                EndKind::WithNamespace
            } else {
                self.ending_by(sem, by.as_ref(), closed)
            };
            self.close_set(sem, closed.max(seen), kind, by, &mut out);
            self.marks.record_arrived(sem);
        }
        out
    }

    fn creation_of(
        &self,
        sem: SemId,
        key: Key,
        at: BootTime,
        creator: Creator,
        record: &SemRecord,
    ) -> Change {
        Change {
            at,
            sem,
            key,
            who: self.who_is(creator),
            kind: ChangeKind::Created {
                nsems: record.nsems,
            },
        }
    }

    /// Whether events of sets from before and after this moment have come.
    fn has_observed(&self, at: BootTime) -> bool {
        self.observed_span
            .is_some_and(|(first, last)| first <= at && at <= last)
    }

    /// Takes over the record of a process: its image, and its end if it has ended.
    pub fn adopt_process(&mut self, record: &ProcRecord) -> Vec<Change> {
        let mut out = Vec::new();
        let image = ProcessImage::from_record(record);
        let id = ImageId {
            id: image.id,
            exec: image.exec,
        };
        let Some(process) = self.processes.enter_process(id, &image.comm, image.seen) else {
            return out;
        };
        process.learn_image(&image);
        let starved = record
            .enospc_failures
            .saturating_sub(process.tally.enospc_failures);
        process.tally.enospc_failures += starved;
        self.totals.enospc_failures += starved;
        if record.exited != 0 {
            let exit = ProcessExit {
                at: BootTime(record.exited),
                status: Some(ExitStatus::from_wait(record.exit_code)),
            };
            self.image_exited(id, exit, &mut out);
        }
        out
    }

    fn mark_missed_operations(&mut self, sem: SemId) {
        if let Some(cookie) = self.cookie_mut(sem) {
            cookie.gaps.operations = true;
        }
    }

    fn creator_of_record(&mut self, record: &SemRecord) -> Creator {
        if record.state & SEM_MAYBE_FOUND != 0 {
            return Creator::Unknown(WhyUnknown::MaybeFound);
        }
        if record.state & SEM_PREEXISTING != 0 {
            return Creator::Unknown(if record.state & SEM_MISSED == 0 {
                WhyUnknown::BeforeTracer
            } else {
                WhyUnknown::Missed
            });
        }
        let name = crate::event::text::decode_c_string(&record.comm);
        match self.actor_of_key(record.creator, &name) {
            Some(who) => Creator::Known {
                image: who.image,
                tid: record.tid,
            },
            None => Creator::Unknown(WhyUnknown::Missed),
        }
    }

    fn actor_of_key(&mut self, key: ProcKey, name: &str) -> Option<ActorRef> {
        let process = self
            .processes
            .enter_process(key.into(), name, BootTime(0))?;
        Some(process.actor_ref(0))
    }

    fn who_is(&self, creator: Creator) -> Option<ActorRef> {
        let Creator::Known { image, tid } = creator else {
            return None;
        };
        Some(self.processes.get(image)?.actor_ref(tid))
    }

    /// Completes what the books know of a set that they have already.
    fn merge_record(
        &mut self,
        sem: SemId,
        record: &SemRecord,
        created: Option<BootTime>,
        creator: Creator,
        unknown: bool,
    ) {
        let Some(known) = self.live.get_mut(&sem) else {
            return;
        };
        let key = known.key;
        if known.nsems == 0 {
            known.nsems = record.nsems;
        }
        if known.created.is_none()
            && let Some(created) = created
        {
            known.created = Some(created);
            known.first_seen = known.first_seen.min(created);
            known.semflg = Some(record.semflg);
            known.origin = Origin::Map;
            self.totals.update_both(key, |count| {
                count.found = count.found.saturating_sub(1);
                count.created += 1;
            });
        }
        if !unknown {
            return;
        }
        let Some(known) = self.live.get_mut(&sem) else {
            return;
        };
        known.creator = creator;
        self.credit_creator(sem, key, creator);
        if let (Some(who), Some(created)) = (self.who_is(creator), created)
            && let Some(cookie) = self.cookie_mut(sem)
        {
            cookie.creation_learnt(created, &who);
        }
    }

    /// The counts of a cookie's record replace those of the books.
    fn take_over(&mut self, sem: SemId, record: &SemRecord, seen: BootTime) {
        let creator = self.live.get(&sem).map(|known| known.creator);
        let creator = creator.and_then(|creator| self.who_is(creator));
        let waiter = self.actor_of_key(record.waiter, "");
        let last = self.actor_of_key(record.last_actor, "");
        let Some(cookie) = self.cookie_mut(sem) else {
            return;
        };
        cookie.synced = cookie.synced.max(seen);
        cookie.take_over(record, creator, waiter, last, seen);
        let users: Vec<ActorRef> = cookie.users.iter().map(|user| user.who.clone()).collect();
        let completers: Vec<ImageId> = cookie.completers.iter().map(|who| who.image).collect();
        for who in users {
            self.hold_image(sem, who.image, false);
            self.follow_trail(who.image, who.tid, BootTime(0), sem, true);
        }
        for image in completers {
            self.hold_image(sem, image, false);
        }
    }
}

impl Cookie {
    fn take_over(
        &mut self,
        record: &SemRecord,
        creator: Option<ActorRef>,
        waiter: Option<ActorRef>,
        last: Option<ActorRef>,
        seen: BootTime,
    ) {
        let owner_waits = match (&creator, &waiter) {
            (Some(creator), Some(waiter)) => creator.image == waiter.image,
            _ => false,
        };
        let waited = record.waits > 0;
        let by_other = u32::from(waited && !owner_waits).min(record.other_dec);
        let by_owner = u32::from(waited && owner_waits).min(record.owner_dec);
        self.counts = CookieCounts {
            owner_inc: record.owner_inc,
            owner_dec: record.owner_dec,
            other_inc: record.other_inc,
            other_dec: record.other_dec,
            completions: record.other_dec.saturating_sub(by_other),
            wait_entries: by_owner.saturating_add(by_other),
            setvals: record.setvals,
            waits: record.waits,
            waits_done: record.waits_done,
            failed_decrements: record.failed_decrements,
            ..self.counts
        };
        if record.state & SEM_PREEXISTING == 0 {
            self.base = Some(record.value);
            self.sum = 0;
            self.clear_owed();
            self.first_op = None;
            if record.state & SEM_MAYBE_FOUND == 0 && !self.doubt {
                // What the messages lacked is in the record: all that was done from the creation
                // on.
                self.gaps.operations = false;
            }
        }
        if record.last_op != 0 {
            self.last_call = Some(super::later_time(self.last_call, BootTime(record.last_op)));
        }
        if self.counts.completions > 0 {
            // The record has one time for all operations: the latest is the safe assumption.
            self.last_completion = Some(super::later_time(
                self.last_completion,
                BootTime(record.last_op),
            ));
        }
        self.last_actor = last.as_ref().map(|who| who.image).or(self.last_actor);
        if !record.operators.is_empty() {
            self.operators = record.operators;
        } else if let Some(last) = &last {
            // Layout 2 and before: the last one to be seen.
            self.operators = Operators::default();
            self.operators.note_operation(
                last.image.id.tgid,
                record.last_op,
                record.last_op.max(1),
            );
        }
        if record.other_inc > 0 {
            // The record does not say who incremented.
            self.gaps.operations = true;
        }
        if let Some(creator) = creator {
            let stage = owner_stage(record, owner_waits);
            self.gaps.order = stage == UserStage::SelfCompleted && record.owner_inc > 1;
            // The end of a wait is the last that is known of a waiter, also if it failed.
            let waits_done = owner_waits && record.waits_done > 0;
            // When it took back its own part is not known: the latest is the safe assumption.
            let acted = waits_done
                || stage == UserStage::SelfCompleted
                || last.is_some_and(|last| last.image == creator.image);
            let at = BootTime(if acted {
                record.last_op
            } else {
                record.created
            });
            let user = self.user_mut(&creator, at.max(BootTime(record.created)), stage);
            user.incs = record.owner_inc;
            user.decs = record.owner_dec;
            user.wait_entries = by_owner;
            user.stage = stage;
        }
        let Some(waiter) = waiter else {
            return;
        };
        let since = BootTime(record.wait_since);
        if waited && !owner_waits {
            let stage = wait_stage(record);
            let ended = BootTime(if record.waits_done > 0 {
                record.last_op
            } else {
                0
            });
            let user = self.user_mut(&waiter, since.max(ended), stage);
            user.stage = stage;
            user.decs = by_other;
            user.wait_entries = by_other;
        }
        if record.wait_since != 0 {
            let known = self
                .waiters
                .iter()
                .any(|known| known.who.image == waiter.image);
            if !known {
                self.waiters.push(WaitingThread { who: waiter, since });
            }
        } else {
            self.waiters.retain(|known| known.who.image != waiter.image);
            if record.waits_done > 0 {
                self.last_wait = Some(WaitEnd {
                    who: waiter,
                    at: seen,
                    errno: record.last_error.saturating_neg().max(0),
                });
            }
        }
    }
}

impl Cookie {
    /// The sums of device-mapper's ioctls, if the books have none or messages were dropped. Which
    /// devices they worked on is not in the record.
    fn take_over_dm(&mut self, record: &SemRecord) {
        let none = self.counts.ioctls == 0 && self.last_dm.is_none();
        if record.ioctls == 0 || !(none || record.state & SEM_DM_DROPPED != 0) {
            return;
        }
        let last = BootTime(record.last_dm);
        if last < self.dm_synced {
            return;
        }
        self.dm_synced = last;
        self.last_dm = Some(super::later_time(self.last_dm, last));
        self.counts.ioctls = record.ioctls;
        self.counts.ioctls_failed = record.ioctls_failed;
        self.counts.uevents = record.uevents;
        self.gaps.devices |= record.state & SEM_DM_DROPPED != 0;
    }
}

/// How far the creator has come by its record.
fn owner_stage(record: &SemRecord, owner_waits: bool) -> UserStage {
    if owner_waits && record.waits > 0 {
        wait_stage(record)
    } else if record.owner_dec > 0 {
        UserStage::SelfCompleted
    } else if record.owner_inc > 0 {
        UserStage::Armed
    } else if record.setvals > 0 {
        UserStage::Ready
    } else {
        UserStage::Created
    }
}

/// How a wait stands by the record of its cookie.
const fn wait_stage(record: &SemRecord) -> UserStage {
    if record.wait_since != 0 {
        UserStage::Waiting
    } else if record.last_error == -libc::EINTR {
        UserStage::Interrupted
    } else if record.last_error != 0 {
        UserStage::WaitFailed
    } else if record.value == 0 {
        UserStage::Released
    } else {
        UserStage::Interrupted
    }
}
