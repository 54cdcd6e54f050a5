//! The process list.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io, thread,
    time::Duration,
};

use dmtrace_core::{event::CommandPrint, facts::LiveProcess, ids::IpcNs};

use super::{
    Roots, clock,
    text::{parse_arguments, parse_number, printable},
};
use crate::wording::cause_text;

/// Every live process, and whether that is all of them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ProcessList {
    /// By process number.
    pub processes: BTreeMap<u32, RunningProcess>,
    /// Others that were there, and had ended or did so before they were read.
    pub ended: BTreeSet<u32>,
    /// Why processes may be missing; `None` when the list is complete.
    pub incomplete: Option<String>,
}

/// A process with at least one live thread.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RunningProcess {
    /// What verdicts need of it.
    pub live: LiveProcess,
    /// Threads, those that have ended but are not yet reaped included.
    pub threads: u32,
    /// A thread of the kernel: it has no environment, no files and waits on no semaphore.
    pub kernel: bool,
    /// We lack the right to look at it (`ptrace_may_access`).
    pub hidden: bool,
    /// A thread that lives, where the leader has ended or is about to: memory, files and namespaces
    /// are shown at it only (`exit_mm`, `exit_files`, `exit_task_namespaces`).
    pub instead: Option<u32>,
    /// In the middle of `execve`: neither arguments nor environment are there.
    pub executing: bool,
}

impl RunningProcess {
    /// A file of the process below `/proc`, such as `environ`.
    pub(crate) fn proc_file(&self, pid: u32, file: &str) -> String {
        match self.instead {
            Some(tid) => format!("{pid}/task/{tid}/{file}"),
            None => format!("{pid}/{file}"),
        }
    }
}

/// The fields of `/proc/PID/stat` in use here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Stat {
    pub comm: String,
    pub state: u8,
    pub ppid: u32,
    pub session: u32,
    pub kernel: bool,
    pub threads: u32,
    pub start_ticks: u64,
    /// Address space: none is left of one that is ending (`exit_mm`), though it is no zombie yet.
    pub memory_bytes: u64,
    /// Where its environment ends; 0 until it is there, and to those who may not look at it. `None`
    /// before Linux 3.5.
    environment_end: Option<u64>,
}

/// `task_struct.flags`, the same in every kernel.
const PF_KTHREAD: u32 = 0x0020_0000;

impl Stat {
    /// From the one line of the file. The name may hold blanks and parentheses: it ends at the
    /// last one (`do_task_stat` escapes only newline and backslash).
    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        let open = line.iter().position(|&byte| byte == b'(')?;
        let close = line.iter().rposition(|&byte| byte == b')')?;
        let comm = line.get(open + 1..close)?;
        let mut fields = line
            .get(close + 1..)?
            .split(u8::is_ascii_whitespace)
            .filter(|field| !field.is_empty());
        // `nth` counts from where the previous one stopped; the comments give proc(5) numbers.
        let state = *fields.next()?.first()?; // 3
        let ppid = parse_number(fields.next()?)?; // 4
        let session = parse_number::<i64>(fields.nth(1)?)?; // 6
        let flags: u32 = parse_number(fields.nth(2)?)?; // 9
        let threads = parse_number(fields.nth(10)?)?; // 20
        let start_ticks = parse_number(fields.nth(1)?)?; // 22
        let memory_bytes: u64 = parse_number(fields.next()?)?; // 23
        let environment_end = fields.nth(27).and_then(parse_number); // 51
        Some(Self {
            comm: printable(comm),
            state,
            ppid,
            // -1 when the session leader is in another PID namespace.
            session: u32::try_from(session).unwrap_or(0),
            kernel: flags & PF_KTHREAD != 0,
            threads,
            start_ticks,
            memory_bytes,
            environment_end,
        })
    }

    /// Whether this thread has ended.
    pub(crate) const fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }

    /// Whether it is stopped by a signal, or traced.
    pub(super) const fn is_stopped(&self) -> bool {
        matches!(self.state, b'T' | b't')
    }

    /// Whether it is about to end: it returns to no program. What the kernel has made to become one
    /// (`call_usermodehelper`) has no memory either.
    pub(crate) const fn is_ending(&self) -> bool {
        self.memory_bytes == 0 && !self.kernel
    }

    /// Whether no `execve` has come in between, as far as it shows.
    pub(crate) fn is_same_program(&self, later: &Self) -> bool {
        self.environment_end == later.environment_end
    }

    /// Whether it is in the middle of `execve`, as far as it may be looked at.
    pub(super) const fn is_executing(&self) -> bool {
        self.memory_bytes > 0 && !self.kernel && matches!(self.environment_end, Some(0))
    }
}

/// Reads the list. A process that starts later than the call may be missing, one that ends during
/// the call may be present: a caller that asks "is the owner dead?" reads semaphores first.
pub fn list_processes(roots: &Roots) -> ProcessList {
    let mut out = ProcessList {
        incomplete: hidden_reason(roots),
        ..ProcessList::default()
    };
    let pids = match list_pids(roots) {
        Ok(pids) => pids,
        Err(error) => {
            let path = roots.proc.display();
            out.incomplete = Some(format!("{path}: {}; mount proc there", cause_text(&error)));
            return out;
        }
    };
    let mut patience = ExecPatience::default();
    let is_settled = |it: &Option<RunningProcess>| it.as_ref().is_none_or(|it| !it.executing);
    let mut read = |pid: u32| match patience.read_settled(|| read_process(roots, pid), is_settled) {
        Ok(Some(process)) => {
            out.processes.insert(pid, process);
            true
        }
        Ok(None) => false,
        Err(error) if is_gone(&error) => false,
        Err(error) => {
            out.incomplete.get_or_insert_with(|| {
                format!("process {pid}: {}; run as root", cause_text(&error))
            });
            true
        }
    };
    let missed = pids.iter().copied().filter(|&pid| !read(pid)).collect();
    let mut seen: BTreeSet<u32> = pids.into_iter().collect();
    let missed = look_for_children(roots, missed, &mut seen, read);
    out.incomplete = out.incomplete.or(missed);
    seen.retain(|pid| !out.processes.contains_key(pid));
    out.ended = seen;
    if out.processes.is_empty() && out.incomplete.is_none() {
        let path = roots.proc.display();
        out.incomplete = Some(format!("{path}: no process in it; mount proc there"));
    }
    out
}

/// Waits for processes in the middle of `execve`: such a one has its new name already, and neither
/// arguments nor environment yet (`begin_new_exec`, `create_elf_tables`).
pub(super) struct ExecPatience {
    pauses: u32,
    pause: Duration,
}

impl Default for ExecPatience {
    /// Nearly all take microseconds. One from a slow disk, or many at once, are not waited for.
    fn default() -> Self {
        Self {
            pauses: 50,
            pause: Duration::from_millis(1),
        }
    }
}

impl ExecPatience {
    /// Pauses at one process so often at most.
    const TRIES: usize = 3;

    /// Reads something until it is settled; what it is then may not be.
    pub(super) fn read_settled<T>(
        &mut self,
        mut read: impl FnMut() -> io::Result<T>,
        is_settled: impl Fn(&T) -> bool,
    ) -> io::Result<T> {
        let mut last = read()?;
        for _ in 0..Self::TRIES {
            if is_settled(&last) || self.pauses == 0 {
                break;
            }
            self.pauses -= 1;
            thread::sleep(self.pause);
            last = read()?;
        }
        Ok(last)
    }
}

/// How often processes that started meanwhile are looked for. New ones are the last of a list and are
/// read right after it: only one that lives for microseconds is missed again and again.
const ROUNDS: usize = 23;

/// Looks at processes that are not in `seen`, until none of them was missed. One that forks and ends
/// before it is looked at leaves a child that is in no list yet; children of those that were looked at
/// have no more than these had. `look` tells whether the process was there. Returns why some may be
/// missing all the same.
pub(super) fn look_for_children(
    roots: &Roots,
    mut missed: Vec<u32>,
    seen: &mut BTreeSet<u32>,
    mut look: impl FnMut(u32) -> bool,
) -> Option<String> {
    for _ in 0..ROUNDS {
        if missed.is_empty() {
            break;
        }
        let mut new = list_pids(roots).unwrap_or_default();
        new.retain(|pid| seen.insert(*pid));
        new.retain(|pid| !look(*pid));
        missed = new;
    }
    let last = missed.last()?;
    Some(format!(
        "processes fork and end faster than they can be read (process {last}); try again"
    ))
}

/// Numbers of all processes in `/proc`, zombies included.
pub(crate) fn list_pids(roots: &Roots) -> io::Result<Vec<u32>> {
    let mut pids = numbers_in(&roots.proc)?;
    pids.sort_unstable();
    Ok(pids)
}

/// Threads of a process; empty when it has gone.
pub(super) fn list_tids(roots: &Roots, pid: u32) -> Vec<u32> {
    numbers_in(&roots.proc_path(format!("{pid}/task"))).unwrap_or_default()
}

fn numbers_in(dir: &std::path::Path) -> io::Result<Vec<u32>> {
    Ok(fs::read_dir(dir)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}

/// `/proc/PID/stat`, parsed; the start is that of the host's clock.
pub(crate) fn read_stat(roots: &Roots, pid: u32) -> io::Result<Stat> {
    let line = roots.read_proc(format!("{pid}/stat"))?;
    let stat = Stat::parse(&line).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(Stat {
        start_ticks: clock::host_ticks(stat.start_ticks),
        ..stat
    })
}

/// Whether a process is stopped by a signal, or traced: it answers nobody.
#[cfg(feature = "live")]
pub(crate) fn is_stopped(roots: &Roots, pid: u32) -> bool {
    read_stat(roots, pid).is_ok_and(|stat| stat.is_stopped())
}

/// IPC namespace of a task (`PID` or `PID/task/TID`); `None` when it has none any more, or when
/// it may not be looked at.
pub(super) fn ipc_ns(roots: &Roots, task: &str) -> Option<IpcNs> {
    ns_of_link(&fs::read_link(roots.proc_path(format!("{task}/ns/ipc"))).ok()?)
}

/// The number in `ipc:[4026531839]`.
pub(super) fn ns_of_link(link: &std::path::Path) -> Option<IpcNs> {
    let number = link.to_str()?.strip_prefix("ipc:[")?.strip_suffix(']')?;
    number.parse().ok().map(IpcNs)
}

pub(crate) fn read_process(roots: &Roots, pid: u32) -> io::Result<Option<RunningProcess>> {
    let mut stat = read_stat(roots, pid)?;
    let mut instead = None;
    if stat.threads > 1 && (stat.is_dead() || stat.is_ending()) {
        instead = living_thread(roots, pid);
        if instead.is_none() {
            // A thread that calls `execve` takes the place of the leader (`de_thread`).
            stat = read_stat(roots, pid)?;
        }
    }
    if stat.is_dead() && instead.is_none() {
        return Ok(None);
    }
    let mut process = RunningProcess {
        threads: stat.threads,
        kernel: stat.kernel,
        instead,
        ..RunningProcess::default()
    };
    let link = fs::read_link(roots.proc_path(process.proc_file(pid, "ns/ipc")));
    let (ipc_ns, hidden) = match link {
        Ok(link) => (ns_of_link(&link), false),
        Err(error) if is_gone(&error) => (None, false),
        // Root may lack a capability of init in a sandbox. It is where the kernel started it, and
        // was so before the first cookie; outside of PID namespaces nobody else has the number.
        Err(_) if pid == 1 => (Some(IpcNs::HOST), false),
        Err(_) => (None, !stat.kernel),
    };
    let ending = stat.is_ending() && !stat.is_dead() && instead.is_none();
    process.hidden = hidden;
    process.executing = stat.is_executing() && !hidden && instead.is_none();
    process.live = LiveProcess {
        start_ticks: stat.start_ticks,
        comm: stat.comm,
        ppid: stat.ppid,
        session: stat.session,
        ipc_ns,
        command: (!stat.kernel)
            .then(|| command_print(roots, &process.proc_file(pid, "cmdline")))
            .flatten(),
        ending,
    };
    Ok(Some(process))
}

fn command_print(roots: &Roots, file: &str) -> Option<CommandPrint> {
    let line = roots.read_memory(file).ok()?;
    CommandPrint::of_arguments(&parse_arguments(&line).0?)
}

fn living_thread(roots: &Roots, pid: u32) -> Option<u32> {
    list_tids(roots, pid).into_iter().find(|tid| {
        roots
            .read_proc(format!("{pid}/task/{tid}/stat"))
            .ok()
            .and_then(|line| Stat::parse(&line))
            .is_some_and(|stat| !stat.is_dead() && !stat.is_ending())
    })
}

/// Whether an error means that the process ended meanwhile.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// Why processes of this `/proc` may be out of sight.
pub(crate) fn hidden_reason(roots: &Roots) -> Option<String> {
    let proc = roots.proc.display();
    let mounts = roots.read_proc("self/mountinfo").unwrap_or_default();
    let mounts = String::from_utf8_lossy(&mounts);
    let options = mounts
        .lines()
        .filter_map(|line| proc_mount_options(line, &roots.proc.to_string_lossy()))
        .next_back()
        .unwrap_or_default();
    let hides = options.split(',').any(|option| {
        option
            .strip_prefix("hidepid=")
            .is_some_and(|mode| !matches!(mode, "0" | "off"))
    });
    // `has_pid_permissions`: a reader who may ptrace sees everything.
    if hides && !may_ptrace(roots) {
        return Some(format!(
            "{proc} is mounted with hidepid: processes of other users are out of sight; run as root"
        ));
    }
    if let Some(reason) = clock::inexact_starts() {
        return Some(format!("{reason}; run in the time namespace of the host"));
    }
    // `PROC_PID_INIT_INO`: /proc of a container shows the container only.
    match fs::read_link(roots.proc_path("self/ns/pid")) {
        Ok(link) if link.as_os_str() != "pid:[4026531836]" => Some(format!(
            "{proc} shows one PID namespace only; run in the PID namespace of the host"
        )),
        _ => None,
    }
}

/// Options of the file system behind `point` if this line of mountinfo is a procfs there.
fn proc_mount_options<'a>(line: &'a str, point: &str) -> Option<&'a str> {
    let (mount, fs) = line.split_once(" - ")?;
    (mount.split(' ').nth(4)? == point).then_some(())?;
    let mut fs = fs.split(' ');
    (fs.next()? == "proc").then_some(())?;
    fs.nth(1)
}

fn may_ptrace(roots: &Roots) -> bool {
    const CAP_SYS_PTRACE: u32 = 19;
    let status = roots.read_proc("self/status").unwrap_or_default();
    String::from_utf8_lossy(&status)
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|caps| u64::from_str_radix(caps.trim(), 16).ok())
        .is_some_and(|caps| caps >> CAP_SYS_PTRACE & 1 == 1)
}

#[cfg(test)]
pub(super) mod tests;
