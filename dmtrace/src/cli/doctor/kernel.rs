//! What the kernel and the rights of this process allow.

use super::{Report, Tracing};
use crate::probe::{Environment, Lockdown, environment::BTF_FILE};

/// Checks it; each cause that forbids tracing has its own line.
pub(super) fn check(environment: &Environment, report: &mut Report) -> Tracing {
    report.pass(
        "kernel",
        format!("kernel {}, {}", environment.kernel, environment.machine),
    );
    let works = [
        lockdown(environment.lockdown, report),
        btf(environment, report),
        capabilities(environment, report),
    ];
    paranoid(environment, report);
    tracefs(environment, report);
    if works.contains(&false) {
        report.add(
            "attach",
            super::Status::Fail,
            "tracing is not possible, for the reasons above".to_owned(),
            Some("dmtrace list needs no tracing".to_owned()),
        );
        Tracing::Impossible
    } else {
        Tracing::Works
    }
}

fn lockdown(mode: Lockdown, report: &mut Report) -> bool {
    match mode {
        Lockdown::None => report.pass("lockdown", "kernel lockdown is off"),
        Lockdown::Integrity => report.pass(
            "lockdown",
            "kernel lockdown is in mode integrity, which allows tracing",
        ),
        Lockdown::Unknown => report.warn(
            "lockdown",
            "whether kernel lockdown is on cannot be read",
            "mount -t securityfs securityfs /sys/kernel/security",
        ),
        Lockdown::Confidentiality => {
            report.fail(
                "lockdown",
                "kernel lockdown is in mode confidentiality: programs may not read kernel memory",
                "boot without lockdown=confidentiality",
            );
            return false;
        }
    }
    true
}

fn btf(environment: &Environment, report: &mut Report) -> bool {
    if environment.btf {
        report.pass("btf", "the kernel describes its types (BTF)");
    } else {
        report.fail(
            "btf",
            format!("no {BTF_FILE}: the kernel does not describe its types"),
            "a kernel with CONFIG_DEBUG_INFO_BTF=y",
        );
    }
    environment.btf
}

fn capabilities(environment: &Environment, report: &mut Report) -> bool {
    let has = environment.capabilities;
    let missing = has.missing_for_tracing();
    if !missing.is_empty() {
        report.fail(
            "capabilities",
            format!("not permitted to trace: {} missing", missing.join(" and ")),
            "run as root: sudo dmtrace doctor",
        );
        return false;
    }
    let lost: Vec<String> = [
        (
            "CAP_SYS_ADMIN",
            has.sys_admin,
            "enter other IPC namespaces, clean",
        ),
        (
            "CAP_SYS_PTRACE",
            has.sys_ptrace,
            "see who waits for and who carries a cookie",
        ),
        ("CAP_IPC_OWNER", has.ipc_owner, "read others' semaphores"),
    ]
    .into_iter()
    .filter(|(_, has, _)| !has)
    .map(|(name, _, what)| format!("{name} ({what})"))
    .collect();
    if lost.is_empty() {
        report.pass("capabilities", "all capabilities that are needed");
    } else {
        report.warn(
            "capabilities",
            format!("may trace, but lacks {}", lost.join(", ")),
            "run as root for the whole picture",
        );
    }
    true
}

fn paranoid(environment: &Environment, report: &mut Report) {
    let Some(level) = environment.perf_event_paranoid else {
        return;
    };
    // Debian's level 3 forbids perf_event_open to CAP_PERFMON.
    if level >= 3 && !environment.capabilities.sys_admin {
        report.warn(
            "perf_event_paranoid",
            format!("kernel.perf_event_paranoid={level}: CAP_PERFMON is not enough for kprobes and tracepoints"),
            "sysctl kernel.perf_event_paranoid=2, or run as root",
        );
    } else {
        report.pass(
            "perf_event_paranoid",
            format!("kernel.perf_event_paranoid={level} is no obstacle"),
        );
    }
}

fn tracefs(environment: &Environment, report: &mut Report) {
    match &environment.tracefs {
        Some(place) => report.pass("tracefs", format!("tracefs is at {place}")),
        None => report.warn(
            "tracefs",
            "tracefs is not mounted, or not readable: no tracepoints of system calls",
            "mount -t tracefs tracefs /sys/kernel/tracing",
        ),
    }
}
