//! Tier `host`: what the library reads from the host, against semaphores that the actor made.

mod history;
mod namespaces;
mod semaphores;

use std::process::ExitCode;

use dmtrace_core::{
    facts::{NsSnapshot, SetSnapshot, Snapshot},
    ids::IpcNs,
};
use dmtrace_tests::harness::run_tier;

fn main() -> ExitCode {
    let mut tests = semaphores::tests();
    tests.extend(namespaces::tests());
    tests.extend(history::tests());
    run_tier("host", tests)
}

/// A namespace of a snapshot.
fn ns_in(snapshot: &Snapshot, ns: u32) -> anyhow::Result<&NsSnapshot> {
    let found = snapshot.namespaces.iter().find(|read| read.ns == IpcNs(ns));
    found.ok_or_else(|| anyhow::anyhow!("no namespace {ns} in {snapshot:?}"))
}

/// A set of a namespace.
fn set_in(namespace: &NsSnapshot, semid: i32) -> Option<&SetSnapshot> {
    namespace.sets.iter().find(|set| set.semid == semid)
}

/// Gives up root on this thread only; the C library's function would do it on all.
fn become_nobody() -> anyhow::Result<()> {
    let nobody = 65534;
    // SAFETY: three numbers.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, nobody, nobody, nobody) };
    anyhow::ensure!(
        result == 0,
        "setresuid: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}
