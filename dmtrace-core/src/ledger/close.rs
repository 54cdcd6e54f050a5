//! The end of a set.

use super::{
    ActorRef, Change, ChangeKind, Cookie, CookieCall, Creator, Cycle, Departure, DepartureLimits,
    EndKind, Ending, Ledger, Origin, Semaphore, User, UserStage, WaitingThread, WhyUnknown,
    apply::NewSet,
};
use crate::{
    event::Event,
    ids::{BootTime, Key, SemId},
};

impl Ledger {
    pub(super) fn apply_destroyed(
        &mut self,
        event: &Event,
        sem: SemId,
        key: Key,
        out: &mut Vec<Change>,
    ) {
        let at = event.at;
        let key = self.resolve_key(event, sem, key);
        let teardown = event.quality.ns_teardown;
        let who = if teardown {
            None
        } else {
            self.actor_of_event(event)
        };
        if let Some(mark) = self.marks.get_mut(sem)
            && mark.key == key
            && !self.live.contains_key(&sem)
        {
            if mark.observed {
                // The map told of this removal already, or it is a repetition. Without a time
                // of creation, a removal long after would be another incarnation.
                if mark.closed == at {
                    return;
                }
            } else {
                // A reconciliation noticed its absence before this event was read.
                mark.observed = true;
                mark.closed = at;
                self.totals.update_both(key, |count| {
                    count.vanished = count.vanished.saturating_sub(1);
                    count.destroyed += 1;
                });
                return;
            }
        }
        match self.live.get(&sem) {
            Some(known) if known.key != key && known.last_seen > at => {
                self.totals.late += 1;
                return;
            }
            Some(known) if known.created.is_some_and(|created| created > at) => {
                self.totals.late += 1;
                return;
            }
            Some(known) if known.key != key => {
                self.close_set(sem, at, EndKind::Vanished, None, out);
                self.enter_unseen(sem, key, at);
            }
            Some(_) => {}
            None => self.enter_unseen(sem, key, at),
        }
        let kind = if teardown {
            EndKind::WithNamespace
        } else {
            self.ending_by(sem, who.as_ref(), at)
        };
        self.close_set(sem, at, kind, who, out);
    }

    /// Enters a set whose creation was not seen, by its use.
    pub(super) fn enter_unseen(&mut self, sem: SemId, key: Key, at: BootTime) {
        self.enter_set(NewSet {
            id: sem,
            key,
            nsems: 0,
            semflg: None,
            origin: Origin::Use,
            created: None,
            seen: at,
            creator: Creator::Unknown(WhyUnknown::Missed),
        });
        if let Some(cookie) = self.cookie_mut(sem) {
            cookie.gaps.operations = true;
        }
    }

    /// In which way a set ends when this actor removes it now.
    pub(super) fn ending_by(&self, sem: SemId, who: Option<&ActorRef>, at: BootTime) -> EndKind {
        let Some(semaphore) = self.live.get(&sem) else {
            return EndKind::ByOther;
        };
        let creator = semaphore.creator.image().map(|image| image.id);
        let by_creator = who.is_some_and(|who| Some(who.image.id) == creator);
        let Some(cookie) = semaphore.cookie.as_deref() else {
            return if by_creator {
                EndKind::ByCreator
            } else {
                EndKind::ByOther
            };
        };
        let user = who.and_then(|who| {
            cookie
                .users
                .iter()
                .find(|user| user.who.image.id == who.image.id)
        });
        let others_wait = cookie
            .waiters_at(at)
            .iter()
            .any(|waiting| who.is_none_or(|who| who.image.id != waiting.who.image.id));
        if others_wait {
            return EndKind::WhileLive;
        }
        match user.map(|user| user.stage) {
            Some(
                UserStage::Released
                | UserStage::Waiting
                | UserStage::Interrupted
                | UserStage::WaitFailed,
            ) => EndKind::ByWaiter,
            Some(_) if by_creator => EndKind::ByCreator,
            // libdm removes a cookie whose own decrement found 0.
            Some(UserStage::DecrementFailed) => EndKind::ByWaiter,
            _ if cookie
                .users
                .iter()
                .any(|user| user.exit.is_none() && !self.has_left(user, at)) =>
            {
                EndKind::WhileLive
            }
            _ => EndKind::ByOther,
        }
    }

    /// Whether a living user has left its cookie behind by this moment.
    fn has_left(&self, user: &User, at: BootTime) -> bool {
        let quiet = at.duration_since(user.last);
        let departure = self.departure_of(user, quiet, DepartureLimits::default());
        matches!(departure, Departure::Left { .. })
    }

    /// Closes the account of a live set.
    pub(super) fn close_set(
        &mut self,
        sem: SemId,
        at: BootTime,
        kind: EndKind,
        by: Option<ActorRef>,
        out: &mut Vec<Change>,
    ) {
        let Some(mut semaphore) = self.live.remove(&sem) else {
            return;
        };
        let key = semaphore.key;
        self.marks.add_removal(&semaphore, at, kind);
        self.totals.update_both(key, |count| {
            count.live = count.live.saturating_sub(1);
            if kind.is_observed() {
                count.destroyed += 1;
            } else {
                count.vanished += 1;
            }
        });
        let creator = semaphore.creator.image();
        if let Some(process) = creator.and_then(|image| self.processes.get_mut(image)) {
            process.tally.count_ended(key);
        }
        out.push(Change {
            at,
            sem,
            key,
            who: by.clone(),
            kind: ChangeKind::Destroyed { ending: kind },
        });
        let Some(mut cookie) = semaphore.cookie.take() else {
            if let Some(image) = creator {
                self.processes.release_image(image);
            }
            return;
        };
        self.by_key.remove(&(key, sem));
        for user in &cookie.users {
            if let Some(process) = self.processes.get_mut(user.who.image) {
                process.cookies.remove(&sem);
            }
        }
        if let Some(image) = creator
            && let Some(process) = self.processes.get_mut(image)
        {
            process.cookies.remove(&sem);
        }
        if let (Some(by), Some(created)) = (&by, semaphore.created) {
            self.cycle_done(&semaphore, by, created, at);
        }
        cookie.push_step(at, by.as_ref(), CookieCall::Remove, 0);
        let mut waiters = cookie.waiters_at(at);
        cookie.waiters.clear();
        waiters.retain(|waiting| {
            by.as_ref()
                .is_none_or(|by| by.image.id != waiting.who.image.id)
        });
        if let Some(by) = &by
            && !cookie.held.contains(&by.image)
        {
            cookie.held.push(by.image);
            self.processes.hold_image(by.image);
        }
        semaphore.last_seen = semaphore.last_seen.max(at);
        semaphore.ending = Some(Ending {
            at,
            kind,
            by,
            waiters,
        });
        semaphore.cookie = Some(cookie);
        if let Some(evicted) = self.history.push(semaphore) {
            self.forget_semaphore(&evicted);
        }
    }

    /// A process removed a cookie of its own: a complete cycle. Other cookies of the same thread
    /// that were touched last before this one was made are left behind.
    fn cycle_done(
        &mut self,
        semaphore: &Semaphore,
        by: &ActorRef,
        created: BootTime,
        at: BootTime,
    ) {
        let Creator::Known { image, tid } = semaphore.creator else {
            return;
        };
        if image != by.image {
            return;
        }
        let Some(process) = self.processes.get_mut(image) else {
            return;
        };
        let cycle = Cycle {
            sem: semaphore.id,
            key: semaphore.key,
            created,
            closed: at,
        };
        let newer = |known: Option<Cycle>| known.is_none_or(|known| known.created < created);
        if newer(process.cycle) {
            process.cycle = Some(cycle);
        }
        let trail = process.trail_mut(by.tid, at);
        if tid == by.tid && newer(trail.cycle) {
            trail.cycle = Some(cycle);
        }
    }

    fn forget_semaphore(&mut self, evicted: &Semaphore) {
        let held = evicted.cookie.as_deref().map(|cookie| &cookie.held);
        for &image in held.into_iter().flatten() {
            self.processes.release_image(image);
        }
    }
}

impl Cookie {
    /// Who waits when the set is removed at this moment. A waiter that is woken by the removal (EIDRM)
    /// may tell of it before the remover does.
    fn waiters_at(&self, at: BootTime) -> Vec<WaitingThread> {
        let mut waiters = self.waiters.clone();
        if let Some(wait) = &self.last_wait
            && wait.errno == libc::EIDRM
            && wait.at >= at
            && !waiters.iter().any(|it| it.who == wait.who)
        {
            let begun = self.timeline.iter().filter(|step| {
                step.what == CookieCall::Wait && step.who.as_ref() == Some(&wait.who)
            });
            waiters.push(WaitingThread {
                who: wait.who.clone(),
                since: begun.map(|step| step.at).last().unwrap_or(at),
            });
        }
        waiters
    }

    /// The creation was learnt after the first calls: put the creator first, and count what it
    /// did as its own.
    pub(super) fn creation_learnt(&mut self, at: BootTime, who: &ActorRef) {
        if self.base.is_none() {
            self.base = Some(0);
        }
        self.user_mut(who, at, UserStage::Created);
        if let Some(index) = self
            .users
            .iter()
            .position(|user| user.who.image == who.image)
        {
            let user = self.users.remove(index);
            self.users.insert(0, user);
        }
        let (mut inc, mut dec) = (0_u32, 0_u32);
        for user in self
            .users
            .iter()
            .filter(|user| user.who.image.id == who.image.id)
        {
            inc = inc.saturating_add(user.incs);
            dec = dec.saturating_add(user.decs);
        }
        // Decrements that looked like completions by a stranger were its own.
        let own = self
            .completers
            .iter()
            .filter(|completer| completer.image.id == who.image.id)
            .count() as u32;
        if own > 0 {
            self.completers
                .retain(|completer| completer.image.id != who.image.id);
            self.counts.completions = self.counts.completions.saturating_sub(own);
            dec = dec.saturating_add(own);
            if let Some(user) = self.users.first_mut() {
                user.decs = user.decs.saturating_add(own);
                if matches!(
                    user.stage,
                    UserStage::Created | UserStage::Ready | UserStage::Armed
                ) {
                    user.stage = UserStage::SelfCompleted;
                }
            }
        }
        let inc = inc.min(self.counts.other_inc);
        let dec = dec.min(self.counts.other_dec);
        self.counts.other_inc -= inc;
        self.counts.owner_inc = self.counts.owner_inc.saturating_add(inc);
        self.counts.other_dec -= dec;
        self.counts.owner_dec = self.counts.owner_dec.saturating_add(dec);
        self.timeline.push_creation(super::TimelineStep {
            at,
            who: Some(who.clone()),
            what: CookieCall::Create,
            errno: 0,
            value: Some(0),
        });
    }
}
