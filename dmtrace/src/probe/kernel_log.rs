//! Diagnostics of the kernel side (aya-log): unexpected states, never on a hot path.

use std::sync::{Arc, Mutex, PoisonError};

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};

/// Lines kept until somebody takes them; a program that goes wrong does so all the time.
const MAX_KEPT_LINES: usize = 20;

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<String>>>);

impl Log for Collector {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() < MAX_KEPT_LINES {
            lines.push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// The reader of these diagnostics.
pub(super) struct KernelLog {
    reader: EbpfLogger<Collector>,
    lines: Collector,
}

impl KernelLog {
    /// `None` if the object has no log: tracing works all the same.
    pub(super) fn open(ebpf: &mut Ebpf) -> Option<Self> {
        let lines = Collector::default();
        let reader = EbpfLogger::init_with_logger(ebpf, lines.clone()).ok()?;
        Some(Self { reader, lines })
    }

    /// Lines since the last time.
    pub(super) fn take_lines(&mut self) -> Vec<String> {
        self.reader.flush();
        std::mem::take(&mut self.lines.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
