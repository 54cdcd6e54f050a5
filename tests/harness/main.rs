//! Tier `harness`: the tools of the other tiers keep their promises.

use std::{
    fs,
    process::ExitCode,
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use anyhow::{Context, ensure};
use dmtrace_tests::{
    harness::{GlobalLock, KernelSem, Line, Need, actor, in_private_ns, run, test},
    sysv,
};

const PRIVATE: &[Need] = &[Need::IpcNamespaces];

fn main() -> ExitCode {
    let tests = vec![
        test("the_global_lock_excludes", &[], lock),
        test("limits_come_back", PRIVATE, || in_private_ns(limits)?),
        test("only_what_the_actor_made_is_removed", PRIVATE, || {
            in_private_ns(cleanup)?
        }),
        test("a_removed_cookie_is_a_success_for_libdm", PRIVATE, || {
            in_private_ns(removed)?
        }),
        test("churn_leaves_one_cookie_each_if_told_to", PRIVATE, || {
            in_private_ns(churn)?
        }),
        test("bad_arguments_are_errors", &[], arguments),
    ];
    run("harness", tests)
}

fn lock() -> anyhow::Result<()> {
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
    let ours = sysv::get(0x0d4d_0001, 1, 0o600 | libc::IPC_CREAT)?;
    let mut maker = actor(&["create"])?;
    let theirs = maker.until("set")?.semid()?;
    actor(&["inc", "--key", "0x0d4d0001"])?.until("inc")?;
    ensure!(
        sysv::value(ours)? == 1,
        "a set that the actor only used is gone"
    );
    drop(maker);
    ensure!(
        sysv::value(theirs).is_err(),
        "a set that the actor made is left"
    );
    Ok(())
}

fn removed() -> anyhow::Result<()> {
    let mut waiter = actor(&["cycle", "--stop-at", "in-wait", "--how", "hold"])?;
    let semid = waiter.until("waiting")?.semid()?;
    while sysv::waiters(semid)? == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    sysv::remove(semid)?;
    let line = waiter.until("removed-by-another")?;
    ensure!(line.number("errno")? == i64::from(libc::EIDRM));
    ensure!(waiter.finish()?.1.success());
    Ok(())
}

fn churn() -> anyhow::Result<()> {
    let args = [
        "churn", "--tag", "t", "--procs", "5", "--jobs", "3", "--leave",
    ];
    let mut churn = actor(&args)?;
    let (lines, _) = churn.finish()?;
    let left = lines.iter().filter(|line| line.step == "churned");
    let left: Vec<i32> = left.map(Line::semid).collect::<Result<_, _>>()?;
    ensure!(left.len() == 5);
    for semid in left {
        ensure!(sysv::value(semid)? == 2);
    }
    Ok(())
}

fn arguments() -> anyhow::Result<()> {
    for args in [
        &["bake"][..],
        &["cycle", "--stop-at", "lunch"],
        &["moby", "--count"],
        &["create", "--what"],
        &["inc"],
    ] {
        let (_, status) = actor(args)?.finish()?;
        ensure!(!status.success(), "{args:?}");
    }
    Ok(())
}
