//! What the kernel side has counted, summed over the CPUs.

use aya::maps::{MapData, PerCpuArray};
use dmtrace_common::{Counter, KINDS, Kind};
use serde::Serialize;

use super::undisturbed::call_undisturbed;

/// Counts of one kind of message.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub(crate) struct KindCounts {
    /// What the probes had to report.
    pub seen: u64,
    /// What went into the ring.
    pub submitted: u64,
    /// What found the ring full.
    pub dropped: u64,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub(crate) struct KernelCounts {
    /// By [`Kind`].
    #[serde(skip)]
    pub kinds: [KindCounts; KINDS],
    /// Sets that found the semaphore map full.
    pub sem_map_full: u64,
    /// Processes that found the process map full.
    pub proc_map_full: u64,
    /// Calls that found the call map full.
    pub call_map_full: u64,
    /// Records of removed sets and ended processes that userspace did not collect in time.
    pub history_lost: u64,
    pub read_fault: u64,
    /// Device-mapper ioctls with a cookie that were entered; their returns are counted as
    /// messages.
    pub dm_entered: u64,
    /// Calls whose end was not seen, because the kernel skipped all runs of probes there.
    pub ends_unseen: u64,
    /// Calls of SETVAL whose first program was skipped, as a later one has noticed.
    #[serde(skip)]
    pub noticed_setvals: u64,
    /// The same of look-ups.
    #[serde(skip)]
    pub noticed_lookups: u64,
}

impl KernelCounts {
    pub(crate) fn read(map: &PerCpuArray<MapData, u64>) -> Self {
        call_undisturbed(|| Self::sum_all(map))
    }

    fn sum_all(map: &PerCpuArray<MapData, u64>) -> Self {
        // A read of an array slot cannot fail while the map is open; 0 would show as a deficit.
        let sum = |counter: Counter| {
            map.get(&counter.0, 0)
                .map_or(0, |values| values.iter().sum::<u64>())
        };
        let mut counts = Self {
            sem_map_full: sum(Counter::SEM_MAP_FULL),
            proc_map_full: sum(Counter::PROC_MAP_FULL),
            call_map_full: sum(Counter::CALL_MAP_FULL),
            history_lost: sum(Counter::HISTORY_LOST),
            read_fault: sum(Counter::READ_FAULT),
            dm_entered: sum(Counter::DM_ENTERED),
            ends_unseen: sum(Counter::ENDS_UNSEEN),
            noticed_setvals: sum(Counter::NOTICED_SETVAL),
            noticed_lookups: sum(Counter::NOTICED_LOOKUP),
            ..Self::default()
        };
        for kind in Kind::ALL {
            counts.kinds[kind as usize] = KindCounts {
                seen: sum(Counter::seen(kind)),
                submitted: sum(Counter::submitted(kind)),
                dropped: sum(Counter::dropped(kind)),
            };
        }
        counts
    }

    /// Sums over all kinds but [`Kind::Stack`], which has a ring of its own: the maps do not make
    /// good what is dropped there, and no verdict rests on it.
    pub(crate) fn total_counts(&self) -> KindCounts {
        let kinds = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Stack);
        kinds
            .map(|kind| self.counts_of(kind))
            .fold(KindCounts::default(), |sum, kind| KindCounts {
                seen: sum.seen + kind.seen,
                submitted: sum.submitted + kind.submitted,
                dropped: sum.dropped + kind.dropped,
            })
    }

    /// Counts of one kind.
    pub(crate) const fn counts_of(&self, kind: Kind) -> KindCounts {
        self.kinds[kind as usize]
    }
}
