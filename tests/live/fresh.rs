//! A handful of the tests of this tier once more, on a machine that nobody has prepared: in a mount
//! namespace without tracefs, debugfs, securityfs and bpffs. Where they are mounted, that hides
//! what depends on them.

use std::{
    ffi::CString,
    fs, io,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use dmtrace_tests::harness::{TestNeed, new_trial};
use libtest_mimic::Trial;

const NEEDS: &[TestNeed] = &[TestNeed::Root, TestNeed::MountNamespaces];

/// Each needs nothing but root.
const TESTS: [&str; 7] = [
    "accounting::all_23_are_attributed",
    "call_site::of_the_actor_is_complete",
    "clean::only_proven_leaks_go",
    "demo::prints_what_the_readme_prints",
    "doctor::a_machine_that_works",
    "exec::a_killed_command_is_named",
    "serve::other_verbs_use_what_it_has_seen",
];

/// What systemd mounts on most machines.
const KERNEL_FILESYSTEMS: [&str; 4] = ["tracefs", "debugfs", "securityfs", "bpf"];

pub(crate) fn tests() -> Vec<Trial> {
    let trial = |name| new_trial(&format!("fresh::{name}"), NEEDS, move || run_again(name));
    TESTS.into_iter().map(trial).collect()
}

/// Runs a test of this program there.
fn run_again(name: &'static str) -> Result<()> {
    let mounted = mounted_paths()?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["--exact", name, "--test-threads=1"])
        .env("DMTRACE_TESTS_REQUIRE", "all")
        .stdin(Stdio::null());
    // SAFETY: system calls on strings that were made before the fork.
    unsafe { command.pre_exec(move || unmount_all(&mounted)) };
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        text.contains("test result: ok. 1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Where they are mounted, the last one first.
fn mounted_paths() -> Result<Vec<CString>> {
    let path = "/proc/self/mountinfo";
    let table = fs::read_to_string(path).context(path)?;
    let mut found = Vec::new();
    for line in table.lines() {
        let (mount, source) = line.split_once(" - ").context("mountinfo")?;
        let kind = source.split(' ').next().unwrap_or_default();
        if KERNEL_FILESYSTEMS.contains(&kind) {
            let at = mount.split(' ').nth(4).context("mountinfo")?;
            found.push(CString::new(at)?);
        }
    }
    found.reverse();
    Ok(found)
}

/// Moves into a new mount namespace and takes these away in it.
fn unmount_all(mounted: &[CString]) -> io::Result<()> {
    let check = |result| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    let none = std::ptr::null();
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: numbers only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    // SAFETY: numbers, and a string that ends with a zero.
    check(unsafe { libc::mount(none, c"/".as_ptr(), none, private, none.cast()) })?;
    // SAFETY: as above.
    let unmount = |at: &CString| check(unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) });
    mounted.iter().try_for_each(unmount)
}
