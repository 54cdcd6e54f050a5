//! What the kernel and the rights of this process allow.

use super::{CheckStatus, DoctorReport, TracingState};
use crate::{
    host::kernel_fs::FsPlace,
    probe::{
        Environment, Lockdown,
        environment::{UnreadFact, missing_btf},
    },
};

/// Checks it; each cause that forbids tracing has its own line.
pub(super) fn check_kernel(environment: &Environment, report: &mut DoctorReport) -> TracingState {
    report.add_pass(
        "kernel",
        format!("kernel {}, {}", environment.kernel, environment.machine),
    );
    let works = [
        check_lockdown(environment, report),
        check_btf(environment, report),
        check_capabilities(environment, report),
    ];
    check_paranoid(environment, report);
    check_tracefs(environment, report);
    if works.contains(&false) {
        let fixes: Vec<String> = report
            .checks
            .iter()
            .filter(|check| check.status == CheckStatus::Fail)
            .filter_map(|check| check.fix.clone())
            .collect();
        report.add_failure(
            "attach",
            "tracing is not possible, for what failed above",
            fixes.join("; then "),
        );
        TracingState::Impossible
    } else {
        TracingState::Works
    }
}

fn check_lockdown(environment: &Environment, report: &mut DoctorReport) -> bool {
    match environment.lockdown {
        Lockdown::None => report.add_pass("lockdown", "kernel lockdown is off"),
        Lockdown::Integrity => report.add_pass(
            "lockdown",
            "kernel lockdown is in mode integrity, which allows tracing",
        ),
        Lockdown::Unknown => {
            let unread = environment.lockdown_unread.as_ref();
            report.add_warning(
                "lockdown",
                format!(
                    "cannot tell whether kernel lockdown is on: {}",
                    unread.map_or("not read", |it| &it.cause)
                ),
                unread.map_or("", |it| &it.fix),
            );
        }
        Lockdown::Confidentiality => {
            report.add_failure(
                "lockdown",
                "kernel lockdown is in mode confidentiality: programs may not read kernel memory",
                "boot without lockdown=confidentiality",
            );
            return false;
        }
    }
    true
}

fn check_btf(environment: &Environment, report: &mut DoctorReport) -> bool {
    if environment.btf {
        report.add_pass("btf", "the kernel describes its types (BTF)");
    } else {
        let UnreadFact { cause, fix } = missing_btf();
        report.add_failure("btf", cause, fix);
    }
    environment.btf
}

fn check_capabilities(environment: &Environment, report: &mut DoctorReport) -> bool {
    let has = environment.capabilities;
    if let Some(missing) = environment.missing_for_tracing() {
        let fix = if environment.other_user_ns {
            "run as root outside of this user namespace (container)"
        } else {
            "run as root: sudo dmtrace doctor"
        };
        let text = format!("not permitted to trace: {missing} missing");
        report.add_failure("capabilities", text, fix);
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
        report.add_pass("capabilities", "all capabilities that are needed");
    } else {
        report.add_warning(
            "capabilities",
            format!("may trace, but lacks {}", lost.join(", ")),
            "run as root for the whole picture",
        );
    }
    true
}

fn check_paranoid(environment: &Environment, report: &mut DoctorReport) {
    let Some(level) = environment.perf_event_paranoid else {
        report.add_warning(
            "perf_event_paranoid",
            "cannot tell whether kprobes and tracepoints are permitted: no \
             kernel.perf_event_paranoid",
            "mount /proc, or boot a kernel with CONFIG_PERF_EVENTS=y",
        );
        return;
    };
    // Debian's level 3 forbids perf_event_open to CAP_PERFMON.
    if level >= 3 && !environment.capabilities.sys_admin {
        report.add_warning(
            "perf_event_paranoid",
            format!("kernel.perf_event_paranoid={level}: CAP_PERFMON is not enough for kprobes and tracepoints"),
            "sysctl kernel.perf_event_paranoid=2, or run as root",
        );
    } else {
        report.add_pass(
            "perf_event_paranoid",
            format!("kernel.perf_event_paranoid={level} is no obstacle"),
        );
    }
}

fn check_tracefs(environment: &Environment, report: &mut DoctorReport) {
    match &environment.tracefs {
        Ok(FsPlace::Mounted(path)) => {
            report.add_pass("tracefs", format!("tracefs is at {}", path.display()));
        }
        Ok(FsPlace::Private) => report.add_pass(
            "tracefs",
            "tracefs is not mounted; dmtrace uses a mount of its own",
        ),
        Err(obstacle) => report.add_warning(
            "tracefs",
            format!("no tracepoints of system calls: {}", obstacle.cause),
            &obstacle.fix,
        ),
    }
}
