//! Call sites: they come apart from the events, and later.

use std::{sync::Arc, time::Duration};

use super::{Creator, Ledger, Semaphore};
use crate::{
    event::CallSite,
    ids::{BootTime, Key, ProcId, SemId},
};

/// Stack and creation are taken by two programs in the same call.
const MAX_SITE_DELAY: Duration = Duration::from_secs(2);

/// What became of a call site.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SitePlacement {
    /// It is in the books.
    Yes,
    /// The set is not in the books, or not yet.
    NotYet,
    /// It is not of the creation of this set: its call has found a set that was there.
    Never,
}

impl Ledger {
    /// Enters who called whom when a cookie was made.
    pub fn place_call_site(
        &mut self,
        sem: SemId,
        key: Key,
        at: BootTime,
        maker: ProcId,
        site: &Arc<CallSite>,
    ) -> SitePlacement {
        let fits = |set: &Semaphore| {
            let made = set.created.is_some_and(|created| {
                created.duration_since(at) <= MAX_SITE_DELAY
                    && at.duration_since(created) <= MAX_SITE_DELAY
            });
            let by = match set.creator {
                Creator::Known { image, .. } => image.id == maker,
                Creator::Unknown(_) => false,
            };
            set.key == key && made && by
        };
        let live = self.live.get_mut(&sem).map(Box::as_mut);
        let is_live = live.is_some();
        let closed = self.history.latest_mut(sem);
        let set = [live, closed].into_iter().flatten().find(|set| fits(set));
        match set.and_then(|set| set.cookie.as_mut()) {
            Some(cookie) => {
                cookie.call_site = Some(Arc::clone(site));
                SitePlacement::Yes
            }
            None if is_live => SitePlacement::Never,
            None => SitePlacement::NotYet,
        }
    }

    /// Enters a call site that a running trace has placed.
    pub fn adopt_call_site(&mut self, sem: SemId, created: BootTime, site: Arc<CallSite>) {
        let set = self.live.get_mut(&sem);
        let set = set.filter(|set| set.created == Some(created));
        if let Some(cookie) = set.and_then(|set| set.cookie.as_mut()) {
            cookie.call_site = Some(site);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Actor, ChainEnd, Event, EventKind, Quality};

    fn created_event(at: u64, maker: ProcId) -> Event {
        Event {
            at: BootTime(at),
            began: None,
            actor: Actor {
                id: maker,
                ..Actor::default()
            },
            quality: Quality::default(),
            what: EventKind::Created {
                sem: SemId::default(),
                key: Key(0x0d4d_0001),
                nsems: 1,
                semflg: 0o600,
            },
        }
    }

    #[test]
    fn a_call_site_goes_to_the_creation_that_it_was_taken_at_and_to_no_other() {
        let maker = ProcId {
            tgid: 7,
            start: BootTime(1),
        };
        let other = ProcId { tgid: 8, ..maker };
        let sem = SemId::default();
        let key = Key(0x0d4d_0001);
        let site = Arc::new(CallSite {
            end: ChainEnd::Complete,
            ..CallSite::default()
        });
        let second = 1_000_000_000;
        let mut ledger = Ledger::new();
        let at = BootTime(10 * second + 5);
        assert_eq!(
            ledger.place_call_site(sem, key, at, maker, &site),
            SitePlacement::NotYet
        );
        ledger.apply(&created_event(10 * second, maker));
        // A later semget without IPC_EXCL, which has found the set; another process; another key.
        let late = BootTime(20 * second);
        for (key, at, maker) in [
            (key, late, maker),
            (key, at, other),
            (Key(0x0d4d_0002), at, maker),
        ] {
            assert_eq!(
                ledger.place_call_site(sem, key, at, maker, &site),
                SitePlacement::Never
            );
        }
        assert_eq!(
            ledger.place_call_site(sem, key, at, maker, &site),
            SitePlacement::Yes
        );
        let cookie = ledger.semaphore(sem).and_then(|set| set.cookie.as_ref());
        assert_eq!(
            cookie.and_then(|cookie| cookie.call_site.clone()),
            Some(site)
        );
    }
}
