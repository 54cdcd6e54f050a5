//! How to trace: what a caller may choose.

use dmtrace_core::backend::Backend;

/// Where the kernel side of a service is, unless told otherwise.
pub(crate) const DEFAULT_PINS: &str = "/sys/fs/bpf/dmtrace";

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Options {
    /// This backend and no other.
    pub backend: Option<Backend>,
    /// Bytes of the ring buffer; rounded up to a power of two pages.
    pub ring_bytes: u32,
    /// Semaphore sets that can be followed at the same time.
    pub max_sems: u32,
    /// Processes that can be kept at the same time.
    pub max_procs: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            backend: None,
            ring_bytes: 4 << 20,
            max_sems: 65_536,
            max_procs: 8192,
        }
    }
}
