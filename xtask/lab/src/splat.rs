//! Finds the complaints of a kernel in its log: oopses, warnings, lockups.

/// Words that mean trouble wherever they stand in a line.
const ANYWHERE: &[&str] = &[
    "Oops:",
    "kernel BUG at",
    "general protection fault",
    "soft lockup",
    "hard LOCKUP",
    "self-detected stall",
    "detected stalls on CPUs",
    "detected expedited stalls",
    "rcu_preempt kthread starved",
    "rcu_sched kthread starved",
    "use-after-free",
    "use after free",
    "KASAN:",
    "KCSAN:",
    "KFENCE:",
    "UBSAN:",
    "Kernel panic",
    "blocked for more than",
    "double fault:",
    "stack-protector:",
    "unable to handle page fault",
    "unable to handle kernel",
    "possible circular locking",
    "possible recursive locking",
    "suspicious RCU usage",
    "scheduling while atomic",
    "sleeping function called from invalid context",
    "bad unlock balance",
];

/// Words that mean trouble only at the start of a message: drivers use them in harmless prose.
const AT_START: &[&str] = &["BUG:", "WARNING: CPU:", "WARNING: at ", "WARNING: possible"];

/// Taint bits that the kernel sets when it has printed a splat, with their names. They reveal a
/// splat that the log no longer holds.
const TAINTS: &[(u32, &str)] = &[
    (5, "bad page"),
    (7, "died (oops or BUG)"),
    (9, "warning"),
    (14, "soft lockup"),
];

/// The lines of a kernel log, or of a serial console, that are splats.
pub(crate) fn find_splats(log: &str) -> Vec<&str> {
    log.lines()
        .map(str::trim_end)
        .filter(|line| {
            let message = message_of(line);
            AT_START.iter().any(|word| message.starts_with(word))
                || ANYWHERE.iter().any(|word| message.contains(word))
        })
        .collect()
}

/// The splats that a taint value stands for.
pub(crate) fn splats_of_taint(taint: u64) -> Vec<String> {
    TAINTS
        .iter()
        .filter(|(bit, _)| taint & (1 << bit) != 0)
        .map(|(bit, name)| format!("kernel tainted: {name} (bit {bit} of {taint})"))
        .collect()
}

/// A log line without priority, time stamp and caller.
fn message_of(line: &str) -> &str {
    let mut rest = line.trim_start();
    if let Some(after) = rest.strip_prefix('<') {
        rest = after.split_once('>').map_or(rest, |(_, after)| after);
    }
    for _ in 0..2 {
        if let Some(after) = rest.strip_prefix('[') {
            rest = after
                .split_once(']')
                .map_or(rest, |(_, after)| after.trim_start());
        }
    }
    rest.strip_prefix("watchdog: ").unwrap_or(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_splats_are_found() {
        for line in [
            "[   12.345678] BUG: kernel NULL pointer dereference, address: 0000000000000008",
            "[   12.345678] WARNING: CPU: 1 PID: 42 at kernel/bpf/core.c:12 foo+0x1/0x2",
            "[   12.345678][  T42] WARNING: at ipc/sem.c:12 foo+0x1/0x2, CPU#1: dmsetup/42",
            "<4>[   12.345678] WARNING: possible circular locking dependency detected",
            "[   12.345678] Oops: 0000 [#1] PREEMPT SMP NOPTI",
            "[   12.345678] Oops: general protection fault, probably for non-canonical address",
            "[   12.345678] general protection fault: 0000 [#1] SMP",
            "[  120.000000] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sh:1]",
            "[  120.000000] rcu: INFO: rcu_preempt self-detected stall on CPU",
            "[  120.000000] rcu: INFO: rcu_sched detected stalls on CPUs/tasks:",
            "[  120.000000] BUG: KASAN: slab-use-after-free in freeary+0x12/0x34",
            "[  120.000000] refcount_t: underflow; use-after-free.",
            "[  240.000000] INFO: task dmsetup:99 blocked for more than 120 seconds.",
            "[    1.000000] Kernel panic - not syncing: Attempted to kill init!",
            "kernel BUG at mm/slub.c:305!",
        ] {
            assert_eq!(find_splats(line), [line.trim_end()], "{line}");
        }
    }

    #[test]
    fn harmless_lines_are_not() {
        for line in [
            "[    0.000000] Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on",
            "[    0.000000] MDS: CPU bug present and SMT on, data leak possible. WARNING: see",
            "[    0.100000] pid_max: default: 32768 minimum: 301",
            "[    0.200000] debug: unmapping init [mem 0xffffffff82000000-0xffffffff82ffffff]",
            "[    3.000000] loop: module loaded",
            "[    3.000000] device-mapper: ioctl: 4.47.0-ioctl (2022-07-28) initialised",
            "[    3.000000] x86/cpu: Bugs: WARNING comes later",
            "[    3.000000] bpf: debugging BUG: is not at the start",
        ] {
            assert!(find_splats(line).is_empty(), "{line}");
        }
    }

    #[test]
    fn taint_bits() {
        assert!(splats_of_taint(0).is_empty());
        // unsigned and out-of-tree modules are no splat
        assert!(splats_of_taint((1 << 12) | (1 << 13)).is_empty());
        assert_eq!(
            splats_of_taint(1 << 9),
            ["kernel tainted: warning (bit 9 of 512)"]
        );
    }
}
