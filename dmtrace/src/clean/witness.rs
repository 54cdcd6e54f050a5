//! What a running trace has seen of a cookie: finer than the kernel's times, which have seconds.

use crate::ids::{BootTime, SemId};

/// What was seen of a cookie up to now.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Sighting {
    /// Last successful operation; 0 for none.
    pub last_op: BootTime,
    /// Waits that began.
    pub waits: u32,
    /// Waits that ended.
    pub waits_done: u32,
    /// `SETVAL` calls.
    pub setvals: u32,
    /// Decrements that failed because the value was 0.
    pub starved: u32,
}

/// Somebody who watches cookies.
pub trait Witness: Send + Sync {
    /// What it has seen of this one; `None` if it does not know it.
    fn look(&self, sem: SemId) -> Option<Sighting>;
}

/// Nobody watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nobody;

impl Witness for Nobody {
    fn look(&self, _: SemId) -> Option<Sighting> {
        None
    }
}

/// The maps of the traces that run now.
#[cfg(feature = "live")]
pub struct Traces(Vec<crate::probe::Maps>);

#[cfg(feature = "live")]
impl Traces {
    /// Opens the maps of all traces that can be opened.
    pub fn open() -> Self {
        Self(
            crate::session::running_tracers()
                .iter()
                .filter_map(|tracer| tracer.open().ok())
                .collect(),
        )
    }
}

#[cfg(feature = "live")]
impl Witness for Traces {
    fn look(&self, sem: SemId) -> Option<Sighting> {
        // One trace may have begun later than another: the busiest record is the truth.
        self.0
            .iter()
            .filter_map(|maps| maps.sem(sem.into()))
            .filter(|record| record.state & dmtrace_common::SEM_TOMBSTONE == 0)
            .map(|record| Sighting {
                last_op: BootTime(record.last_op),
                waits: record.waits,
                waits_done: record.waits_done,
                setvals: record.setvals,
                starved: record.starved,
            })
            .max_by_key(|seen| (seen.last_op, seen.waits, seen.waits_done, seen.setvals))
    }
}
