//! How long owners waited for udev.

use std::time::Duration;

/// Upper bounds of the buckets, seconds.
pub(super) const BOUNDS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// A histogram of waits that ended well.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Waits {
    /// Of each bucket alone, the last without an upper bound.
    counts: [u64; BOUNDS.len() + 1],
    seconds: f64,
}

impl Waits {
    pub(crate) fn observe_wait(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        self.counts[bucket] += 1;
        self.seconds += seconds;
    }

    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum in seconds.
    pub(crate) const fn sum_seconds(&self) -> f64 {
        self.seconds
    }

    /// Upper bound and count of each bucket alone.
    pub(super) fn bucket_counts(&self) -> Vec<(f64, u64)> {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        bounds.zip(self.counts).collect()
    }
}
