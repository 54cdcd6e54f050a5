//! What the tests of all tiers share.
//!
//! `cargo test` cannot skip. Tiers therefore bring their own `main` (`harness = false`) and list
//! their tests here: what a test needs and does not find makes it *ignored* with a reason, never
//! passed, and a line `SKIPPED:` at the end counts them. With `DMTRACE_TESTS_REQUIRE=all` a skip
//! is a failure, for machines that are meant to have everything.

mod actors;
mod limits;
mod private;
mod programs;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::ExitCode,
    sync::Mutex,
};

pub use actors::{ActorLine, RunningActor, start_actor};
pub use libtest_mimic::Trial;
use libtest_mimic::{Arguments, Completion, Failed};
pub use limits::{GlobalLock, KernelSem};
pub use private::{in_private_ns, ns_of};
pub use programs::{actor_bin, dmtrace_bin, xtask_bin};

/// What a test cannot do without.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TestNeed {
    /// Effective uid 0.
    Root,
    /// A new IPC namespace (root, and not forbidden by a sandbox).
    IpcNamespaces,
    /// A new mount namespace (root, and not forbidden by a sandbox).
    MountNamespaces,
    /// The device mapper.
    DeviceMapper,
    /// A program in `PATH`.
    Program(&'static str),
}

impl TestNeed {
    /// Why it is not met.
    fn missing_reason(self) -> Option<String> {
        match self {
            Self::Root => (!is_root()).then(|| "needs root".to_owned()),
            Self::IpcNamespaces => {
                let error = in_private_ns(|| ()).err()?;
                Some(format!("needs IPC namespaces: {error:#}"))
            }
            Self::MountNamespaces => {
                let error = private::try_mount_ns().err()?;
                Some(format!("needs mount namespaces: {error}"))
            }
            Self::DeviceMapper => (!Path::new("/dev/mapper/control").exists())
                .then(|| "needs the device mapper: no /dev/mapper/control".to_owned()),
            Self::Program(name) => (!in_path(name)).then(|| format!("needs {name} in PATH")),
        }
    }
}

/// Whether this process is root.
pub fn is_root() -> bool {
    // SAFETY: no argument, cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn in_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

/// Reasons, and how many tests each.
static SKIPPED: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

/// A test that is skipped where something it needs is missing.
pub fn new_trial(
    name: &str,
    needs: &'static [TestNeed],
    body: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, move || {
        if let Some(reason) = needs.iter().find_map(|need| need.missing_reason()) {
            if std::env::var("DMTRACE_TESTS_REQUIRE").is_ok_and(|value| value == "all") {
                return Err(Failed::from(format!("not skipped as required: {reason}")));
            }
            if let Ok(mut skipped) = SKIPPED.lock() {
                *skipped.entry(reason.clone()).or_default() += 1;
            }
            return Ok(Completion::ignored_with(reason));
        }
        // libtest-mimic reports a panic without its message when it is not a string.
        match catch_unwind(AssertUnwindSafe(body)) {
            Ok(Ok(())) => Ok(Completion::Completed),
            Ok(Err(error)) => Err(Failed::from(format!("{error:#}"))),
            Err(panic) => Err(Failed::from(panic_text(&*panic))),
        }
    })
}

/// Runs the tests of a tier.
pub fn run_tier(tier: &str, tests: Vec<Trial>) -> ExitCode {
    run_with(tier, tests, &Arguments::from_args())
}

/// Runs the tests of a tier one after the other: a tracer sees the whole host, other tests
/// included, and their namespaces come and go.
pub fn run_serially(tier: &str, tests: Vec<Trial>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    run_with(tier, tests, &arguments)
}

fn run_with(tier: &str, tests: Vec<Trial>, arguments: &Arguments) -> ExitCode {
    let conclusion = libtest_mimic::run(arguments, tests);
    if let Ok(skipped) = SKIPPED.lock() {
        for (reason, count) in skipped.iter() {
            println!("SKIPPED: {count} tests of tier {tier}: {reason}");
        }
    }
    conclusion.exit_code()
}

/// What a panic says.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("panicked")
        .to_owned()
}
