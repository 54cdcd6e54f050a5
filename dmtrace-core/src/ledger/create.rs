//! The beginning of a set.

use super::{
    ActorRef, Change, ChangeKind, CookieCall, Creator, EndKind, Ledger, Origin, UserStage,
    WhyUnknown, apply::NewSet,
};
use crate::{
    event::Event,
    ids::{BootTime, Key, SemId},
};

impl Ledger {
    pub(super) fn apply_created(
        &mut self,
        event: &Event,
        sem: SemId,
        key: Key,
        nsems: u32,
        semflg: u32,
        out: &mut Vec<Change>,
    ) {
        let at = event.at;
        let who = self.actor_of_event(event);
        let creator = creator_of(who.as_ref());
        let change = Change {
            at,
            sem,
            key,
            who: who.clone(),
            kind: ChangeKind::Created { nsems },
        };
        if self.created_late(sem, key, at, creator) {
            out.push(change);
            return;
        }
        if let Some(known) = self.live.get(&sem) {
            let same = known.key == key
                && match known.created {
                    Some(created) => created == at,
                    None => at <= known.last_seen,
                };
            if same {
                if self.complete_creation(sem, at, nsems, semflg, creator, who.as_ref()) {
                    out.push(change);
                }
                return;
            }
            if known.last_seen > at {
                // An older incarnation, long replaced: enter and close it at once.
                self.totals.update_both(key, |count| {
                    count.created += 1;
                    count.vanished += 1;
                });
                self.totals.late += 1;
                self.tally_closed(creator, key);
                return;
            }
            self.close_set(sem, at, EndKind::Vanished, None, out);
        }
        self.enter_set(NewSet {
            id: sem,
            key,
            nsems,
            semflg: Some(semflg),
            origin: Origin::Event,
            created: Some(at),
            seen: at,
            creator,
        });
        if let Some(cookie) = self.cookie_mut(sem) {
            cookie.base = Some(0);
            if let Some(who) = &who {
                cookie.user_mut(who, at, UserStage::Created);
            }
            cookie.push_step(at, who.as_ref(), CookieCall::Create, 0);
            if let Some(who) = &who {
                self.follow_trail(who.image, who.tid, at, sem, true);
            }
        }
        out.push(change);
    }

    /// Creation of a set that is closed already. Returns whether it was that.
    pub(super) fn created_late(
        &mut self,
        sem: SemId,
        key: Key,
        at: BootTime,
        creator: Creator,
    ) -> bool {
        let Some(mark) = self.marks.get_mut(sem) else {
            return false;
        };
        if mark.key != key || mark.closed < at || mark.created.is_some_and(|created| created != at)
        {
            return false;
        }
        if mark.created.is_some() {
            return true;
        }
        mark.created = Some(at);
        self.totals.update_both(key, |count| {
            count.found = count.found.saturating_sub(1);
            count.created += 1;
        });
        self.tally_closed(creator, key);
        if let Some(closed) = self.history.latest_mut(sem) {
            closed.created = Some(at);
            closed.origin = Origin::Event;
            closed.first_seen = closed.first_seen.min(at);
            let unknown = closed.creator.image().is_none();
            if unknown {
                closed.creator = creator;
            }
            if let (true, Some(image)) = (unknown, creator.image()) {
                // The set held no reference for its creator so far.
                self.hold_image(sem, image, true);
            }
        }
        true
    }

    fn tally_closed(&mut self, creator: Creator, key: Key) {
        let process = creator.image().and_then(|id| self.processes.get_mut(id));
        if let Some(process) = process {
            process.tally.count_created(key);
            process.tally.count_ended(key);
        }
    }

    /// The creation of a set that was found before. Returns whether that was news.
    fn complete_creation(
        &mut self,
        sem: SemId,
        at: BootTime,
        nsems: u32,
        semflg: u32,
        creator: Creator,
        who: Option<&ActorRef>,
    ) -> bool {
        let Some(known) = self.live.get_mut(&sem) else {
            return false;
        };
        let key = known.key;
        let news = known.created.is_none();
        let overtaken = known.origin == Origin::Use;
        if news {
            known.created = Some(at);
            known.first_seen = known.first_seen.min(at);
            known.nsems = nsems;
            known.semflg = Some(semflg);
            known.origin = Origin::Event;
            self.totals.update_both(key, |count| {
                count.found = count.found.saturating_sub(1);
                count.created += 1;
            });
        }
        if known.creator.image().is_some() || creator.image().is_none() {
            return news;
        }
        known.creator = creator;
        self.credit_creator(sem, key, creator);
        if let Some(cookie) = self.cookie_mut(sem)
            && let Some(who) = who
        {
            cookie.creation_learnt(at, who);
            if overtaken {
                // Its first operations merely arrived before its creation.
                cookie.gaps.operations = false;
            }
            self.follow_trail(who.image, who.tid, at, sem, true);
        }
        news
    }
}

fn creator_of(who: Option<&ActorRef>) -> Creator {
    who.map_or(Creator::Unknown(WhyUnknown::Missed), |who| Creator::Known {
        image: who.image,
        tid: who.tid,
    })
}
