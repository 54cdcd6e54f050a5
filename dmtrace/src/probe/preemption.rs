//! Whether the kernel takes the processor from a task while that is in the kernel.
//!
//! Then another task can come upon a program that is running, and the program is skipped for it.

use std::{fs, sync::OnceLock};

use serde::Serialize;

use super::ProgramPlan;
use crate::host::kernel_fs::KernelFs;

/// Whether the kernel preempts.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Preemption {
    /// Built without it.
    NotBuilt,
    /// Built with it, and switched off.
    Off(KnownBy),
    On(KnownBy),
    /// It may: nothing says whether it is switched on.
    Maybe,
}

/// Where that is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KnownBy {
    /// The scheduler's own word, in debugfs.
    Scheduler,
    /// `preempt=` on the kernel's command line.
    CommandLine,
    /// The kernel's version: built so that it cannot be switched off.
    Build,
}

impl KnownBy {
    /// In words, with how sure it is.
    const fn text(self) -> &'static str {
        match self {
            Self::Scheduler => "observed: sched/preempt in debugfs",
            Self::CommandLine => "inferred from preempt= in /proc/cmdline",
            Self::Build => "inferred from uname -v",
        }
    }
}

impl Preemption {
    /// Of this kernel: looked up once.
    pub(super) fn detect() -> Self {
        static FOUND: OnceLock<Preemption> = OnceLock::new();
        *FOUND.get_or_init(Self::look_up)
    }

    fn look_up() -> Self {
        let name = rustix::system::uname();
        let version = name.version().to_string_lossy();
        if preempt_word(&version).is_none() {
            return Self::NotBuilt;
        }
        // Lockdown forbids to read it, also in mode integrity.
        let debugfs = KernelFs::Debug.open().ok();
        let scheduler = debugfs.and_then(|root| root.read("sched/preempt").ok());
        let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
        Self::from_texts(&version, &scheduler.unwrap_or_default(), &command_line)
    }

    /// `version` is `uname -v`, `scheduler` has the mode in brackets: `none (voluntary) full`.
    fn from_texts(version: &str, scheduler: &str, command_line: &str) -> Self {
        let chosen = || {
            let mut words = command_line.split_whitespace();
            words.find_map(|word| word.strip_prefix("preempt="))
        };
        let mode = scheduler.split(['(', ')']).nth(1);
        match (preempt_word(version), mode, chosen()) {
            (None, _, _) => Self::NotBuilt,
            (_, Some("none" | "voluntary"), _) => Self::Off(KnownBy::Scheduler),
            (_, Some(_), _) => Self::On(KnownBy::Scheduler),
            (Some("PREEMPT_DYNAMIC"), None, Some("none" | "voluntary")) => {
                Self::Off(KnownBy::CommandLine)
            }
            (Some("PREEMPT_DYNAMIC"), None, Some(_)) => Self::On(KnownBy::CommandLine),
            (Some("PREEMPT_DYNAMIC"), None, None) => Self::Maybe,
            (Some(_), None, _) => Self::On(KnownBy::Build),
        }
    }

    /// Which programs reckon with it.
    pub(crate) const fn plan(self) -> ProgramPlan {
        match self {
            Self::On(_) | Self::Maybe => ProgramPlan::Preempted,
            Self::NotBuilt | Self::Off(_) => ProgramPlan::Plain,
        }
    }

    pub(crate) fn text(self) -> String {
        match self {
            Self::NotBuilt => "the kernel does not preempt (observed: uname -v)".to_owned(),
            Self::Off(by) => format!("the kernel does not preempt ({})", by.text()),
            Self::On(by) => format!("the kernel preempts ({})", by.text()),
            Self::Maybe => "the kernel may preempt (inferred: uname -v says PREEMPT_DYNAMIC, \
                            and debugfs does not say what is switched on)"
                .to_owned(),
        }
    }
}

/// init/Makefile writes PREEMPT, PREEMPT_DYNAMIC or PREEMPT_RT into the version.
fn preempt_word(version: &str) -> Option<&str> {
    let mut words = version.split_whitespace();
    words.find(|word| word.starts_with("PREEMPT"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DYNAMIC: &str = "#1 SMP PREEMPT_DYNAMIC Debian 7.3.4-1 (2026-11-15)\n";

    #[test]
    fn the_schedulers_own_word_counts_most() {
        let of = |mode| Preemption::from_texts(DYNAMIC, mode, "quiet preempt=full\n");
        assert_eq!(
            of("none (voluntary) full \n"),
            Preemption::Off(KnownBy::Scheduler)
        );
        assert_eq!(of("full (lazy) \n"), Preemption::On(KnownBy::Scheduler));
        assert_eq!(of(""), Preemption::On(KnownBy::CommandLine));
    }

    #[test]
    fn without_debugfs_the_build_and_the_command_line_tell() {
        let of = |version, line| Preemption::from_texts(version, "", line);
        assert_eq!(
            of("#1 SMP Debian 5.10.262-1 (2026-07-31)", ""),
            Preemption::NotBuilt
        );
        assert_eq!(of(DYNAMIC, "quiet"), Preemption::Maybe);
        assert_eq!(
            of(DYNAMIC, "preempt=none"),
            Preemption::Off(KnownBy::CommandLine)
        );
        assert_eq!(
            of("#1 SMP PREEMPT_RT Debian", "preempt=none"),
            Preemption::On(KnownBy::Build)
        );
        assert_eq!(Preemption::Maybe.plan(), ProgramPlan::Preempted);
    }
}
