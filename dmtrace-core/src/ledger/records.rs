//! The records of the kernel maps, in the order in which they are to be adopted.

use std::collections::BTreeMap;

use dmtrace_common::{ProcKey, ProcRecord, SemKey, SemRecord};

/// One record.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack")]
pub enum MapRecord {
    /// Of a process.
    Process(ProcKey, ProcRecord),
    /// Of a set.
    Set(SemKey, SemRecord),
}

/// Each process, and right after it the sets that it made: one that has ended and owns nothing is
/// forgotten soon, with its command line and its end. Sets of unknown processes come last.
pub fn in_order(
    processes: Vec<(ProcKey, ProcRecord)>,
    sets: Vec<(SemKey, SemRecord)>,
) -> impl Iterator<Item = MapRecord> {
    let mut by_creator: BTreeMap<ProcKey, Vec<(SemKey, SemRecord)>> = BTreeMap::new();
    for (key, record) in sets {
        let of_creator = by_creator.entry(record.creator).or_default();
        of_creator.push((key, record));
    }
    let mut processes = processes.into_iter();
    let mut sets: Vec<(SemKey, SemRecord)> = Vec::new();
    std::iter::from_fn(move || {
        if let Some((key, record)) = sets.pop() {
            return Some(MapRecord::Set(key, record));
        }
        if let Some((key, record)) = processes.next() {
            sets = by_creator.remove(&key).unwrap_or_default();
            return Some(MapRecord::Process(key, record));
        }
        let (_, rest) = by_creator.pop_first()?;
        sets = rest;
        let (key, record) = sets.pop()?;
        Some(MapRecord::Set(key, record))
    })
}
