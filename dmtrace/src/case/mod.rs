//! Everything known about the semaphores of this machine at one moment, put together from a
//! snapshot, the maps of a running trace, and a recording.

mod kept_marks;
mod rows;
mod running;
mod searching;
mod witnesses;

#[cfg(feature = "live")]
pub(crate) use kept_marks::read_marks;
pub(crate) use searching::{SearchDepth, SearchWish, Vouched};
pub(crate) use witnesses::HeardWitnesses;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt::Display,
    fs,
    io::{BufReader, ErrorKind},
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result, bail};
use dmtrace_core::{
    backend::Backend,
    event::{CallSite, Package, decode_event},
    facts::{self, HostFacts, Snapshot},
    ids::BootTime,
    ledger::{Ledger, Retention},
    verdict::{self, BookLosses, Completeness, Context, Judged, Thresholds},
};
use serde_json::Value;

use crate::{
    host::regular_file::open_regular,
    host::{self, Scope},
    recording::{RecordedFrame, RecordingReader, RecordingStart, RecordingTail},
    stack::Symbolizer,
    wording::{cause_text, causes_text, count_noun},
};

/// How much of a running trace is used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum TraceUse {
    /// Nothing: a snapshot only.
    No,
    /// Its maps: what is there now. Without the call sites, which are larger than all the rest.
    MapsWithoutStacks,
    /// Its maps: what is there now.
    Maps,
    /// Its recording as well, if it writes one: step by step, and what is gone.
    History,
}

impl From<bool> for TraceUse {
    fn from(join: bool) -> Self {
        if join { Self::Maps } else { Self::No }
    }
}

/// Whether a recording is still being written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum RecordingState {
    #[cfg(feature = "live")]
    Yes,
    No,
}

/// The material for judgements.
pub(crate) struct Case {
    pub ledger: Ledger,
    pub snapshot: Snapshot,
    /// What the host says.
    pub facts: HostFacts,
    /// What may be missing in the books.
    pub completeness: Completeness,
    /// Limits of time that verdicts keep to: those of the trace that was asked.
    pub thresholds: Thresholds,
    /// From when on creations were seen; `None` without any trace.
    pub since: Option<BootTime>,
    /// Why it cannot be told whether a trace runs, and what would help.
    pub trace_unread: Option<String>,
    /// Where it all comes from and what is wrong with it, one line each.
    pub notes: Vec<String>,
    /// Whether the material is incomplete, so that "nothing found" is not certain.
    pub incomplete: bool,
    /// Packages of executables that the recording knows, by
    /// [`package_key`](crate::host::package::package_key); where it is not known, why.
    pub packages: BTreeMap<String, Result<Package, String>>,
    /// Names the calls of what is shown.
    pub names: RefCell<Symbolizer>,
}

impl Case {
    /// This machine, now.
    ///
    /// # Errors
    /// The given recording cannot be read, or is of another boot.
    pub(crate) fn of_host(recording: Option<&Path>, join: TraceUse) -> Result<Self> {
        let scope = Scope::default();
        let mut case = Self::empty();
        if join != TraceUse::No && case.ask_trace(recording) {
            return Ok(case);
        }
        if let Some(path) = recording {
            let start = case.replay_recording(path)?;
            if start.boot_id.is_some() && start.boot_id != host::clock::boot_id(&scope.roots) {
                bail!(
                    "{}: recorded in another boot or on another machine; use: dmtrace report {}",
                    path.display(),
                    path.display()
                );
            }
        }
        // The maps first: a set made in between is in the snapshot only, and unknown; the other
        // way round it would look as if it had vanished.
        let maps = match join {
            TraceUse::No => None,
            _ => case.read_maps(join),
        };
        let (snapshot, facts) = thread::scope(|both| {
            let gathered = both.spawn(|| host::gather_facts(&scope));
            if let Some(maps) = maps {
                case.join_maps(maps);
            }
            gathered.join()
        })
        .unwrap_or_else(|panic| resume_unwind(panic));
        case.ledger.reconcile(&snapshot);
        case.ledger.observe_exits(&facts);
        case.snapshot = snapshot;
        case.facts = facts;
        case.note_unread();
        Ok(case)
    }

    /// A recording, perhaps of another machine.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn of_recording(path: &Path) -> Result<(Self, RecordingStart)> {
        let mut case = Self::empty();
        // One that is being written is behind its trace.
        if case.ask_trace(Some(path)) {
            let file = open_recording(path).with_context(|| path.display().to_string())?;
            let (_, start) = RecordingReader::open(BufReader::new(file))
                .map_err(|error| anyhow::anyhow!("{}: {}", path.display(), causes_text(&error)))?;
            return Ok((case, start));
        }
        let start = case.replay_recording(path)?;
        case.note_unread();
        let here = host::clock::boot_id(&Scope::default().roots);
        if start.boot_id.is_none() || start.boot_id != here {
            case.names = RefCell::new(Symbolizer::for_foreign());
        }
        Ok((case, start))
    }

    pub(super) fn empty() -> Self {
        Self {
            ledger: Ledger::with_retention(Retention::REPLAY),
            snapshot: Snapshot::default(),
            facts: HostFacts::default(),
            completeness: Completeness::default(),
            thresholds: Thresholds::default(),
            since: None,
            trace_unread: None,
            notes: Vec::new(),
            incomplete: false,
            packages: BTreeMap::new(),
            names: RefCell::default(),
        }
    }

    /// What could not be read makes every answer incomplete.
    fn note_unread(&mut self) {
        if let Some(line) = facts::unread_summary(&self.snapshot, &self.facts) {
            self.notes.push(line);
            self.incomplete = true;
        }
    }

    /// What this case is judged with.
    pub(crate) const fn context(&self) -> Context<'_> {
        Context {
            facts: &self.facts,
            completeness: &self.completeness,
            thresholds: &self.thresholds,
        }
    }

    /// Everything with a cookie's key, judged.
    pub(crate) fn judge_all(&self) -> Vec<Judged<'_>> {
        verdict::survey_parallel(&self.ledger, Some(&self.snapshot), &self.context())
    }

    /// The remembered cookies that are gone, judged.
    pub(crate) fn judge_closed(&self) -> Vec<Judged<'_>> {
        verdict::survey_closed(&self.ledger, &self.context())
    }

    fn add_blind_spots(&mut self, backend: Option<Backend>) {
        let spots = backend.map_or(Backend::Tracepoint.blind_spots(), Backend::blind_spots);
        for &spot in spots {
            if !self.completeness.blind.contains(&spot) {
                self.completeness.blind.push(spot);
            }
        }
    }

    fn replay_recording(&mut self, path: &Path) -> Result<RecordingStart> {
        self.read_recording(path, RecordingState::No)
    }

    fn read_recording(&mut self, path: &Path, live: RecordingState) -> Result<RecordingStart> {
        let shown = path.display();
        let unfinished = unfinished_recordings(path);
        let file = open_recording(path).with_context(|| match unfinished.first() {
            Some(beside) => format!(
                "{shown}: a recording that was cut short is {}",
                beside.display()
            ),
            None => format!("{shown}"),
        })?;
        if live == RecordingState::No {
            self.notes.extend(unfinished.iter().map(|beside| {
                format!(
                    "a recording that did not come to its end is {}",
                    beside.display()
                )
            }));
        }
        let (mut reader, start) = RecordingReader::open(BufReader::with_capacity(1 << 20, file))
            .map_err(|error| anyhow::anyhow!("{shown}: {}", causes_text(&error)))?;
        self.since = Some(start.began);
        self.add_blind_spots(
            Backend::ALL
                .into_iter()
                .find(|backend| backend.name() == start.backend),
        );
        if start.parts_before > 0 {
            self.notes.push(format!(
                "{shown}: begins within a trace; what was gone by then is in the earlier files"
            ));
        }
        let mut ended = false;
        let mut undecodable = 0u64;
        let mut changes = Vec::new();
        let mut last = start.began;
        let mut sites: BTreeMap<u32, Arc<CallSite>> = BTreeMap::new();
        while let Some(frame) = reader.next_frame().with_context(|| format!("{shown}"))? {
            match frame {
                RecordedFrame::Message(bytes) => match decode_event(&bytes) {
                    Ok(event) => {
                        last = last.max(event.at);
                        changes.clear();
                        self.ledger.apply_into(&event, &mut changes);
                    }
                    Err(_) => undecodable += 1,
                },
                RecordedFrame::Sem(key, record) => {
                    self.ledger.adopt_record(key.into(), &record);
                }
                RecordedFrame::Proc(record) => {
                    self.ledger.adopt_process(&record);
                }
                RecordedFrame::Snapshot(snapshot) => {
                    self.ledger.reconcile(&snapshot);
                    self.snapshot = *snapshot;
                }
                RecordedFrame::Facts(facts) => {
                    last = last.max(facts.now);
                    self.ledger.observe_exits(&facts);
                    self.facts = *facts;
                }
                RecordedFrame::End(balance) => {
                    ended = true;
                    self.take_balance(&shown, &balance);
                }
                RecordedFrame::Packages(packages) => self.packages = packages,
                RecordedFrame::Site(number, site) => {
                    sites.insert(number, Arc::new(*site));
                }
                RecordedFrame::SiteOf(of) => {
                    if let Some(site) = sites.get(&of.site) {
                        self.ledger
                            .place_call_site(of.sem, of.key, of.at, of.maker, site);
                    }
                }
                RecordedFrame::Start(_) | RecordedFrame::Unknown(_) => {}
            }
        }
        if live != RecordingState::No {
            // The last entry may be in the making, and the end is still to come.
            ended = true;
        } else if let Some(RecordingTail::Cut { at, damaged, why }) = reader.tail() {
            let how = if *damaged { "damaged" } else { "cut off" };
            self.notes.push(format!(
                "{shown}: {how} at byte {at}: {why}; read up to there"
            ));
        }
        if !ended {
            self.incomplete = true;
            self.completeness.lost.end_missing = true;
            self.notes.push(format!(
                "{shown}: was not closed: what happened after its last entry is unknown"
            ));
            self.facts.now = self.facts.now.max(last);
        }
        if undecodable > 0 {
            self.incomplete = true;
            self.completeness.lost.add(undecodable);
            self.notes.push(format!(
                "{shown}: {} could not be decoded",
                count_noun(undecodable, "message", "messages")
            ));
        }
        Ok(start)
    }

    /// What the recorded trace says of itself at its end.
    fn take_balance(&mut self, shown: &impl Display, balance: &Value) {
        if balance["continued"] == true {
            self.notes
                .push(format!("{shown}: continues in a later file"));
        }
        let deficits = balance["deficits"].as_array().into_iter().flatten();
        let mut exact = true;
        for deficit in deficits.filter_map(Value::as_str) {
            exact = false;
            self.notes
                .push(format!("the trace was not exact: {deficit}"));
        }
        self.incomplete |= !exact;
        match serde_json::from_value::<BookLosses>(balance["losses"].clone()) {
            Ok(BookLosses { live, ended }) => {
                self.completeness.lost = live;
                self.completeness.ended = ended;
            }
            // An older recording: any cookie may be one whose events were lost.
            Err(_) if !exact => self.completeness.lost.add(1),
            Err(_) => {}
        }
    }
}

/// Opens a recording. One that root has made is for root alone.
fn open_recording(path: &Path) -> Result<fs::File> {
    open_regular(path).map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => anyhow::anyhow!(
            "{}; run as root (sudo), or let its owner give it to you",
            cause_text(&error)
        ),
        _ => error.into(),
    })
}

/// Recordings that were to replace this one: of a `record --force` that still runs, was killed, or
/// found the disk full.
fn unfinished_recordings(path: &Path) -> Vec<PathBuf> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return Vec::new();
    };
    let parent = path.parent().filter(|it| !it.as_os_str().is_empty());
    let entries = fs::read_dir(parent.unwrap_or(Path::new(".")));
    let entries = entries.into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| {
            let other = entry.file_name();
            let rest = other.to_str().and_then(|it| it.strip_prefix(name));
            rest.is_some_and(|rest| rest.starts_with(".partial-"))
        })
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests;
