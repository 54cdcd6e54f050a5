//! Tier `harness`: the tools of the other tiers keep their promises.

use std::{
    fs,
    process::ExitCode,
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use anyhow::{Context, ensure};
use dmtrace_tests::{
    harness::{
        ActorLine, GlobalLock, KernelSem, TestNeed, in_private_ns, new_trial, run_tier, start_actor,
    },
    sysv,
};

const PRIVATE: &[TestNeed] = &[TestNeed::IpcNamespaces];

fn main() -> ExitCode {
    let tests = vec![
        new_trial("the_global_lock_excludes", &[], the_global_lock_excludes),
        new_trial("limits_come_back", PRIVATE, || in_private_ns(limits)?),
        new_trial("only_what_the_actor_made_is_removed", PRIVATE, || {
            in_private_ns(cleanup)?
        }),
        new_trial("a_removed_cookie_is_a_success_for_libdm", PRIVATE, || {
            in_private_ns(removed)?
        }),
        new_trial("churn_leaves_one_cookie_each_if_told_to", PRIVATE, || {
            in_private_ns(churn)?
        }),
        new_trial("bad_arguments_are_errors", &[], bad_arguments_are_errors),
    ];
    run_tier("harness", tests)
}

fn the_global_lock_excludes() -> anyhow::Result<()> {
    let held = GlobalLock::acquire()?;
    let (send, receive) = mpsc::channel();
    let other = std::thread::spawn(move || send.send(GlobalLock::acquire().is_ok()));
    let early = receive.recv_timeout(Duration::from_millis(100));
    ensure!(early == Err(RecvTimeoutError::Timeout), "{early:?}");
    drop(held);
    ensure!(receive.recv()?, "no lock");
    other.join().map_err(|_| anyhow::anyhow!("panicked"))??;
    Ok(())
}

fn limits() -> anyhow::Result<()> {
    let read = || fs::read_to_string("/proc/sys/kernel/sem").context("kernel.sem");
    let before = read()?;
    let guard = KernelSem::set_semmni(77)?;
    ensure!(read()?.split_whitespace().nth(3) == Some("77"));
    drop(guard);
    ensure!(read()? == before);
    Ok(())
}

fn cleanup() -> anyhow::Result<()> {
    let ours = sysv::get_set(0x0d4d_0001, 1, 0o600 | libc::IPC_CREAT)?;
    let mut maker = start_actor(&["create"])?;
    let theirs = maker.read_until("set")?.semid()?;
    start_actor(&["inc", "--key", "0x0d4d0001"])?.read_until("inc")?;
    ensure!(
        sysv::get_value(ours)? == 1,
        "a set that the actor only used is gone"
    );
    drop(maker);
    ensure!(
        sysv::get_value(theirs).is_err(),
        "a set that the actor made is left"
    );
    Ok(())
}

fn removed() -> anyhow::Result<()> {
    let mut waiter = start_actor(&["cycle", "--stop-at", "in-wait", "--how", "hold"])?;
    let semid = waiter.read_until("waiting")?.semid()?;
    while sysv::count_waiters(semid)? == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    sysv::remove_set(semid)?;
    let line = waiter.read_until("removed-by-another")?;
    ensure!(line.number("errno")? == i64::from(libc::EIDRM));
    ensure!(waiter.read_to_end()?.1.success());
    Ok(())
}

fn churn() -> anyhow::Result<()> {
    let args = [
        "churn", "--tag", "t", "--procs", "5", "--jobs", "3", "--leave",
    ];
    let mut churn = start_actor(&args)?;
    let (lines, _) = churn.read_to_end()?;
    let left = lines.iter().filter(|line| line.step == "churned");
    let left: Vec<i32> = left.map(ActorLine::semid).collect::<Result<_, _>>()?;
    ensure!(left.len() == 5);
    for semid in left {
        ensure!(sysv::get_value(semid)? == 2);
    }
    Ok(())
}

fn bad_arguments_are_errors() -> anyhow::Result<()> {
    for args in [
        &["bake"][..],
        &["cycle", "--stop-at", "lunch"],
        &["moby", "--count"],
        &["create", "--what"],
        &["inc"],
    ] {
        let (_, status) = start_actor(args)?.read_to_end()?;
        ensure!(!status.success(), "{args:?}");
    }
    Ok(())
}
