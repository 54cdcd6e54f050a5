//! What stands in the way of tracing, found before the kernel says it cryptically.

use std::{fs, io, path::Path};

use rustix::thread::CapabilitySet;
use serde::{Serialize, Serializer};

use super::Preemption;
use crate::host::{
    kernel_fs::{FsPlace, KernelFs, KernelFsRoot, Unreachable, error_text},
    namespaces,
};

/// File with the kernel's type information.
pub(crate) const BTF_FILE: &str = "/sys/kernel/btf/vmlinux";

/// Kernel lockdown, see `man 7 kernel_lockdown`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Lockdown {
    /// Off, or not built in.
    None,
    Integrity,
    /// Programs may not read kernel memory.
    Confidentiality,
    /// securityfs does not tell.
    Unknown,
}

/// Something that could not be found out, in words.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct UnreadFact {
    pub cause: String,
    /// What to do about it.
    pub fix: String,
}

impl From<Unreachable> for UnreadFact {
    fn from(error: Unreachable) -> Self {
        Self {
            cause: error.cause(),
            fix: error.fix(),
        }
    }
}

impl UnreadFact {
    /// A file in one of these file systems could not be read.
    fn from_read_error(root: &KernelFsRoot, file: &str, error: &io::Error, missing: &str) -> Self {
        let fix = match error.kind() {
            io::ErrorKind::PermissionDenied => "run as root",
            _ => missing,
        };
        Self {
            cause: format!("{}: {}", root.display_path(file), error_text(error)),
            fix: fix.to_owned(),
        }
    }
}

/// Capabilities that matter, of this process.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "one bit per capability")]
pub(crate) struct Capabilities {
    /// `CAP_SYS_ADMIN`: everything, `setns` and `IPC_RMID` of others' sets included.
    pub sys_admin: bool,
    /// `CAP_BPF`.
    pub bpf: bool,
    /// `CAP_PERFMON`.
    pub perfmon: bool,
    /// `CAP_SYS_PTRACE`: reading other processes.
    pub sys_ptrace: bool,
    /// `CAP_IPC_OWNER`: reading the values of others' semaphores.
    pub ipc_owner: bool,
}

impl Capabilities {
    /// From the kernel itself: `/proc` may be missing.
    pub(crate) fn of_this_process() -> Self {
        let sets = rustix::thread::capabilities(None);
        Self::from_effective(sets.map_or(CapabilitySet::empty(), |sets| sets.effective))
    }

    fn from_effective(effective: CapabilitySet) -> Self {
        Self {
            sys_admin: effective.contains(CapabilitySet::SYS_ADMIN),
            bpf: effective.contains(CapabilitySet::BPF),
            perfmon: effective.contains(CapabilitySet::PERFMON),
            sys_ptrace: effective.contains(CapabilitySet::SYS_PTRACE),
            ipc_owner: effective.contains(CapabilitySet::IPC_OWNER),
        }
    }

    /// Names of what tracing still needs; empty if nothing.
    fn missing_for_tracing(self) -> Vec<&'static str> {
        if self.sys_admin {
            return Vec::new();
        }
        [("CAP_BPF", self.bpf), ("CAP_PERFMON", self.perfmon)]
            .into_iter()
            .filter_map(|(name, has)| (!has).then_some(name))
            .collect()
    }
}

/// The state of the machine as far as tracing depends on it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Environment {
    /// `uname -r`.
    pub kernel: String,
    pub machine: String,
    pub lockdown: Lockdown,
    /// Why that is unknown, if it is.
    #[serde(skip)]
    pub lockdown_unread: Option<UnreadFact>,
    /// `/sys/kernel/btf/vmlinux` is there.
    pub btf: bool,
    /// Whether the kernel preempts.
    pub preemption: Preemption,
    /// Where the numbers of tracepoints are read: the place of tracefs, `private`, or nothing.
    #[serde(serialize_with = "serialize_place")]
    pub tracefs: Result<FsPlace, UnreadFact>,
    /// `/sys/bus/event_source/devices/kprobe/type` is there.
    pub kprobe_pmu: bool,
    /// Capabilities of this process.
    pub capabilities: Capabilities,
    /// They are those of another user namespace than the host's, as far as `/proc` tells: nothing
    /// can be traced with them.
    pub other_user_ns: bool,
    /// `kernel.perf_event_paranoid`.
    pub perf_event_paranoid: Option<i32>,
}

impl Environment {
    pub(crate) fn read() -> Self {
        let (lockdown, lockdown_unread) = match read_lockdown() {
            Ok(mode) => (mode, None),
            Err(obstacle) => (Lockdown::Unknown, Some(obstacle)),
        };
        Self {
            kernel: kernel_release(),
            machine: std::env::consts::ARCH.to_owned(),
            lockdown,
            lockdown_unread,
            btf: Path::new(BTF_FILE).exists(),
            preemption: Preemption::detect(),
            tracefs: find_tracefs(),
            kprobe_pmu: Path::new("/sys/bus/event_source/devices/kprobe/type").exists(),
            capabilities: Capabilities::of_this_process(),
            other_user_ns: namespaces::in_other_user_ns(),
            perf_event_paranoid: fs::read_to_string("/proc/sys/kernel/perf_event_paranoid")
                .ok()
                .and_then(|text| text.trim().parse().ok()),
        }
    }

    /// The capabilities that tracing still needs, in words.
    pub(crate) fn missing_for_tracing(&self) -> Option<String> {
        if self.other_user_ns {
            return Some("CAP_BPF and CAP_PERFMON in the user namespace of the host".to_owned());
        }
        let missing = self.capabilities.missing_for_tracing();
        (!missing.is_empty()).then(|| missing.join(" and "))
    }
}

/// Why the kernel's types are not found, and what helps: the kernel may well have them where its
/// files cannot be seen.
pub(crate) fn missing_btf() -> UnreadFact {
    explain_missing_btf(Path::new("/sys/kernel").exists())
}

fn explain_missing_btf(sysfs: bool) -> UnreadFact {
    let (cause, fix) = if sysfs {
        (
            format!("no {BTF_FILE}: the kernel does not describe its types"),
            "boot a kernel with CONFIG_DEBUG_INFO_BTF=y",
        )
    } else {
        (
            format!("no {BTF_FILE}: sysfs is not mounted"),
            "mount -t sysfs sysfs /sys",
        )
    };
    UnreadFact {
        cause,
        fix: fix.to_owned(),
    }
}

/// `uname -r`.
pub(crate) fn kernel_release() -> String {
    let name = rustix::system::uname();
    name.release().to_string_lossy().into_owned()
}

fn read_lockdown() -> Result<Lockdown, UnreadFact> {
    const FILE: &str = "lockdown";
    let root = KernelFs::Security.open()?;
    lockdown_mode(root.read(FILE)).map_err(|error| {
        let missing = "see the kernel's messages: dmesg | grep -i lockdown";
        UnreadFact::from_read_error(&root, FILE, &error, missing)
    })
}

/// The mode in brackets: `none [integrity] confidentiality`. A kernel that knows no lockdown has no
/// such file.
fn lockdown_mode(file: io::Result<String>) -> io::Result<Lockdown> {
    let text = match file {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Lockdown::None),
        other => other?,
    };
    let mode = text.split(['[', ']']).nth(1);
    match mode {
        Some("none") => Ok(Lockdown::None),
        Some("integrity") => Ok(Lockdown::Integrity),
        Some("confidentiality") => Ok(Lockdown::Confidentiality),
        _ => Err(io::Error::other(format!("unknown mode in {text:?}"))),
    }
}

/// Where tracefs is, if a tracepoint that matters is found in it.
fn find_tracefs() -> Result<FsPlace, UnreadFact> {
    const FILE: &str = "events/syscalls/sys_enter_semget/id";
    let root = KernelFs::Trace.open()?;
    root.read(FILE).map_err(|error| {
        let missing = "boot a kernel with CONFIG_FTRACE_SYSCALLS=y";
        UnreadFact::from_read_error(&root, FILE, &error, missing)
    })?;
    Ok(root.place().clone())
}

fn serialize_place<S: Serializer>(
    place: &Result<FsPlace, UnreadFact>,
    to: S,
) -> Result<S::Ok, S::Error> {
    match place {
        Ok(FsPlace::Mounted(path)) => to.collect_str(&path.display()),
        Ok(FsPlace::Private) => to.serialize_str("private"),
        Err(_) => to.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_those_in_effect() {
        let none = Capabilities::from_effective(CapabilitySet::empty());
        assert_eq!(none.missing_for_tracing(), ["CAP_BPF", "CAP_PERFMON"]);
        let some = Capabilities::from_effective(CapabilitySet::from_bits_retain(0x80_0000_0000));
        assert_eq!(some.missing_for_tracing(), ["CAP_PERFMON"]);
        let root = Capabilities::from_effective(CapabilitySet::from_bits_retain(0x1ff_ffff_ffff));
        assert!(root.missing_for_tracing().is_empty());
    }

    #[test]
    fn lockdown_is_the_mode_in_brackets() {
        let mode = |text: &str| lockdown_mode(Ok(text.to_owned())).ok();
        let confidential = mode("none integrity [confidentiality]\n");
        assert_eq!(confidential, Some(Lockdown::Confidentiality));
        let integrity = mode("none [integrity] confidentiality\n");
        assert_eq!(integrity, Some(Lockdown::Integrity));
        assert_eq!(mode("[none] integrity\n"), Some(Lockdown::None));
    }

    #[test]
    fn lockdown_is_off_only_where_the_kernel_has_no_such_file() {
        let mode = |kind: io::ErrorKind| lockdown_mode(Err(kind.into())).ok();
        assert_eq!(mode(io::ErrorKind::NotFound), Some(Lockdown::None));
        for unread in [io::ErrorKind::PermissionDenied, io::ErrorKind::Other] {
            assert_eq!(mode(unread), None);
        }
        assert_eq!(lockdown_mode(Ok(String::new())).ok(), None);
    }

    #[cfg(feature = "live")]
    #[test]
    fn a_kernel_is_not_blamed_for_types_that_cannot_be_seen() {
        use crate::probe::StartError;
        let text = |sysfs| StartError::NoBtf(explain_missing_btf(sysfs)).to_string();
        assert_eq!(
            text(true),
            "no /sys/kernel/btf/vmlinux: the kernel does not describe its types; boot a kernel \
             with CONFIG_DEBUG_INFO_BTF=y, or use: dmtrace list"
        );
        assert_eq!(
            text(false),
            "no /sys/kernel/btf/vmlinux: sysfs is not mounted; mount -t sysfs sysfs /sys, or use: \
             dmtrace list"
        );
    }

    #[test]
    fn the_place_of_tracefs_is_one_word_in_json() {
        let mut environment = Environment::read();
        let mut json = |place| {
            environment.tracefs = place;
            serde_json::to_value(&environment).unwrap()["tracefs"].clone()
        };
        assert_eq!(json(Ok(FsPlace::Mounted("/a".into()))), "/a");
        assert_eq!(json(Ok(FsPlace::Private)), "private");
        let (cause, fix) = (String::new(), String::new());
        assert!(json(Err(UnreadFact { cause, fix })).is_null());
    }
}
