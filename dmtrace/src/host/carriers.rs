//! Processes that carry a cookie: it is a number, and scripts pass it on.
//!
//! `dmsetup udevcreatecookie` exits and leaves the cookie to a shell, which hands it to later
//! `dmsetup` processes by `DM_UDEV_COOKIE` or `--udevcookie`. Only the environment that a program
//! was *started* with is visible: a variable that a shell exported later shows in its children,
//! not in the shell.

mod arguments;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use arguments::{in_arguments, in_environment};
use dmtrace_core::ids::Key;

use super::{
    Roots,
    processes::{self, ExecPatience, ProcessList, RunningProcess, Stat},
    roots::READ_AT_ONCE,
};
use crate::wording::cause_text;

/// Who carries which cookie.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Carriers {
    /// By cookie.
    pub carriers: BTreeMap<Key, Vec<u32>>,
    /// Processes that could not be read.
    pub unread: Vec<u32>,
    /// Why carriers may be missing.
    pub incomplete: Option<String>,
}

/// Looks at the environment and the arguments of every process.
pub fn find_carriers(roots: &Roots, list: &ProcessList) -> Carriers {
    let mut out = Carriers::default();
    let mut missed: Vec<u32> = Vec::new();
    let mut patience = ExecPatience::default();
    for (&pid, process) in &list.processes {
        if !out.look_at(roots, pid, process, &mut patience) {
            missed.push(pid);
        }
    }
    let mut seen: BTreeSet<u32> = list.processes.keys().copied().collect();
    seen.extend(&list.ended);
    let missed = processes::look_for_children(roots, missed, &mut seen, |pid| {
        let now = processes::read_process(roots, pid);
        matches!(now, Ok(Some(process)) if out.look_at(roots, pid, &process, &mut patience))
    });
    out.incomplete = out.incomplete.or(missed);
    if let Some(cause) = &list.incomplete {
        out.incomplete.get_or_insert_with(|| cause.clone());
    }
    out
}

impl Carriers {
    /// Tells whether it was there.
    fn look_at(
        &mut self,
        roots: &Roots,
        pid: u32,
        process: &RunningProcess,
        patience: &mut ExecPatience,
    ) -> bool {
        if process.kernel {
            return true;
        }
        const TRIES: usize = 4;
        let mut read = keys_of(roots, pid, process, patience);
        // Its leader may have ended since it was listed, or a thread of it may have taken its place.
        for tries in 1..=TRIES {
            if !read.as_ref().is_err_and(processes::is_gone) {
                break;
            }
            let now = match processes::read_process(roots, pid) {
                Ok(Some(now)) if !now.live.ending => now,
                _ => break,
            };
            read = match keys_of(roots, pid, &now, patience) {
                Err(error) if tries == TRIES && processes::is_gone(&error) => {
                    let why = "its threads take each other's place";
                    Err(io::Error::new(io::ErrorKind::ResourceBusy, why))
                }
                read => read,
            };
        }
        match read {
            Ok(keys) => {
                for key in keys {
                    self.carriers.entry(key).or_default().push(pid);
                }
            }
            Err(error) if processes::is_gone(&error) => return false,
            // Init started before the first cookie; only a sandbox forbids root to look at it.
            Err(_) if pid == 1 => {}
            Err(error) => {
                self.unread.push(pid);
                self.incomplete.get_or_insert_with(|| {
                    let fix = match error.kind() {
                        io::ErrorKind::PermissionDenied => "run as root",
                        io::ErrorKind::ResourceBusy => "try again",
                        _ => "look at the process",
                    };
                    let cause = cause_text(&error);
                    format!("cookies carried by process {pid}: {cause}; {fix}")
                });
            }
        }
        true
    }
}

/// The environment and the arguments of a process, as far as they are there.
struct Blocks {
    environment: Vec<u8>,
    arguments: Vec<u8>,
    /// Whether there is no more than that.
    settled: bool,
}

fn read_blocks(roots: &Roots, pid: u32, process: &RunningProcess) -> io::Result<Blocks> {
    let stat = || -> io::Result<Stat> {
        let line = roots.read_proc(process.proc_file(pid, "stat"))?;
        let stat = Stat::parse(&line).filter(|it| it.memory_bytes > 0);
        stat.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
    };
    let read = |settled: bool| -> io::Result<Blocks> {
        let read = |file: &str| roots.read_memory(process.proc_file(pid, file));
        Ok(Blocks {
            environment: read("environ")?,
            arguments: read("cmdline")?,
            settled,
        })
    };
    let blocks = read(true)?;
    let is_whole = |block: &[u8]| (1..READ_AT_ONCE).contains(&block.len());
    if is_whole(&blocks.environment) && is_whole(&blocks.arguments) {
        return Ok(blocks);
    }
    // Memory that is gone is shown as empty (`mmget_not_zero` in `environ_read`), and what is still
    // to be made as well. A large block may lack its end for the same reason.
    let before = stat()?;
    let blocks = read(!before.is_executing())?;
    let same = before.is_same_program(&stat()?);
    Ok(Blocks {
        settled: blocks.settled && same,
        ..blocks
    })
}

/// Cookies that a process carries.
fn keys_of(
    roots: &Roots,
    pid: u32,
    process: &RunningProcess,
    patience: &mut ExecPatience,
) -> io::Result<BTreeSet<Key>> {
    let read = || read_blocks(roots, pid, process);
    let blocks = patience.read_settled(read, |it| it.settled)?;
    if !blocks.settled {
        let why = "it is starting a program";
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
    }
    let mut keys: BTreeSet<Key> = in_environment(&blocks.environment).into_iter().collect();
    keys.extend(in_arguments(&blocks.arguments));
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::{fs::symlink, process::CommandExt as _},
        process::Command,
    };

    use dmtrace_core::ids::IpcNs;
    use proptest::prelude::*;

    use super::*;
    use crate::host::processes::tests::stat_line;

    const KEY: Key = Key(0x0d4d_beef);

    #[test]
    fn a_child_that_carries_a_cookie_is_found() {
        let mut child = Command::new("sleep")
            .arg("60")
            .env("DM_UDEV_COOKIE", "0x0d4dbeef")
            .spawn()
            .unwrap();
        let roots = Roots::host();
        // Between fork and exec the environment is still ours.
        let found = (0..1000).find_map(|_| {
            let found = find_carriers(&roots, &processes::list_processes(&roots));
            let pids = found.carriers.get(&KEY)?;
            pids.contains(&child.id()).then_some(())
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.is_some());
    }

    /// What the kernel shows of a process whose first thread has ended: nothing, but at the others.
    #[test]
    fn a_process_whose_leader_has_ended_is_read_at_a_living_thread() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join("proc").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let stat = |tid: u32, state: char| {
            let memory = if state == 'Z' { 0 } else { 4096 };
            format!("{tid} (c) {state} 1 7 7 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 2 0 99 {memory} 0\n")
        };
        write("7/stat", &stat(7, 'Z'));
        write("7/environ", "");
        write("7/cmdline", "");
        write("7/task/7/stat", &stat(7, 'Z'));
        write("7/task/8/stat", &stat(8, 'S'));
        write("7/task/8/environ", "A=b\0DM_UDEV_COOKIE=0x0d4dbeef\0");
        write("7/task/8/cmdline", "dmsetup\0--udevcookie\x000xd4d0001\0");
        let namespace = dir.path().join("proc/7/task/8/ns");
        fs::create_dir_all(&namespace).unwrap();
        symlink("ipc:[4026531839]", namespace.join("ipc")).unwrap();
        let roots = Roots::below(dir.path());
        let list = processes::list_processes(&roots);
        assert_eq!(list.processes[&7].live.ipc_ns, Some(IpcNs::HOST));
        assert!(list.processes[&7].live.command.is_some());
        let found = find_carriers(&roots, &list);
        assert_eq!(found.carriers[&KEY], [7]);
        assert_eq!(found.carriers[&Key(0x0d4d_0001)], [7]);
        // It may end between the two.
        write("7/stat", &stat(7, 'S'));
        let before = processes::list_processes(&roots);
        assert_eq!(before.processes[&7].instead, None);
        write("7/stat", &stat(7, 'Z'));
        assert_eq!(find_carriers(&roots, &before).carriers[&KEY], [7]);
    }

    /// In the middle of `execve` a process shows nothing, and may carry anything.
    #[test]
    fn a_process_that_starts_a_program_is_not_called_read() {
        let dir = tempfile::tempdir().unwrap();
        let find = |memory: u64, environment_end: u64| {
            let at = dir.path().join("proc/9");
            fs::create_dir_all(at.join("ns")).unwrap();
            fs::write(at.join("stat"), stat_line(memory, environment_end)).unwrap();
            fs::write(at.join("environ"), "").unwrap();
            fs::write(at.join("cmdline"), "").unwrap();
            let _again = symlink("ipc:[4026531839]", at.join("ns/ipc"));
            let roots = Roots::below(dir.path());
            let mut list = processes::list_processes(&roots);
            // Of that this host has no namespace of its own.
            list.incomplete = None;
            let found = find_carriers(&roots, &list);
            (found.unread, found.incomplete)
        };
        let (unread, why) = find(4096, 0);
        assert_eq!(unread, [9]);
        let said = "cookies carried by process 9: it is starting a program; try again";
        assert_eq!(why.as_deref(), Some(said));
        assert_eq!(find(4096, 77), (Vec::new(), None), "it has no arguments");
        assert_eq!(find(0, 0), (Vec::new(), None), "it is ending");
    }

    /// The same, with the real thing.
    #[test]
    fn a_carrier_that_runs_one_program_after_the_other_is_found_or_missed_aloud() {
        const AGAIN: &str = "exec sh -c \"$1\" sh \"$1\"";
        let mut child = Command::new("sh")
            .args(["-c", AGAIN, "sh", AGAIN])
            .env("DM_UDEV_COOKIE", "0xd4dbeef")
            .spawn()
            .unwrap();
        let pid = child.id();
        let roots = Roots::host();
        let quiet = (0..300).find(|_| {
            let list = processes::list_processes(&roots);
            let found = find_carriers(&roots, &list);
            let told = found.carriers.get(&KEY).is_some_and(|it| it.contains(&pid));
            !told && !found.unread.contains(&pid)
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(quiet, None);
    }

    /// Takes what has ended of a process group: not every init does.
    fn reap_group(group: i32) {
        // SAFETY: numbers, and no status is wanted.
        while unsafe { libc::waitpid(-group, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
    }

    /// It hands its environment on and ends, over and over: each list may miss it.
    #[test]
    fn a_carrier_that_forks_and_ends_is_found_or_missed_aloud() {
        // SAFETY: takes integers only. What is left of the chain comes to this process.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
        for pause in ["0.00005", "0.001"] {
            let hop = format!(
                "for (1..1000000) {{ exit if fork; select(undef, undef, undef, {pause}) }}"
            );
            let mut first = Command::new("perl")
                .args(["-e", &hop])
                .env("DM_UDEV_COOKIE", "0x0d4dbea7")
                .process_group(0)
                .spawn()
                .unwrap();
            let group = i32::try_from(first.id()).unwrap();
            first.wait().unwrap();
            let roots = Roots::host();
            let missed = (0..50).find(|_| {
                reap_group(group);
                let found = find_carriers(&roots, &processes::list_processes(&roots));
                !found.carriers.contains_key(&Key(0x0d4d_bea7)) && found.incomplete.is_none()
            });
            // SAFETY: two numbers; 0 asks only. The group is there as long as a hop is.
            let was_there = unsafe { libc::killpg(group, 0) } == 0;
            for _ in 0..10_000 {
                // SAFETY: two numbers.
                if unsafe { libc::killpg(group, libc::SIGKILL) } != 0 {
                    break;
                }
                reap_group(group);
            }
            assert!(was_there, "the chain has ended too early to tell");
            assert_eq!(missed, None, "pause {pause}");
        }
    }

    /// A process may set its environment to memory of any size.
    #[test]
    fn an_environment_of_any_size_costs_a_bounded_amount() {
        let dir = tempfile::tempdir().unwrap();
        let proc = dir.path().join("proc/9");
        fs::create_dir_all(&proc).unwrap();
        let stat = "9 (large) S 1 9 9 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 99 0 0\n";
        fs::write(proc.join("stat"), stat).unwrap();
        fs::write(proc.join("cmdline"), "large\0").unwrap();
        let file = fs::File::create(proc.join("environ")).unwrap();
        file.set_len(1 << 40).unwrap();
        let roots = Roots::below(dir.path());
        let found = find_carriers(&roots, &processes::list_processes(&roots));
        assert_eq!(found.unread, [9]);
        let why = found.incomplete.unwrap();
        assert!(why.contains("process 9: its environment"), "{why}");
    }

    proptest! {
        #[test]
        fn no_block_panics(block: Vec<u8>) {
            let _keys = (in_environment(&block), in_arguments(&block));
        }
    }
}
