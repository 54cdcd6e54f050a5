//! The shift of this process's time namespace.

use std::{fs, sync::OnceLock};

const SECOND: i64 = 1_000_000_000;

/// Nanoseconds of a clock tick in `/proc` (`USER_HZ`, 100 everywhere).
const TICK: i64 = 10_000_000;

/// What a time namespace adds to the host's clocks, nanoseconds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct TimeOffsets {
    pub monotonic: i64,
    pub boottime: i64,
    /// There is a time namespace whose shift cannot be read.
    pub unknown: bool,
}

impl TimeOffsets {
    /// From `timens_offsets`: a clock, its seconds, its nanoseconds.
    fn parse(text: &str) -> Option<Self> {
        let mut offsets = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let clock = words.next()?;
            let seconds: i64 = words.next()?.parse().ok()?;
            let nanos: i64 = words.next()?.parse().ok()?;
            let offset = seconds.checked_mul(SECOND)?.checked_add(nanos)?;
            // Numbers before Linux 5.7.
            match clock {
                "monotonic" | "1" => offsets.monotonic = offset,
                "boottime" | "7" => offsets.boottime = offset,
                _ => {}
            }
        }
        Some(offsets)
    }

    pub(super) fn unshift_ticks(self, shown: u64) -> u64 {
        shown.saturating_add_signed(-self.boottime.div_euclid(TICK))
    }

    pub(super) const fn inexact_reason(self) -> Option<&'static str> {
        if self.unknown {
            Some("this time namespace shifts the clocks by what cannot be read")
        } else if self.boottime % TICK != 0 {
            // The kernel adds first and cuts to whole ticks then.
            Some("this time namespace shifts starts of processes by no whole number of ticks")
        } else {
            None
        }
    }
}

/// That of this process, which stays in its time namespace for ever: only children enter another.
pub(super) fn offsets() -> TimeOffsets {
    static OFFSETS: OnceLock<TimeOffsets> = OnceLock::new();
    *OFFSETS.get_or_init(read_offsets)
}

fn read_offsets() -> TimeOffsets {
    let link = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).ok();
    let (Some(ours), children) = (link("time"), link("time_for_children")) else {
        // Before Linux 5.6, or without CONFIG_TIME_NS.
        return TimeOffsets::default();
    };
    // `timens_offsets` is about the namespace of the children. It is ours as well, unless whoever
    // made it called `execve` without a `fork`; then ours is the one from before.
    if children.is_none_or(|children| children == ours) {
        let text = fs::read_to_string("/proc/self/timens_offsets").ok();
        if let Some(offsets) = text.as_deref().and_then(TimeOffsets::parse) {
            return offsets;
        }
    }
    // `PROC_TIME_INIT_INO`: that of the host.
    let unknown = ours.as_os_str() != "time:[4026531834]";
    TimeOffsets {
        unknown,
        ..TimeOffsets::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Roots, clock::boot_now, identity};

    #[test]
    fn offsets_of_a_time_namespace_are_read() {
        let text = "monotonic           0         0\nboottime       100000         0\n";
        let offsets = TimeOffsets::parse(text).unwrap();
        assert_eq!(offsets.boottime, 100_000 * SECOND);
        assert_eq!(offsets.unshift_ticks(10_029_820), 29_820);
        assert_eq!(offsets.inexact_reason(), None);
        let back = TimeOffsets::parse("7 -10 0\n1 -10 0\n").unwrap();
        assert_eq!(back.unshift_ticks(500), 1500);
        let odd = TimeOffsets::parse("boottime 1 5\n").unwrap();
        assert!(odd.inexact_reason().is_some());
        assert_eq!(TimeOffsets::parse("nonsense"), None);
    }

    const SEEN_OUTSIDE: &str = "DMTRACE_TEST_SEEN_OUTSIDE";

    /// This process's number and start, and the time, as they are outside.
    fn look() -> (u32, u64, u64) {
        let pid = std::process::id();
        let ticks = identity::start_ticks(&Roots::host(), pid).unwrap();
        (pid, ticks, boot_now().0)
    }

    #[test]
    #[ignore = "needs root: unshare --time"]
    fn a_time_namespace_changes_no_time() {
        let (pid, ticks, now) = look();
        for shift in ["100000", "-10", "0"] {
            let child = std::process::Command::new("unshare")
                .args(["--time", "--boottime", shift, "--fork", "--"])
                .arg(std::env::current_exe().unwrap())
                .args([
                    "--ignored",
                    "--exact",
                    "host::clock::time_ns::tests::inside",
                ])
                .env(SEEN_OUTSIDE, format!("{pid} {ticks} {now}"))
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&child.stdout);
            assert!(
                child.status.success() && text.contains("1 passed"),
                "{shift}: {text}"
            );
        }
    }

    #[test]
    #[ignore = "run by a_time_namespace_changes_no_time"]
    fn inside() {
        let Ok(seen) = std::env::var(SEEN_OUTSIDE) else {
            return;
        };
        let seen: Vec<u64> = seen.split(' ').map(|it| it.parse().unwrap()).collect();
        let parent = u32::try_from(seen[0]).unwrap();
        let ticks = identity::start_ticks(&Roots::host(), parent);
        assert_eq!(ticks, Some(seen[1]));
        let later = boot_now().0.checked_sub(seen[2]).unwrap();
        assert!(later < 60 * SECOND.unsigned_abs(), "{later}");
    }
}
