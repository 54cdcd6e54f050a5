//! What is to be removed, and what not and why: decided in full before anything is touched.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    event::{ExitStatus, ProcessImage},
    facts::{SemState, SetSnapshot},
    ids::{BootTime, Key, ProcId, SemId, UnixTime},
    ledger::{Ledger, UserStage},
    search::orphan::OrphanProof,
    verdict::{
        Class, Completion, Confidence, Context, Judged, LeakKind, Obstacle, PossibleParent,
        RemovalRules, State, Touched, Undecided, Verdict, Vouched, provably_leaked, provably_lost,
        prove_orphan,
    },
};

/// Version of the form of a plan. A reader refuses a newer one.
pub const VERSION: u32 = 3;

/// So much that is not a proven leak is in a plan at most, unless a person gives the number: what is
/// inferred, forced or completed. The number of proven leaks says nothing against them: a host whose
/// limit is reached has thousands, of ended owners, or of one daemon that lives.
pub const UNPROVEN_MAX: usize = 100;

/// What is old enough, unless a person gives the time, for a leak that was seen.
pub const OLDER_THAN: Duration = Duration::from_secs(60);

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct PlanOptions {
    /// Certainty and age.
    pub rules: RemovalRules,
    /// A fuse: with more to do than this, nothing is done. `None`: [`UNPROVEN_MAX`] of what is not
    /// proven, and as much as there is of what is.
    pub max: Option<usize>,
    /// Also remove cookies that a living process was seen to leave behind.
    #[serde(default)]
    pub abandoned: bool,
    /// Also remove what nobody has seen leak, where a person vouches for it. All other rules
    /// hold; see [`Obstacle`].
    #[serde(default)]
    pub force_unknown: bool,
    /// Also complete what stuck threads wait for, as far as it is provably lost.
    #[serde(default)]
    pub complete: bool,
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
    pub options: PlanOptions,
    /// Whether the fuse has blown: more was to be done than allowed.
    #[serde(rename = "blown")]
    pub over_limit: bool,
    /// By how much, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excess: Option<Excess>,
    /// One entry for each judged cookie.
    pub entries: Vec<PlanEntry>,
}

/// What has blown the fuse.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Excess {
    /// So much was to be done,
    pub count: usize,
    /// more than this.
    pub max: usize,
    /// Of what.
    pub of: FuseScope,
}

/// What a fuse counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FuseScope {
    /// Everything that is to be done, because a person gave the number.
    All,
    /// What is not proven.
    Unproven,
}

/// One cookie in a plan.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct PlanEntry {
    /// Namespace and semid.
    #[serde(flatten)]
    pub sem: SemId,
    /// Its state when the plan was made: all of it must be the same when it is removed.
    pub identity: CookieIdentity,
    /// Who left it.
    pub owner: Option<CookieOwner>,
    /// The processes that used it and had all ended.
    pub gone: Vec<ProcId>,
    /// Those that used it and had ended, as possible parents of processes that have it.
    #[serde(default)]
    pub parents: Vec<PossibleParent>,
    /// The devices that its operations worked on.
    pub touched: Touched,
    /// The verdict.
    pub verdict: VerdictSummary,
    /// The proof that no process holds it, for what no trace saw being made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orphan: Option<Box<OrphanProof>>,
    /// What to do.
    pub action: PlannedAction,
}

/// Everything that the kernel shows of a cookie.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct CookieIdentity {
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

impl From<&SetSnapshot> for CookieIdentity {
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
pub struct CookieOwner {
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
pub struct VerdictSummary {
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

impl From<&Verdict> for VerdictSummary {
    fn from(verdict: &Verdict) -> Self {
        Self {
            class: verdict.class.label().to_owned(),
            text: verdict.class.to_string(),
            brief: class_text(verdict.class),
            observed: verdict.confidence == Confidence::Observed,
            evidence: verdict.evidence.iter().map(ToString::to_string).collect(),
        }
    }
}

/// For a line of 80 columns.
fn class_text(class: Class) -> String {
    let how = match class {
        Class::Leaked(how) => how,
        Class::Orphaned(_) => return "no holder".to_owned(),
        _ => return String::new(),
    };
    match how {
        LeakKind::OwnerKilled { signal, .. } => {
            let text = ExitStatus::Signal(signal).to_string();
            text.strip_prefix("killed by ").unwrap_or(&text).to_owned()
        }
        LeakKind::OwnerExited { status, .. } => format!("exit {status}"),
        LeakKind::OwnerGone { .. } => "owner gone".to_owned(),
        LeakKind::NeverWaited => "never waited".to_owned(),
        LeakKind::AbandonedOnEintr => "gave up waiting".to_owned(),
        LeakKind::FinishedAfterDeath { .. } => "owner had ended".to_owned(),
        LeakKind::TransactionAbandoned => "never released".to_owned(),
        LeakKind::Signature { .. } => "by its fields".to_owned(),
    }
}

/// What to do with a cookie.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "action")]
pub enum PlannedAction {
    /// `semctl(IPC_RMID)`.
    Destroy,
    /// `semop`: so many less, if the value is still the same.
    Complete(Completion),
    /// Nothing.
    Keep {
        /// Each rule that does not hold; empty if the fuse has blown.
        #[serde(rename = "because")]
        obstacles: Vec<Obstacle>,
    },
}

impl Plan {
    /// Decides on each judged cookie. What the caller filters out is not in the plan.
    pub fn build(
        judged: &[Judged<'_>],
        ledger: &Ledger,
        context: &Context<'_>,
        options: PlanOptions,
    ) -> Self {
        let mut entries: Vec<PlanEntry> = judged
            .iter()
            .map(|cookie| plan_entry(cookie, ledger, context, options))
            .collect();
        let excess = limit_excess(&entries, options, options.max);
        if excess.is_some() {
            for entry in &mut entries {
                if entry.action.changes_cookie() {
                    entry.action = PlannedAction::Keep {
                        obstacles: Vec::new(),
                    };
                }
            }
        }
        Self {
            version: VERSION,
            made: context.facts.wall,
            made_boot: context.facts.now,
            options,
            over_limit: excess.is_some(),
            excess,
            entries,
        }
    }

    /// Applies a fuse to a plan that was made before. One that has blown stays so.
    pub fn apply_limit(&mut self, max: Option<usize>) {
        let max = max.or(self.options.max);
        let excess = || limit_excess(&self.entries, self.options, max);
        self.excess = self.excess.or_else(excess);
        self.over_limit |= self.excess.is_some();
    }

    /// Cookies to remove or to complete.
    pub fn pending(&self) -> impl Iterator<Item = &PlanEntry> {
        self.entries
            .iter()
            .filter(|entry| entry.action.changes_cookie())
    }
}

/// By how much a plan exceeds its fuse, if it does.
fn limit_excess(entries: &[PlanEntry], options: PlanOptions, max: Option<usize>) -> Option<Excess> {
    let acts = entries.iter().filter(|entry| entry.action.changes_cookie());
    let (count, max, of) = match max {
        Some(max) => (acts.count(), max, FuseScope::All),
        None => {
            let unproven = acts.filter(|entry| !entry.is_proven_leak(options));
            (unproven.count(), UNPROVEN_MAX, FuseScope::Unproven)
        }
    };
    (count > max).then_some(Excess { count, max, of })
}

impl PlanEntry {
    /// Whether it removes what was seen to leak: by an owner that was seen to end, or, where that was
    /// asked for, that was seen to go on without it; or what is proven to be held by nobody.
    pub fn is_proven_leak(&self, options: PlanOptions) -> bool {
        if self.orphan.is_some() {
            return self.action == PlannedAction::Destroy;
        }
        let ended = |owner: &CookieOwner| options.abandoned || self.gone.contains(&owner.id);
        self.action == PlannedAction::Destroy
            && self.verdict.observed
            && self.verdict.class == State::Leaked.name()
            && self.owner.as_ref().is_some_and(ended)
    }
}

impl PlannedAction {
    /// Whether something is done to the cookie.
    pub const fn changes_cookie(&self) -> bool {
        !matches!(self, Self::Keep { .. })
    }

    /// What is to be completed.
    pub const fn completion(&self) -> Option<Completion> {
        match self {
            Self::Complete(completion) => Some(*completion),
            _ => None,
        }
    }
}

fn plan_entry(
    judged: &Judged<'_>,
    ledger: &Ledger,
    context: &Context<'_>,
    options: PlanOptions,
) -> PlanEntry {
    let semaphore = judged.semaphore;
    let verdict = &judged.verdict;
    let action = decide_action(judged, ledger, context, options);
    // What is kept needs no proof to be checked again by.
    let removed = matches!(action, PlannedAction::Destroy);
    let orphan = (removed && matches!(verdict.class, Class::Orphaned(_)))
        .then(|| {
            let subject = judged.subject(ledger);
            prove_orphan(&subject, context, options.rules.older_than).ok()
        })
        .flatten();
    let identity = judged.set.map_or_else(
        || CookieIdentity {
            key: semaphore.key,
            ..CookieIdentity::default()
        },
        CookieIdentity::from,
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
        owner: left.map(|who| CookieOwner {
            id: who.image.id,
            name: who.name.to_string(),
            command: ledger
                .process(who.image)
                .and_then(|process| process.image.as_deref())
                .map(ProcessImage::command_line),
        }),
        gone: users.filter(|&id| !context.facts.is_alive(id)).collect(),
        parents: PossibleParent::of_cookie(&judged.subject(ledger), context.facts),
        touched: semaphore
            .cookie
            .as_deref()
            .map(Touched::from_cookie)
            .unwrap_or_default(),
        verdict: verdict.into(),
        orphan: orphan.map(Box::new),
        action,
    }
}

/// What is to be done with one cookie, without a look at the fuse.
pub(crate) fn decide_action(
    judged: &Judged<'_>,
    ledger: &Ledger,
    context: &Context<'_>,
    options: PlanOptions,
) -> PlannedAction {
    let verdict = &judged.verdict;
    if options.complete && matches!(verdict.class, Class::Stuck(_)) {
        let vouched = if options.force_unknown {
            Vouched::Yes
        } else {
            Vouched::No
        };
        return match provably_lost(&judged.subject(ledger), context, verdict, vouched) {
            Ok(completion) => PlannedAction::Complete(completion),
            Err(because) => PlannedAction::Keep { obstacles: because },
        };
    }
    let rules = RemovalRules {
        inferred: options.rules.inferred || options.force_unknown,
        ..options.rules
    };
    let mut because = provably_leaked(&judged.subject(ledger), context, verdict, rules)
        .err()
        .unwrap_or_default();
    if options.force_unknown && may_be_forced(verdict) {
        because.retain(|obstacle| match obstacle {
            Obstacle::NotLeaked { .. }
            | Obstacle::UserUnknown { .. }
            | Obstacle::Contradiction
            | Obstacle::EventsLost => false,
            // What was not found out is vouched for; who was found to have it is not.
            Obstacle::NotProvenBySearch { why } => why.names_a_user(),
            _ => true,
        });
    }
    if may_be_handed_on(verdict) && !rules.inferred {
        because.push(Obstacle::Inferred);
    }
    let abandoned = matches!(
        verdict.class,
        Class::Leaked(LeakKind::NeverWaited | LeakKind::AbandonedOnEintr)
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
        PlannedAction::Destroy
    } else {
        PlannedAction::Keep { obstacles: because }
    }
}

/// Whether a program has made a cookie and ended well without using it. `dmsetup udevcreatecookie`
/// does so by design, for others to use it later; another program may do the same.
const fn may_be_handed_on(verdict: &Verdict) -> bool {
    matches!(
        verdict.class,
        Class::Leaked(LeakKind::OwnerExited {
            status: 0,
            step: UserStage::Ready
        })
    )
}

/// Whether a person may vouch for a cookie: nothing is known against it, only too little for it.
/// Not where a living process may own it, where it is too recent, or where it could not be read.
const fn may_be_forced(verdict: &Verdict) -> bool {
    matches!(
        verdict.class,
        Class::Unknown(
            Undecided::CreatorUnknown(_)
                | Undecided::EventsLost
                | Undecided::Contradiction
                | Undecided::Crowded
        )
    )
}
