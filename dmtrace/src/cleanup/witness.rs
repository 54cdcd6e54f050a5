//! What a running trace has seen of a cookie: finer than the kernel's times, which have seconds.

use dmtrace_core::ids::{BootTime, SemId};

/// What was seen of a cookie up to now.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Sighting {
    /// End of the last successful operation or wait; 0 for none.
    pub last_op: BootTime,
    /// Waits that began.
    pub waits: u32,
    /// Waits that ended.
    pub waits_done: u32,
    /// `SETVAL` calls.
    pub setvals: u32,
    /// Decrements that failed because the value was 0.
    pub failed_decrements: u32,
}

impl Sighting {
    /// Whether anything happened between two looks. A trace that ends meanwhile, or one that
    /// comes to know the cookie, is nothing that happened to it.
    pub fn is_news_after(self, earlier: Option<Self>) -> bool {
        let earlier = earlier.unwrap_or(Self {
            last_op: self.last_op,
            ..Self::default()
        });
        self.last_op > earlier.last_op
            || self.waits > earlier.waits
            || self.waits_done > earlier.waits_done
            || self.setvals > earlier.setvals
            || self.failed_decrements > earlier.failed_decrements
    }

    /// What two traces have seen together: one may have begun later.
    #[cfg(feature = "live")]
    fn combine(self, other: Self) -> Self {
        Self {
            last_op: self.last_op.max(other.last_op),
            waits: self.waits.max(other.waits),
            waits_done: self.waits_done.max(other.waits_done),
            setvals: self.setvals.max(other.setvals),
            failed_decrements: self.failed_decrements.max(other.failed_decrements),
        }
    }
}

/// Somebody who watches cookies.
pub trait Witness: Send + Sync {
    /// What it has seen of this one; `None` if it does not know it.
    fn sighting_of(&self, sem: SemId) -> Option<Sighting>;
}

/// Nobody watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoWitness;

impl Witness for NoWitness {
    fn sighting_of(&self, _: SemId) -> Option<Sighting> {
        None
    }
}

/// The maps of the traces that run now.
#[cfg(feature = "live")]
pub struct TraceWitness(Vec<crate::probe::Maps>);

#[cfg(feature = "live")]
impl TraceWitness {
    /// Opens the maps of all traces that can be opened.
    pub fn open() -> Self {
        Self(
            crate::probe::registry::running_tracers()
                .iter()
                .filter_map(|tracer| tracer.open_maps().ok())
                .collect(),
        )
    }
}

#[cfg(feature = "live")]
impl Witness for TraceWitness {
    fn sighting_of(&self, sem: SemId) -> Option<Sighting> {
        self.0
            .iter()
            .filter_map(|maps| maps.sem_record(sem.into()))
            .filter(|record| record.state & dmtrace_common::SEM_TOMBSTONE == 0)
            .map(|record| Sighting {
                last_op: BootTime(record.last_op),
                waits: record.waits,
                waits_done: record.waits_done,
                setvals: record.setvals,
                failed_decrements: record.failed_decrements,
            })
            .reduce(Sighting::combine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_happened_is_news() {
        let then = Sighting {
            last_op: BootTime(7),
            waits: 1,
            ..Sighting::default()
        };
        assert!(!then.is_news_after(Some(then)));
        // The trace that knew most has ended; another knows less.
        assert!(!Sighting::default().is_news_after(Some(then)));
        for news in [
            Sighting {
                last_op: BootTime(8),
                ..then
            },
            Sighting { waits: 2, ..then },
            Sighting {
                waits_done: 1,
                ..then
            },
            Sighting { setvals: 1, ..then },
            Sighting {
                failed_decrements: 1,
                ..then
            },
        ] {
            assert!(news.is_news_after(Some(then)), "{news:?}");
        }
        assert!(then.is_news_after(None));
        assert!(!Sighting::default().is_news_after(None));
    }
}
