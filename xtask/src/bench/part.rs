//! The parts of a measurement.

/// What is measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(super) enum BenchPart {
    /// semop on an ordinary semaphore
    Semop,
    /// A cookie's whole life
    Life,
    /// The same, one each millisecond
    Paced,
    /// An unrelated system call
    Syscall,
    /// An unrelated ioctl
    Ioctl,
    /// The end of a process
    Exit,
    /// Cookie operations a second without loss, and past the limit
    Pipeline,
    /// Memory for each cookie that is there
    Memory,
    /// `list` with 32,000 semaphores
    List,
    /// `report` of a long recording
    Report,
    /// Search of memory for the number of a cookie, against a plain copy of it
    Search,
    /// From the start to armed probes
    Startup,
    /// Size of the static program
    Size,
    /// Instructions on real kernels, by backend
    Vm,
}

impl BenchPart {
    /// Calls whose cost is measured with each tracer.
    pub(super) const CALLS: [Self; 6] = [
        Self::Semop,
        Self::Life,
        Self::Paced,
        Self::Syscall,
        Self::Ioctl,
        Self::Exit,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Semop => "semop",
            Self::Life => "life",
            Self::Paced => "paced",
            Self::Syscall => "syscall",
            Self::Ioctl => "ioctl",
            Self::Exit => "exit",
            Self::Pipeline => "pipeline",
            Self::Memory => "memory",
            Self::List => "list",
            Self::Report => "report",
            Self::Search => "search",
            Self::Startup => "startup",
            Self::Size => "size",
            Self::Vm => "vm",
        }
    }
}
