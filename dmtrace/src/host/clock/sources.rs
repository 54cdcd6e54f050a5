//! Who wrote both clocks down before this process came. Only what the kernel or root's daemons write
//! counts, where no container's user can: each line says what it proves.

use std::{
    fs::{self, OpenOptions},
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant, UNIX_EPOCH},
};

use dmtrace_core::{
    ids::BootTime,
    wall_clock::{ClockAnchor, ClockOffset, Coverage},
};

use super::suspended_time;
use crate::host::Roots;

const SECOND: u64 = 1_000_000_000;

/// Everything that is there, in no order.
pub(super) fn read_anchors(roots: &Roots) -> Vec<ClockAnchor> {
    let suspended = suspended_time();
    let mut anchors = Vec::new();
    anchors.extend(boot_anchor(roots));
    anchors.extend(kernel_log_anchors(roots, suspended));
    anchors.extend(journal_anchors(roots, suspended));
    anchors
}

const fn new_anchor(at: u64, offset: i64, error: u64) -> ClockAnchor {
    ClockAnchor {
        at: BootTime(at),
        offset: ClockOffset(offset),
        error,
        before: Coverage::Unwatched,
    }
}

/// The kernel makes this node before it starts user space.
const FIRST_NODE: &str = "dev/null";

/// It takes no longer than this.
const FIRST_NODE_BY: u64 = 10 * SECOND;

/// The wall clock at boot, by the birth of a node that the kernel makes itself. `devtmpfs` is one for
/// the whole machine, and a birth cannot be changed; other files there may have been made later.
fn boot_anchor(roots: &Roots) -> Option<ClockAnchor> {
    let mounts = roots.read_proc("1/mountinfo").ok()?;
    let mounts = String::from_utf8_lossy(&mounts);
    let mount = mounts
        .lines()
        .rfind(|line| line.split(' ').nth(4) == Some("/dev"))?;
    let (_, file_system) = mount.split_once(" - ")?;
    file_system.starts_with("devtmpfs ").then_some(())?;
    let made = fs::metadata(roots.fs.join(FIRST_NODE))
        .ok()?
        .created()
        .ok()?;
    let made = made.duration_since(UNIX_EPOCH).ok()?;
    let made = i64::try_from(made.as_nanos()).ok()?;
    let half = FIRST_NODE_BY / 2;
    Some(new_anchor(0, made - half.cast_signed(), half))
}

/// Records of the kernel log that are read.
const MAX_LOG_RECORDS: usize = 50_000;

/// A record of `/dev/kmsg` is cut to this (`PRINTKRB_RECORD_MAX`).
const MAX_LOG_RECORD: usize = 8192;

/// Messages of the kernel that have the wall clock in them: of audit, each; of the clock chip, at
/// boot. Their own stamp counts from boot, without suspend, on a clock that nobody corrects.
fn kernel_log_anchors(roots: &Roots, suspended: Duration) -> Vec<ClockAnchor> {
    let options = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(roots.fs.join("dev/kmsg"));
    let Ok(mut log) = options else {
        return Vec::new();
    };
    let mut anchors = Vec::new();
    let mut record = vec![0; MAX_LOG_RECORD];
    for _ in 0..MAX_LOG_RECORDS {
        let len = match log.read(&mut record) {
            Ok(0) => break,
            Ok(len) => len,
            // The oldest was overwritten meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => continue,
            Err(_) => break,
        };
        let text = String::from_utf8_lossy(&record[..len]);
        anchors.extend(parse_kernel_record(&text, suspended));
    }
    anchors
}

/// `PRIORITY,SEQUENCE,MICROSECONDS,FLAGS;MESSAGE`.
fn parse_kernel_record(record: &str, suspended: Duration) -> Option<ClockAnchor> {
    let (head, message) = record.split_once(';')?;
    let mut fields = head.split(',');
    let priority: u32 = fields.next()?.parse().ok()?;
    let micros: u64 = fields.nth(1)?.parse().ok()?;
    // The facility: what programs write there is not of the kernel (`LOG_KERN`).
    (priority >> 3 == 0).then_some(())?;
    let (seconds, millis) = if let Some(stamp) = audit_stamp(message) {
        let (stamp, _) = stamp.split_once(':')?;
        let (seconds, millis) = stamp.split_once('.')?;
        (seconds.parse::<i64>().ok()?, millis.parse::<i64>().ok()?)
    } else {
        let (_, set) = message.split_once("setting system clock to ")?;
        let (_, seconds) = set.split_once('(')?;
        let (seconds, _) = seconds.split_once(')')?;
        (seconds.parse().ok()?, 0)
    };
    let at = micros.checked_mul(1000)?;
    let wall = seconds
        .checked_mul(SECOND.cast_signed())?
        .checked_add(millis.checked_mul(1_000_000)?)?;
    let half = u64::try_from(suspended.as_nanos() / 2).ok()?;
    // The kernel's log runs on the processor's own clock: 100 millionths of drift.
    let error = SECOND + at / 10_000 + half;
    let at = at.checked_add(half)?;
    Some(new_anchor(at, wall.checked_sub(at.cast_signed())?, error))
}

/// What follows `audit: type=NUMBER audit(`. Other messages begin with names that users choose, up to
/// 15 bytes of a process, which is too short for that.
fn audit_stamp(message: &str) -> Option<&str> {
    let (kind, stamp) = message
        .strip_prefix("audit: type=")?
        .split_once(" audit(")?;
    kind.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then_some(stamp)
}

/// Lines of the journal that are read: the newest, and the first ones of this boot.
const JOURNAL_LINES: usize = 3000;
const JOURNAL_FIRST_LINES: usize = 300;

/// It takes no longer than this; what has come by then counts.
const JOURNAL_TIME: Duration = Duration::from_secs(2);

/// `journald` stamps each message with both clocks at once when it receives it. It writes as root, and
/// users can choose neither stamp.
fn journal_anchors(roots: &Roots, suspended: Duration) -> Vec<ClockAnchor> {
    let deadline = Instant::now() + JOURNAL_TIME;
    let running = ["run/log/journal", "var/log/journal"]
        .iter()
        .any(|dir| fs::read_dir(roots.fs.join(dir)).is_ok_and(|mut it| it.next().is_some()));
    if !running {
        return Vec::new();
    }
    let read = |lines: Option<usize>| {
        let mut command = Command::new("journalctl");
        command.args(["--boot", "--quiet", "--no-pager", "--output=json"]);
        command.arg("--output-fields=PRIORITY");
        if roots.fs.as_os_str() != "/" {
            command.arg(format!("--root={}", roots.fs.display()));
        }
        match lines {
            Some(lines) => command.arg(format!("--lines={lines}")),
            None => &mut command,
        };
        let most = lines.unwrap_or(JOURNAL_FIRST_LINES);
        read_lines(&mut command, most, deadline)
    };
    let mut lines = read(Some(JOURNAL_LINES));
    if lines.len() >= JOURNAL_LINES {
        lines.extend(read(None));
    }
    let anchors = lines.iter();
    let mut anchors: Vec<_> = anchors
        .filter_map(|line| parse_journal_line(line, suspended))
        .collect();
    anchors.sort_by_key(|anchor| anchor.at);
    drop_interrupted(&mut anchors);
    anchors
}

/// Drops pairs of stamps between which `journald` was interrupted: a little off from what is the same
/// before and after. Somebody who sets the clock and sets it back is further off than that.
fn drop_interrupted(anchors: &mut Vec<ClockAnchor>) {
    let apart = |a: &ClockAnchor, b: &ClockAnchor| a.offset.0.abs_diff(b.offset.0);
    let mut kept: Vec<ClockAnchor> = Vec::with_capacity(anchors.len());
    for (place, anchor) in anchors.iter().enumerate() {
        let around = kept.last().zip(anchors.get(place + 1));
        let off = around.is_some_and(|(before, after)| {
            let exact = before.error + after.error;
            let range = exact + 1..SECOND;
            apart(before, after) <= exact && range.contains(&apart(before, anchor))
        });
        if !off {
            kept.push(*anchor);
        }
    }
    *anchors = kept;
}

/// Lines that a program prints, as far as they come in time.
fn read_lines(command: &mut Command, most: usize, deadline: Instant) -> Vec<String> {
    let command = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let Ok(mut child) = command.stdout(Stdio::piped()).spawn() else {
        return Vec::new();
    };
    let Some(output) = child.stdout.take() else {
        return Vec::new();
    };
    let (sender, lines) = mpsc::channel();
    // It ends when the program does.
    let reader = thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let mut found = Vec::new();
    while found.len() < most
        && let Some(left) = deadline.checked_duration_since(Instant::now())
        && let Ok(line) = lines.recv_timeout(left)
    {
        found.push(line);
    }
    drop(lines);
    // It may have ended: then there is nothing to kill.
    let _ = child.kill();
    let _ = child.wait();
    let _ = reader.join();
    found
}

/// How far apart the two stamps of one message can be taken; more is an interruption in between.
const JOURNAL_ERROR: u64 = 1_000_000;

fn parse_journal_line(line: &str, suspended: Duration) -> Option<ClockAnchor> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let micros = |name: &str| line[name].as_str()?.parse::<u64>().ok()?.checked_mul(1000);
    let wall = i64::try_from(micros("__REALTIME_TIMESTAMP")?).ok()?;
    let half = u64::try_from(suspended.as_nanos() / 2).ok()?;
    let at = micros("__MONOTONIC_TIMESTAMP")?.checked_add(half)?;
    let offset = wall.checked_sub(i64::try_from(at).ok()?)?;
    Some(new_anchor(at, offset, JOURNAL_ERROR + half))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Duration = Duration::ZERO;

    #[test]
    fn stamps_in_the_kernel_log_are_read() {
        let audit = "5,310,266844,-;audit: type=2000 audit(1795118912.174:1): state=initialized\n";
        let anchor = parse_kernel_record(audit, NONE).unwrap();
        assert_eq!(anchor.at, BootTime(266_844_000));
        assert_eq!(anchor.offset.0, 1_795_118_912_174_000_000 - 266_844_000);
        let chip = "6,9,1500000,-;rtc_cmos 00:01: setting system clock to 2026-11-30T17:00:00 UTC (1796058000)";
        let anchor = parse_kernel_record(chip, NONE).unwrap();
        assert_eq!(anchor.offset.0, 1_796_058_000_000_000_000 - 1_500_000_000);
        // A process of this name has crashed.
        let named = "4,311,266844,-;audit(1.0:1)x[7]: segfault at 0 audit: type=1 audit(1.0:1)";
        assert_eq!(parse_kernel_record(named, NONE), None);
        // Written by a program.
        let forged = "13,311,266844,-;audit: type=2000 audit(1795118912.174:1): state=initialized";
        assert_eq!(parse_kernel_record(forged, NONE), None);
        for other in ["", ";", "5,1,2,-;Linux version", "5,1,2,-;audit(x.y:1)"] {
            assert_eq!(parse_kernel_record(other, NONE), None);
        }
    }

    #[test]
    fn a_suspend_makes_a_stamp_less_exact() {
        let line =
            r#"{"__REALTIME_TIMESTAMP":"1796058000000001","__MONOTONIC_TIMESTAMP":"5000000"}"#;
        let awake = parse_journal_line(line, NONE).unwrap();
        assert_eq!((awake.at.0, awake.error), (5 * SECOND, JOURNAL_ERROR));
        assert_eq!(awake.offset.0, 1_796_057_995_000_001_000);
        let slept = parse_journal_line(line, Duration::from_secs(100)).unwrap();
        for truth in [awake.offset.0, awake.offset.0 - 100_000_000_000] {
            assert!(slept.offset.0.abs_diff(truth) <= slept.error);
        }
        assert_eq!(parse_journal_line("{}", NONE), None);
        assert_eq!(parse_journal_line("no json", NONE), None);
    }

    #[test]
    fn an_interrupted_pair_is_no_step() {
        let anchor = |at, offset| new_anchor(at, offset, JOURNAL_ERROR);
        let steady = [anchor(1, 0), anchor(2, 5), anchor(9, 7)];
        let mut late = vec![steady[0], anchor(2, 40_000_000), steady[1], steady[2]];
        drop_interrupted(&mut late);
        assert_eq!(late, steady);
        let set = [anchor(1, 0), anchor(2, 10_000_000_000), anchor(3, 0)];
        let mut kept = set.to_vec();
        drop_interrupted(&mut kept);
        assert_eq!(kept, set);
    }

    #[test]
    fn what_a_program_prints_is_bounded() {
        let deadline = || Instant::now() + Duration::from_millis(500);
        let mut endless = Command::new("yes");
        assert_eq!(read_lines(&mut endless, 7, deadline()).len(), 7);
        let mut silent = Command::new("sleep");
        let began = Instant::now();
        assert!(read_lines(silent.arg("60"), 7, deadline()).is_empty());
        assert!(began.elapsed() < Duration::from_secs(30));
        let mut absent = Command::new("/nosuch/program");
        assert!(read_lines(&mut absent, 7, deadline()).is_empty());
    }
}
