//! A tree of processes, stopped at each system call.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Error},
    os::unix::process::CommandExt as _,
    process::Command,
};

/// What a thread was stopped at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stop {
    /// The entry of a system call, by its number.
    Entry(u64),
    /// Its exit.
    Exit { call: Call, result: i64 },
    /// A program was started, a process or thread was made.
    Event,
    /// A thread has ended. Its number means nothing any more.
    Ended,
}

/// A system call and its first arguments.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Call {
    pub number: u64,
    pub args: [u64; 6],
}

/// `struct ptrace_syscall_info` of the kernel, for entries and exits.
#[derive(Default)]
#[repr(C)]
struct SyscallInfo {
    kind: u8,
    padding: [u8; 3],
    arch: u32,
    instruction_pointer: u64,
    stack_pointer: u64,
    /// The number at an entry, the result at an exit.
    first: u64,
    args: [u64; 6],
    more: u64,
}

const SYSCALL_ENTRY: u8 = 1;
const SYSCALL_EXIT: u8 = 2;

/// The requests that are used here; the types of `libc::ptrace` differ between C libraries.
#[derive(Clone, Copy)]
enum Request {
    Syscall = 24,
    SetOptions = 0x4200,
    SyscallInfo = 0x420e,
}

const OPTIONS: usize = 1 // system calls are told from signals
    | 1 << 1 // fork
    | 1 << 2 // vfork
    | 1 << 3 // clone
    | 1 << 4 // exec
    | 1 << 20; // the tree ends with us

/// A thread of the tree.
struct Task {
    process: u32,
    /// The call that it is in.
    call: Call,
    /// Its first stop is the kernel's, not a signal of anybody.
    fresh: bool,
}

/// A tree of processes under ptrace.
pub(crate) struct Tracees {
    first: i32,
    tasks: BTreeMap<i32, Task>,
    /// Who waits to go on, and the signal that it gets then.
    stopped: Option<(i32, i32)>,
    /// What the first process ended with.
    pub code: Option<i32>,
}

impl Tracees {
    /// Starts a program; it stands at its first instruction.
    pub(crate) fn spawn(words: &[String]) -> io::Result<Self> {
        let (program, args) = words
            .split_first()
            .ok_or_else(|| Error::other("no program"))?;
        let mut command = Command::new(program);
        command.args(args);
        let be_traced = || {
            // SAFETY: numbers: the parent traces this process from now on.
            check(unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) }).map(drop)
        };
        // SAFETY: one system call, which is safe after a fork.
        unsafe { command.pre_exec(be_traced) };
        // Waited for below, by its number.
        let first = command.spawn()?.id().cast_signed();
        let mut status = 0;
        // SAFETY: a status of ours.
        check(unsafe { libc::waitpid(first, &raw mut status, 0) }.into())?;
        request(Request::SetOptions, first, 0, OPTIONS)?;
        let process = first.cast_unsigned();
        let task = Task {
            process,
            call: Call::default(),
            fresh: false,
        };
        Ok(Self {
            first,
            tasks: BTreeMap::from([(first, task)]),
            stopped: Some((first, 0)),
            code: None,
        })
    }

    /// The processes that are there.
    pub(crate) fn processes(&self) -> BTreeSet<u32> {
        self.tasks.values().map(|task| task.process).collect()
    }

    /// Lets the one that was stopped go on, and waits for the next; `None` when all have ended.
    pub(crate) fn next_stop(&mut self) -> io::Result<Option<(i32, Stop)>> {
        loop {
            if let Some((task, signal)) = self.stopped.take() {
                // It may have been killed meanwhile, which is told next.
                let _ended = request(
                    Request::Syscall,
                    task,
                    0,
                    usize::try_from(signal).unwrap_or(0),
                );
            }
            if self.tasks.is_empty() {
                return Ok(None);
            }
            let mut status = 0;
            // SAFETY: a status of ours.
            let task = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) };
            if task < 0 {
                let error = Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::ECHILD) => return Ok(None),
                    Some(libc::EINTR) => continue,
                    _ => return Err(error),
                }
            }
            if let Some(stop) = self.note(task, status) {
                return Ok(Some((task, stop)));
            }
        }
    }

    /// What a status says; `None` if it is of no interest.
    fn note(&mut self, task: i32, status: i32) -> Option<Stop> {
        if !libc::WIFSTOPPED(status) {
            if task == self.first {
                let killed = || 128 + libc::WTERMSIG(status);
                let ended = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
                self.code = Some(ended.unwrap_or_else(killed));
            }
            self.tasks.remove(&task);
            return Some(Stop::Ended);
        }
        let signal = libc::WSTOPSIG(status);
        let entry = self.tasks.entry(task).or_insert_with(|| Task {
            process: process_of(task),
            call: Call::default(),
            fresh: true,
        });
        let fresh = std::mem::take(&mut entry.fresh);
        self.stopped = Some((task, 0));
        if signal == libc::SIGTRAP | 0x80 {
            return read_syscall(task, entry);
        }
        if signal == libc::SIGTRAP && status >> 16 != 0 {
            return Some(Stop::Event);
        }
        if !(fresh && signal == libc::SIGSTOP) {
            self.stopped = Some((task, signal));
        }
        None
    }
}

fn read_syscall(number: i32, task: &mut Task) -> Option<Stop> {
    let mut info = SyscallInfo::default();
    let address = (&raw mut info).expose_provenance();
    request(
        Request::SyscallInfo,
        number,
        size_of::<SyscallInfo>(),
        address,
    )
    .ok()?;
    match info.kind {
        SYSCALL_ENTRY => {
            task.call = Call {
                number: info.first,
                args: info.args,
            };
            Some(Stop::Entry(info.first))
        }
        SYSCALL_EXIT => Some(Stop::Exit {
            call: std::mem::take(&mut task.call),
            result: info.first.cast_signed(),
        }),
        _ => None,
    }
}

fn request(what: Request, task: i32, address: usize, data: usize) -> io::Result<i64> {
    // SAFETY: `data` is a number, or the address of a `SyscallInfo` of the length in `address` that
    // outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_ptrace, what as i64, task, address, data) };
    check(result)
}

fn check(result: i64) -> io::Result<i64> {
    match result {
        -1 => Err(Error::last_os_error()),
        result => Ok(result),
    }
}

/// The process of a thread.
fn process_of(task: i32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{task}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    let number = line.and_then(|text| text.trim().parse().ok());
    number.unwrap_or(task.cast_unsigned())
}
