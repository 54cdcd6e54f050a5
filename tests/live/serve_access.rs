//! Who may ask a service, and what it does with what is no request.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixStream,
        process::CommandExt,
    },
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use dmtrace_tests::harness::{dmtrace_bin, new_trial};
use libtest_mimic::Trial;

use crate::{
    NEEDS,
    pins::BpfFs,
    service::{SOCKET, Service, status_as},
};

/// Numbers of a user and a group that own nothing here.
const SOMEBODY: u32 = 61_234;
const GROUP: u32 = 61_235;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial("serve_access::only_root_by_default", NEEDS, only_root),
        new_trial(
            "serve_access::members_of_the_group",
            NEEDS,
            members_of_the_group,
        ),
        new_trial(
            "serve_access::a_handed_on_connection_is_no_way_in",
            NEEDS,
            handed_on,
        ),
        new_trial(
            "serve_access::anything_may_be_sent",
            NEEDS,
            anything_may_be_sent,
        ),
        new_trial(
            "serve_access::a_start_that_fails_leaves_nothing",
            NEEDS,
            failed_start,
        ),
        new_trial(
            "serve_access::a_file_of_another_kind_is_no_history",
            NEEDS,
            a_file_of_another_kind_is_no_history,
        ),
        new_trial(
            "serve_access::silent_clients_do_not_block_others",
            NEEDS,
            silent_clients_do_not_block_others,
        ),
    ]
}

/// With too few descriptors the maps or the programs cannot be made, at one moment or another.
fn failed_start() -> Result<()> {
    for descriptors in [16, 24, 32, 48] {
        let pins = BpfFs::mount()?;
        let dir = tempfile::tempdir()?;
        let history = dir.path().join("history.redb");
        let line = format!("ulimit -n {descriptors}; exec \"$0\" \"$@\"");
        let output = Command::new("sh")
            .args(["-c", &line])
            .arg(dmtrace_bin()?)
            .args(["serve", "--pins", &pins.pins_arg(), "--history"])
            .arg(&history)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let text = format!("{descriptors} descriptors: {}: {said}", output.status);
        ensure!(output.status.code() == Some(3), "{text}");
        ensure!(said.lines().count() <= 2, "{text}");
        let left = std::fs::read_dir(pins.dir()).map_or(0, Iterator::count);
        ensure!(left == 0, "{left} pins are left; {text}");
        ensure!(!history.exists(), "a history is left; {text}");
        ensure!(!Path::new(SOCKET).exists(), "a socket is left; {text}");
    }
    Ok(())
}

fn a_file_of_another_kind_is_no_history() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for (name, text) in [
        ("notes.txt", "important notes of somebody\n"),
        ("short", "x"),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, text)?;
        let output = Command::new(dmtrace_bin()?)
            .args(["serve", "--history"])
            .arg(&path)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let wanted = format!(
            "dmtrace: {}: is no history; give another name\n",
            path.display()
        );
        ensure!(said == wanted, "{said}");
        ensure!(output.status.code() == Some(2), "{}", output.status);
        ensure!(
            std::fs::read_to_string(&path)? == text,
            "{name} has changed"
        );
    }
    ensure!(std::fs::read_dir(dir.path())?.count() == 2, "more files");
    Ok(())
}

/// `dmtrace` where another user can start it.
fn shared_program() -> Result<(tempfile::TempDir, std::path::PathBuf)> {
    let dir = tempfile::Builder::new()
        .prefix("dmtrace")
        .tempdir_in("/tmp")?;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
    let path = dir.path().join("dmtrace");
    std::fs::copy(dmtrace_bin()?, &path)?;
    Ok((dir, path))
}

fn only_root() -> Result<()> {
    let service = Service::start(&[])?;
    let meta = std::fs::metadata(SOCKET)?;
    ensure!(meta.mode() & 0o777 == 0o600, "mode {:o}", meta.mode());
    let (_dir, program) = shared_program()?;
    let refused = status_as(Command::new(program).uid(SOMEBODY).gid(GROUP));
    ensure!(refused.is_err(), "anybody may ask: {refused:?}");
    service.status()?;
    Ok(())
}

fn members_of_the_group() -> Result<()> {
    let service = Service::start(&["--group", &GROUP.to_string()])?;
    let (_dir, program) = shared_program()?;
    let meta = std::fs::metadata(SOCKET)?;
    ensure!(
        meta.gid() == GROUP && meta.mode() & 0o777 == 0o660,
        "{meta:?}"
    );
    let status = status_as(Command::new(&program).uid(SOMEBODY).gid(GROUP))?;
    ensure!(status["pid"] == service.pid(), "{status}");
    let refused = status_as(Command::new(&program).uid(SOMEBODY).gid(SOMEBODY));
    ensure!(refused.is_err(), "not a member: {refused:?}");
    // The maps of the trace, and what else lies there, stay root's.
    let listed = Command::new("ls")
        .uid(SOMEBODY)
        .gid(GROUP)
        .arg("/run/dmtrace")
        .output()?;
    ensure!(!listed.status.success(), "the directory can be listed");
    Ok(())
}

/// The file's mode is opened for all, as an administrator may do by mistake.
fn handed_on() -> Result<()> {
    let service = Service::start(&["--group", &GROUP.to_string()])?;
    std::fs::set_permissions(SOCKET, std::fs::Permissions::from_mode(0o666))?;
    let (_dir, program) = shared_program()?;
    let refused = status_as(Command::new(program).uid(SOMEBODY).gid(SOMEBODY));
    let error = format!("{:#}", refused.err().context("anybody may ask")?);
    ensure!(error.contains("only root"), "{error}");
    let status = service.status()?;
    ensure!(status["requests"]["refused"] == 1, "{status}");
    Ok(())
}

fn anything_may_be_sent() -> Result<()> {
    let service = Service::start(&[])?;
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..300 {
        let mut stream = UnixStream::connect(SOCKET)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let length = (random() % 3000) as usize;
        let mut bytes: Vec<u8> = (0..length).map(|_| random() as u8).collect();
        if round % 3 == 0 {
            // Almost right.
            bytes = b"{\"request\":\"status\"}\n".to_vec();
            let at = (random() as usize) % bytes.len();
            bytes[at] ^= 1 << (random() % 8);
        }
        // It may hang up before everything is written.
        let _refused = stream.write_all(&bytes);
        let _refused = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _refused = (&mut stream).take(1 << 20).read_to_end(&mut answer);
        ensure!(answer.len() < 1 << 20, "an answer without an end");
    }
    let status = service.status()?;
    ensure!(status["pid"] == service.pid(), "{status}");
    ensure!(
        status["requests"]["refused"].as_u64() >= Some(250),
        "{}",
        status["requests"]
    );
    Ok(())
}

/// More connections than it talks to at once, all of them silent.
fn silent_clients_do_not_block_others() -> Result<()> {
    let service = Service::start(&[])?;
    let connections: Vec<UnixStream> = (0..20)
        .map(|_| UnixStream::connect(SOCKET))
        .collect::<Result<_, _>>()?;
    let status = service.status()?;
    ensure!(
        status["requests"]["refused"].as_u64() >= Some(8),
        "nobody was hung up on: {}",
        status["requests"]
    );
    drop(connections);
    Ok(())
}
