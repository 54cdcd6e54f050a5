//! What processes did besides the cookies that they left.
//!
//! That somebody has gone on without a cookie shows in what it did with other sets, of which the
//! kernel side keeps nothing once they are gone. A running trace writes it down, so that other
//! commands come to the same verdict.

use serde::{Deserialize, Serialize};

use super::{Cycle, ImageId, Ledger, Process, ThreadTrail};
use crate::ids::BootTime;

/// Processes whose activity is written down, the latest first.
const MAX_ACTIVITIES: usize = 4096;

/// What one process did.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Activity {
    image: ImageId,
    active: BootTime,
    cycle: Option<Cycle>,
    threads: Vec<(u32, ThreadTrail)>,
}

impl Ledger {
    /// What those did who used a cookie that is there, after that.
    pub fn process_activities(&self) -> Vec<Activity> {
        let mut found: Vec<&Process> = self
            .processes()
            .filter(|process| self.went_beyond(process))
            .collect();
        found.sort_by_key(|process| std::cmp::Reverse((process.active, process.image_id)));
        found.truncate(MAX_ACTIVITIES);
        let activity = found.into_iter().map(|process| Activity {
            image: process.image_id,
            active: process.active,
            cycle: process.cycle,
            threads: process
                .trails
                .iter()
                .map(|(&tid, &trail)| (tid, trail))
                .collect(),
        });
        activity.collect()
    }

    fn went_beyond(&self, process: &Process) -> bool {
        let mut cookies = process.cookies.iter().filter_map(|sem| {
            let set = self.live.get(sem)?;
            set.cookie.as_deref()
        });
        cookies.any(|cookie| {
            let mut users = cookie.users.iter();
            users.any(|user| user.who.image == process.image_id && user.last < process.active)
        })
    }

    /// Enters what a running trace has written down.
    pub fn adopt_activity(&mut self, activity: &Activity) {
        let Some(process) = self.processes.get_mut(activity.image) else {
            return;
        };
        process.active = process.active.max(activity.active);
        process.cycle = process.cycle.max_by_creation(activity.cycle);
        for &(tid, trail) in &activity.threads {
            let known = process.trail_mut(tid, trail.active);
            known.cycle = known.cycle.max_by_creation(trail.cycle);
            known.cookie_made(trail.made);
            known.cookie_made(trail.made_before);
        }
    }
}

/// The one with the later creation.
trait Later {
    fn max_by_creation(self, other: Self) -> Self;
}

impl Later for Option<Cycle> {
    fn max_by_creation(self, other: Self) -> Self {
        [self, other]
            .into_iter()
            .flatten()
            .max_by_key(|cycle| cycle.created)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{Actor, Event, EventKind, Quality},
        ids::{IpcNs, Key, ProcId, SemId},
    };

    fn created_event(at: u64, semid: i32) -> Event {
        Event {
            at: BootTime(at),
            began: None,
            actor: Actor {
                id: ProcId {
                    tgid: 7,
                    start: BootTime(1),
                },
                tid: 7,
                ..Actor::default()
            },
            quality: Quality::default(),
            what: EventKind::Created {
                sem: SemId {
                    ns: IpcNs::HOST,
                    semid,
                },
                key: Key(0x0d4d_0001),
                nsems: 1,
                semflg: 0o600,
            },
        }
    }

    #[test]
    fn what_was_done_after_a_cookie_is_known_to_who_did_not_see_it() {
        let mut tracer = Ledger::new();
        tracer.apply(&created_event(10, 1));
        assert!(tracer.process_activities().is_empty());
        tracer.apply(&created_event(20, 2));
        let activity = tracer.process_activities();
        assert_eq!(activity.len(), 1);
        let text = serde_json::to_string(&activity).expect("JSON");
        let read: Vec<Activity> = serde_json::from_str(&text).expect("activity");
        assert_eq!(read, activity);

        let mut reader = Ledger::new();
        reader.apply(&created_event(10, 1));
        for _again in 0..2 {
            read.iter().for_each(|it| reader.adopt_activity(it));
            let process = reader.processes().next().expect("the process");
            assert_eq!(process.active, BootTime(20));
            assert_eq!(
                process.thread_trail(7).map(|it| it.active),
                Some(BootTime(20))
            );
        }
    }
}
