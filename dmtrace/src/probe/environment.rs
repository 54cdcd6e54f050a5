//! What stands in the way of tracing, found before the kernel says it cryptically.

use std::{fs, path::Path};

use serde::Serialize;

use super::Preemption;

/// File with the kernel's type information.
pub const BTF_FILE: &str = "/sys/kernel/btf/vmlinux";

/// Kernel lockdown, see `man 7 kernel_lockdown`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lockdown {
    /// Off, or not built in.
    None,
    /// Tracing works.
    Integrity,
    /// Programs may not read kernel memory.
    Confidentiality,
    /// `/sys/kernel/security/lockdown` cannot be read.
    Unknown,
}

/// Capabilities that matter, of this process.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "one bit per capability")]
pub struct Capabilities {
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
    /// Names of what tracing still needs; empty if nothing.
    pub fn missing_for_tracing(self) -> Vec<&'static str> {
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
pub struct Environment {
    /// `uname -r`.
    pub kernel: String,
    /// Architecture.
    pub machine: String,
    /// Lockdown mode.
    pub lockdown: Lockdown,
    /// `/sys/kernel/btf/vmlinux` is there.
    pub btf: bool,
    /// Whether the kernel preempts.
    pub preemption: Preemption,
    /// Where tracefs is mounted.
    pub tracefs: Option<String>,
    /// `/sys/bus/event_source/devices/kprobe/type` is there.
    pub kprobe_pmu: bool,
    /// Capabilities of this process.
    pub capabilities: Capabilities,
    /// `kernel.perf_event_paranoid`.
    pub perf_event_paranoid: Option<i32>,
}

impl Environment {
    /// Reads it.
    pub fn read() -> Self {
        let (kernel, machine) = uname();
        Self {
            kernel,
            machine,
            lockdown: lockdown(Path::new("/sys/kernel/security/lockdown")),
            btf: Path::new(BTF_FILE).exists(),
            preemption: Preemption::read(),
            tracefs: tracefs(),
            kprobe_pmu: Path::new("/sys/bus/event_source/devices/kprobe/type").exists(),
            capabilities: capabilities(
                &fs::read_to_string("/proc/self/status").unwrap_or_default(),
            ),
            perf_event_paranoid: fs::read_to_string("/proc/sys/kernel/perf_event_paranoid")
                .ok()
                .and_then(|text| text.trim().parse().ok()),
        }
    }
}

fn uname() -> (String, String) {
    let read = |name: &str| {
        fs::read_to_string(format!("/proc/sys/kernel/{name}"))
            .map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
    };
    (read("osrelease"), std::env::consts::ARCH.to_owned())
}

/// The mode in brackets: `none [integrity] confidentiality`.
fn lockdown(file: &Path) -> Lockdown {
    match fs::read_to_string(file) {
        Ok(text) if text.contains("[none]") => Lockdown::None,
        Ok(text) if text.contains("[integrity]") => Lockdown::Integrity,
        Ok(text) if text.contains("[confidentiality]") => Lockdown::Confidentiality,
        Ok(_) => Lockdown::Unknown,
        // Without the file there is no lockdown, if securityfs is mounted at all.
        Err(_) if file.parent().is_some_and(|dir| dir.join("lsm").exists()) => Lockdown::None,
        Err(_) => Lockdown::Unknown,
    }
}

fn tracefs() -> Option<String> {
    ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
        .into_iter()
        .find(|dir| Path::new(dir).join("events/syscalls").exists())
        .map(str::to_owned)
}

fn capabilities(status: &str) -> Capabilities {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let has = |bit: u32| effective >> bit & 1 == 1;
    // Numbers of include/uapi/linux/capability.h.
    Capabilities {
        sys_admin: has(21),
        bpf: has(39),
        perfmon: has(38),
        sys_ptrace: has(19),
        ipc_owner: has(15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_effective_set() {
        let none = capabilities("CapPrm:\t000001ffffffffff\nCapEff:\t0000000000000000\n");
        assert_eq!(none.missing_for_tracing(), ["CAP_BPF", "CAP_PERFMON"]);
        let some = capabilities("CapEff:\t0000008000000000\n");
        assert_eq!(some.missing_for_tracing(), ["CAP_PERFMON"]);
        let root = capabilities("CapEff:\t000001ffffffffff\n");
        assert!(root.missing_for_tracing().is_empty());
    }

    #[test]
    fn lockdown_is_the_mode_in_brackets() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("lockdown");
        assert_eq!(lockdown(&file), Lockdown::Unknown);
        fs::write(dir.path().join("lsm"), "capability").expect("write");
        assert_eq!(lockdown(&file), Lockdown::None);
        fs::write(&file, "none integrity [confidentiality]\n").expect("write");
        assert_eq!(lockdown(&file), Lockdown::Confidentiality);
    }
}
