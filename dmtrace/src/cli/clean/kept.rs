//! What a clean-up keeps, summed up by reason, each with what would lift it.

use std::collections::BTreeMap;

use dmtrace_core::{
    cleanup::{
        plan::{PlanEntry, PlannedAction, VerdictSummary},
        prospect::Prospect,
    },
    duration::Span,
    search::orphan::OrphanObstacle,
    verdict::{Obstacle, State},
};

use super::PlanDraft;
use crate::{
    cli::args::CleanArgs,
    render::{remedy::waits_text, searched::vouching_text},
};

/// One cookie that is kept.
#[derive(Clone)]
struct KeptCookie<'a> {
    verdict: &'a VerdictSummary,
    obstacles: &'a [Obstacle],
    prospect: Option<&'a Prospect>,
}

impl<'a> KeptCookie<'a> {
    /// `None` of one that is not kept, or only because the plan would do too much.
    fn of(draft: &'a PlanDraft, entry: &'a PlanEntry) -> Option<Self> {
        let PlannedAction::Keep { obstacles } = &entry.action else {
            return None;
        };
        (!obstacles.is_empty()).then(|| Self {
            verdict: &entry.verdict,
            obstacles,
            prospect: draft.lifts.get(&entry.sem),
        })
    }

    /// Kept for the same reason, and the same would lift that.
    fn group(&self) -> (String, String) {
        (kind_text(self), lift_text(self.obstacles, self.prospect))
    }
}

/// Of many cookies that are kept for one reason some stand for all: a line for each would push what is
/// different out of sight.
#[derive(Default)]
pub(super) struct KeptSample {
    shown: BTreeMap<(String, String), usize>,
    left_out: usize,
}

/// So many of a reason are shown.
const SHOWN_OF_A_REASON: usize = 5;

impl KeptSample {
    /// Whether an entry of the plan gets a line.
    pub(super) fn shows(&mut self, draft: &PlanDraft, entry: &PlanEntry) -> bool {
        KeptCookie::of(draft, entry).is_none_or(|cookie| self.takes(&cookie))
    }

    fn takes(&mut self, cookie: &KeptCookie<'_>) -> bool {
        let shown = self.shown.entry(cookie.group()).or_default();
        *shown += 1;
        let takes = *shown <= SHOWN_OF_A_REASON;
        self.left_out += usize::from(!takes);
        takes
    }

    /// What the lines do not show.
    pub(super) fn rest(&self) -> Option<String> {
        (self.left_out > 0).then(|| {
            format!(
                "{:<12}  {} more, for the same reasons; every one: --json",
                "kept", self.left_out
            )
        })
    }
}

/// One line for each reason, the most frequent first, and one on what nobody can tell; none where
/// nothing is kept, or where the reason is that the plan would do too much.
pub(super) fn kept_lines(draft: &PlanDraft) -> Vec<String> {
    let entries = draft.plan().entries.iter();
    let mut lines = sum_up(entries.filter_map(|entry| KeptCookie::of(draft, entry)));
    lines.extend(draft.doubts.sentence(""));
    lines
}

fn sum_up<'a>(kept: impl Iterator<Item = KeptCookie<'a>>) -> Vec<String> {
    let mut groups: BTreeMap<(String, String), usize> = BTreeMap::new();
    for cookie in kept {
        *groups.entry(cookie.group()).or_default() += 1;
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let lines = groups.into_iter();
    lines
        .map(|((kind, lift), count)| format!("{count:>6} {kind}: {lift}"))
        .collect()
}

/// What it is, and what keeps it most.
fn kind_text(cookie: &KeptCookie<'_>) -> String {
    let class = cookie.verdict.class.as_str();
    let what = match cookie.verdict.brief.as_str() {
        "" => class.to_owned(),
        brief => format!("{class} ({brief})"),
    };
    let alive = |it: &Obstacle| matches!(it, Obstacle::UserAlive { .. });
    match cookie.obstacles.iter().any(alive) {
        true if class == State::Leaked.name() => format!("{what}, owner alive"),
        _ => what,
    }
}

/// What would make the clean-up act.
fn lift_text(obstacles: &[Obstacle], prospect: Option<&Prospect>) -> String {
    if let Some(prospect) = prospect
        && let Some(flags) = prospect.flags
    {
        let mut options = Vec::new();
        for (given, option) in [
            (flags.abandoned, "--abandoned"),
            (flags.complete, "--complete"),
            (
                flags.force_unknown,
                "--force-unknown COOKIE if you are sure",
            ),
        ] {
            if given {
                options.push(option);
            }
        }
        let once = waits_text(prospect);
        let unread = obstacles.iter().find_map(unsearched_files_text);
        return match (options.join(" "), unread) {
            // Time alone.
            (none, _) if none.is_empty() => once.trim_start_matches(", ").to_owned(),
            (options, None) => format!("{options}{once}"),
            (options, Some(text)) => format!("{text}; or {options}{once}"),
        };
    }
    let ends = obstacles.iter().map(lifted_by);
    let first = ends.min_by_key(|(rank, _)| *rank);
    first.map_or_else(|| "see why above".to_owned(), |(_, text)| text)
}

/// Why files were not searched though that was tried, and what ends that.
fn unsearched_files_text(obstacle: &Obstacle) -> Option<String> {
    match obstacle {
        Obstacle::NotProvenBySearch {
            why: why @ OrphanObstacle::FilesNotSearched { why: Some(_), .. },
        } => Some(format!("{why}; when that has changed, repeat this command")),
        _ => None,
    }
}

/// What ends a reason that no option lifts, and in which place it is named: the first one of a cookie
/// is told, because it is what the others follow from, or what takes longest.
fn lifted_by(obstacle: &Obstacle) -> (u8, String) {
    let (rank, text) = match obstacle {
        Obstacle::NotACookie => (0, "never: it is no cookie"),
        Obstacle::NotLeaked { class } if class.starts_with(State::Stuck.name()) => (
            1,
            "its waiter needs it: dmtrace explain says what is missing",
        ),
        Obstacle::NotLeaked { class } if class.starts_with(State::Unknown.name()) => {
            (9, "dmtrace explain says what is not known")
        }
        Obstacle::NotLeaked { .. } => (1, "it may still be used: dmtrace explain says by whom"),
        Obstacle::Waiters { .. } => (2, "when nobody waits on it: dmtrace explain says why"),
        Obstacle::UserAlive { pid } | Obstacle::UserUnknown { pid } => {
            let text = format!("when process {pid} ends, or is seen to have left it for certain");
            return (3, text);
        }
        Obstacle::Carrier { pid } => {
            return (3, format!("when process {pid}, which carries it, ends"));
        }
        Obstacle::MayBeFork { pid, .. } => return (3, format!("when process {pid} ends")),
        Obstacle::Suspended { name } => {
            return (4, format!("resume its device: dmsetup resume {name}"));
        }
        Obstacle::UdevdDown => (4, "start udevd"),
        Obstacle::Hidden => (5, "run as root, with CAP_IPC_OWNER"),
        Obstacle::CarriersUnreadable { why } | Obstacle::ProcessesUnreadable { why } => {
            // It says what helps: where a process is just starting a program that is no right.
            let unsaid = why.is_empty();
            (5, if unsaid { "run as root" } else { why.as_str() })
        }
        Obstacle::NotRead => (6, "try again"),
        Obstacle::EventPending { .. } => (7, "once udev has had its time"),
        Obstacle::TooYoung { needed, .. } => {
            let needed = Span::from_secs(*needed);
            return (8, format!("once nobody has touched it for {needed}"));
        }
        Obstacle::NotProvenBySearch { why } => {
            return match unsearched_files_text(obstacle) {
                Some(text) => (5, text),
                None => lifted_search_obstacle(why),
            };
        }
        Obstacle::Inferred => (9, "trace while it leaks: dmtrace watch"),
        other => return (10, other.to_string()),
    };
    (rank, text.to_owned())
}

/// What ends a reason why a search proves nothing.
fn lifted_search_obstacle(why: &OrphanObstacle) -> (u8, String) {
    match why {
        OrphanObstacle::HeldBy { holder } => {
            let (comm, pid) = (&holder.process.comm, holder.process.id.tgid);
            let lift = vouching_text(why).unwrap_or_default();
            let text = format!(
                "{comm}[{pid}] has its number: when that has ended or was restarted, repeat; {lift}"
            );
            (2, text)
        }
        OrphanObstacle::OperatorAlive { pid, comm } => {
            (3, format!("when {comm}[{pid}], which used it last, ends"))
        }
        OrphanObstacle::WrittenIn { path } => {
            let lift = vouching_text(why).unwrap_or_default();
            (4, format!("the file {path} has its number; {lift}"))
        }
        OrphanObstacle::TooYoung { .. } => (
            8,
            "later: it was touched too recently (1m after a wait, else 10m)".to_owned(),
        ),
        OrphanObstacle::SecondMarkDue { .. }
        | OrphanObstacle::SecondMarkOld { .. }
        | OrphanObstacle::FilesNotSearched { .. } => (9, "repeat this command".to_owned()),
        OrphanObstacle::NotSearched { .. } | OrphanObstacle::Hidden { .. } => (5, why.to_string()),
        other => (6, format!("repeat this command: {other}")),
    }
}

/// Nothing to do never stands alone: what is kept follows, by reason.
pub(super) fn nothing_text(args: &CleanArgs, kept: usize) -> String {
    match (&args.plan, kept) {
        (Some(path), _) => format!(
            "the plan in {} is empty: it does nothing. A new one, when something is to be done: dmtrace \
             clean --plan NEW-FILE",
            path.display()
        ),
        (None, 0) => format!(
            "nothing to do: there is no cookie{}.",
            args.filters.scope_text()
        ),
        (None, _) => "nothing to do; what is kept, and what would lift that:".to_owned(),
    }
}

/// Whether a cookie that may be leaked is kept because something could not be read.
pub(super) fn is_kept_unread(entry: &PlanEntry) -> bool {
    let PlannedAction::Keep { obstacles: because } = &entry.action else {
        return false;
    };
    let class = entry.verdict.class.as_str();
    let may_be_leaked = matches!(class, "leaked" | "unknown" | "orphaned");
    may_be_leaked
        && because.iter().any(|obstacle| match obstacle {
            Obstacle::NotRead
            | Obstacle::Hidden
            | Obstacle::CarriersUnreadable { .. }
            | Obstacle::ProcessesUnreadable { .. } => true,
            Obstacle::NotProvenBySearch { why } => why.is_unread(),
            _ => false,
        })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dmtrace_core::{
        cleanup::{plan::CookieIdentity, prospect::CleanFlags},
        ids::{IpcNs, SemId, UnixTime},
        verdict::Touched,
    };

    use super::*;

    /// A plan says that a cookie of this class is kept because of that.
    fn kept_entry(class: &str, obstacle: Obstacle) -> PlanEntry {
        PlanEntry {
            sem: SemId {
                ns: IpcNs::HOST,
                semid: 1,
            },
            identity: CookieIdentity::default(),
            owner: None,
            gone: Vec::new(),
            parents: Vec::new(),
            touched: Touched::default(),
            verdict: VerdictSummary {
                class: class.to_owned(),
                text: String::new(),
                brief: String::new(),
                observed: false,
                evidence: Vec::new(),
            },
            orphan: None,
            action: PlannedAction::Keep {
                obstacles: vec![obstacle],
            },
        }
    }

    fn unsearched_files(why: Option<&str>) -> Obstacle {
        let why = OrphanObstacle::FilesNotSearched {
            since: UnixTime(1),
            why: why.map(str::to_owned),
        };
        Obstacle::NotProvenBySearch { why }
    }

    /// That the same command can do no more is neither promised nor passed over.
    #[test]
    fn files_that_cannot_be_searched_are_told_and_leave_it_open() {
        let failed = unsearched_files(Some("/srv: Input/output error"));
        let text = "files could not be searched for it: /srv: Input/output error; when that has \
                    changed, repeat this command";
        assert_eq!(lift_text(std::slice::from_ref(&failed), None), text);
        let forced = Prospect {
            flags: Some(CleanFlags::FORCE_UNKNOWN),
            waits: Vec::new(),
            obstacles: Vec::new(),
            completion_obstacles: Vec::new(),
        };
        let lift = lift_text(std::slice::from_ref(&failed), Some(&forced));
        let option = "; or --force-unknown COOKIE if you are sure";
        assert_eq!(lift, format!("{text}{option}"));
        for class in ["orphaned", "unknown", "leaked"] {
            assert!(
                is_kept_unread(&kept_entry(class, failed.clone())),
                "{class}"
            );
        }
        // What the next search does was not tried yet.
        let due = unsearched_files(None);
        assert_eq!(
            lift_text(std::slice::from_ref(&due), None),
            "repeat this command"
        );
        assert!(!is_kept_unread(&kept_entry("orphaned", due)));
        assert!(!is_kept_unread(&kept_entry("open", failed)));
    }

    #[test]
    fn who_is_root_is_not_told_to_be_root() {
        let why = || "cookies carried by process 5: it is starting a program; try again".to_owned();
        for obstacle in [
            Obstacle::CarriersUnreadable { why: why() },
            Obstacle::ProcessesUnreadable { why: why() },
        ] {
            assert_eq!(lift_text(&[obstacle], None), why());
        }
        let older = Obstacle::ProcessesUnreadable { why: String::new() };
        assert_eq!(lift_text(&[older], None), "run as root");
    }

    #[test]
    fn each_reason_is_told_once_with_what_lifts_it() {
        let abandoned = Prospect {
            flags: Some(CleanFlags::ABANDONED),
            waits: vec![Obstacle::TooYoung {
                seconds: 5,
                needed: Duration::from_secs(60).as_secs(),
            }],
            obstacles: Vec::new(),
            completion_obstacles: Vec::new(),
        };
        let alive = [Obstacle::UserAlive { pid: 7 }];
        let open = [Obstacle::NotLeaked {
            class: "open".to_owned(),
        }];
        let verdict = |class: &str| kept_entry(class, Obstacle::Gone).verdict;
        let (leaked, in_use) = (verdict("leaked"), verdict("open"));
        let cookie = |verdict, obstacles, prospect| KeptCookie {
            verdict,
            obstacles,
            prospect,
        };
        let kept = || {
            [
                cookie(&leaked, &alive, Some(&abandoned)),
                cookie(&in_use, &open, None),
                cookie(&leaked, &alive, Some(&abandoned)),
            ]
        };
        // A rare reason is not lost among many of another.
        let mut sample = KeptSample::default();
        let shown = |it: &KeptCookie<'_>| sample.takes(it);
        let many = kept().into_iter().cycle().take(300).filter(shown).count();
        assert_eq!(many, 2 * SHOWN_OF_A_REASON);
        let rest = "kept          290 more, for the same reasons; every one: --json";
        assert_eq!(sample.rest().as_deref(), Some(rest));
        assert_eq!(
            sum_up(kept().into_iter()),
            [
                "     2 leaked, owner alive: --abandoned, once nobody has touched it for 1m00s",
                "     1 open: it may still be used: dmtrace explain says by whom",
            ]
        );
    }
}
