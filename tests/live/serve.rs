//! The service: it names leaks, tells systemd and the journal, and ends well.

use std::{
    os::{
        fd::AsRawFd,
        unix::{fs::MetadataExt, net::UnixDatagram},
    },
    path::Path,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use dmtrace_tests::harness::{dmtrace_bin, in_private_ns, new_trial, ns_of, start_actor};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    NEEDS,
    service::{SOCKET, Service},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial(
            "serve::a_leak_is_told_and_stands_until_it_is_gone",
            NEEDS,
            a_leak_is_told_and_stands_until_it_is_gone,
        ),
        new_trial(
            "serve::what_the_ring_had_no_room_for_is_told_all_the_same",
            NEEDS,
            what_the_ring_had_no_room_for_is_told_all_the_same,
        ),
        new_trial("serve::the_end_is_orderly", NEEDS, the_end_is_orderly),
        new_trial("serve::there_is_one_service", NEEDS, there_is_one_service),
        new_trial(
            "serve::the_journal_gets_priorities",
            NEEDS,
            the_journal_gets_priorities,
        ),
        new_trial("serve::systemd_is_told", NEEDS, systemd_is_told),
        new_trial(
            "serve::victims_of_full_tables_are_named",
            NEEDS,
            victims_of_full_tables_are_named,
        ),
        new_trial(
            "serve::other_verbs_use_what_it_has_seen",
            NEEDS,
            other_verbs_use_what_it_has_seen,
        ),
    ]
}

fn a_leak_is_told_and_stands_until_it_is_gone() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?;
        let mut service = Service::start(&[])?;
        let mut leaker = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "kill"])?;
        let pid = leaker.pid();
        leaker.read_to_end()?;
        let by = format!("by cookie-actor[{pid}]");
        let line = service.wait_line(&by)?;
        for part in [
            "leaked: owner killed by SIGKILL".to_owned(),
            format!("IPC namespace {ns}"),
            "see: dmtrace explain 0x0d4d".to_owned(),
        ] {
            ensure!(line.contains(&part), "no {part:?} in: {line}");
        }
        let status = service.status()?;
        let found = active_finding(&status, pid).context("not in the status")?;
        ensure!(found["verdict"]["class"]["class"] == "leaked", "{found}");
        let semid = found["semid"].as_i64().context("semid")?;
        let key = line.split(' ').find(|word| word.starts_with("0x0d4d"));
        dmtrace_tests::sysv::remove_set(i32::try_from(semid)?)?;
        let gone = format!(
            "{} semid {semid}: was leaked, is gone",
            key.context("no key")?
        );
        service.wait_line(&gone)?;
        let status = service.status()?;
        ensure!(active_finding(&status, pid).is_none(), "{status}");
        ensure!(
            status["findings"]["told"]["leaked"].as_u64() >= Some(1),
            "{status}"
        );
        Ok(())
    })?
}

/// Far more cookies at once than the smallest ring has room for. Of some only the last calls come
/// through, of others only the first.
fn what_the_ring_had_no_room_for_is_told_all_the_same() -> Result<()> {
    const COOKIES: u64 = 2000;
    in_private_ns(|| {
        std::fs::write("/proc/sys/kernel/sem", "32000 1024000000 500 32000")?;
        let service = Service::start(&["--ring", "4"])?;
        let mut daemon = start_actor(&["moby", "--count", &COOKIES.to_string()])?;
        let (lines, _) = daemon.read_to_end()?;
        ensure!(lines.len() as u64 >= COOKIES, "too few were made");
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let status = service.status()?;
            let told = status["findings"]["told"]["leaked"].as_u64();
            if told >= Some(COOKIES) {
                ensure!(status["health"]["dropped"] != 0, "nothing was dropped");
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "told: {told:?} of {COOKIES}");
            sleep(Duration::from_millis(200));
        }
    })?
}

/// A finding about this process that stands. Others on the machine may leak, too.
fn active_finding(status: &Value, pid: u32) -> Option<&Value> {
    let list = status["findings"]["list"].as_array()?;
    list.iter().find(|found| found["owner"]["pid"] == pid)
}

fn the_end_is_orderly() -> Result<()> {
    let service = Service::start(&[])?;
    ensure!(Path::new(SOCKET).exists(), "{SOCKET} is not there");
    let (status, said) = service.stop_service()?;
    ensure!(status.success(), "{status}: {said}");
    ensure!(said.contains("stopped; accounting: seen "), "{said}");
    ensure!(!said.contains("NOT EXACT"), "{said}");
    ensure!(!Path::new(SOCKET).exists(), "{SOCKET} is left");
    let output = Command::new(dmtrace_bin()?)
        .args(["serve", "--status"])
        .output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(3), "{}", output.status);
    ensure!(error.contains("no service answers"), "{error}");
    Ok(())
}

fn there_is_one_service() -> Result<()> {
    let service = Service::start(&[])?;
    let output = Command::new(dmtrace_bin()?).arg("serve").output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(3), "{}", output.status);
    ensure!(error.contains("another dmtrace serve runs"), "{error}");
    // The first one is not disturbed.
    service.status()?;
    // A killed one is no obstacle.
    service.send_signal(libc::SIGKILL)?;
    drop(service);
    ensure!(Path::new(SOCKET).exists(), "a killed service cleans up?");
    Service::start(&[])?;
    Ok(())
}

fn the_journal_gets_priorities() -> Result<()> {
    in_private_ns(|| {
        let mut service = Service::start_with(&[], |command, stderr| {
            let meta = stderr.metadata()?;
            command.env("JOURNAL_STREAM", format!("{}:{}", meta.dev(), meta.ino()));
            Ok(())
        })?;
        let mut leaker = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "kill"])?;
        leaker.read_to_end()?;
        service.wait_line("leaked: owner killed")?;
        let (_, said) = service.stop_service()?;
        for line in said.lines() {
            let prefix = line.get(..3).context("a short line")?;
            let leaked = line.contains("leaked: ");
            ensure!(
                if leaked {
                    prefix == "<4>"
                } else {
                    ["<5>", "<6>"].contains(&prefix)
                },
                "wrong priority: {line}"
            );
        }
        Ok(())
    })?
}

fn systemd_is_told() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path)?;
    manager.set_read_timeout(Some(Duration::from_secs(60)))?;
    let service = Service::start_with(&[], |command, _| {
        command
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "400000");
        Ok(())
    })?;
    let until = |wanted: &str| -> Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let got = manager
                .recv(&mut buffer)
                .with_context(|| wanted.to_owned())?;
            let text = String::from_utf8_lossy(&buffer[..got]);
            if text.lines().any(|line| line == wanted) {
                return Ok(());
            }
        }
    };
    until("READY=1")?;
    until("WATCHDOG=1")?;
    until("WATCHDOG=1")?;
    // A service that hangs gives no sign of life.
    service.send_signal(libc::SIGSTOP)?;
    sleep(Duration::from_millis(100));
    drain_socket(&manager)?;
    sleep(Duration::from_millis(600));
    manager.set_nonblocking(true)?;
    ensure!(
        manager.recv(&mut [0; 64]).is_err(),
        "a stopped service gave a sign of life"
    );
    manager.set_nonblocking(false)?;
    service.send_signal(libc::SIGCONT)?;
    until("WATCHDOG=1")?;
    let (status, _) = service.stop_service()?;
    ensure!(status.success(), "{status}");
    until("STOPPING=1")
}

fn drain_socket(manager: &UnixDatagram) -> Result<()> {
    ensure!(manager.as_raw_fd() >= 0, "closed");
    manager.set_nonblocking(true)?;
    while manager.recv(&mut [0; 4096]).is_ok() {}
    manager.set_nonblocking(false)?;
    Ok(())
}

fn victims_of_full_tables_are_named() -> Result<()> {
    in_private_ns(|| {
        // Of this namespace, which ends with its thread.
        std::fs::write("/proc/sys/kernel/sem", "32000 1024000000 500 2")?;
        let mut service = Service::start(&[])?;
        let mut daemon = start_actor(&["moby", "--count", "5", "--hold"])?;
        let pid = daemon.pid();
        daemon.read_to_end()?;
        let line = service.wait_line("the limits of kernel.sem are reached")?;
        ensure!(line.contains(&format!("cookie-actor[{pid}]")), "{line}");
        Ok(())
    })?
}

fn other_verbs_use_what_it_has_seen() -> Result<()> {
    in_private_ns(|| {
        let mut service = Service::start(&[])?;
        let mut leaker = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "kill"])?;
        let pid = leaker.pid();
        leaker.read_to_end()?;
        service.wait_line("leaked: owner killed")?;
        let output = Command::new(dmtrace_bin()?)
            .args(["list", "--json", "--pid", &pid.to_string()])
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            text.contains("\"owner_known\":\"observed\"") && text.contains("\"signal\":9"),
            "list does not know the owner: {text}"
        );
        Ok(())
    })?
}
