//! What a running trace knows: its maps, and the recording that it writes.

#[cfg(feature = "live")]
use std::{path::Path, sync::Arc};

#[cfg(feature = "live")]
use dmtrace_core::{
    event::{CallSite, decode_event},
    ids::BootTime,
};

#[cfg(feature = "live")]
use super::RecordingState;
use super::{Case, TraceUse};
#[cfg(feature = "live")]
use crate::{probe::registry, wording::count_noun};

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
    /// Reads the maps of a running trace, the one that has seen most.
    #[cfg(feature = "live")]
    pub(super) fn read_maps(&mut self, join: TraceUse) -> Option<TraceMaps> {
        let tracers = registry::registered_tracers().unwrap_or_else(|unread| {
            self.note_unread_traces(&unread);
            registry::running_tracers()
        });
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

#[cfg(all(test, feature = "live"))]
mod tests {
    use std::io;

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
