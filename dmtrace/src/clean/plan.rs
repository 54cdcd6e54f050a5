//! What is to be removed, and what not and why: decided in full before anything is touched.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    event::{ExitStatus, ProcessImage},
    facts::{HostFacts, SemState, SetSnapshot},
    ids::{BootTime, Key, ProcId, SemId, UnixTime},
    ledger::{Ledger, Stage},
    verdict::{
        Class, Confidence, Context, How, Judged, Obstacle, Reason, Rules, Verdict, provably_leaked,
    },
};

/// Version of the form of a plan. A reader refuses a newer one.
pub const VERSION: u32 = 1;

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Certainty and age.
    pub rules: Rules,
    /// A fuse: with more removals than this, nothing is removed.
    pub max: Option<usize>,
    /// Also remove cookies that a living process was seen to leave behind.
    #[serde(default)]
    pub abandoned: bool,
    /// Also remove what nobody has seen leak, where a person vouches for it. All other rules
    /// hold; see [`Obstacle`].
    #[serde(default)]
    pub force_unknown: bool,
}

/// What is to be removed, and what not and why.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// [`VERSION`].
    pub version: u32,
    /// When the facts were gathered, by the wall clock.
    pub made: UnixTime,
    /// The same, since boot: a plan from before a boot has no meaning after it.
    pub made_boot: BootTime,
    /// What was asked for.
    pub options: Options,
    /// Whether the fuse has blown: more was to be removed than allowed.
    pub blown: bool,
    /// One entry for each judged cookie.
    pub entries: Vec<PlanEntry>,
}

/// One cookie in a plan.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct PlanEntry {
    /// Namespace and semid.
    #[serde(flatten)]
    pub sem: SemId,
    /// Its state when the plan was made: all of it must be the same when it is removed.
    pub identity: Identity,
    /// Who left it.
    pub owner: Option<Owner>,
    /// The processes that used it and had all ended.
    pub gone: Vec<ProcId>,
    /// The verdict.
    pub verdict: Summary,
    /// What to do.
    pub action: Action,
}

/// Everything that the kernel shows of a cookie.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// System V key.
    pub key: Key,
    /// Creation, or the last SETVAL/IPC_SET.
    pub ctime: UnixTime,
    /// Last successful operation.
    pub otime: UnixTime,
    /// Semaphores in the set.
    pub nsems: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group of the owner.
    pub gid: u32,
    /// Creator's uid.
    pub cuid: u32,
    /// Creator's gid.
    pub cgid: u32,
    /// Value, last operator, waiting threads; `None` if it was not read.
    pub state: Option<SemState>,
}

impl From<&SetSnapshot> for Identity {
    fn from(set: &SetSnapshot) -> Self {
        Self {
            key: set.key,
            ctime: set.ctime,
            otime: set.otime,
            nsems: set.nsems,
            mode: set.mode,
            uid: set.uid,
            gid: set.gid,
            cuid: set.cuid,
            cgid: set.cgid,
            state: set.first,
        }
    }
}

/// Who left a cookie.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Owner {
    /// The process.
    #[serde(flatten)]
    pub id: ProcId,
    /// Its name.
    pub name: String,
    /// Its command line, if it was captured.
    pub command: Option<String>,
}

/// A verdict in words.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Class as one word.
    pub class: String,
    /// Class in full.
    pub text: String,
    /// How it leaked, in two words; empty if it did not.
    #[serde(default)]
    pub brief: String,
    /// Whether it was observed (or inferred, or is unknown).
    pub observed: bool,
    /// What it rests on.
    pub evidence: Vec<String>,
}

impl From<&Verdict> for Summary {
    fn from(verdict: &Verdict) -> Self {
        Self {
            class: verdict.class.label().to_owned(),
            text: verdict.class.to_string(),
            brief: brief(verdict.class),
            observed: verdict.confidence == Confidence::Observed,
            evidence: verdict.evidence.iter().map(ToString::to_string).collect(),
        }
    }
}

/// For a line of 80 columns.
fn brief(class: Class) -> String {
    let Class::Leaked(how) = class else {
        return String::new();
    };
    match how {
        How::OwnerKilled { signal, .. } => {
            let text = ExitStatus::Signal(signal).to_string();
            text.strip_prefix("killed by ").unwrap_or(&text).to_owned()
        }
        How::OwnerExited { status, .. } => format!("exit {status}"),
        How::OwnerGone { .. } => "owner gone".to_owned(),
        How::NeverWaited => "never waited".to_owned(),
        How::AbandonedOnEintr => "gave up waiting".to_owned(),
        How::FinishedAfterDeath { .. } => "owner had ended".to_owned(),
        How::TransactionAbandoned => "never released".to_owned(),
        How::Signature { .. } => "by its fields".to_owned(),
    }
}

/// What to do with a cookie.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "action")]
pub enum Action {
    /// `semctl(IPC_RMID)`.
    Destroy,
    /// Nothing.
    Keep {
        /// Each rule that does not hold; empty if the fuse has blown.
        because: Vec<Obstacle>,
    },
}

impl Plan {
    /// Decides on each judged cookie. What the caller filters out is not in the plan.
    pub fn build(
        judged: &[Judged<'_>],
        ledger: &Ledger,
        context: &Context<'_>,
        options: Options,
    ) -> Self {
        let mut entries: Vec<PlanEntry> = judged
            .iter()
            .map(|cookie| entry(cookie, ledger, context, options))
            .collect();
        let wanted = entries
            .iter()
            .filter(|entry| entry.action == Action::Destroy)
            .count();
        let blown = options.max.is_some_and(|max| wanted > max);
        if blown {
            for entry in &mut entries {
                if entry.action == Action::Destroy {
                    entry.action = Action::Keep {
                        because: Vec::new(),
                    };
                }
            }
        }
        Self {
            version: VERSION,
            made: context.facts.wall,
            made_boot: context.facts.now,
            options,
            blown,
            entries,
        }
    }

    /// Cookies to remove.
    pub fn removals(&self) -> impl Iterator<Item = &PlanEntry> {
        self.entries
            .iter()
            .filter(|entry| entry.action == Action::Destroy)
    }
}

fn entry(
    judged: &Judged<'_>,
    ledger: &Ledger,
    context: &Context<'_>,
    options: Options,
) -> PlanEntry {
    let semaphore = judged.semaphore;
    let verdict = &judged.verdict;
    let action = decide(judged, ledger, context, options);
    let identity = judged.set.map_or_else(
        || Identity {
            key: semaphore.key,
            ..Identity::default()
        },
        Identity::from,
    );
    let left = verdict.culprit.as_ref().map(|culprit| &culprit.who);
    let users = semaphore
        .cookie
        .iter()
        .flat_map(|cookie| &cookie.users)
        .map(|user| user.who.image.id);
    PlanEntry {
        sem: semaphore.id,
        identity,
        owner: left.map(|who| Owner {
            id: who.image.id,
            name: who.name.to_string(),
            command: ledger
                .process(who.image)
                .and_then(|process| process.image.as_deref())
                .map(ProcessImage::command_line),
        }),
        gone: users.filter(|&id| !context.facts.is_alive(id)).collect(),
        verdict: verdict.into(),
        action,
    }
}

fn decide(judged: &Judged<'_>, ledger: &Ledger, context: &Context<'_>, options: Options) -> Action {
    let verdict = &judged.verdict;
    let rules = Rules {
        inferred: options.rules.inferred || options.force_unknown,
        ..options.rules
    };
    let mut because = provably_leaked(&judged.subject(ledger), context, verdict, rules)
        .err()
        .unwrap_or_default();
    if options.force_unknown && may_be_forced(verdict) {
        because.retain(|obstacle| {
            !matches!(
                obstacle,
                Obstacle::NotLeaked { .. } | Obstacle::UserUnknown { .. } | Obstacle::Contradiction
            )
        });
    }
    if may_be_handed_on(verdict) && !rules.inferred {
        because.push(Obstacle::Inferred);
    }
    let abandoned = matches!(
        verdict.class,
        Class::Leaked(How::NeverWaited | How::AbandonedOnEintr)
    );
    if abandoned && !(options.abandoned && verdict.confidence == Confidence::Observed) {
        let cookie = judged.semaphore.cookie.as_deref();
        let users = cookie.into_iter().flat_map(|cookie| &cookie.users);
        because.extend(
            users
                .map(|user| user.who.image.id)
                .filter(|&id| context.facts.is_alive(id))
                .map(|id| Obstacle::UserAlive { pid: id.tgid }),
        );
    }
    if because.is_empty() {
        Action::Destroy
    } else {
        Action::Keep { because }
    }
}

/// Whether a program has made a cookie and ended well without using it. `dmsetup udevcreatecookie`
/// does so by design, for others to use it later; another program may do the same.
const fn may_be_handed_on(verdict: &Verdict) -> bool {
    matches!(
        verdict.class,
        Class::Leaked(How::OwnerExited {
            status: 0,
            step: Stage::Ready
        })
    )
}

/// Whether a person may vouch for a cookie: nothing is known against it, only too little for it.
/// Not where a living process may own it, where it is too recent, or where it could not be read.
const fn may_be_forced(verdict: &Verdict) -> bool {
    matches!(
        verdict.class,
        Class::Unknown(
            Reason::CreatorUnknown(_)
                | Reason::EventsLost
                | Reason::Contradiction
                | Reason::Crowded
        )
    )
}

/// A cookie is no longer what it was when the plan was made.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, thiserror::Error)]
#[error("{what} was {was}, is {is}")]
pub struct Moved {
    /// In what it differs.
    pub what: What,
    /// Then.
    pub was: String,
    /// Now.
    pub is: String,
}

/// In what a cookie may differ from the plan.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The semid.
    Semid,
    /// The key.
    Key,
    /// The time of creation.
    Ctime,
    /// The time of the last operation.
    Otime,
    /// The number of semaphores.
    Nsems,
    /// The permission bits.
    Mode,
    /// Owner or creator.
    Owner,
    /// The value.
    Value,
    /// The last operator.
    Operator,
    /// The number of waiting threads.
    Waiters,
    /// Whether its semaphore can be read.
    Readable,
    /// The processes that carry it.
    Carriers,
    /// The processes that used it.
    Users,
    /// The process list.
    Processes,
    /// The action in the plan.
    Action,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Semid => "semid",
            Self::Key => "key",
            Self::Ctime => "time of creation",
            Self::Otime => "time of the last operation",
            Self::Nsems => "number of semaphores",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Value => "value",
            Self::Operator => "last operator",
            Self::Waiters => "number of waiters",
            Self::Readable => "state",
            Self::Carriers => "carriers",
            Self::Users => "users",
            Self::Processes => "process list",
            Self::Action => "action",
        })
    }
}

/// Compares a cookie right before its removal with the plan: every field of its identity, its
/// waiters, its carriers, the processes that used it.
///
/// # Errors
/// The first difference.
pub fn recheck(entry: &PlanEntry, set: &SetSnapshot, facts: &HostFacts) -> Result<(), Moved> {
    if entry.action != Action::Destroy {
        return Err(moved(What::Action, "keep", "destroy"));
    }
    let was = &entry.identity;
    let is = Identity::from(set);
    same(What::Semid, entry.sem.semid, set.semid)?;
    same(What::Key, was.key, is.key)?;
    same(What::Ctime, was.ctime.0, is.ctime.0)?;
    same(What::Otime, was.otime.0, is.otime.0)?;
    same(What::Nsems, was.nsems, is.nsems)?;
    same(What::Mode, was.mode, is.mode)?;
    for (was, is) in [
        (was.uid, is.uid),
        (was.gid, is.gid),
        (was.cuid, is.cuid),
        (was.cgid, is.cgid),
    ] {
        same(What::Owner, was, is)?;
    }
    let (Some(was), Some(is)) = (was.state, is.state) else {
        return Err(moved(What::Readable, "readable", "unreadable"));
    };
    same(What::Value, was.value, is.value)?;
    same(What::Operator, was.pid, is.pid)?;
    same(What::Waiters, 0, is.zcnt)?;
    same(What::Waiters, 0, is.ncnt)?;
    let waiting = facts.waiters.get(&entry.sem).map_or(0, Vec::len);
    same(What::Waiters, 0, waiting)?;
    if !facts.processes_complete || !facts.carriers_complete {
        return Err(moved(What::Processes, "complete", "incomplete"));
    }
    let carriers = facts.carriers.get(&entry.identity.key);
    let reaches = |pid: &&u32| {
        let process = facts.processes.get(pid);
        process
            .and_then(|process| process.ipc_ns)
            .is_none_or(|ns| ns == entry.sem.ns)
    };
    if let Some(pid) = carriers.into_iter().flatten().find(reaches) {
        return Err(moved(What::Carriers, "none", &format!("process {pid}")));
    }
    if let Some(id) = entry.gone.iter().find(|id| facts.is_alive(**id)) {
        return Err(moved(
            What::Users,
            "gone",
            &format!("process {} alive", id.tgid),
        ));
    }
    Ok(())
}

fn same<T: Copy + PartialEq + fmt::Display>(what: What, was: T, is: T) -> Result<(), Moved> {
    if was == is {
        Ok(())
    } else {
        Err(moved(what, &was.to_string(), &is.to_string()))
    }
}

fn moved(what: What, was: &str, is: &str) -> Moved {
    Moved {
        what,
        was: was.to_owned(),
        is: is.to_owned(),
    }
}
