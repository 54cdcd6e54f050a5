//! What a recording is made from.

use std::path::PathBuf;

use dmtrace_common::{ProcRecord, SemKey, SemRecord};

use crate::{facts::Snapshot, stack::Found};

/// Something that the books were made from, for a recording.
#[derive(Clone, Copy, Debug)]
pub enum Tapped<'a> {
    /// A message of the ring.
    Message(&'a [u8]),
    /// A record of the semaphore map, read because messages were dropped.
    Sem(SemKey, &'a SemRecord),
    /// A record of the process map, likewise.
    Proc(&'a ProcRecord),
    /// The kernel's tables.
    Snapshot(&'a Snapshot),
    /// The call site of a cookie.
    Site(&'a Found),
}

/// Gets everything that the books are made from.
pub struct Tap {
    /// Takes it.
    pub write: Box<dyn FnMut(Tapped<'_>)>,
    /// Where it goes, for other commands to read.
    pub file: Option<PathBuf>,
}
