//! What the kernel and the rights of this process allow.

use std::path::Path;

use super::{Report, Status, Tracing};
use crate::{
    host::kernel_fs::FsPlace,
    probe::{Environment, Lockdown, environment::BTF_FILE},
};

/// Checks it; each cause that forbids tracing has its own line.
pub(super) fn check(environment: &Environment, report: &mut Report) -> Tracing {
    report.pass(
        "kernel",
        format!("kernel {}, {}", environment.kernel, environment.machine),
    );
    let works = [
        lockdown(environment, report),
        btf(environment, report),
        capabilities(environment, report),
    ];
    paranoid(environment, report);
    tracefs(environment, report);
    if works.contains(&false) {
        let fixes: Vec<String> = report
            .checks
            .iter()
            .filter(|check| check.status == Status::Fail)
            .filter_map(|check| check.fix.clone())
            .collect();
        report.fail(
            "attach",
            "tracing is not possible, for what failed above",
            fixes.join("; then "),
        );
        Tracing::Impossible
    } else {
        Tracing::Works
    }
}

fn lockdown(environment: &Environment, report: &mut Report) -> bool {
    match environment.lockdown {
        Lockdown::None => report.pass("lockdown", "kernel lockdown is off"),
        Lockdown::Integrity => report.pass(
            "lockdown",
            "kernel lockdown is in mode integrity, which allows tracing",
        ),
        Lockdown::Unknown => {
            let unread = environment.lockdown_unread.as_ref();
            report.warn(
                "lockdown",
                format!(
                    "cannot tell whether kernel lockdown is on: {}",
                    unread.map_or("not read", |it| &it.cause)
                ),
                unread.map_or("", |it| &it.fix),
            );
        }
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
    } else if !Path::new("/sys/kernel").exists() {
        report.fail(
            "btf",
            format!("cannot tell whether the kernel describes its types: no {BTF_FILE}, because sysfs is not mounted"),
            "mount -t sysfs sysfs /sys",
        );
    } else {
        report.fail(
            "btf",
            format!("no {BTF_FILE}: the kernel does not describe its types"),
            "boot a kernel with CONFIG_DEBUG_INFO_BTF=y",
        );
    }
    environment.btf
}

fn capabilities(environment: &Environment, report: &mut Report) -> bool {
    let has = environment.capabilities;
    if let Some(missing) = environment.missing_for_tracing() {
        let fix = if environment.other_user_ns {
            "run as root outside of this user namespace (container)"
        } else {
            "run as root: sudo dmtrace doctor"
        };
        let text = format!("not permitted to trace: {missing} missing");
        report.fail("capabilities", text, fix);
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
        report.warn(
            "perf_event_paranoid",
            "cannot tell whether kprobes and tracepoints are permitted: no \
             kernel.perf_event_paranoid",
            "mount /proc, or boot a kernel with CONFIG_PERF_EVENTS=y",
        );
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
        Ok(FsPlace::Mounted(path)) => {
            report.pass("tracefs", format!("tracefs is at {}", path.display()));
        }
        Ok(FsPlace::Private) => report.pass(
            "tracefs",
            "tracefs is not mounted; dmtrace uses a mount of its own",
        ),
        Err(obstacle) => report.warn(
            "tracefs",
            format!("no tracepoints of system calls: {}", obstacle.cause),
            &obstacle.fix,
        ),
    }
}
