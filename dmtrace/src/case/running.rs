//! What a running trace knows: its maps, and the recording that it writes.

#[cfg(feature = "live")]
use std::{io, path::Path, sync::Arc};

#[cfg(feature = "live")]
use dmtrace_core::{
    event::{CallSite, decode_event},
    ids::BootTime,
};

#[cfg(feature = "live")]
use super::RecordingState;
use super::{Case, TraceUse};
#[cfg(feature = "live")]
use crate::{
    host::{Roots, processes::is_stopped},
    probe::registry,
    trace::books::{TraceBooks, ask_books},
    wording::count_noun,
};

/// What was in the maps of a running trace.
#[cfg(feature = "live")]
pub(super) struct TraceMaps {
    tracer: registry::RunningTracer,
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
pub(super) enum TraceMaps {}

impl Case {
    /// Takes over what a running trace judges by, the one that has seen most; of a recording, the
    /// one that writes it. `false` where none answers: then there are its maps.
    #[cfg(feature = "live")]
    pub(super) fn ask_trace(&mut self, recording: Option<&Path>) -> bool {
        let is_it = |tracer: &registry::RunningTracer| match recording {
            None => true,
            Some(path) => tracer
                .recording
                .as_deref()
                .is_some_and(|it| same_file(it, path)),
        };
        let tracers = registry::running_tracers().into_iter().filter(is_it);
        for tracer in tracers.filter(registry::RunningTracer::is_attended) {
            if is_stopped(&Roots::host(), tracer.pid) {
                self.notes.push(stopped_text(tracer.pid));
                continue;
            }
            match ask_patiently(&tracer) {
                Ok(books) => {
                    self.take_books(books, &tracer);
                    return true;
                }
                // It has ended meanwhile.
                Err(error) if is_not_there(&error) => {}
                // It was stopped while it was asked.
                Err(_) if is_stopped(&Roots::host(), tracer.pid) => {
                    self.notes.push(stopped_text(tracer.pid));
                }
                Err(error) => self.notes.push(format!(
                    "the trace of process {} does not give its books: {}; what follows is from its \
                     maps, which lack what is gone",
                    tracer.pid,
                    crate::wording::cause_text(&error)
                )),
            }
        }
        false
    }

    #[cfg(not(feature = "live"))]
    pub(super) const fn ask_trace(&mut self, _recording: Option<&std::path::Path>) -> bool {
        false
    }

    #[cfg(feature = "live")]
    fn take_books(&mut self, books: TraceBooks, tracer: &registry::RunningTracer) {
        let TraceBooks {
            ledger,
            snapshot,
            moment,
        } = books;
        self.ledger = ledger;
        self.snapshot = snapshot;
        self.facts = moment.facts;
        self.completeness = moment.completeness;
        self.thresholds = moment.thresholds;
        self.since = Some(moment.since);
        self.notes.push(format!(
            "owners are known from the running trace (process {})",
            tracer.pid
        ));
        for loss in moment.losses {
            self.notes.push(format!("the trace is not exact: {loss}"));
            self.incomplete = true;
        }
        self.note_unread();
    }

    /// Reads the maps of a running trace, the one that has seen most.
    #[cfg(feature = "live")]
    pub(super) fn read_maps(&mut self, join: TraceUse) -> Option<TraceMaps> {
        let tracers = registry::registered_tracers().unwrap_or_else(|unread| {
            self.note_unread_traces(&unread);
            registry::running_tracers()
        });
        // Whoever came first has watched the wall clock for the longest time.
        for tracer in &tracers {
            crate::host::clock::history::merge_history(&tracer.clock);
        }
        for tracer in tracers {
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
    pub(super) const fn read_maps(&mut self, _join: TraceUse) -> Option<TraceMaps> {
        None
    }

    /// Nobody is to take it that no trace runs.
    #[cfg(feature = "live")]
    fn note_unread_traces(&mut self, unread: &registry::UnreadRegistry) {
        let text = format!(
            "cannot tell whether a trace is running: {unread}; {}",
            unread.fix()
        );
        self.notes.push(text.clone());
        self.trace_unread = Some(text);
    }

    /// Enters what the maps of a running trace have.
    #[cfg(feature = "live")]
    pub(super) fn join_maps(&mut self, maps: TraceMaps) {
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
                 its process {} has ended; start it again: dmtrace serve{}",
                tracer.pid,
                tracer.pins_option()
            )
        });
    }

    #[cfg(not(feature = "live"))]
    pub(super) const fn join_maps(&mut self, maps: TraceMaps) {
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
}

/// A trace that has just been started, or that ends, does not listen yet, or no more.
#[cfg(feature = "live")]
fn ask_patiently(tracer: &registry::RunningTracer) -> io::Result<TraceBooks> {
    let socket = tracer.books_socket();
    for _ in 0..ASK_TRIES {
        match ask_books(&socket) {
            Err(error) if is_not_there(&error) && tracer.is_attended() => {
                std::thread::sleep(ASK_PAUSE);
            }
            answer => return answer,
        }
    }
    ask_books(&socket)
}

/// How often a trace is asked that does not listen.
#[cfg(feature = "live")]
const ASK_TRIES: u32 = 10;
/// Between two of these times.
#[cfg(feature = "live")]
const ASK_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

#[cfg(feature = "live")]
fn stopped_text(pid: u32) -> String {
    format!(
        "the trace of process {pid} is stopped: what follows is not from its books; to let it go on: \
         kill -CONT {pid}"
    )
}

/// Whether nobody listens there.
#[cfg(feature = "live")]
fn is_not_there(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// Whether two paths are one file.
#[cfg(feature = "live")]
fn same_file(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let id = |path: &Path| std::fs::metadata(path).map(|it| (it.dev(), it.ino()));
    matches!((id(one), id(other)), (Ok(one), Ok(other)) if one == other)
}

#[cfg(all(test, feature = "live"))]
mod tests {
    use super::*;
    use registry::UnreadRegistry;

    #[test]
    fn traces_that_cannot_be_looked_for_are_not_said_to_be_none() {
        let mut case = Case::empty();
        let reason = "Permission denied".to_owned();
        case.note_unread_traces(&UnreadRegistry::Directory(
            io::ErrorKind::PermissionDenied,
            reason,
        ));
        let said = "cannot tell whether a trace is running: /run/dmtrace: Permission denied; run \
                    as root";
        assert_eq!(case.notes, [said]);
        assert_eq!(case.trace_unread.as_deref(), Some(said));
    }
}
