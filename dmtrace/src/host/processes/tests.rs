//! The process list, of fake hosts and of this one.

use std::{
    os::unix::{fs::symlink, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
};

use proptest::prelude::*;

use super::*;

const LINE: &[u8] = b"814 (a) R 1 (b) S 7 814 800 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 3 0 1234 5 6\n";

fn fake_host(dir: &Path) -> Roots {
    fs::create_dir_all(dir.join("proc/self/ns")).unwrap();
    symlink("pid:[4026531836]", dir.join("proc/self/ns/pid")).unwrap();
    Roots::below(dir)
}

fn add_process(dir: &Path, pid: u32, stat: &[u8]) {
    let at = dir.join(format!("proc/{pid}"));
    fs::create_dir_all(at.join("ns")).unwrap();
    fs::write(at.join("stat"), stat).unwrap();
    symlink("ipc:[4026531839]", at.join("ns/ipc")).unwrap();
}

#[test]
fn names_may_imitate_the_format() {
    let stat = Stat::parse(LINE).unwrap();
    assert_eq!(stat.comm, "a) R 1 (b");
    assert_eq!((stat.ppid, stat.session), (7, 800));
    assert_eq!((stat.threads, stat.start_ticks), (3, 1234));
}

#[test]
fn zombies_are_not_alive_unless_a_thread_lives() {
    let dir = tempfile::tempdir().unwrap();
    let roots = fake_host(dir.path());
    let zombie = |threads| {
        format!("9 (z) Z 1 9 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 {threads} 0 77 0 0").into_bytes()
    };
    add_process(dir.path(), 9, &zombie(1));
    add_process(dir.path(), 10, &zombie(2));
    let task = dir.path().join("proc/10/task/11");
    fs::create_dir_all(&task).unwrap();
    fs::write(task.join("stat"), LINE).unwrap();
    add_process(dir.path(), 814, LINE);
    let list = list_processes(&roots);
    assert_eq!(list.incomplete, None);
    assert_eq!(list.processes.keys().collect::<Vec<_>>(), [&10, &814]);
    assert_eq!(list.processes[&814].live.ipc_ns, Some(IpcNs::HOST));
}

/// What has no memory runs no program; where another thread has some, that one counts.
#[test]
fn a_process_is_ending_once_no_thread_has_memory() {
    let dir = tempfile::tempdir().unwrap();
    let roots = fake_host(dir.path());
    let stat = |state: char, flags: u32, threads: u32, memory: u64| {
        format!("9 (a) {state} 1 9 9 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 {threads} 0 77 {memory} 0")
    };
    let add_thread = |pid: u32, tid: u32, stat: &str| {
        let task = dir.path().join(format!("proc/{pid}/task/{tid}"));
        fs::create_dir_all(&task).unwrap();
        fs::write(task.join("stat"), stat).unwrap();
    };
    add_process(dir.path(), 20, stat('R', 0, 1, 4096).as_bytes());
    add_process(dir.path(), 21, stat('R', 0, 1, 0).as_bytes());
    add_process(dir.path(), 22, stat('S', PF_KTHREAD, 1, 0).as_bytes());
    add_process(dir.path(), 23, stat('R', 0, 2, 0).as_bytes());
    add_thread(23, 23, &stat('R', 0, 2, 0));
    add_thread(23, 33, &stat('S', 0, 2, 4096));
    add_process(dir.path(), 24, stat('R', 0, 2, 0).as_bytes());
    add_thread(24, 24, &stat('R', 0, 2, 0));
    add_thread(24, 34, &stat('D', 0, 2, 0));
    let list = list_processes(&roots);
    let told = list.processes.iter();
    let told: Vec<_> = told
        .map(|(&pid, it)| (pid, it.live.ending, it.instead))
        .collect();
    let expected = [
        (20, false, None),
        (21, true, None),
        (22, false, None),
        (23, false, Some(33)),
        (24, true, None),
    ];
    assert_eq!(told, expected);
}

/// A line of a process with this memory, whose environment ends there.
pub(in crate::host) fn stat_line(memory: u64, environment_end: u64) -> String {
    let rest = "0 ".repeat(27);
    format!("9 (a) S 1 9 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 77 {memory} {rest}{environment_end} 0\n")
}

/// `execve` gives a process its new name before its arguments and its environment.
#[test]
fn who_is_in_the_middle_of_execve_is_known_and_waited_for() {
    let of = |memory, end| Stat::parse(stat_line(memory, end).as_bytes()).unwrap();
    assert!(of(4096, 0).is_executing());
    assert!(!of(4096, 77).is_executing() && !of(0, 0).is_executing());
    assert!(!Stat::parse(LINE).unwrap().is_executing(), "nobody knows");
    let patience = || ExecPatience {
        pauses: 4,
        pause: Duration::ZERO,
    };
    let mut reads = 0;
    let mut count = |until: u32, patience: &mut ExecPatience| {
        reads = 0;
        let read = || {
            reads += 1;
            Ok(reads)
        };
        patience.read_settled(read, |&it| it >= until).unwrap()
    };
    assert_eq!(count(1, &mut patience()), 1);
    assert_eq!(count(3, &mut patience()), 3);
    let mut short = patience();
    assert_eq!(count(9, &mut short), 4, "not for ever");
    assert_eq!(count(9, &mut short), 2, "all together not for ever either");
    assert_eq!(count(9, &mut short), 1);
}

#[test]
fn hidepid_and_foreign_pid_namespaces_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let roots = fake_host(dir.path());
    add_process(dir.path(), 814, LINE);
    let proc = roots.proc.display();
    let mounts = format!("25 1 0:22 / {proc} rw,nosuid - proc proc rw,hidepid=invisible\n");
    let this = dir.path().join("proc/self");
    fs::write(this.join("mountinfo"), mounts).unwrap();
    fs::write(this.join("status"), "CapEff:\t0000000000000000\n").unwrap();
    assert!(
        list_processes(&roots)
            .incomplete
            .unwrap()
            .contains("hidepid")
    );
    fs::write(this.join("status"), "CapEff:\t000001ffffffffff\n").unwrap();
    assert_eq!(list_processes(&roots).incomplete, None);
    fs::remove_file(this.join("ns/pid")).unwrap();
    symlink("pid:[4026532000]", this.join("ns/pid")).unwrap();
    assert!(
        list_processes(&roots)
            .incomplete
            .unwrap()
            .contains("PID namespace")
    );
}

#[test]
fn a_missing_proc_is_incomplete() {
    let dir = tempfile::tempdir().unwrap();
    assert!(
        list_processes(&Roots::below(dir.path()))
            .incomplete
            .is_some()
    );
}

#[test]
fn the_real_list_has_us_and_no_zombie() {
    let mut child = Command::new("true")
        .arg0("dmtrace-zombie")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let roots = Roots::host();
    while !read_stat(&roots, child.id()).unwrap().is_dead() {
        thread::yield_now();
    }
    let list = list_processes(&roots);
    let us = &list.processes[&std::process::id()];
    assert!(us.live.ipc_ns.is_some());
    assert!(!list.processes.contains_key(&child.id()));
    child.wait().unwrap();
}

proptest! {
    #[test]
    fn no_line_panics(line: Vec<u8>) {
        let _parsed = Stat::parse(&line);
    }
}
