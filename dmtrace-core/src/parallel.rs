//! Work on all processors, for somebody who waits for it.

use std::{
    panic::resume_unwind,
    sync::{Mutex, PoisonError},
    thread,
};

/// Slices of this length give each processor one. `least`: fewer are done faster than a thread is
/// started.
pub fn chunk_size(all: usize, least: usize) -> usize {
    all.div_ceil(processor_count()).max(least).max(1)
}

/// Does all parts; their results, in order. Where no thread can be had, the calling one does it all.
/// A new thread is in the namespaces of the one that starts it (`copy_namespaces`).
pub fn map<P: Send, R: Send>(
    parts: impl Iterator<Item = P>,
    work: impl Fn(P) -> R + Sync,
) -> Vec<R> {
    together_at_most(usize::MAX, parts, work)
}

/// As [`map`], in no more than so many threads.
pub fn together_at_most<P: Send, R: Send>(
    threads: usize,
    parts: impl Iterator<Item = P>,
    work: impl Fn(P) -> R + Sync,
) -> Vec<R> {
    let parts: Vec<(usize, P)> = parts.enumerate().collect();
    let helpers = processor_count()
        .min(threads)
        .min(parts.len())
        .saturating_sub(1);
    let queue = Mutex::new(parts.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let worker = || -> Vec<(usize, R)> {
        std::iter::from_fn(|| next().map(|(number, part)| (number, work(part)))).collect()
    };
    let mut done = thread::scope(|threads| {
        let helpers: Vec<_> = (0..helpers)
            .filter_map(|_| thread::Builder::new().spawn_scoped(threads, worker).ok())
            .collect();
        let mut done = worker();
        for helper in helpers {
            done.extend(helper.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        done
    });
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

fn processor_count() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_the_order_of_the_parts() {
        for count in [0, 1, 2, 1000] {
            let squares = map(0..count, |number: u64| number * number);
            assert!(squares.into_iter().eq((0..count).map(|it| it * it)));
        }
    }

    #[test]
    fn shares_leave_nothing_out() {
        for all in [0, 1, 4095, 4096, 100_000] {
            let share = chunk_size(all, 4096);
            assert!(share >= 4096 && share * processor_count() >= all);
        }
    }
}
