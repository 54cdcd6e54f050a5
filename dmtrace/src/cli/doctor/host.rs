//! What the host does to cookies: limits, namespaces, udev, other traces.

use std::{fs, io, path::Path};

use dmtrace_core::{
    facts::{NsHolder, NsSnapshot},
    ids::IpcNs,
};

use super::{CheckStatus, DoctorReport, accident};
use crate::{
    case::Case,
    host::{
        Roots,
        kernel_fs::error_text,
        namespaces::{self, own_ns},
    },
    probe::Environment,
    wording::count_noun,
};

/// Inode of the initial PID namespace (`PROC_PID_INIT_INO`).
const HOST_PID_NS: &str = "pid:[4026531836]";
/// Where udev's rule finds programs.
const PROGRAMS: [&str; 6] = [
    "usr/sbin",
    "sbin",
    "usr/bin",
    "bin",
    "usr/local/sbin",
    "usr/local/bin",
];

pub(super) fn check_host(case: &Case, environment: &Environment, report: &mut DoctorReport) {
    let roots = Roots::host();
    check_semaphores(case, report);
    check_namespaces(case, environment, report);
    check_udev(case, &roots, report);
    traces(report);
    accident::check_older_cookies(case, report);
    accident::check_accident(case, report);
}

/// SEMMNI and SEMMNS of each namespace.
fn check_semaphores(case: &Case, report: &mut DoctorReport) {
    let spaces = &case.snapshot.namespaces;
    if spaces.is_empty() {
        report.add_failure(
            "limits",
            "no IPC namespace can be read: nothing is known of any semaphore",
            "mount proc on /proc, and run as root",
        );
        return;
    }
    let mut well = true;
    for ns in spaces {
        for (text, fix) in limit_lines(ns) {
            well = false;
            report.add_warning("limits", text, fix);
        }
    }
    if spaces.is_empty() {
        report.add_warning(
            "limits",
            "cannot tell how many semaphores there are: no IPC namespace can be read",
            "run as root, with /proc mounted",
        );
    } else if well {
        let sets: usize = spaces.iter().map(|ns| ns.sets.len()).sum();
        let lowest = spaces
            .iter()
            .map(|ns| ns.limits.semmni)
            .min()
            .unwrap_or_default();
        let (unread, hidden) = (&case.snapshot.unreadable, &case.snapshot.incomplete);
        let others = if unread.is_empty() && hidden.is_empty() {
            ""
        } else {
            "; of others nothing is known"
        };
        report.add_pass(
            "limits",
            format!(
                "{} in {}; the lowest limit is {lowest}{others}",
                count_noun(sets, "semaphore set", "semaphore sets"),
                count_noun(spaces.len(), "IPC namespace", "IPC namespaces")
            ),
        );
    }
}

fn limit_lines(ns: &NsSnapshot) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let name = match (&ns.holder, ns.ns) {
        (_, IpcNs::HOST) => "the host".to_owned(),
        (NsHolder::Processes { first, .. }, ns) => format!("IPC namespace {ns} (process {first})"),
        (_, ns) => format!("IPC namespace {ns}"),
    };
    let limits = ns.limits;
    let raise = format!(
        "sysctl -w kernel.sem='{} {} {} 32000' there; it takes effect at once",
        limits.semmsl,
        limits.semmns.max(32_000),
        limits.semopm
    );
    let (sets, semmni) = (ns.sets.len() as u64, u64::from(limits.semmni));
    if sets * 100 >= semmni * 80 {
        found.push((
            format!("{name}: {sets} of {semmni} semaphore sets (SEMMNI) in use"),
            format!("dmtrace report says who; dmtrace clean; {raise}"),
        ));
    } else if semmni <= 128 {
        found.push((
            format!(
                "{name}: no more than {} (SEMMNI): few leaks exhaust it",
                count_noun(semmni, "semaphore set", "semaphore sets")
            ),
            raise.clone(),
        ));
    }
    let used: u64 = ns.sets.iter().map(|set| u64::from(set.nsems)).sum();
    if used * 100 >= u64::from(limits.semmns) * 80 {
        found.push((
            format!(
                "{name}: {used} of {} semaphores (SEMMNS) in use",
                limits.semmns
            ),
            "raise the second number of kernel.sem".to_owned(),
        ));
    }
    found
}

fn check_namespaces(case: &Case, environment: &Environment, report: &mut DoctorReport) {
    // Root of a user namespace of its own is not enough.
    let fix = namespaces::root_fix();
    for (ns, why) in &case.snapshot.unreadable {
        report.add_warning(
            "namespaces",
            format!("IPC namespace {ns} cannot be read: {why}"),
            fix,
        );
    }
    for why in &case.snapshot.incomplete {
        report.add_warning("namespaces", why.clone(), "");
    }
    for why in &case.facts.incomplete {
        // What hides namespaces hides processes, too.
        if !case.snapshot.incomplete.contains(why) {
            report.add_warning("processes", why.clone(), "");
        }
    }
    let inside = "on the host, or with its namespaces: --pid=host --ipc=host --privileged";
    let reaches_host = case
        .snapshot
        .namespaces
        .iter()
        .any(|ns| ns.ns == IpcNs::HOST);
    match own_ns() {
        _ if !reaches_host => report.add_warning(
            "own_namespace",
            "the IPC namespace of the host is out of reach: its cookies are invisible",
            format!("run dmtrace {inside}"),
        ),
        Some(own) if own != IpcNs::HOST => report.add_warning(
            "own_namespace",
            format!(
                "this is IPC namespace {own}, not the host's: udev cannot complete cookies made here"
            ),
            "use --ipc=host or hostIPC for what makes cookies, or DM_DISABLE_UDEV=1",
        ),
        Some(_) => report.add_pass("own_namespace", "this is the IPC namespace of the host"),
        None => report.add_warning(
            "own_namespace",
            "cannot tell which IPC namespace this is: no /proc/thread-self/ns/ipc",
            "mount -t proc proc /proc",
        ),
    }
    match fs::read_link("/proc/self/ns/pid") {
        Ok(ns) if ns == Path::new(HOST_PID_NS) => {}
        Ok(_) => report.add_warning(
            "own_namespace",
            "this is not the PID namespace of the host: processes outside cannot be looked at",
            format!("run dmtrace {inside}"),
        ),
        Err(_) => report.add_warning(
            "own_namespace",
            "cannot tell which PID namespace this is: no /proc/self/ns/pid",
            "mount -t proc proc /proc",
        ),
    }
    if case.snapshot.unreadable.is_empty()
        && case.snapshot.incomplete.is_empty()
        && case.facts.incomplete.is_empty()
        && environment.capabilities.sys_admin
    {
        report.add_pass("namespaces", "all processes and namespaces can be read");
    }
}

fn check_udev(case: &Case, roots: &Roots, report: &mut DoctorReport) {
    let udev = &case.facts.udev;
    let unseen = !case.facts.processes_complete;
    match (udev.daemon, udev.control_socket) {
        (None, _) if unseen && !udev.activated => report.add_warning(
            "udevd",
            "cannot tell whether udevd runs: not all processes can be seen",
            "run as root, in the PID namespace of the host",
        ),
        (Some(pid), true) => report.add_pass(
            "udevd",
            format!(
                "udevd runs (process {pid}){}",
                if udev.queue_busy {
                    ", events are waiting"
                } else {
                    ""
                }
            ),
        ),
        (Some(pid), false) => report.add_warning(
            "udevd",
            format!("udevd runs (process {pid}) without /run/udev/control: libdm does not wait"),
            "systemctl restart systemd-udevd-control.socket systemd-udevd",
        ),
        (None, true) if udev.activated => report.add_pass(
            "udevd",
            "udevd does not run now; its socket is open, so the next event starts it".to_owned(),
        ),
        (None, true) => report.add_failure(
            "udevd",
            "udevd does not run, and /run/udev/control says it does: who makes a cookie waits \
             for ever",
            "systemctl start systemd-udevd; or DM_DISABLE_UDEV=1 for who must not wait",
        ),
        (None, false) => report.add_warning(
            "udevd",
            "udevd is not running, so libdm makes no cookies",
            "start systemd-udevd",
        ),
    }
    let wanted = if udev.control_socket || udev.daemon.is_some() {
        CheckStatus::Fail
    } else {
        CheckStatus::Warn
    };
    let install = "install the udev rules of the device mapper (package dmsetup or device-mapper)";
    match (&udev.notify_rule, &udev.notify_rule_mask) {
        (Some(path), _) => match roots.read_fs(Path::new(path)) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => report.add_warning(
                "rule",
                format!(
                    "cannot tell whether cookies are completed by {path}: {}",
                    error_text(&error)
                ),
                "run as root",
            ),
            _ => report.add_pass("rule", format!("cookies are completed by {path}")),
        },
        (None, Some(mask)) => report.add_check(
            "rule",
            wanted,
            format!("{mask} masks 95-dm-notify.rules: no cookie can complete"),
            Some(format!("rm {mask} && udevadm control --reload")),
        ),
        (None, None) => report.add_check(
            "rule",
            wanted,
            "95-dm-notify.rules is not installed: no cookie can complete".to_owned(),
            Some(install.to_owned()),
        ),
    }
    let dmsetup = PROGRAMS
        .into_iter()
        .map(|dir| Path::new(dir).join("dmsetup"))
        .find(|path| roots.exists(path));
    match dmsetup {
        Some(path) => report.add_pass("dmsetup", format!("{} exists", roots.display_path(&path))),
        None => report.add_check(
            "dmsetup",
            wanted,
            "dmsetup is not installed: udev cannot complete cookies".to_owned(),
            Some("install dmsetup (package dmsetup or device-mapper)".to_owned()),
        ),
    }
}

#[cfg(feature = "live")]
fn traces(report: &mut DoctorReport) {
    let running = match crate::trace::session::registered_tracers() {
        Ok(running) => running,
        Err(unread) => {
            report
                .more
                .push(("running_traces", serde_json::Value::Null));
            report.add_warning(
                "traces",
                format!("cannot tell whether another trace is running: {unread}"),
                unread.fix(),
            );
            return;
        }
    };
    report
        .more
        .push(("running_traces", serde_json::json!(running)));
    if running.is_empty() {
        report.add_pass("traces", "no other trace is running (none in /run/dmtrace)");
    }
    let (attended, left): (Vec<_>, Vec<_>) = running.iter().partition(|it| it.is_attended());
    let text: Vec<String> = attended
        .iter()
        .map(|tracer| format!("process {} ({})", tracer.pid, tracer.backend))
        .collect();
    if !text.is_empty() {
        report.add_pass("traces", format!("running traces: {}", text.join(", ")));
    }
    for tracer in left {
        add_left_trace(tracer.pid, &tracer.pins_option(), report);
    }
}

/// A trace whose process has ended: the kernel goes on with it, and nobody looks.
#[cfg(feature = "live")]
fn add_left_trace(pid: u32, pins: &str, report: &mut DoctorReport) {
    report.add_warning(
        "traces",
        format!("process {pid} has ended, and its trace is still in the kernel"),
        format!("go on with it: dmtrace serve{pins}; or end it: dmtrace serve --remove{pins}"),
    );
}

#[cfg(not(feature = "live"))]
const fn traces(_: &mut DoctorReport) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "live")]
    #[test]
    fn a_trace_that_nobody_attends_is_no_running_one() {
        let mut report = DoctorReport::default();
        add_left_trace(7, " --pins /sys/fs/bpf/mine", &mut report);
        let check = &report.checks[0];
        assert_eq!(check.status, CheckStatus::Warn);
        assert_eq!(
            check.fix.as_deref(),
            Some(
                "go on with it: dmtrace serve --pins /sys/fs/bpf/mine; or end it: dmtrace serve \
                 --remove --pins /sys/fs/bpf/mine"
            )
        );
    }

    #[test]
    fn without_udevd_it_says_what_to_start() {
        let mut case = Case::empty();
        case.facts.processes_complete = true;
        let mut report = DoctorReport::default();
        let empty = tempfile::tempdir().unwrap();
        check_udev(&case, &Roots::below(empty.path()), &mut report);
        let first = &report.checks[0];
        assert_eq!(
            first.text,
            "udevd is not running, so libdm makes no cookies"
        );
        assert_eq!(first.fix.as_deref(), Some("start systemd-udevd"));
    }
}
