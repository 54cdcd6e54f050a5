//! Witnesses that are damaged, endless, or lie in wait.

use std::time::{Duration, Instant};

use dmtrace_core::witness::{MAX_LINE, UnknownReason};
use serde_json::json;

use super::scene::{AXSIG, Host, cookie, make_fifo, named, reason};

#[test]
fn nothing_waits_for_a_pipe() {
    let host = Host::new();
    let files = [
        "var/log/account/pacct",
        "var/log/syslog",
        "var/log/dpkg.log",
        "dev/kmsg",
        "etc/crontab",
    ];
    for path in files {
        make_fifo(&host.path(path)).unwrap();
    }
    let began = Instant::now();
    let moments: Vec<_> = (1..4)
        .map(|day| cookie(day, i64::from(day) * 86_400, 0, 0, 0))
        .collect();
    let witnesses = host.hear_as_is(&moments);
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(witnesses.testimonies.is_empty());
    for what in ["process accounting", "syslog", "package log", "kernel log"] {
        assert!(
            witnesses.unread.iter().any(|it| it.what == what),
            "{what}: {:?}",
            witnesses.unread
        );
    }
}

#[test]
fn a_huge_line_with_control_characters() {
    let mut host = Host::new();
    let mut line =
        "2026-11-20T00:16:40Z host evil\u{1b}]0;x\u{7}[700]: \u{1b}[2J\u{202e}".to_owned();
    line.push_str(&"A".repeat(3 << 20));
    line.push('\n');
    host.write("var/log/syslog", &line);
    host.journal(
        1000,
        json!({"_PID": "701", "_COMM": "a\u{1b}[31m", "MESSAGE": [27, 91, 50, 74, 255]}),
    );
    host.journal(
        1000,
        json!({"MESSAGE": null, "_PID": ["1", "2"], "_UID": 7}),
    );
    let moment = cookie(1, 1000, 1000, 1, 700);
    let witnesses = host.hear(&[moment]);
    assert!(!witnesses.testimonies.is_empty());
    for testimony in &witnesses.testimonies {
        let texts = [Some(&testimony.line), testimony.name.as_ref()];
        for text in texts.into_iter().flatten() {
            assert!(
                !text.chars().any(|c| c.is_control() || c == '\u{202e}'),
                "{text}"
            );
            // What was made visible is longer.
            assert!(text.len() <= 8 * MAX_LINE);
        }
    }
}

#[test]
fn damaged_accounting() {
    let mut host = Host::new();
    host.ended((812, 1), "lvcreate", (995, 1001), (AXSIG, 9));
    host.write_accounting();
    let mut bytes = std::fs::read(host.path("var/log/account/pacct")).unwrap();
    // A record whose life is no number, and half of one.
    let mut broken = bytes.clone();
    broken[28..32].copy_from_slice(&f32::NAN.to_bits().to_le_bytes());
    bytes.extend_from_slice(&broken);
    bytes.extend_from_slice(&broken[..30]);
    host.write("var/log/account/pacct", &bytes);
    let moment = cookie(1, 1000, 1002, 0, 830);
    let witnesses = host.hear_as_is(&[moment]);
    let answer = witnesses.inquire(&host.facts).weigh(&moment);
    assert_eq!(named(&answer), "lvcreate[812]");
    assert!(witnesses.unread.iter().any(|it| it.why.contains("damaged")));
    // Another version.
    bytes[1] = 2;
    host.write("var/log/account/pacct", &bytes);
    let witnesses = host.hear_as_is(&[moment]);
    assert!(
        witnesses
            .unread
            .iter()
            .any(|it| it.why.contains("version 2"))
    );
    assert!(witnesses.testimonies.is_empty());
}

#[test]
fn accounting_that_runs_backwards() {
    let mut host = Host::new();
    host.ended((700, 1), "lvcreate", (995, 5000), (AXSIG, 9));
    host.ended((812, 1), "lvcreate", (995, 1001), (AXSIG, 9));
    let moment = cookie(1, 1000, 1002, 0, 830);
    let witnesses = host.hear(&[moment]);
    let answer = witnesses.inquire(&host.facts).weigh(&moment);
    assert_eq!(reason(&answer), Some(UnknownReason::CompletedByUdev));
    assert!(
        witnesses
            .unread
            .iter()
            .any(|it| it.why.contains("backwards"))
    );
}

#[test]
fn lines_that_anybody_can_write() {
    let host = Host::new();
    host.write(
        "var/log/syslog",
        "2026-11-20T00:16:41Z host kernel: [1001.0] Out of memory: Killed process 812 (lvcreate) \
         total-vm:9kB\n2026-11-20T00:16:41Z host x: y.sh: line 3: 813 Killed dmsetup create\n",
    );
    let answer = host.ask(cookie(1, 1000, 1002, 0, 830));
    assert_eq!(reason(&answer), Some(UnknownReason::Ambiguous));
    assert_eq!(answer.suspects().count(), 2);
}

#[test]
fn stamps_of_no_calendar() {
    let host = Host::new();
    for text in [
        "Feb 29 00:16:40 host a[1]: x\n",
        "Xyz 29 00:16:40 host a[1]: x\n",
        "Nov 99 99:99:99 host a[1]: x\n",
        "99999-11-20T00:16:40Z host a[1]: x\n",
        "\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\n",
        "\n\n",
    ] {
        host.write("var/log/syslog", text);
        host.write("var/log/dpkg.log", text);
        let moments = [
            cookie(1, 1000, 1002, 0, 830),
            cookie(2, i64::MAX / 2, i64::MIN / 2, -5, u32::MAX),
        ];
        let witnesses = host.hear(&moments);
        let answers = witnesses.inquire(&host.facts).weigh_all(&moments);
        assert!(answers.values().all(|it| it.suspect().is_none()));
    }
}
