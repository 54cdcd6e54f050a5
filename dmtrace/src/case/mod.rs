//! Everything known about the semaphores of this machine at one moment, put together from a
//! snapshot, the maps of a running trace, and a recording.

mod rows;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    io::BufReader,
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
    ledger::Ledger,
    verdict::{self, Completeness, Context, Judged, Thresholds},
};

use crate::{
    host::regular_file::open_regular,
    host::{self, Scope},
    recording::{RecordedFrame, RecordingReader, RecordingStart, RecordingTail},
    stack::Symbolizer,
    wording::{causes_text, count_noun},
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

/// What was in the maps of a running trace.
#[cfg(feature = "live")]
struct TraceMaps {
    tracer: crate::probe::registry::RunningTracer,
    activity: Vec<dmtrace_core::ledger::Activity>,
    procs: Vec<crate::probe::ProcEntry>,
    sems: Vec<crate::probe::SemEntry>,
    devices: Vec<dmtrace_common::DmEvent>,
    lookups: Vec<dmtrace_common::SemEvent>,
    sites: Vec<(dmtrace_common::SemKey, u64, Arc<CallSite>)>,
    /// No recording was named, and that of the trace may be used.
    alone: bool,
}

/// Without tracing there are none.
#[cfg(not(feature = "live"))]
#[derive(Clone, Copy)]
enum TraceMaps {}

/// The material for judgements.
pub(crate) struct Case {
    pub ledger: Ledger,
    pub snapshot: Snapshot,
    /// What the host says.
    pub facts: HostFacts,
    /// What may be missing in the books.
    pub completeness: Completeness,
    /// From when on creations were seen; `None` without any trace.
    pub since: Option<BootTime>,
    /// Where it all comes from and what is wrong with it, one line each.
    pub notes: Vec<String>,
    /// Whether the material is incomplete, so that "nothing found" is not certain.
    pub incomplete: bool,
    /// Packages of executables that the recording knows, by
    /// [`package_key`](crate::host::package::package_key); where it is not known, why.
    pub packages: BTreeMap<String, Result<Package, String>>,
    /// Whether the accounts of the recording do not add up: some of its events were lost.
    pub inexact: bool,
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
            ledger: Ledger::new(),
            snapshot: Snapshot::default(),
            facts: HostFacts::default(),
            completeness: Completeness::default(),
            since: None,
            notes: Vec::new(),
            incomplete: false,
            packages: BTreeMap::new(),
            inexact: false,
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

    /// Everything with a cookie's key, judged.
    pub(crate) fn judge_all<'a>(&'a self, thresholds: &Thresholds) -> Vec<Judged<'a>> {
        let context = Context {
            facts: &self.facts,
            completeness: &self.completeness,
            thresholds,
        };
        verdict::survey_parallel(&self.ledger, Some(&self.snapshot), &context)
    }

    /// The remembered cookies that are gone, judged.
    pub(crate) fn judge_closed<'a>(&'a self, thresholds: &Thresholds) -> Vec<Judged<'a>> {
        let context = Context {
            facts: &self.facts,
            completeness: &self.completeness,
            thresholds,
        };
        verdict::survey_closed(&self.ledger, &context)
    }

    fn add_blind_spots(&mut self, backend: Option<Backend>) {
        let spots = backend.map_or(Backend::Tracepoint.blind_spots(), Backend::blind_spots);
        for &spot in spots {
            if !self.completeness.blind.contains(&spot) {
                self.completeness.blind.push(spot);
            }
        }
    }

    /// Reads the maps of a running trace, the one that has seen most.
    #[cfg(feature = "live")]
    fn read_maps(&mut self, join: TraceUse) -> Option<TraceMaps> {
        for tracer in crate::probe::registry::running_tracers() {
            let maps = match tracer.open_maps() {
                Ok(maps) => maps,
                Err(error) => {
                    self.notes.push(format!(
                        "the trace of process {} cannot be read: {}; run as root",
                        tracer.pid,
                        crate::wording::chain_text(&error)
                    ));
                    continue;
                }
            };
            // A recording that was named comes first; two histories do not mix.
            let alone = join == TraceUse::History && self.since.is_none();
            if let Some(path) = tracer.recording.as_deref().filter(|_| alone) {
                self.replay_running(path);
            }
            return Some(TraceMaps {
                // Before the maps: what they have is never older.
                activity: tracer.read_activity(),
                procs: maps.proc_records(),
                sems: maps.sem_records(),
                devices: maps.last_ioctls(),
                lookups: maps.failed_lookups(),
                sites: if join == TraceUse::MapsWithoutStacks {
                    Vec::new()
                } else {
                    maps.call_sites()
                },
                tracer,
                alone,
            });
        }
        None
    }

    #[cfg(not(feature = "live"))]
    const fn read_maps(&mut self, _join: TraceUse) -> Option<TraceMaps> {
        None
    }

    /// Enters what the maps of a running trace have.
    #[cfg(feature = "live")]
    fn join_maps(&mut self, maps: TraceMaps) {
        let mut procs = maps.procs;
        // So that sets come about in the order of the books: neighbours one after the other.
        procs.sort_unstable_by_key(|(key, _)| (key.start, key.tgid));
        let mut behind = 0u64;
        for record in dmtrace_core::ledger::in_order(procs, maps.sems) {
            match record {
                dmtrace_core::ledger::MapRecord::Process(_, record) => {
                    self.ledger.adopt_process(&record);
                }
                dmtrace_core::ledger::MapRecord::Set(key, record) => {
                    behind += u64::from(self.is_behind(key.into(), record.last_op));
                    self.ledger.adopt_record(key.into(), &record);
                }
            }
        }
        for activity in &maps.activity {
            self.ledger.adopt_activity(activity);
        }
        if maps.alone && behind > 0 {
            self.completeness.lost.add(behind);
            self.notes.push(format!(
                "the recording lags behind its trace: {} used since",
                count_noun(behind, "cookie was", "cookies were")
            ));
        }
        let mut numbers = crate::trace::session::DeviceDirectory::default();
        for device in maps.devices {
            let bytes = dmtrace_core::event::as_bytes(&device);
            let device = numbers.complete_message(bytes).unwrap_or(device);
            if let Ok(event) = decode_event(dmtrace_core::event::as_bytes(&device)) {
                self.ledger.apply(&event);
            }
        }
        for lookup in maps.lookups {
            if let Ok(event) = decode_event(dmtrace_core::event::as_bytes(&lookup)) {
                self.ledger.apply(&event);
            }
        }
        for (key, created, site) in maps.sites {
            self.ledger
                .adopt_call_site(key.into(), BootTime(created), site);
        }
        let tracer = maps.tracer;
        self.add_blind_spots(tracer.backend());
        self.since = Some(
            self.since
                .map_or(tracer.since, |since| since.min(tracer.since)),
        );
        self.notes.push(if tracer.is_attended() {
            format!(
                "owners are known from the running trace (process {})",
                tracer.pid
            )
        } else {
            format!(
                "owners are known from the trace of dmtrace serve, which is still in the kernel although \
                 its process {} has ended; start it again: dmtrace serve",
                tracer.pid
            )
        });
    }

    #[cfg(not(feature = "live"))]
    const fn join_maps(&mut self, maps: TraceMaps) {
        match maps {}
    }

    /// Whether a set that the books have was operated on after their last event.
    #[cfg(feature = "live")]
    fn is_behind(&self, sem: dmtrace_core::ids::SemId, last_op: u64) -> bool {
        let cookie = self.ledger.semaphore(sem);
        let cookie = cookie.and_then(|known| known.cookie.as_deref());
        last_op != 0
            && cookie.is_some_and(|cookie| cookie.last_call.is_none_or(|last| last.0 < last_op))
    }

    /// What a trace that runs has recorded so far. Where it cannot be read its maps must do.
    #[cfg(feature = "live")]
    fn replay_running(&mut self, path: &Path) {
        let mut past = Self::empty();
        match past.read_recording(path, RecordingState::Yes) {
            Ok(_) => {
                self.ledger = past.ledger;
                self.completeness = past.completeness;
                self.notes.append(&mut past.notes);
                self.incomplete |= past.incomplete;
            }
            Err(error) => self.notes.push(format!(
                "recording of the trace: {}",
                crate::wording::chain_text(&error)
            )),
        }
    }

    fn replay_recording(&mut self, path: &Path) -> Result<RecordingStart> {
        self.read_recording(path, RecordingState::No)
    }

    fn read_recording(&mut self, path: &Path, live: RecordingState) -> Result<RecordingStart> {
        let shown = path.display();
        let unfinished = unfinished_recordings(path);
        let file = open_regular(path).with_context(|| match unfinished.first() {
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
                    if balance["continued"] == true {
                        self.notes
                            .push(format!("{shown}: continues in a later file"));
                    }
                    let deficits = balance.get("deficits").and_then(|list| list.as_array());
                    for deficit in deficits
                        .into_iter()
                        .flatten()
                        .filter_map(|text| text.as_str())
                    {
                        self.notes
                            .push(format!("the trace was not exact: {deficit}"));
                        self.incomplete = true;
                        self.inexact = true;
                    }
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
