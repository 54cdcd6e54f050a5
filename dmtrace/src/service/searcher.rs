//! Searches who holds the cookies that no trace saw being made: once when there are any, and then on
//! request. In a process of its own, `dmtrace serve --search-worker`, which gives its memory back.

use std::{
    process::{Output, Stdio},
    time::Duration,
};

use dmtrace_core::{
    facts::SetSnapshot,
    ids::{BootTime, IpcNs, Key, SemId, UnixTime},
};
use serde::{Deserialize, Serialize};
use tokio::{process::Command, sync::mpsc, time::timeout};

use crate::{host::clock::boot_now, wording::cause_text};

/// A search has limits of its own, of ten minutes; after this something is wrong with it.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(900);
/// Longest text of a failure that is kept.
const MAX_FAILURE: usize = 300;

/// A cookie that no process holds, as it was when that was found.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct OrphanMark {
    pub ipc_ns: IpcNs,
    pub semid: i32,
    pub key: Key,
    pub ctime: UnixTime,
    pub otime: UnixTime,
    pub value: Option<i32>,
    pub last_pid: Option<u32>,
}

impl OrphanMark {
    pub(crate) fn new(sem: SemId, set: &SetSnapshot) -> Self {
        Self {
            ipc_ns: sem.ns,
            semid: sem.semid,
            key: set.key,
            ctime: set.ctime,
            otime: set.otime,
            value: set.first.map(|state| state.value),
            last_pid: set.first.map(|state| state.pid),
        }
    }

    const fn sem(&self) -> SemId {
        SemId {
            ns: self.ipc_ns,
            semid: self.semid,
        }
    }
}

/// What a search found, as the worker prints it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct SearchResult {
    /// When it ended; `None` if there was nothing to search for, or it could not be made.
    pub ended: Option<BootTime>,
    /// What nobody holds.
    pub orphans: Vec<OrphanMark>,
    /// How many somebody was found to hold.
    pub held: u64,
    /// Why there was none.
    pub failure: Option<String>,
}

/// A search that was made.
#[derive(Clone, Debug)]
struct LastSearch {
    ended: BootTime,
    /// In the order of their ids.
    orphans: Vec<OrphanMark>,
    held: u64,
}

/// How the search for holders is.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct SearchStatus {
    /// One is being made.
    pub running: bool,
    /// How often one was made, or tried, since the start.
    pub made: u64,
    /// Since the end of the last one; `None` before the first.
    pub seconds_ago: Option<u64>,
    /// Orphans that are there and untouched since; `None` before the first one.
    pub orphaned: Option<u64>,
    /// Of how many it found who holds them.
    pub held: Option<u64>,
    /// Why the last one could not be made.
    pub failure: Option<String>,
}

/// Makes them, one at a time.
pub(super) struct SearchWorker {
    send: mpsc::Sender<SearchResult>,
    ended: mpsc::Receiver<SearchResult>,
}

impl SearchWorker {
    pub(super) fn new() -> Self {
        let (send, ended) = mpsc::channel(1);
        Self { send, ended }
    }

    /// Makes one, beside everything else.
    pub(super) fn start(&self) {
        let send = self.send.clone();
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["serve", "--search-worker"])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        tokio::spawn(async move {
            let found = match timeout(SEARCH_TIMEOUT, command.output()).await {
                Ok(Ok(output)) => read_output(&output),
                Ok(Err(error)) => failed(&cause_text(&error)),
                Err(_) => failed("it took too long, and was stopped"),
            };
            // The service may have ended.
            let _unheard = send.send(found).await;
        });
    }

    /// Waits for the end of a search. May be dropped and called again.
    pub(super) async fn next_result(&mut self) -> SearchResult {
        match self.ended.recv().await {
            Some(found) => found,
            // This end has a sender, too.
            None => std::future::pending().await,
        }
    }
}

/// What they have found.
#[derive(Debug, Default)]
pub(super) struct SearchRecord {
    running: bool,
    made: u64,
    last: Option<LastSearch>,
    failure: Option<String>,
}

impl SearchRecord {
    /// One is to be made: not while one is.
    pub(super) const fn begin(&mut self) -> bool {
        if self.running {
            return false;
        }
        self.running = true;
        self.made += 1;
        true
    }

    /// The first one, where there are cookies that a search could say something of.
    pub(super) const fn begin_first(&mut self, searchable: usize) -> bool {
        searchable > 0 && self.made == 0 && self.begin()
    }

    /// A search is over. Returns why it could not be made, if it could not.
    pub(super) fn take(&mut self, found: SearchResult) -> Option<&str> {
        self.running = false;
        self.failure = found.failure;
        if let Some(ended) = found.ended {
            let mut orphans = found.orphans;
            orphans.sort_unstable_by_key(OrphanMark::sem);
            orphans.shrink_to_fit();
            self.last = Some(LastSearch {
                ended,
                orphans,
                held: found.held,
            });
        }
        self.failure.as_deref()
    }

    /// Whether this set was found orphaned, and is as it was then.
    pub(super) fn is_orphan(&self, sem: SemId, set: Option<&SetSnapshot>) -> bool {
        let (Some(last), Some(set)) = (&self.last, set) else {
            return false;
        };
        let place = last.orphans.binary_search_by_key(&sem, OrphanMark::sem);
        let found = place.ok().and_then(|place| last.orphans.get(place));
        found.is_some_and(|found| *found == OrphanMark::new(sem, set))
    }

    /// `orphaned`: how many of them are there now. `searchable`: of how many cookies a search could say
    /// something; of none, none is orphaned, searched or not.
    pub(super) fn status(&self, orphaned: usize, searchable: usize) -> SearchStatus {
        let known = self.last.is_some() || searchable == 0;
        SearchStatus {
            running: self.running,
            made: self.made,
            seconds_ago: self
                .last
                .as_ref()
                .map(|last| boot_now().duration_since(last.ended).as_secs()),
            orphaned: known.then_some(orphaned as u64),
            held: self.last.as_ref().map(|last| last.held),
            failure: self.failure.clone(),
        }
    }
}

fn read_output(output: &Output) -> SearchResult {
    if let Ok(found) = serde_json::from_slice(&output.stdout) {
        return found;
    }
    let text = String::from_utf8_lossy(&output.stderr);
    match text.lines().find(|line| !line.trim().is_empty()) {
        Some(line) => failed(line),
        None => failed(&output.status.to_string()),
    }
}

fn failed(why: &str) -> SearchResult {
    SearchResult {
        failure: Some(why.chars().take(MAX_FAILURE).collect()),
        ..SearchResult::default()
    }
}

#[cfg(test)]
mod tests {
    use dmtrace_core::facts::SemState;

    use super::*;

    fn set(semid: i32, otime: i64) -> (SemId, SetSnapshot) {
        let sem = SemId {
            ns: IpcNs::HOST,
            semid,
        };
        let set = SetSnapshot {
            semid,
            key: Key(0x0d4d_0001),
            otime: UnixTime(otime),
            first: Some(SemState {
                value: 1,
                ..SemState::default()
            }),
            ..SetSnapshot::default()
        };
        (sem, set)
    }

    fn found(sets: &[(SemId, SetSnapshot)]) -> SearchResult {
        SearchResult {
            ended: Some(boot_now()),
            orphans: sets
                .iter()
                .map(|(sem, set)| OrphanMark::new(*sem, set))
                .collect(),
            held: 2,
            failure: None,
        }
    }

    #[test]
    fn before_the_first_search_nobody_knows_how_many_are_orphaned() {
        let mut searcher = SearchRecord::default();
        assert_eq!(searcher.status(0, 3).orphaned, None);
        assert_eq!(
            searcher.status(0, 0).orphaned,
            Some(0),
            "nothing to search for"
        );
        assert_eq!(
            searcher.take(failed("no rights")),
            Some("no rights"),
            "told to the log"
        );
        assert_eq!(searcher.status(0, 3).orphaned, None);
        let all = [set(9, 5), set(4, 5)];
        assert_eq!(searcher.take(found(&all)), None);
        let status = searcher.status(2, 4);
        assert_eq!((status.orphaned, status.held), (Some(2), Some(2)));
        assert!(!status.running && status.failure.is_none());
    }

    #[test]
    fn one_search_is_made_at_a_time_and_the_first_one_by_itself() {
        let mut searcher = SearchRecord::default();
        assert!(!searcher.begin_first(0));
        assert!(searcher.begin_first(1));
        assert!(!searcher.begin(), "one is being made");
        assert!(searcher.status(0, 1).running);
        searcher.take(failed("no rights"));
        assert!(!searcher.begin_first(1), "that was the first");
        assert!(searcher.begin());
        assert_eq!(searcher.status(0, 1).made, 2);
    }

    #[test]
    fn what_was_touched_since_is_no_orphan_any_more() {
        let mut searcher = SearchRecord::default();
        let all = [set(9, 5), set(4, 5)];
        searcher.take(found(&all));
        for (sem, set) in &all {
            assert!(searcher.is_orphan(*sem, Some(set)));
        }
        let (sem, touched) = set(9, 6);
        assert!(!searcher.is_orphan(sem, Some(&touched)));
        let (sem, other) = set(5, 5);
        assert!(!searcher.is_orphan(sem, Some(&other)));
        assert!(!searcher.is_orphan(all[0].0, None), "gone");
    }

    #[test]
    fn a_worker_is_read_as_it_prints() {
        use std::os::unix::process::ExitStatusExt as _;
        let output = |stdout: &str, stderr: &str| Output {
            status: std::process::ExitStatus::from_raw(3 << 8),
            stdout: stdout.as_bytes().to_vec(),
            stderr: stderr.as_bytes().to_vec(),
        };
        let text = serde_json::to_string(&found(&[set(9, 5)])).unwrap();
        assert_eq!(read_output(&output(&text, "")).orphans.len(), 1);
        let why = read_output(&output("", "\ndmtrace: no /proc\nmore\n")).failure;
        assert_eq!(why.as_deref(), Some("dmtrace: no /proc"));
        assert!(read_output(&output("", "")).failure.is_some());
    }
}
