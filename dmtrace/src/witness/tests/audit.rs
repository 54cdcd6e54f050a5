//! The kernel's audit, as `auditd` writes it.

use std::fmt::Write as _;

use dmtrace_core::{
    wall_clock::ClockHistory,
    witness::{Ground, Role, UnknownReason, Witness},
};
use serde_json::json;

use super::scene::{BOOT, Host, cookie, named, reason};

/// Lines of an audit log.
#[derive(Default)]
struct Log {
    text: String,
    serial: u32,
}

impl Log {
    fn call(&mut self, at: i64, number: u32, arguments: &str, exit: i64, who: &str) {
        self.serial += 1;
        let success = if exit < 0 { "no" } else { "yes" };
        writeln!(
            self.text,
            "type=SYSCALL msg=audit({}.345:{}): arch=c000003e syscall={number} success={success} \
             exit={exit} {arguments} items=0 {who} auid=0 uid=0 gid=0 euid=0 key=\"sem\"\u{1d}ARCH=x86_64 \
             SYSCALL=x pid=1",
            BOOT + at,
            self.serial
        )
        .unwrap();
    }

    /// Another record of the last call.
    fn more(&mut self, at: i64, kind: &str, fields: &str) {
        let serial = self.serial;
        writeln!(
            self.text,
            "type={kind} msg=audit({}.345:{serial}): {fields}",
            BOOT + at
        )
        .unwrap();
    }

    fn makes(&mut self, at: i64, number: u32, semid: i64, who: &str) {
        let arguments = format!("a0=d4d{number:04x} a1=1 a2=f80 a3=0");
        self.call(at, 64, &arguments, semid, who);
    }
}

const LVCREATE: &str = "ppid=900 pid=812 comm=\"lvcreate\" exe=\"/usr/sbin/lvm\"";

#[test]
fn whoever_made_the_set() {
    let mut log = Log::default();
    log.makes(1000, 7, 7, LVCREATE);
    // Of another second, of another number, a failure, and one that found what was there.
    log.makes(980, 7, 7, "ppid=1 pid=1 comm=\"a\" exe=\"/a\"");
    log.makes(1000, 7, 8, "ppid=1 pid=2 comm=\"b\" exe=\"/b\"");
    log.makes(1000, 7, -17, "ppid=1 pid=3 comm=\"c\" exe=\"/c\"");
    log.call(
        1000,
        64,
        "a0=d4d0007 a1=1 a2=1b0 a3=0",
        7,
        "ppid=1 pid=4 comm=\"d\" exe=\"/d\"",
    );
    let host = Host::new();
    host.write("var/log/audit/audit.log", &log.text);
    // udev has completed it: the kernel's last operator is another.
    let answer = host.ask(cookie(7, 1000, 1003, 0, 5000));
    assert_eq!(named(&answer), "lvcreate[812]");
    let suspect = answer.suspect().unwrap();
    let witness = Witness::Audit;
    assert_eq!(suspect.grounds.first(), Some(&Ground::Made { witness }));
    assert_eq!(suspect.who.exe.as_deref(), Some("/usr/sbin/lvm"));
    assert!(
        suspect.doubts.is_empty() && !suspect.who.alive,
        "{suspect:?}"
    );
    // Nothing is said of the others.
    for other in [
        cookie(8, 1000, 1003, 0, 5000),
        cookie(7, 1200, 1203, 0, 5000),
    ] {
        assert_eq!(
            reason(&host.ask(other)),
            Some(UnknownReason::CompletedByUdev)
        );
    }
}

#[test]
fn a_maker_that_lives() {
    let mut log = Log::default();
    for number in [1, 2, 3] {
        log.makes(
            1000,
            number,
            number.into(),
            "ppid=1 pid=500 comm=\"dockerd\" exe=\"/d\"",
        );
    }
    let mut host = Host::new();
    host.runs(500, "dockerd", 50);
    host.write("var/log/audit/audit.log", &log.text);
    let moments = [1, 2, 3].map(|number| cookie(number, 1000, 1001, 0, 5000));
    let answers = host.hear(&moments).inquire(&host.facts).weigh_all(&moments);
    for answer in answers.values() {
        assert_eq!(named(answer), "dockerd[500]");
        assert!(answer.suspect().unwrap().who.alive);
    }
    // The number belongs to another one by now.
    host.runs(500, "dockerd", 5000);
    let answer = host.ask(moments[0]);
    assert!(!answer.suspect().unwrap().who.alive);
}

#[test]
fn a_cookie_that_dmsetup_made_for_a_script() {
    let dmsetup = "ppid=898 pid=900 comm=\"dmsetup\" exe=\"/usr/sbin/dmsetup\"";
    let mut host = Host::new();
    host.runs(898, "bash", 990);
    for (word, expected) in [
        (Some("udevcreatecookie"), "bash[898]"),
        (Some("create"), "dmsetup[900]"),
        (None, "unknown ParentUnknown [\"dmsetup[900]\"]"),
    ] {
        let mut log = Log::default();
        log.call(1000, 59, "a0=55 a1=56 a2=57 a3=0", 0, dmsetup);
        if let Some(word) = word {
            let fields = format!("argc=2 a0=\"dmsetup\" a1=\"{word}\"");
            log.more(1000, "EXECVE", &fields);
        }
        log.makes(1000, 1, 1, dmsetup);
        host.write("var/log/audit/audit.log", &log.text);
        let answer = host.ask(cookie(1, 1000, 0, 1, 900));
        assert_eq!(named(&answer), expected);
        let script = answer.suspect().is_some_and(|it| it.role == Role::Script);
        assert_eq!(script, word == Some("udevcreatecookie"));
    }
}

#[test]
fn a_script_whose_number_another_has() {
    let dmsetup = "ppid=898 pid=900 comm=\"dmsetup\" exe=\"/usr/sbin/dmsetup\"";
    let mut log = Log::default();
    log.call(1000, 59, "a0=55 a1=56 a2=57 a3=0", 0, dmsetup);
    log.more(
        1000,
        "EXECVE",
        "argc=2 a0=\"dmsetup\" a1=\"udevcreatecookie\"",
    );
    log.makes(1000, 1, 1, dmsetup);
    let mut host = Host::new();
    host.write("var/log/audit/audit.log", &log.text);
    // It began after the cookie was made, and before udev completed it.
    host.runs(898, "nginx", 6000);
    let answer = host.ask(cookie(1, 1000, 9000, 1, 5000));
    assert_eq!(named(&answer), "unknown ParentUnknown [\"dmsetup[900]\"]");
    // The clock was set, and nobody knows when.
    host.runs(898, "nginx", 990);
    host.facts.clock = ClockHistory::default();
    let answer = host.ask(cookie(1, 1000, 9000, 1, 5000));
    assert!(answer.suspect().is_none(), "{answer:?}");
}

#[test]
fn whoever_was_killed() {
    for (number, fatal) in [("a1=9", true), ("a1=f", false)] {
        let mut log = Log::default();
        let arguments = format!("a0=32c {number} a2=0 a3=0");
        log.call(
            1001,
            62,
            &arguments,
            0,
            "ppid=1 pid=77 comm=\"pkill\" exe=\"/usr/bin/pkill\"",
        );
        // Between the records of a call are those of others.
        log.serial += 1;
        log.more(1001, "CWD", "cwd=\"/\"");
        log.serial -= 1;
        log.more(
            1001,
            "OBJ_PID",
            "opid=812 oauid=0 ouid=0 oses=1 ocomm=\"lvcreate\"",
        );
        let host = Host::new();
        host.write("var/log/audit/audit.log", &log.text);
        let answer = host.ask(cookie(1, 1000, 1001, 0, 5000));
        let expected = if fatal {
            "lvcreate[812]"
        } else {
            "unknown CompletedByUdev []"
        };
        assert_eq!(named(&answer), expected);
    }
    let mut log = Log::default();
    log.more(
        1001,
        "ANOM_ABEND",
        "auid=0 uid=0 gid=0 ses=1 pid=812 comm=\"lvcreate\" exe=\"/usr/sbin/lvm\" sig=11 res=1",
    );
    let host = Host::new();
    host.write("var/log/audit/audit.log.1", &log.text);
    let answer = host.ask(cookie(1, 1000, 1001, 0, 5000));
    assert_eq!(named(&answer), "lvcreate[812]");
}

#[test]
fn the_journal_has_it_where_no_auditd_runs() {
    let mut host = Host::new();
    let call = format!(
        "SYSCALL arch=c000003e syscall=64 success=yes exit=1 a0=d4d0001 a1=1 a2=f80 a3=0 items=0 \
         {LVCREATE} uid=0 euid=0"
    );
    host.journal(
        1000,
        json!({"_TRANSPORT": "audit", "_AUDIT_ID": "12", "_PID": "812", "MESSAGE": call}),
    );
    let answer = host.ask(cookie(1, 1000, 1003, 0, 5000));
    assert_eq!(named(&answer), "lvcreate[812]");
    let witness = Witness::Journal;
    let grounds = &answer.suspect().unwrap().grounds;
    assert_eq!(grounds.first(), Some(&Ground::Made { witness }));
}

#[test]
fn records_that_no_kernel_writes() {
    let long = "6".repeat(100_000);
    let lines = [
        "type=SYSCALL msg=audit(x.1:1): arch=c000003e syscall=64",
        "type=SYSCALL msg=audit(99999999999999999999.1:1): arch=c000003e",
        "type=SYSCALL",
        "type=EXECVE msg=audit(1795133800.1:1): argc=99999999 a0=\"x\"",
        "type=SYSCALL msg=audit(1795133800.345:1): arch=c000003e syscall=64 success=yes exit=1 \
         a0=ffffffffffffffffffff a1=1 a2=f80 ppid=1 pid=812 comm=6C1B5B6D exe=6",
        "node=a type=ANOM_ABEND msg=audit(1795133801.1:2): pid=812 comm=\"lvcreate\" sig=300",
        "node=type=SYSCALL",
        &format!(
            "type=SYSCALL msg=audit(1795133800.345:3): arch=c000003e syscall=16 success=yes \
         exit=0 pid=5000 comm={long} exe={long}"
        ),
    ];
    let host = Host::new();
    host.write("var/log/audit/audit.log", lines.join("\n"));
    let moment = cookie(1, 1000, 1001, 1, 5000);
    let witnesses = host.hear(&[moment]);
    assert!(witnesses.testimonies.iter().all(|it| it.line.len() < 500));
    let answer = witnesses.inquire(&host.facts).weigh(&moment);
    assert!(answer.suspect().is_none(), "{answer:?}");
}
