//! Clocks, and the identity of the boot.

use std::time::Duration;

use dmtrace_core::ids::{BootTime, UnixTime};

use crate::host::Roots;

/// Now on the clock that verdicts use (`CLOCK_BOOTTIME`, as `ktime_get_boot_ns` in the probes).
pub fn boot_now() -> BootTime {
    let (sec, nsec) = read_clock(libc::CLOCK_BOOTTIME);
    let nanos = u64::try_from(sec)
        .unwrap_or(0)
        .saturating_mul(1_000_000_000);
    BootTime(nanos.saturating_add(u64::try_from(nsec).unwrap_or(0)))
}

/// Now on the clock of `sem_ctime` and `sem_otime`. The kernel stamps those with
/// `ktime_get_real_seconds`, which is up to one tick behind this value.
pub fn wall_now() -> UnixTime {
    wall_with_nanos().0
}

/// The same, with the nanoseconds of that second.
pub fn wall_with_nanos() -> (UnixTime, u32) {
    let (seconds, nanos) = read_clock(libc::CLOCK_REALTIME);
    (UnixTime(seconds), u32::try_from(nanos).unwrap_or(0))
}

/// Time that this process has spent computing, all of its threads together.
pub fn cpu_spent() -> Duration {
    let (sec, nsec) = read_clock(libc::CLOCK_PROCESS_CPUTIME_ID);
    let (sec, nsec) = (u64::try_from(sec), u32::try_from(nsec));
    Duration::new(sec.unwrap_or(0), nsec.unwrap_or(0))
}

/// Identity of this boot; semids, process numbers and `BootTime`s mean nothing in another one.
pub fn boot_id(roots: &Roots) -> Option<String> {
    let id = roots.read_proc("sys/kernel/random/boot_id").ok()?;
    let id = String::from_utf8(id).ok()?;
    Some(id.trim().to_owned())
}

fn read_clock(clock: libc::clockid_t) -> (i64, i64) {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a valid timespec for the kernel to fill. These clocks exist in every Linux
    // that has namespaces; on failure the zeros remain.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    (now.tv_sec, now.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_move_forward() {
        let before = boot_now();
        assert!(before.0 > 0);
        assert!(boot_now() >= before);
        assert!(wall_now().0 > 1_600_000_000);
    }

    #[test]
    fn boot_id_has_the_form_of_a_uuid() {
        let id = boot_id(&Roots::host()).unwrap();
        assert_eq!(id.len(), 36);
    }
}
