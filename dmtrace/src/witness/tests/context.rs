//! The lines of the second in which a cookie was made.

use dmtrace_core::witness::{ContextLine, CookieMoment, MAX_CONTEXT_LINES, MAX_LINE};
use serde_json::json;

use super::scene::{AXSIG, Host, cookie};

fn context_of(host: &Host, moment: CookieMoment) -> (Vec<ContextLine>, usize) {
    let witnesses = host.hear(&[moment]);
    let inquiry = witnesses.inquire(&host.facts);
    let answer = inquiry.weigh(&moment);
    inquiry.find_context(&moment, &answer)
}

#[test]
fn only_lines_that_can_be_about_it() {
    let mut host = Host::new();
    host.ended((812, 1), "lvcreate", (995, 1001), (AXSIG, 9));
    host.journal(
        1001,
        json!({"_PID": "812", "_COMM": "lvcreate", "_UID": "0", "_SYSTEMD_UNIT": "nightly.service",
            "MESSAGE": "creating snap"}),
    );
    host.journal(
        1001,
        json!({"_PID": "1", "_COMM": "systemd", "UNIT": "nightly.service",
            "MESSAGE": "nightly.service: Main process exited, code=killed, status=9/KILL"}),
    );
    host.journal(
        1001,
        json!({"_TRANSPORT": "kernel", "MESSAGE": "device-mapper: table: 254:3: zero: x"}),
    );
    host.journal(
        1001,
        json!({"_PID": "600", "_COMM": "(udev-worker)", "_SYSTEMD_UNIT": "systemd-udevd.service",
            "MESSAGE": "dm-3: x"}),
    );
    // What is nobody's business: another tenant, another second, another unit.
    host.journal(
        1001,
        json!({"_PID": "900", "_COMM": "tenant", "_UID": "0", "MESSAGE": "password=hunter2"}),
    );
    host.journal(
        1001,
        json!({"_PID": "1", "_COMM": "systemd", "UNIT": "tenant.service",
            "MESSAGE": "Started tenant.service - x --password=hunter2."}),
    );
    host.journal(
        1001,
        json!({"_TRANSPORT": "kernel", "MESSAGE": "IPTables: x"}),
    );
    host.journal(
        1008,
        json!({"_PID": "812", "_COMM": "lvcreate", "_UID": "0", "MESSAGE": "later"}),
    );
    let (lines, left_out) = context_of(&host, cookie(1, 1000, 1002, 0, 830));
    let texts: Vec<&str> = lines.iter().map(|it| it.line.as_str()).collect();
    assert_eq!(left_out, 0);
    assert_eq!(texts.len(), 5, "{texts:#?}");
    for part in [
        "lvcreate[812]: creating snap",
        "nightly.service: Main process exited",
        "lvcreate[812], parent 1",
        "device-mapper: table",
        "dm-3: x",
    ] {
        assert!(
            texts.iter().any(|it| it.contains(part)),
            "{part}: {texts:#?}"
        );
    }
}

#[test]
fn a_line_that_two_logs_have_is_one() {
    let mut host = Host::new();
    let message = "Out of memory: Killed process 812 (lvcreate) total-vm:9kB, UID:0 pgtables:9kB";
    host.write("dev/kmsg", format!("3,310,1001000000,-;{message}\n"));
    host.write(
        "var/log/syslog",
        format!("2026-11-20T00:16:41Z host kernel: {message}\n"),
    );
    host.journal(1001, json!({"_TRANSPORT": "kernel", "MESSAGE": message}));
    let (lines, _) = context_of(&host, cookie(1, 1000, 1002, 0, 830));
    assert_eq!(lines.len(), 1, "{lines:#?}");
}

#[test]
fn many_and_long_lines_are_bounded() {
    let mut host = Host::new();
    for number in 0..100 {
        let long = format!("device-mapper: {number} {}", "x".repeat(4000));
        host.journal(1000, json!({"_TRANSPORT": "kernel", "MESSAGE": long}));
    }
    host.journal(
        1001,
        json!({"_PID": "812", "_COMM": "dmsetup", "_UID": "0", "MESSAGE": "\u{1b}[2Jhere"}),
    );
    let (lines, left_out) = context_of(&host, cookie(1, 1000, 1000, 1, 812));
    assert_eq!(lines.len(), MAX_CONTEXT_LINES);
    assert_eq!(left_out, 101 - MAX_CONTEXT_LINES);
    assert!(lines.iter().all(|it| it.line.len() <= MAX_LINE + 16));
    // The last operator's line is not lost among the others, and steers no terminal.
    let own = lines.iter().find(|it| it.line.contains("dmsetup[812]"));
    assert!(
        own.is_some_and(|it| !it.line.contains('\u{1b}')),
        "{lines:#?}"
    );
}
