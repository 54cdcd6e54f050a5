//! Who cleans in a storm, and where that storm leaves its artefacts.

use std::path::PathBuf;

use crate::host;

/// Who cleans while the operations run.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(super) enum Cleaner {
    /// Nobody: what the storm does by itself.
    None,
    /// `dmtrace clean --apply`
    Dmtrace,
    /// The same where nothing traces
    #[value(skip)]
    DmtraceNoTrace,
    /// `dmsetup udevcomplete_all -y`
    UdevcompleteAll,
}

impl Cleaner {
    pub(super) const ALL: [Self; 4] = [
        Self::None,
        Self::Dmtrace,
        Self::DmtraceNoTrace,
        Self::UdevcompleteAll,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Dmtrace => "dmtrace",
            Self::DmtraceNoTrace => "dmtrace_no_trace",
            Self::UdevcompleteAll => "udevcomplete_all",
        }
    }
}

/// Where the artefacts of the last run are kept.
pub(super) fn results_dir(kernel: &str, cleaner: Cleaner) -> PathBuf {
    let target = host::target_dir().unwrap_or_default();
    target.join("vm-storm").join(kernel).join(cleaner.name())
}
