//! The same key in several namespaces; namespaces without a process; sessions that let go.

use std::{
    ffi::CString,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use dmtrace::host::{
    self, HostError, NsSession, Roots, Scope, Search, namespaces, processes, semaphores,
};
use dmtrace_core::{
    facts::NsHolder,
    ids::{IpcNs, Key},
};
use dmtrace_tests::harness::{RunningActor, TestNeed, Trial, new_trial, ns_of, start_actor};

use crate::{become_nobody, ns_in, set_in};

const NEEDS: &[TestNeed] = &[TestNeed::Root, TestNeed::IpcNamespaces];

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial("the_same_key_in_two_namespaces", NEEDS, same_key),
        new_trial(
            "a_namespace_pinned_by_a_descriptor",
            NEEDS,
            a_namespace_pinned_by_a_descriptor,
        ),
        new_trial(
            "a_namespace_pinned_by_a_mount",
            NEEDS,
            a_namespace_pinned_by_a_mount,
        ),
        new_trial(
            "a_namespace_of_one_thread",
            NEEDS,
            a_namespace_of_one_thread,
        ),
        new_trial(
            "a_refused_namespace_is_an_error_with_a_fix",
            NEEDS,
            a_refused_namespace_is_an_error_with_a_fix,
        ),
        new_trial(
            "reading_does_not_keep_a_namespace",
            NEEDS,
            reading_does_not_keep_a_namespace,
        ),
    ]
}

/// An actor in a namespace of its own that holds a cookie of value 2, and that namespace.
fn start_holder(key: u32) -> anyhow::Result<(RunningActor, u32, i32)> {
    let key = key.to_string();
    let args = [
        "cycle",
        "--new-ipc-ns",
        "--key",
        &key,
        "--stop-at",
        "after-inc",
        "--how",
        "hold",
    ];
    let mut running = start_actor(&args)?;
    let ns = u32::try_from(running.read_until("namespace")?.number("ns")?)?;
    let semid = running.read_until("armed")?.semid()?;
    Ok((running, ns, semid))
}

fn value_in(
    snapshot: &dmtrace_core::facts::Snapshot,
    ns: u32,
    semid: i32,
) -> anyhow::Result<(Key, i32)> {
    let set = set_in(ns_in(snapshot, ns)?, semid).context("no set")?;
    Ok((set.key, set.first.context("not read")?.value))
}

fn same_key() -> anyhow::Result<()> {
    let mut here = start_actor(&["create"])?;
    let created = here.read_until("set")?;
    let key = created.key()?;
    here.read_to_end()?;
    let (there, ns, semid) = start_holder(key)?;
    let snapshot = host::take_snapshot(&Scope::default());
    let own = ns_of("thread-self")?;
    ensure!(value_in(&snapshot, own, created.semid()?)? == (Key(key), 1));
    ensure!(value_in(&snapshot, ns, semid)? == (Key(key), 2));
    let expected = NsHolder::Processes {
        count: 1,
        first: there.pid(),
    };
    let found = &ns_in(&snapshot, ns)?.holder;
    ensure!(*found == expected, "{found:?}");
    ensure!(snapshot.namespaces[0].ns == IpcNs(own) || own != IpcNs::HOST.0);
    ensure!(snapshot.unreadable.is_empty(), "{:?}", snapshot.unreadable);
    Ok(())
}

fn a_namespace_pinned_by_a_descriptor() -> anyhow::Result<()> {
    let (mut maker, ns, semid) = start_holder(0x0d4d_fd01)?;
    let path = format!("/proc/{}/ns/ipc", maker.pid());
    let mut pin = start_actor(&["hold-file", "--path", &path, "--hold"])?;
    pin.read_until("holding")?;
    maker.kill_group();
    let snapshot = host::take_snapshot(&Scope::default());
    ensure!(value_in(&snapshot, ns, semid)? == (Key(0x0d4d_fd01), 2));
    let found = &ns_in(&snapshot, ns)?.holder;
    ensure!(
        *found == NsHolder::Descriptor { pid: pin.pid() },
        "{found:?}"
    );
    pin.kill_group();
    is_gone(ns)
}

fn a_namespace_pinned_by_a_mount() -> anyhow::Result<()> {
    let (mut maker, ns, semid) = start_holder(0x0d4d_0301)?;
    let dir = tempfile::tempdir()?;
    let point = dir.path().join("a pin");
    File::create(&point)?;
    let mounted = Mount::bind(&format!("/proc/{}/ns/ipc", maker.pid()), &point)?;
    maker.kill_group();
    let snapshot = host::take_snapshot(&Scope::default());
    let found = ns_in(&snapshot, ns).map(|read| read.holder.clone());
    let state = value_in(&snapshot, ns, semid);
    drop(mounted);
    ensure!(state? == (Key(0x0d4d_0301), 2));
    let path = point.display().to_string();
    ensure!(found? == NsHolder::Mount { path });
    is_gone(ns)
}

fn a_namespace_of_one_thread() -> anyhow::Result<()> {
    let mut odd = start_actor(&["odd-thread", "--new-ipc-ns"])?;
    let ns = u32::try_from(odd.read_until("thread-namespace")?.number("ns")?)?;
    let semid = odd.read_until("set")?.semid()?;
    ensure!(
        ns_of(&odd.pid().to_string())? != ns,
        "the leader is in it too"
    );
    let snapshot = host::take_snapshot(&Scope::default());
    ensure!(value_in(&snapshot, ns, semid)?.1 == 1);
    let expected = NsHolder::Processes {
        count: 1,
        first: odd.pid(),
    };
    let found = &ns_in(&snapshot, ns)?.holder;
    ensure!(*found == expected, "{found:?}");
    Ok(())
}

fn a_refused_namespace_is_an_error_with_a_fix() -> anyhow::Result<()> {
    let (_maker, ns, _) = start_holder(0x0d4d_0501)?;
    let roots = Roots::host();
    let list = processes::list_processes(&roots);
    let found = namespaces::discover_namespaces(&roots, &list, Search::default());
    let target = found.namespaces.iter().find(|found| found.ns.0 == ns);
    let target = target.context("not found")?;
    let error = std::thread::scope(|threads| {
        let reader = threads.spawn(|| {
            become_nobody()?;
            anyhow::Ok(NsSession::enter(target).err())
        });
        reader.join().map_err(|_| anyhow::anyhow!("panicked"))?
    })?;
    let text = error.context("entered")?.to_string();
    let expected = format!("IPC namespace {ns}: cannot enter: ");
    ensure!(
        text.starts_with(&expected) && text.contains("run as root"),
        "{text}"
    );
    Ok(())
}

fn reading_does_not_keep_a_namespace() -> anyhow::Result<()> {
    let (mut maker, ns, semid) = start_holder(0x0d4d_0401)?;
    let roots = Roots::host();
    let session = NsSession::find(&roots, IpcNs(ns))?;
    maker.kill_group();
    let set = session.run(move |inside| semaphores::read_one(inside, semid))??;
    ensure!(set.is_some(), "the session does not keep its namespace");
    drop(session);
    is_gone(ns)?;
    let error = NsSession::find(&roots, IpcNs(ns)).err();
    ensure!(matches!(error, Some(HostError::Gone { .. })), "{error:?}");
    Ok(())
}

/// Whether nothing leads to a namespace any more; processes of other tests come and go, so the
/// number could only be ours.
fn is_gone(ns: u32) -> anyhow::Result<()> {
    let patience = Instant::now() + Duration::from_secs(10);
    loop {
        let snapshot = host::take_snapshot(&Scope::default());
        if ns_in(&snapshot, ns).is_err() && !snapshot.unreadable.iter().any(|(at, _)| at.0 == ns) {
            return Ok(());
        }
        ensure!(Instant::now() < patience, "namespace {ns} is still there");
    }
}

/// A bind mount that is undone.
struct Mount(CString);

impl Mount {
    fn bind(from: &str, to: &Path) -> anyhow::Result<Self> {
        ensure!(fs::metadata(from)?.ino() > 0);
        let from = CString::new(from)?;
        let to = CString::new(to.as_os_str().as_encoded_bytes())?;
        // SAFETY: two C strings that outlive the call; a bind mount takes neither type nor data.
        let result = unsafe {
            libc::mount(
                from.as_ptr(),
                to.as_ptr(),
                std::ptr::null(),
                libc::MS_BIND,
                std::ptr::null(),
            )
        };
        ensure!(
            result == 0,
            "bind mount: {}",
            std::io::Error::last_os_error()
        );
        Ok(Self(to))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // SAFETY: a C string that outlives the call.
        unsafe { libc::umount2(self.0.as_ptr(), libc::MNT_DETACH) };
    }
}
