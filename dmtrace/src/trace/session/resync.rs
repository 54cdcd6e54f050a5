//! What the ring did not take is read from the maps.

use std::time::{Duration, Instant};

use dmtrace_common::{
    PROC_ANNOUNCED, PROC_EXIT_DROPPED, PROC_TOMBSTONE, ProcKey, SEM_DM_DROPPED, SEM_TOMBSTONE,
    SemKey, SemRecord,
};
use dmtrace_core::{
    event::{as_bytes, decode_event},
    ledger::{MapRecord, in_order},
};

use super::{ChangeSink, Session, TappedInput};
use crate::host;

/// Dropped messages are made good after this time, while others come.
const RESYNC_DELAY: Duration = Duration::from_millis(500);

/// Reading the maps costs a system call or two for each record, most of which may be too young.
const MIN_RESYNC_PAUSE: Duration = Duration::from_millis(50);

/// Longer than a program is between taking the time and submitting its message, in nanoseconds.
const MAX_IN_FLIGHT: u64 = 5_000_000;

impl Session {
    /// Whether the maps hold something that the books have not taken in yet.
    pub(crate) fn is_behind(&self) -> bool {
        self.tracer.counts().total_counts().dropped != self.dropped_seen
            || self.tracer.tombstone_count() != self.victims_kept
    }

    /// Makes drops good at once where the kernel side may soon have no room for the records of
    /// what is gone.
    pub(crate) fn resync_if_crowded(&mut self, sink: ChangeSink<'_>) {
        if self.resynced.elapsed() >= MIN_RESYNC_PAUSE && self.tracer.tombstones_crowded() {
            self.resync_maps(sink);
        }
    }

    /// Makes drops good while messages come without a pause.
    pub(crate) fn resync_in_time(&mut self, sink: ChangeSink<'_>) {
        if self.resynced.elapsed() >= RESYNC_DELAY {
            self.resync_maps(sink);
        }
    }

    /// If messages were dropped since the last time, reads the maps and makes them good.
    pub(crate) fn resync_maps(&mut self, sink: ChangeSink<'_>) {
        if !self.is_behind() {
            self.resynced = Instant::now();
            return;
        }
        let dropped = self.tracer.counts().total_counts().dropped;
        // What is younger than the horizon may have its message in the ring still: told twice, a
        // set would be counted twice. It is left for the next time.
        let horizon = host::clock::boot_now().0.saturating_sub(MAX_IN_FLIGHT);
        self.drain_all(sink);
        let mut left = false;
        // Victims of ENOSPC stay for `report` to read, until the room is needed.
        let crowded = self.tracer.proc_tombstones_crowded();
        let mut ended: Vec<ProcKey> = Vec::new();
        let mut removed: Vec<SemKey> = Vec::new();
        let procs = self.tracer.maps().proc_records();
        let sets = self.tracer.maps().sem_records();
        self.victims_kept = 0;
        for record in in_order(procs, sets) {
            match record {
                MapRecord::Set(key, record) => {
                    if record.created.max(record.closed) > horizon {
                        left = true;
                        continue;
                    }
                    if record.state & SEM_TOMBSTONE != 0 {
                        removed.push(key);
                    }
                    self.adopt_record(key, &record, sink);
                }
                MapRecord::Process(key, record) => {
                    if record.header.ts.max(record.exited) > horizon {
                        left = true;
                        continue;
                    }
                    if record.state & PROC_TOMBSTONE != 0 {
                        if record.enospc_failures == 0 || crowded {
                            ended.push(key);
                        } else {
                            self.victims_kept += 1;
                        }
                    }
                    let announced =
                        record.state & (PROC_ANNOUNCED | PROC_EXIT_DROPPED) == PROC_ANNOUNCED;
                    if !announced {
                        self.tap_input(TappedInput::Proc(&record));
                        let changes = self.ledger.adopt_process(&record);
                        sink(&changes, &self.ledger);
                    }
                }
            }
        }
        self.tracer.reap_tombstones(&removed, &ended);
        if !left {
            self.dropped_seen = dropped;
        }
        self.resynced = Instant::now();
    }

    fn adopt_record(&mut self, key: SemKey, record: &SemRecord, sink: ChangeSink<'_>) {
        self.tap_input(TappedInput::Sem(key, record));
        let changes = self.ledger.adopt_record(key.into(), record);
        if !changes.is_empty() {
            sink(&changes, &self.ledger);
        }
        if record.state & SEM_DM_DROPPED == 0 {
            return;
        }
        if let Some(device) = self.tracer.maps().last_ioctl(key) {
            self.tap_input(TappedInput::Message(as_bytes(&device)));
            if let Ok(event) = decode_event(as_bytes(&device)) {
                self.ledger.apply(&event);
            }
        }
    }
}
