//! What no trace saw being made is searched for: who has its number?

use std::{
    collections::BTreeSet,
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use dmtrace_core::{
    facts::HostFacts,
    ids::{BootTime, Key, UnixTime},
    search::{
        Needles,
        orphan::{Mark, Marks, OrphanRules, OrphanStage, files_since},
    },
    verdict::{Judged, Obstacle, RemovalRules, is_worth_a_search, provably_leaked},
};

use super::{Case, TraceUse, kept_marks};
use crate::{
    host::{self, Scope, clock::boot_now, run_dir::RUN_DIR},
    probe::environment::Capabilities,
    search::{self, FileSearch, Progress, SearchOptions},
    wording::count_noun,
};

/// How thoroughly the memory of all processes is searched.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum SearchDepth {
    /// Not at all, and what was found before is not used.
    No,
    /// Not now: what an earlier command of this boot found is used.
    Kept,
    /// Once, without files: who has a number now.
    Fast,
    /// Twice if need be, with the files that matter: what a removal rests on.
    Full,
}

/// What a search is asked to do.
#[derive(Clone, Debug)]
pub(crate) struct SearchWish {
    pub depth: SearchDepth,
    /// Processes and files of which a person says that they mean nothing by a number.
    pub vouched: Vec<Vouched>,
    /// What dmtrace itself writes numbers into.
    pub own_files: Vec<PathBuf>,
}

/// Something that has a number and does nothing with it, by the word of a person.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Vouched {
    /// A process, by its number.
    Process(u32),
    /// A file, by its path.
    File(PathBuf),
}

/// An answer that is not older than this is not sought again.
const RECENT: Duration = Duration::from_secs(60);
/// How often the progress is shown.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// Where dmtrace and the journal keep numbers: whoever reads them there does not act on cookies.
const RECORDS: [&str; 5] = [
    RUN_DIR,
    "/var/lib/dmtrace",
    "/var/log/journal",
    "/run/log/journal",
    "/var/log/dmtrace-clean.jsonl",
];

impl Case {
    /// This machine, now, as [`Case::of_host`]; and where cookies are there that no trace saw being
    /// made, what a search of the memory of all processes says of them.
    ///
    /// # Errors
    /// As [`Case::of_host`].
    pub(crate) fn of_searched_host(
        recording: Option<&std::path::Path>,
        join: TraceUse,
        wish: &SearchWish,
    ) -> anyhow::Result<Self> {
        let mut case = Self::of_host(recording, join)?;
        let wanted = case.search_candidates();
        if wanted.is_empty() || wish.depth == SearchDepth::No {
            return Ok(case);
        }
        if wish.depth == SearchDepth::Kept {
            case.take_marks(&kept_marks::read_marks(), wish);
            return Ok(case);
        }
        let rights = Capabilities::of_this_process();
        if !(rights.sys_ptrace && rights.sys_admin) {
            case.notes.push(format!(
                "{} older than any trace: run as root, and the memory of all processes is searched \
                 for {}",
                count_noun(wanted.len(), "cookie is", "cookies are"),
                if wanted.len() == 1 { "it" } else { "them" },
            ));
            return Ok(case);
        }
        let mut marks = kept_marks::read_marks();
        let recent = marks.last().is_some_and(|mark| {
            boot_now().duration_since(mark.search.ended) < RECENT
                && wanted.iter().all(|it| {
                    let mut holders = mark.search.holders(it.key);
                    mark.search.needles.contains(&it.key)
                        && holders.all(|(process, _)| case.facts.is_alive(process.id))
                })
        });
        if wish.depth == SearchDepth::Fast && recent {
            case.take_marks(&marks, wish);
            return Ok(case);
        }
        marks.add(case.make_mark(&wanted, wish), &OrphanRules::default());
        kept_marks::write_marks(&marks);
        let gather = |marks: &Marks| -> anyhow::Result<Self> {
            let mut case = Self::of_host(recording, join)?;
            case.take_marks(marks, wish);
            Ok(case)
        };
        case = gather(&marks)?;
        if wish.depth == SearchDepth::Full
            && case.waits_for_second_search()
            && let Some(due) = marks.second_due(&OrphanRules::default())
        {
            wait_until(due);
            let wanted = case.search_candidates();
            marks.add_second(case.make_mark(&wanted, wish), &OrphanRules::default());
            kept_marks::write_marks(&marks);
            case = gather(&marks)?;
        }
        Ok(case)
    }

    /// Judges by these searches from now on, and by what a person says of them.
    fn take_marks(&mut self, marks: &Marks, wish: &SearchWish) {
        self.completeness.marks = marks.clone();
        self.completeness.marks.vouch_for(&wish.vouched_pids());
    }

    /// Whether a search has found somebody who has this number.
    pub(crate) fn is_held(&self, key: Key) -> bool {
        let last = self.completeness.marks.last();
        last.is_some_and(|mark| mark.search.holders(key).next().is_some())
    }

    /// Cookies of which a search can say more.
    fn search_candidates(&self) -> Vec<Candidate> {
        let judged = self.judge_all().into_iter();
        judged
            .filter_map(|it| Candidate::from_judged(&it))
            .collect()
    }

    /// Whether another search is all that a removal waits for.
    fn waits_for_second_search(&self) -> bool {
        let rules = RemovalRules {
            inferred: false,
            older_than: Duration::ZERO,
        };
        self.judge_all().iter().any(|judged| {
            let subject = judged.subject(&self.ledger);
            let kept = provably_leaked(&subject, &self.context(), &judged.verdict, rules);
            let formal = |it: &Obstacle| match it {
                Obstacle::NotProvenBySearch { why } => why.is_formality(),
                _ => false,
            };
            kept.is_err_and(|why| why.iter().all(formal))
        })
    }

    /// Searches now, for these cookies.
    fn make_mark(&self, wanted: &[Candidate], wish: &SearchWish) -> Mark {
        let needles = Needles::new(wanted.iter().map(|it| it.key));
        let files = first_file_time(wanted, &self.facts)
            .filter(|_| wish.depth == SearchDepth::Full)
            .map(|since| {
                let records = RECORDS.into_iter().map(PathBuf::from);
                FileSearch {
                    except: records
                        .chain(wish.own_files.iter().cloned())
                        .chain(wish.vouched_files())
                        .collect(),
                    ..FileSearch::since(since)
                }
            });
        let options = SearchOptions {
            files,
            ..SearchOptions::default()
        };
        let mut shown = ProgressLine::new(wanted.len());
        let found = search::run(&needles, &options, &mut |progress| shown.show(progress));
        shown.end();
        let scope = Scope::default();
        let after = host::read_facts(&scope, &self.snapshot);
        Mark::new(found, &self.snapshot, [&self.facts, &after])
    }
}

/// Files that were modified then or later may have one of these numbers; `None` if none can matter.
fn first_file_time(wanted: &[Candidate], facts: &HostFacts) -> Option<UnixTime> {
    let pending = wanted.iter().filter(|it| it.pending);
    let since = pending.map(|it| files_since(it.made, facts)).min()?;
    // What is known of the clock may be a little less when it is judged.
    Some(UnixTime(since.0.saturating_sub(2)))
}

/// A cookie to search for.
struct Candidate {
    key: Key,
    made: UnixTime,
    /// Whether a script may read its number from a file.
    pending: bool,
}

impl Candidate {
    fn from_judged(judged: &Judged<'_>) -> Option<Self> {
        let set = judged.set?;
        let state = set.first?;
        let worth = judged.semaphore.is_live() && is_worth_a_search(judged.verdict.class);
        (worth && set.looks_like_cookie()).then_some(Self {
            key: set.key,
            made: set.ctime,
            pending: OrphanStage::of(set, state) == OrphanStage::Pending,
        })
    }
}

impl SearchWish {
    fn vouched_pids(&self) -> Vec<u32> {
        let pids: BTreeSet<u32> = self
            .vouched
            .iter()
            .filter_map(|it| match it {
                Vouched::Process(pid) => Some(*pid),
                Vouched::File(_) => None,
            })
            .collect();
        pids.into_iter().collect()
    }

    fn vouched_files(&self) -> impl Iterator<Item = PathBuf> {
        self.vouched.iter().filter_map(|it| match it {
            Vouched::Process(_) => None,
            Vouched::File(path) => Some(path.clone()),
        })
    }
}

/// Waits, and says for how long.
fn wait_until(due: BootTime) {
    let mut line = ProgressLine::new(0);
    loop {
        let left = due.duration_since(boot_now());
        if left.is_zero() {
            break;
        }
        line.write(&format!(
            "nobody holds them; a second search proves it, in {} s",
            left.as_secs() + 1
        ));
        thread::sleep(left.min(Duration::from_millis(500)));
    }
    line.end();
}

/// A line on a terminal that is written anew.
struct ProgressLine {
    cookies: usize,
    terminal: bool,
    last: Option<Instant>,
    width: usize,
}

impl ProgressLine {
    fn new(cookies: usize) -> Self {
        Self {
            cookies,
            terminal: std::io::stderr().is_terminal(),
            last: None,
            width: 0,
        }
    }

    fn show(&mut self, progress: Progress) {
        if self
            .last
            .is_some_and(|last| last.elapsed() < PROGRESS_EVERY)
        {
            return;
        }
        self.last = Some(Instant::now());
        self.write(&format!(
            "searching for {}: {} of {}, {} MiB",
            count_noun(self.cookies, "cookie", "cookies"),
            progress.done,
            count_noun(progress.total, "process", "processes"),
            progress.bytes >> 20
        ));
    }

    /// Numbers and words of this program only.
    fn write(&mut self, text: &str) {
        if self.terminal {
            let blank = self.width.saturating_sub(text.len());
            // Nobody misses what cannot be shown.
            let _unseen = write!(std::io::stderr(), "\r{text}{:blank$}", "");
            self.width = text.len();
        }
    }

    fn end(&mut self) {
        if self.terminal && self.width > 0 {
            let _unseen = write!(std::io::stderr(), "\r{:1$}\r", "", self.width);
            self.width = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use dmtrace_core::wall_clock::{ClockAnchor, ClockHistory, ClockOffset, Coverage};

    use super::*;

    /// By a clock that was set back, a file that was written after the cookie looks older than it.
    #[test]
    fn a_clock_that_was_set_back_widens_the_search_for_files() {
        const SECOND: u64 = 1_000_000_000;
        const BOOT: i64 = 1_700_000_000;
        const STEP: i64 = 7200;
        let anchor = |second: u64, offset: i64, before| ClockAnchor {
            at: BootTime(second * SECOND),
            offset: ClockOffset(offset * SECOND.cast_signed()),
            error: 0,
            before,
        };
        let mut clock = ClockHistory::default();
        clock.add(anchor(0, BOOT, Coverage::Unwatched));
        clock.add(anchor(60, BOOT, Coverage::Steady));
        clock.add(anchor(61, BOOT - STEP, Coverage::Set));
        let facts = HostFacts {
            now: BootTime(3000 * SECOND),
            wall: UnixTime(BOOT - STEP + 3000),
            clock,
            ..HostFacts::default()
        };
        let wanted = |pending| Candidate {
            key: Key(0x0d4d_0001),
            made: UnixTime(BOOT + 20),
            pending,
        };
        let since = first_file_time(&[wanted(false), wanted(true)], &facts).unwrap();
        assert!(since < UnixTime(BOOT - STEP + 60), "{since:?}");
        assert_eq!(first_file_time(&[wanted(false)], &facts), None);
    }
}
