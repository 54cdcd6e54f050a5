//! A process image from `/proc`, for processes that the tracer did not see start.

use std::{fs, os::unix::ffi::OsStrExt, os::unix::fs::MetadataExt, path::Path};

use dmtrace_core::{
    event::{Ancestor, ProcessImage},
    ids::{BootTime, IpcNs, ProcId},
};
use procfs::{FromRead, process::Status};

use super::{
    Roots, clock,
    processes::{self, Stat},
    text::{parse_arguments, printable},
};

/// Ancestors that are kept, as `PARENTS` in the probes.
const PARENTS_MAX: usize = dmtrace_common::PARENTS;

/// The image of `id` if that very process is alive; what may not be read stays empty.
///
/// `exec` is 0: the count of `execve` calls is not in `/proc`. The start is that of field 22 of
/// `/proc/PID/stat`, so it has its resolution of 10 ms; use [`ProcId::start_ticks`] to compare.
pub fn image_if_alive(roots: &Roots, id: ProcId) -> Option<ProcessImage> {
    let image = image_of(roots, id.tgid)?;
    (image.id.start_ticks() == id.start_ticks()).then_some(image)
}

/// The image of whatever process has this number now.
pub fn image_of(roots: &Roots, pid: u32) -> Option<ProcessImage> {
    let before = live_stat(roots, pid)?;
    let link = |name: &str| fs::read_link(roots.proc_path(format!("{pid}/{name}"))).ok();
    let inode = |name: &str| link(name).and_then(|link| ns_number(&link)).unwrap_or(0);
    let (exe, exe_deleted) = link("exe").map_or((None, false), |path| parse_executable(&path));
    let line = roots
        .read_patiently(format!("{pid}/cmdline"))
        .unwrap_or_default();
    let (cmdline, cmdline_cut) = parse_arguments(&line);
    let status = roots
        .read_proc(format!("{pid}/status"))
        .ok()
        .and_then(|text| Status::from_read(&text[..]).ok());
    let cgroup = roots
        .read_proc(format!("{pid}/cgroup"))
        .map_or_else(|_| String::new(), |text| cgroup_of(&text));
    let image = ProcessImage {
        descendant: false,
        id: proc_id(pid, &before),
        exec: 0,
        seen: clock::boot_now(),
        comm: before.comm.clone(),
        exe,
        exe_deleted,
        cmdline,
        cmdline_cut,
        uid: status.as_ref().map_or(0, |status| status.ruid),
        gid: status.as_ref().map_or(0, |status| status.rgid),
        ns_pid: status
            .and_then(|status| status.nspid?.last().copied())
            .and_then(|last| u32::try_from(last).ok())
            .unwrap_or(pid),
        pid_ns: inode("ns/pid"),
        ipc_ns: IpcNs(inode("ns/ipc")),
        mnt_ns: inode("ns/mnt"),
        cgroup_id: cgroup_id(roots, &cgroup),
        cgroup,
        parents: read_parents(roots, before.ppid),
    };
    // Everything above may be of the next process with this number, unless it is still the same.
    (live_stat(roots, pid)?.start_ticks == before.start_ticks).then_some(image)
}

/// Start of whatever process has this number now, clock ticks since boot.
pub fn start_ticks(roots: &Roots, pid: u32) -> Option<u64> {
    live_stat(roots, pid).map(|stat| stat.start_ticks)
}

fn live_stat(roots: &Roots, pid: u32) -> Option<Stat> {
    let stat = processes::read_stat(roots, pid).ok()?;
    (!stat.is_dead() || stat.threads > 1).then_some(stat)
}

fn proc_id(tgid: u32, stat: &Stat) -> ProcId {
    ProcId {
        tgid,
        start: BootTime(stat.start_ticks.saturating_mul(10_000_000)),
    }
}

/// Numbers of the processes that this one was started from, the nearest first.
pub(crate) fn own_ancestors() -> Vec<u32> {
    let parent = std::os::unix::process::parent_id();
    let parents = read_parents(&Roots::host(), parent).into_iter();
    parents.map(|parent| parent.id.tgid).collect()
}

fn read_parents(roots: &Roots, first: u32) -> Vec<Ancestor> {
    let mut out = Vec::new();
    let mut pid = first;
    while pid != 0 && out.len() < PARENTS_MAX {
        let Ok(stat) = processes::read_stat(roots, pid) else {
            break;
        };
        out.push(Ancestor {
            id: proc_id(pid, &stat),
            comm: stat.comm,
        });
        pid = stat.ppid;
    }
    out
}

/// Path of an executable and whether `d_path` marked it as unlinked.
fn parse_executable(path: &Path) -> (Option<String>, bool) {
    let bytes = path.as_os_str().as_bytes();
    match bytes.strip_suffix(b" (deleted)") {
        Some(path) => (Some(printable(path)), true),
        None => (Some(printable(bytes)), false),
    }
}

/// The path in the unified hierarchy; on a host with the old ones only, that of systemd or of the
/// first controller that tells more than `/`.
fn cgroup_of(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines = || {
        text.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            Some((fields.next()?, fields.next()?, fields.next()?))
        })
    };
    let telling = |path: &&str| *path != "/";
    let unified = lines().find(|&(id, names, _)| id == "0" && names.is_empty());
    let systemd = lines().find(|&(_, names, _)| names == "name=systemd");
    let chosen = unified
        .map(|line| line.2)
        .filter(telling)
        .or_else(|| systemd.map(|line| line.2).filter(telling))
        .or_else(|| lines().map(|line| line.2).find(telling))
        .unwrap_or("/");
    printable(chosen.as_bytes())
}

/// Inode number of the cgroup's directory, which is its identifier (`cgroup_id`).
fn cgroup_id(roots: &Roots, cgroup: &str) -> u64 {
    let inside = cgroup.strip_prefix('/').unwrap_or(cgroup);
    let unified = ["sys/fs/cgroup", "sys/fs/cgroup/unified"];
    let found = unified
        .into_iter()
        .map(|mount| roots.fs.join(mount))
        .find(|mount| mount.join("cgroup.controllers").exists())
        .and_then(|mount| fs::metadata(mount.join(inside)).ok());
    found.map_or(0, |meta| meta.ino())
}

fn ns_number(link: &Path) -> Option<u32> {
    let link = link.to_str()?;
    let (_, number) = link.split_once(":[")?;
    number.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_image() {
        let roots = Roots::host();
        let us = image_of(&roots, std::process::id()).unwrap();
        let exe = std::env::current_exe().unwrap();
        assert_eq!(us.exe.as_deref(), exe.to_str());
        assert_eq!(
            us.cmdline.as_ref().map(Vec::len),
            Some(std::env::args().count())
        );
        assert_eq!(Some(us.ipc_ns), crate::host::namespaces::own_ns());
        assert_eq!(us.parents[0].id.tgid, std::os::unix::process::parent_id());
        assert_eq!(image_if_alive(&roots, us.id).unwrap().id, us.id);
        let other = ProcId {
            start: BootTime(us.id.start.0 + 10_000_000),
            ..us.id
        };
        assert_eq!(image_if_alive(&roots, other), None);
        assert_eq!(image_of(&roots, u32::MAX), None);
    }

    #[test]
    fn cgroups_of_both_versions() {
        assert_eq!(
            cgroup_of(b"0::/system.slice/a.service\n"),
            "/system.slice/a.service"
        );
        assert_eq!(cgroup_of(b"0::/\n"), "/");
        assert_eq!(cgroup_of(b""), "/");
        let v1 = b"12:pids:/docker/1\n1:name=systemd:/docker/2\n0::/\n";
        assert_eq!(cgroup_of(v1), "/docker/2");
        assert_eq!(
            cgroup_of(b"4:memory:/\n3:cpu,cpuacct:/docker/3\n"),
            "/docker/3"
        );
    }

    #[test]
    fn command_lines() {
        assert_eq!(parse_arguments(b""), (None, false));
        let (line, cut) = parse_arguments(b"lvcreate\0-L\0\0");
        let expected = ["lvcreate", "-L", ""].map(String::from);
        assert_eq!((line.as_deref(), cut), (Some(&expected[..]), false));
        assert!(parse_arguments(&[b'x'; 5000]).1);
    }

    #[test]
    fn unlinked_executables() {
        let path = Path::new("/usr/bin/dockerd (deleted)");
        assert_eq!(
            parse_executable(path),
            (Some("/usr/bin/dockerd".to_owned()), true)
        );
    }
}
