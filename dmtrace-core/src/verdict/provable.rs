//! Whether a set may be removed: every rule must hold, and each that does not is named.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    Class, Confidence, Context, LeakKind, PossibleParent, Subject, Touched, Undecided, Verdict,
    foreign_reason, is_worth_a_search, life,
    life::{Knowledge, ProcessState},
    possible_forks, prove_orphan,
};
use crate::{
    duration::Span,
    facts::{SemState, SetSnapshot},
    ledger::{Cookie, UserStage},
    search::orphan::OrphanObstacle,
    wording::count_noun as counted,
};

/// Why a set must not be removed.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "obstacle")]
pub enum Obstacle {
    /// It is no cookie.
    NotACookie,
    /// It is not there any more.
    Gone,
    /// It was not read, or events are newer than the reading.
    NotRead,
    /// This user may not read its state.
    Hidden,
    /// Threads wait on it.
    Waiters {
        /// How many, as far as counted.
        count: u32,
    },
    /// The verdict is not that it leaked.
    NotLeaked {
        /// The verdict.
        class: String,
    },
    /// That it leaked is inferred, not seen.
    Inferred,
    /// A process that uses it is alive and has not provably left it.
    UserAlive {
        /// Its number.
        pid: u32,
    },
    /// Whether a process that uses it is alive is not known.
    UserUnknown {
        /// Its number.
        pid: u32,
    },
    /// A process carries it.
    Carrier {
        /// Its number.
        pid: u32,
    },
    /// A process may be the child of one that used it, forked while that had it. Nothing but its
    /// end lifts this.
    MayBeFork {
        /// Its number.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// Not every environment and command line could be read.
    CarriersUnreadable {
        /// Why, and what helps; empty where that was not kept.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        why: String,
    },
    /// The process list is not complete.
    ProcessesUnreadable {
        /// Why, and what helps; empty where that was not kept.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        why: String,
    },
    /// A uevent may still be completed by udev.
    EventPending {
        /// Operations not completed.
        count: u32,
    },
    /// Touched too recently.
    TooYoung {
        /// So long ago.
        seconds: u64,
        /// Needed.
        needed: u64,
    },
    /// How old it is is not known: the wall clock was set since boot, or may have been.
    ClockSet {
        /// Seconds of age that are needed, and may not have passed.
        #[serde(default)]
        needed: u64,
    },
    /// The kernel contradicts the events seen.
    Contradiction,
    /// Messages were lost and not made good.
    EventsLost,
    /// A search does not prove that nobody holds it.
    NotProvenBySearch {
        /// Why.
        why: OrphanObstacle,
    },
    /// A device of the operation is suspended.
    Suspended {
        /// Its name.
        name: String,
    },
    /// To be completed, and nobody waits.
    NoWaiter,
    /// To be completed, and the waiter is not known to wait in vain.
    NotStuck {
        /// The verdict.
        class: String,
    },
    /// To be completed, and udevd may find the event when it is started.
    UdevdDown,
    /// To be completed, and nothing is.
    NothingLost,
    /// To be completed, and udev has not made the node.
    NodeMissing {
        /// Name of the device.
        name: String,
    },
    /// To be completed, and udev has not removed the node.
    NodeLeft {
        /// Name of the device.
        name: String,
    },
    /// To be completed, and what udev had to do is not known.
    NodesUnknown,
}

/// How much certainty and age a removal needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct RemovalRules {
    /// Accept a verdict that is inferred: for a person who was asked.
    pub inferred: bool,
    /// Time since the cookie was touched. An inferred verdict needs [`Thresholds::old`] at least.
    ///
    /// [`Thresholds::old`]: super::Thresholds::old
    pub older_than: Duration,
}

impl Default for RemovalRules {
    fn default() -> Self {
        Self {
            inferred: false,
            older_than: Duration::from_secs(600),
        }
    }
}

impl<'a> Subject<'a> {
    /// What the kernel and the books have of a cookie; nothing is proven of what lacks either.
    pub(super) fn readable_cookie(
        &self,
    ) -> Result<(&'a SetSnapshot, SemState, &'a Cookie), Obstacle> {
        let semaphore = self.semaphore;
        if semaphore.ending.is_some() {
            return Err(Obstacle::Gone);
        }
        let set = self.set.ok_or(Obstacle::NotRead)?;
        if !set.looks_like_cookie() || set.key != semaphore.key || foreign_reason(self).is_some() {
            return Err(Obstacle::NotACookie);
        }
        let state = set.first.ok_or(Obstacle::Hidden)?;
        let cookie = semaphore.cookie.as_deref().ok_or(Obstacle::NotRead)?;
        Ok((set, state, cookie))
    }
}

/// Whether removing the set is right, by every rule.
///
/// # Errors
/// The rules that do not hold.
pub fn provably_leaked(
    subject: &Subject<'_>,
    context: &Context<'_>,
    verdict: &Verdict,
    rules: RemovalRules,
) -> Result<(), Vec<Obstacle>> {
    let facts = context.facts;
    let limits = context.thresholds;
    let semaphore = subject.semaphore;
    let mut obstacles = Vec::new();
    let (set, state, cookie) = subject
        .readable_cookie()
        .map_err(|obstacle| vec![obstacle])?;
    let known = Knowledge::gather(subject, context);
    if !known.fresh {
        obstacles.push(Obstacle::NotRead);
    }
    if known.waiting || state.zcnt > 0 || state.ncnt > 0 {
        obstacles.push(Obstacle::Waiters {
            count: state.zcnt.saturating_add(state.ncnt),
        });
    }
    let orphaned = matches!(verdict.class, Class::Orphaned(_));
    if !orphaned && !matches!(verdict.class, Class::Leaked(_)) {
        obstacles.push(Obstacle::NotLeaked {
            class: verdict.class.to_string(),
        });
    }
    let observed = verdict.confidence == Confidence::Observed;
    if orphaned {
        // Its own proof, with its own times: what was not seen of it does not matter.
        let unproven = prove_orphan(subject, context, rules.older_than).err();
        let unproven = unproven.into_iter().flatten();
        obstacles.extend(unproven.map(|why| Obstacle::NotProvenBySearch { why }));
    } else {
        if !context.completeness.marks.is_empty() && is_worth_a_search(verdict.class) {
            let unproven = prove_orphan(subject, context, rules.older_than).err();
            let unproven = unproven.into_iter().flatten();
            let unproven = unproven.filter(|why| !why.is_formality());
            obstacles.extend(unproven.map(|why| Obstacle::NotProvenBySearch { why }));
        }
        if !observed && !rules.inferred {
            obstacles.push(Obstacle::Inferred);
        }
        if known.contradiction {
            obstacles.push(Obstacle::Contradiction);
        }
        if context.completeness.loss_evidence(semaphore).is_some() {
            obstacles.push(Obstacle::EventsLost);
        }
    }
    let left = matches!(
        verdict.class,
        Class::Leaked(LeakKind::NeverWaited | LeakKind::AbandonedOnEintr)
    );
    let listed = life::listed_until(subject.taken, facts);
    for user in &cookie.users {
        let pid = user.who.image.id.tgid;
        match life::user_life(user, facts, listed) {
            ProcessState::Alive if !left => obstacles.push(Obstacle::UserAlive { pid }),
            ProcessState::Unknown => obstacles.push(Obstacle::UserUnknown { pid }),
            ProcessState::Alive | ProcessState::Dead(_) => {}
        }
    }
    let carriers = life::reachable_carriers(semaphore.key, semaphore.id, facts);
    obstacles.extend(carriers.into_iter().map(|pid| Obstacle::Carrier { pid }));
    let parents = PossibleParent::of_cookie(subject, facts);
    obstacles.extend(
        possible_forks(&parents, semaphore.id.ns, facts).map(|(pid, name)| Obstacle::MayBeFork {
            pid,
            name: name.to_owned(),
        }),
    );
    // What was wrong with the list is the first of them, what was with environments the last.
    let why = |it: Option<&String>| it.cloned().unwrap_or_default();
    if !facts.carriers_complete {
        let why = why(facts.incomplete.last());
        obstacles.push(Obstacle::CarriersUnreadable { why });
    }
    if !facts.processes_complete {
        let why = why(facts.incomplete.first());
        obstacles.push(Obstacle::ProcessesUnreadable { why });
    }
    let needed = if observed || orphaned {
        rules.older_than
    } else {
        rules.older_than.max(limits.old)
    };
    obstacles.extend(
        Touched::from_cookie(cookie)
            .suspended_names(&facts.dm)
            .map(|name| Obstacle::Suspended {
                name: name.to_owned(),
            }),
    );
    if !orphaned {
        // udev holds its number until then.
        obstacles.extend(pending_uevent(subject, context, &known));
    }
    let undecided = matches!(
        verdict.class,
        Class::Unknown(Undecided::ClockSet | Undecided::Young)
    );
    let doubtful = known.quiet < limits.young && known.quiet_at_most >= limits.young;
    if undecided && doubtful && needed < limits.young {
        // Whether it was touched just now is in doubt, whatever age is asked for.
        obstacles.push(Obstacle::ClockSet {
            needed: limits.young.as_secs().max(1),
        });
    }
    if !orphaned {
        obstacles.extend(touched_recently(context, set, &known, cookie, needed));
    }
    if obstacles.is_empty() {
        Ok(())
    } else {
        Err(obstacles)
    }
}

/// A uevent that udev may still complete.
fn pending_uevent(
    subject: &Subject<'_>,
    context: &Context<'_>,
    known: &Knowledge,
) -> Option<Obstacle> {
    let facts = context.facts;
    let cookie = subject.semaphore.cookie.as_deref()?;
    let entered_wait = cookie.counts.wait_entries > 0
        || cookie
            .users
            .iter()
            .any(|user| matches!(user.stage, UserStage::Waiting | UserStage::Interrupted));
    let floor = i32::from(!entered_wait);
    let rest = known.value?.saturating_sub(floor);
    if rest <= 0 && !known.unseen {
        return None;
    }
    let count = rest.max(1).unsigned_abs();
    let over = known.quiet >= context.thresholds.udev_gives_up(facts);
    (facts.udev.queue_busy || (facts.udev.is_there() && !over))
        .then_some(Obstacle::EventPending { count })
}

/// Touched too recently, by the events and by the kernel's stamps; or it may be, and the wall clock
/// does not tell.
fn touched_recently(
    context: &Context<'_>,
    set: &SetSnapshot,
    known: &Knowledge,
    cookie: &Cookie,
    needed: Duration,
) -> Option<Obstacle> {
    let facts = context.facts;
    let touched = facts.locate_last_touch(set);
    let most = touched.most_age(facts.now).min(known.quiet_at_most);
    let seen = cookie.last_call.is_some() && !known.unseen && !known.contradiction;
    // Where every call was seen, a stamp counts only if it is younger than all of them for certain.
    let least = match (seen, touched.explained) {
        (true, true) => most.min(known.quiet),
        (true, false) => known.quiet,
        (false, _) => touched.least_age(facts.now).min(known.quiet),
    };
    // The stamps have whole seconds.
    let seconds = least.as_secs();
    if Duration::from_secs(seconds) >= needed {
        return None;
    }
    let in_doubt = !seen && touched.age(facts.now).is_none();
    Some(if in_doubt {
        Obstacle::ClockSet {
            needed: needed.as_secs(),
        }
    } else {
        Obstacle::TooYoung {
            seconds,
            needed: needed.as_secs(),
        }
    })
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotACookie => f.write_str("it is no cookie"),
            Self::Gone => f.write_str("it is gone"),
            Self::Hidden => f.write_str("its state may not be read: run as root"),
            Self::NotRead => f.write_str("its state was not read after its last event"),
            Self::Waiters { count } => {
                write!(
                    f,
                    "{} on it",
                    counted(*count, "thread waits", "threads wait")
                )
            }
            Self::NotLeaked { class } => write!(f, "it is not known to be leaked: {class}"),
            Self::Inferred => f.write_str("that it leaked is inferred, not seen"),
            Self::UserAlive { pid } => write!(f, "process {pid}, which uses it, is alive"),
            Self::UserUnknown { pid } => write!(f, "process {pid}, which uses it, may be alive"),
            Self::Carrier { pid } => write!(f, "process {pid} carries it"),
            Self::MayBeFork { pid, name } => write!(
                f,
                "{name}[{pid}] may be a fork of its user that has it, and has not ended"
            ),
            Self::CarriersUnreadable { .. } => {
                f.write_str("not every environment and command line could be read")
            }
            Self::ProcessesUnreadable { .. } => f.write_str("the process list is not complete"),
            Self::EventPending { count } => {
                let events = counted(*count, "event", "events");
                write!(f, "udev may still complete {events}")
            }
            Self::TooYoung { seconds, needed } => {
                let (ago, needed) = (Span::from_secs(*seconds), Span::from_secs(*needed));
                write!(f, "touched {ago} ago; {needed} needed")
            }
            Self::ClockSet { needed } => {
                let needed = Span::from_secs(*needed);
                write!(
                    f,
                    "the wall clock was set since boot, or may have been: that nobody has touched it \
                     for {needed} shows only after `dmtrace watch` or `dmtrace serve` has run for \
                     so long"
                )
            }
            Self::EventsLost => f.write_str("events may be missing"),
            Self::Suspended { name } => write!(f, "device {name} is suspended"),
            Self::NotProvenBySearch { why } => why.fmt(f),
            Self::NoWaiter => f.write_str("no thread waits on it"),
            Self::NotStuck { class } => write!(f, "its waiter is not known to be stuck: {class}"),
            Self::UdevdDown => f.write_str("no udevd runs: start it, it may find the event"),
            Self::NothingLost => f.write_str("no completion is missing"),
            Self::NodeMissing { name } => write!(
                f,
                "/dev/mapper/{name} is missing: udevadm trigger --sysname-match=dm-*"
            ),
            Self::NodeLeft { name } => write!(f, "/dev/mapper/{name} is still there"),
            Self::NodesUnknown => f.write_str("what udev had to do for it is not known"),
            Self::Contradiction => f.write_str("the kernel's state and the events seen disagree"),
        }
    }
}
