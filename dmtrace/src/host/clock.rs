//! Clocks, and the identity of the boot.
//!
//! In a time namespace `CLOCK_BOOTTIME` and the starts in `/proc/PID/stat` are shifted, and the
//! probes' clock is not. Everything here is the host's.

pub mod history;
mod sources;
mod time_ns;

use std::time::Duration;

use dmtrace_core::ids::{BootTime, UnixTime};

use crate::host::Roots;

/// Now on the clock that verdicts use: the host's `CLOCK_BOOTTIME`, as `ktime_get_boot_ns` in the
/// probes.
pub fn boot_now() -> BootTime {
    let shift = time_ns::offsets().boottime;
    let nanos = read_nanos(libc::CLOCK_BOOTTIME).saturating_sub(shift);
    BootTime(u64::try_from(nanos).unwrap_or(0))
}

/// How long the machine was suspended since boot: `CLOCK_MONOTONIC` stands still meanwhile, and with
/// it the stamps of the kernel log and of the journal.
pub(crate) fn suspended_time() -> Duration {
    let shift = time_ns::offsets().monotonic;
    let monotonic = read_nanos(libc::CLOCK_MONOTONIC).saturating_sub(shift);
    let suspended = i64::try_from(boot_now().0).unwrap_or(i64::MAX) - monotonic;
    // The time between the two readings is none of it.
    match u64::try_from(suspended) {
        Ok(nanos) if nanos > 1_000_000 => Duration::from_nanos(nanos),
        _ => Duration::ZERO,
    }
}

/// The start of a process on the host's clock, from what `/proc/PID/stat` shows here.
pub(super) fn host_ticks(shown: u64) -> u64 {
    time_ns::offsets().unshift_ticks(shown)
}

/// Why starts of processes cannot be told exactly here; `None` where they can.
pub(super) fn inexact_starts() -> Option<&'static str> {
    time_ns::offsets().inexact_reason()
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

fn read_nanos(clock: libc::clockid_t) -> i64 {
    let (sec, nsec) = read_clock(clock);
    sec.saturating_mul(1_000_000_000).saturating_add(nsec)
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
