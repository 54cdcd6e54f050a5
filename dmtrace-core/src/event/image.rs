//! A process image as the kernel side captured it.

use std::fmt;

use borsh::{BorshDeserialize, BorshSerialize};
use dmtrace_common::{
    PROC_CGROUP_CUT, PROC_CMDLINE_CUT, PROC_CMDLINE_UNREAD, PROC_DESCENDANT, PROC_EXE_CUT,
    PROC_EXE_DELETED, ProcRecord,
};
use serde::{Deserialize, Serialize};

use super::text::decode_c_string;
use crate::ids::{BootTime, IpcNs, ProcId};

/// Everything that names a process, also after it has gone.
#[derive(
    Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize, BorshSerialize, BorshDeserialize,
)]
pub struct ProcessImage {
    /// Which process.
    pub id: ProcId,
    /// Which of its images.
    pub exec: u32,
    /// When it was captured.
    pub seen: BootTime,
    /// Name.
    pub comm: String,
    /// Path of the executable; without a leading `/` when only its end could be kept.
    pub exe: Option<String>,
    /// Whether the executable's file had been unlinked.
    pub exe_deleted: bool,
    /// Arguments; `None` when they could not be read.
    pub cmdline: Option<Vec<String>>,
    /// Whether arguments are missing at the end.
    pub cmdline_cut: bool,
    /// Real uid in the initial user namespace.
    pub uid: u32,
    /// Real gid in the initial user namespace.
    pub gid: u32,
    /// Number in its own PID namespace.
    pub ns_pid: u32,
    /// Inode number of its PID namespace.
    pub pid_ns: u32,
    /// Its IPC namespace.
    pub ipc_ns: IpcNs,
    /// Inode number of its mount namespace.
    pub mnt_ns: u32,
    /// Identifier of its cgroup in the unified hierarchy.
    pub cgroup_id: u64,
    /// Path of its cgroup; without a leading `/` when only its end could be kept.
    pub cgroup: String,
    /// Whether the tracer that captured it is among its ancestors.
    #[serde(default)]
    pub descendant: bool,
    /// Parent, grandparent, ...
    pub parents: Vec<Ancestor>,
}

/// An ancestor of a process at the moment of capture.
#[derive(
    Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize, BorshSerialize, BorshDeserialize,
)]
pub struct Ancestor {
    /// Which process.
    pub id: ProcId,
    /// Name.
    pub comm: String,
}

impl ProcessImage {
    /// Reads what the kernel side wrote.
    pub fn from_record(record: &ProcRecord) -> Self {
        let has = |bit| record.state & bit != 0;
        let used = |bytes: &'_ [u8], len: u32| bytes.get(..len as usize).unwrap_or(bytes).to_vec();
        let cmdline = used(&record.cmdline, record.cmdline_len);
        let exe = used(&record.exe, record.exe_len);
        let cgroup = used(&record.cgroup, record.cgroup_len);
        Self {
            id: record.header.actor.into(),
            exec: record.header.actor.exec,
            seen: BootTime(record.header.ts),
            comm: decode_c_string(&record.comm),
            exe: (!exe.is_empty()).then(|| join_path(&exe, has(PROC_EXE_CUT))),
            exe_deleted: has(PROC_EXE_DELETED),
            cmdline: (!has(PROC_CMDLINE_UNREAD) && !cmdline.is_empty())
                .then(|| parse_arguments(&cmdline)),
            cmdline_cut: has(PROC_CMDLINE_CUT),
            uid: record.uid,
            gid: record.gid,
            ns_pid: record.ns_pid,
            pid_ns: record.pid_ns,
            ipc_ns: IpcNs(record.ipc_ns),
            mnt_ns: record.mnt_ns,
            cgroup_id: record.cgroup_id,
            cgroup: join_path(&cgroup, has(PROC_CGROUP_CUT)),
            descendant: has(PROC_DESCENDANT),
            parents: record
                .parents
                .iter()
                .take_while(|parent| parent.tgid != 0)
                .map(|parent| Ancestor {
                    id: ProcId {
                        tgid: parent.tgid,
                        start: BootTime(parent.start),
                    },
                    comm: decode_c_string(&parent.comm),
                })
                .collect(),
        }
    }

    /// What a child that was forked has in common with it.
    pub fn command_print(&self) -> Option<CommandPrint> {
        CommandPrint::of_arguments(self.cmdline.as_deref()?)
    }

    /// The command line as one would type it (arguments with blanks are quoted).
    pub fn command_line(&self) -> String {
        let Some(arguments) = &self.cmdline else {
            return format!("[{}]", self.comm);
        };
        let mut line = String::new();
        for argument in arguments {
            if !line.is_empty() {
                line.push(' ');
            }
            if argument.is_empty() || argument.contains(|c: char| c.is_whitespace()) {
                line.push('\'');
                line.push_str(argument);
                line.push('\'');
            } else {
                line.push_str(argument);
            }
        }
        if self.cmdline_cut {
            line.push_str("...");
        }
        line
    }
}

/// Which command line a process has, told by its beginning: `fork` keeps it, and programs of one
/// name that were started apart mostly differ in it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct CommandPrint(u64);

impl CommandPrint {
    /// Bytes that count: whoever captures command lines keeps more.
    const LENGTH: usize = 128;

    /// Of arguments in which control characters were made visible. `None` if there is none, as of
    /// a process that has ended or of one that has overwritten them.
    pub fn of_arguments(arguments: &[String]) -> Option<Self> {
        // FNV-1a: the same in every version, as recordings have it.
        const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0100_0000_01b3;
        arguments.iter().find(|it| !it.is_empty())?;
        let bytes = arguments.iter().flat_map(|it| it.bytes().chain([0]));
        let print = bytes.take(Self::LENGTH).fold(BASIS, |print, byte| {
            (print ^ u64::from(byte)).wrapping_mul(PRIME)
        });
        Some(Self(print))
    }
}

/// Arguments from the kernel's NUL-separated form; control characters are made visible.
fn parse_arguments(bytes: &[u8]) -> Vec<String> {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    bytes
        .split(|&byte| byte == 0)
        .map(decode_c_string)
        .collect()
}

/// A path from its components, last one first.
fn join_path(bytes: &[u8], cut: bool) -> String {
    let mut components: Vec<String> = bytes
        .split(|&byte| byte == 0)
        .filter(|part| !part.is_empty())
        .map(decode_c_string)
        .collect();
    components.reverse();
    let joined = components.join("/");
    if cut { joined } else { format!("/{joined}") }
}

/// How a process ended, as `wait(2)` encodes it.
#[derive(
    Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize, BorshSerialize, BorshDeserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// By itself, with this status.
    Code(u8),
    /// By a signal.
    Signal(u8),
}

impl ExitStatus {
    /// From `task_struct.exit_code`.
    pub const fn from_wait(code: i32) -> Self {
        let signal = (code & 0x7f) as u8;
        if signal == 0 {
            Self::Code((code >> 8) as u8)
        } else {
            Self::Signal(signal)
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Code(code) => write!(f, "exited with status {code}"),
            Self::Signal(9) => f.write_str("killed by SIGKILL"),
            Self::Signal(15) => f.write_str("killed by SIGTERM"),
            Self::Signal(2) => f.write_str("killed by SIGINT"),
            Self::Signal(1) => f.write_str("killed by SIGHUP"),
            Self::Signal(6) => f.write_str("killed by SIGABRT"),
            Self::Signal(11) => f.write_str("killed by SIGSEGV"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}
