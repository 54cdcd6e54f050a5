//! Who it was, where witnesses are honest.

use std::collections::BTreeSet;

use dmtrace_core::{
    ids::{BootTime, ProcId, UnixTime},
    search::{HolderClass, HolderProcess},
    wall_clock::{ClockAnchor, ClockHistory, ClockOffset, Coverage},
    witness::{Answer, Doubt, Ground, Role, UnknownReason},
};
use serde_json::json;

use super::scene::{AFORK, AXSIG, BOOT, Host, NOW, SECOND, cookie, named, reason};

/// udev's `dmsetup udevcomplete`, as accounting has it.
fn completed_by_udev(host: &mut Host, pid: u32, at: i64) {
    host.ended((pid, 600), "dmsetup", (at, at), (0, 0));
    host.ended((600, 400), "(udev-worker)", (at - 1, at + 3), (AFORK, 0));
}

#[test]
fn killed_in_its_wait_and_completed_by_udev() {
    let mut host = Host::new();
    host.ended((700, 1), "cron", (10, 900), (0, 0));
    host.ended((812, 1), "lvcreate", (995, 1001), (AXSIG, 9));
    completed_by_udev(&mut host, 830, 1002);
    host.ended((840, 1), "lvcreate", (1000, 1001), (0, 5 << 8));
    let answer = host.ask(cookie(1, 1000, 1002, 0, 830));
    assert_eq!(named(&answer), "lvcreate[812]");
    let suspect = answer.suspect().unwrap();
    assert!(suspect.doubts.contains(&Doubt::NotLastOperator));
    assert!(
        suspect
            .grounds
            .iter()
            .any(|it| matches!(it, Ground::Killed { signal: 9, .. }))
    );
}

#[test]
fn killed_before_its_wait() {
    let mut host = Host::new();
    host.ended((812, 1), "lvcreate", (1000, 1001), (AXSIG, 9));
    completed_by_udev(&mut host, 830, 1001);
    let answer = host.ask(cookie(1, 1000, 1001, 1, 830));
    assert_eq!(named(&answer), "lvcreate[812]");
}

#[test]
fn killed_and_never_completed() {
    let mut host = Host::new();
    host.ended((812, 700), "dmsetup", (1000, 1030), (AXSIG, 9));
    host.runs(700, "bash", 10);
    let answer = host.ask(cookie(1, 1000, 1001, 1, 812));
    assert_eq!(named(&answer), "dmsetup[812]");
    let grounds = &answer.suspect().unwrap().grounds;
    assert!(grounds.contains(&Ground::LastOperator));
}

#[test]
fn a_script_that_was_killed() {
    let mut host = Host::new();
    host.ended((900, 899), "dmsetup", (1000, 1000), (0, 0));
    host.ended((899, 898), "bash", (1000, 1000), (AFORK, 0));
    host.ended((898, 1), "bash", (990, 1100), (AXSIG, 9));
    let answer = host.ask(cookie(1, 1000, 0, 1, 900));
    assert_eq!(named(&answer), "bash[898]");
    assert_eq!(answer.suspect().unwrap().role, Role::Script);
    // Whoever it was had ended first: a reaper has taken its place.
    let mut host = Host::new();
    host.ended((900, 1), "dmsetup", (1000, 1000), (0, 0));
    let answer = host.ask(cookie(1, 1000, 0, 1, 900));
    assert_eq!(reason(&answer), Some(UnknownReason::ParentUnknown));
}

#[test]
fn a_script_that_shares_its_cookie() {
    let mut host = Host::new();
    host.runs(898, "bash", 990);
    host.ended((905, 898), "dmsetup", (1010, 1010), (0, 0));
    let answer = host.ask(cookie(1, 1000, 1010, 2, 905));
    assert_eq!(named(&answer), "bash[898]");
}

fn holder_of(pid: u32, name: &str, start: u64) -> HolderProcess {
    HolderProcess {
        id: ProcId {
            tgid: pid,
            start: BootTime(start * SECOND),
        },
        comm: name.to_owned(),
        exe: format!("/usr/bin/{name}"),
        class: HolderClass::Actor,
        traits: BTreeSet::new(),
    }
}

#[test]
fn a_daemon_that_lives() {
    let mut host = Host::new();
    host.runs(500, "dockerd", 50);
    host.ended((812, 1), "dmsetup", (999, 1000), (AXSIG, 9));
    let moment = cookie(1, 1000, 1000, 1, 500);
    let witnesses = host.hear(&[moment]);
    let mut inquiry = witnesses.inquire(&host.facts);
    let holder = holder_of(500, "dockerd", 50);
    inquiry.add_holder(moment.sem, &holder);
    let answer = inquiry.weigh(&moment);
    assert_eq!(named(&answer), "dockerd[500]");
    let suspect = answer.suspect().unwrap();
    assert!(suspect.who.alive && suspect.grounds.contains(&Ground::HoldsNumber));
    // Of a cookie that was completed, its memory alone speaks.
    let other = cookie(1, 1000, 1003, 0, 77_777);
    let alone = Host::new();
    let witnesses = alone.hear(&[other]);
    let mut inquiry = witnesses.inquire(&alone.facts);
    inquiry.add_holder(other.sem, &holder);
    assert_eq!(named(&inquiry.weigh(&other)), "dockerd[500]");
}

#[test]
fn a_daemon_that_has_ended() {
    let mut host = Host::new();
    host.ended((500, 1), "storaged", (50, 9000), (0, 0));
    for number in 1..6 {
        let answer = host.ask(cookie(number, 1000, 1000, 1, 500));
        assert_eq!(named(&answer), "storaged[500]");
    }
}

#[test]
fn a_daemon_that_was_stopped_much_later() {
    let mut host = Host::new();
    // It lived when the cookies were made, and so did whoever left them and ended as it should.
    host.ended((500, 1), "dockerd", (50, 9000), (AXSIG, 9));
    host.ended((701, 700), "dmsetup", (1002, 1003), (0, 0));
    host.ended((700, 1), "systemd-udevd", (2, 999_000), (0, 0));
    let moments = [1, 2, 3].map(|number| cookie(number, 1000, 1003, 1, 701));
    let answers = host.hear(&moments).inquire(&host.facts).weigh_all(&moments);
    for answer in answers.values() {
        assert!(answer.suspect().is_none(), "{answer:?}");
    }
    // Killed at once, it can have been nobody else.
    let mut host = Host::new();
    host.ended((500, 1), "dockerd", (50, 1003), (AXSIG, 9));
    let answer = host.ask(cookie(1, 1000, 1003, 0, 5000));
    assert_eq!(named(&answer), "dockerd[500]");
}

#[test]
fn nobody_knows_what_the_clock_was() {
    // Made at second 1000; then the clock was set back by two hours, and nobody has seen that.
    let moment = cookie(1, 1000 + 7200, 1000 + 7200, 1, 500);
    let mut host = Host::new();
    host.facts.clock = ClockHistory::default();
    host.runs(500, "sleep", 1060);
    assert!(host.ask(moment).suspect().is_none());
    // One that has the number as well, and acted last.
    let mut host = Host::new();
    host.facts.clock = ClockHistory::default();
    host.runs(500, "dockerd", 50);
    let witnesses = host.hear(&[moment]);
    let mut inquiry = witnesses.inquire(&host.facts);
    let holder = holder_of(500, "dockerd", 50);
    inquiry.add_holder(moment.sem, &holder);
    assert_eq!(named(&inquiry.weigh(&moment)), "dockerd[500]");
}

#[test]
fn a_number_that_is_used_again() {
    let mut host = Host::new();
    host.runs(500, "nginx", 5000);
    let answer = host.ask(cookie(1, 1000, 1000, 1, 500));
    assert_eq!(reason(&answer), Some(UnknownReason::NumberReused));
    // Its first user, by accounting.
    host.ended((500, 1), "storaged", (50, 1200), (0, 0));
    let answer = host.ask(cookie(1, 1000, 1000, 1, 500));
    assert_eq!(named(&answer), "storaged[500]");
    assert!(!answer.suspect().unwrap().who.alive);
}

#[test]
fn two_that_fit_equally() {
    let mut host = Host::new();
    host.ended((812, 1), "lvcreate", (1000, 1001), (AXSIG, 9));
    host.ended((813, 1), "dmsetup", (1000, 1001), (AXSIG, 9));
    completed_by_udev(&mut host, 830, 1002);
    let answer = host.ask(cookie(1, 1000, 1002, 0, 830));
    assert_eq!(reason(&answer), Some(UnknownReason::Ambiguous));
    assert_eq!(answer.suspects().count(), 2);
}

#[test]
fn one_that_fits_two_cookies() {
    let mut host = Host::new();
    host.ended((812, 1), "lvcreate", (1000, 1001), (AXSIG, 9));
    let moments = [cookie(1, 1000, 1002, 0, 830), cookie(2, 1000, 1002, 0, 831)];
    let answers = host.hear(&moments).inquire(&host.facts).weigh_all(&moments);
    for answer in answers.values() {
        assert_eq!(reason(answer), Some(UnknownReason::OneForMany));
        assert_eq!(answer.suspects().count(), 1);
    }
}

#[test]
fn an_innocent_with_the_right_name() {
    let mut host = Host::new();
    // Killed before the cookie was made, begun after it, and alive when it was completed.
    host.ended((801, 1), "lvcreate", (900, 990), (AXSIG, 9));
    host.ended((802, 1), "lvcreate", (1010, 1011), (AXSIG, 9));
    host.ended((803, 1), "dmsetup", (999, 1090), (AXSIG, 9));
    // A user's, who may not use device-mapper.
    completed_by_udev(&mut host, 830, 1002);
    let answer = host.ask(cookie(1, 1000, 1002, 0, 830));
    assert_eq!(reason(&answer), Some(UnknownReason::CompletedByUdev));
    assert_eq!(answer.suspects().count(), 0, "{}", named(&answer));
}

#[test]
fn a_clock_that_was_set() {
    let mut host = Host::new();
    host.ended((812, 1), "lvcreate", (995, 1001), (AXSIG, 9));
    host.runs(500, "dockerd", 50);
    host.runs(501, "storaged", 200_000);
    // An hour back, at some time in half a day.
    let anchor = |at: u64, offset: i64| ClockAnchor {
        at: BootTime(at * SECOND),
        offset: ClockOffset((BOOT + offset) * 1_000_000_000),
        error: 0,
        before: Coverage::Unwatched,
    };
    let mut clock = ClockHistory::default();
    clock.add(anchor(5, 3600));
    clock.add(anchor(500_000, 0));
    clock.add(anchor(NOW.unsigned_abs(), 0));
    host.facts.clock = clock;
    host.facts.wall = UnixTime(BOOT + NOW);
    let answer = host.ask(cookie(1, 1000, 1002, 0, 830));
    assert_eq!(reason(&answer), Some(UnknownReason::ClockInDoubt));
    let answer = host.ask(cookie(1, 1000, 1002, 1, 501));
    assert_eq!(reason(&answer), Some(UnknownReason::ClockInDoubt));
}

#[test]
fn the_journal_alone() {
    let mut host = Host::new();
    let manager = |message: &str| {
        json!({"_PID": "1", "_UID": "0", "_COMM": "systemd", "UNIT": "nightly-snap.service",
               "MESSAGE": message})
    };
    host.journal(
        998,
        manager("Started nightly-snap.service - /usr/sbin/lvcreate -L 8M -n snap vg."),
    );
    host.journal(
        1001,
        manager("nightly-snap.service: Main process exited, code=killed, status=9/KILL"),
    );
    host.journal(
        1001,
        manager("nightly-snap.service: Failed with result 'signal'."),
    );
    let answer = host.ask(cookie(1, 1000, 1002, 0, 830));
    assert_eq!(named(&answer), "nightly-snap.service");
    // Another unit that was killed then, and has nothing to do with device-mapper.
    let other = json!({"_PID": "1", "_COMM": "systemd", "UNIT": "web.service",
        "MESSAGE": "web.service: Main process exited, code=killed, status=9/KILL"});
    let mut quiet = Host::new();
    quiet.journal(1001, other.clone());
    let answer = quiet.ask(cookie(1, 1000, 1002, 0, 830));
    assert_eq!(reason(&answer), Some(UnknownReason::CompletedByUdev));
    assert_eq!(answer.suspects().count(), 1);
    host.journal(1001, other);
    host.journal(
        1001,
        manager("nightly-snap.service: Killing process 812 (lvcreate) with signal SIGKILL."),
    );
    let answer = host.ask(cookie(1, 1000, 1002, 0, 830));
    assert!(
        named(&answer).starts_with("lvcreate[812]"),
        "{}",
        named(&answer)
    );
}

#[test]
fn what_a_script_says_of_its_job() {
    let killed = |uid: &str| {
        json!({"_PID": "808", "_UID": uid, "_COMM": "bash", "_SYSTEMD_UNIT": "backup.service",
               "_TRANSPORT": "stdout", "_EXE": "/usr/bin/bash",
               "MESSAGE": "/tmp/backup.sh: line 3:   812 Killed                  dmsetup create bk"})
    };
    let mut host = Host::new();
    host.journal(1001, killed("0"));
    let answer = host.ask(cookie(1, 1000, 1002, 0, 830));
    assert_eq!(named(&answer), "dmsetup[812] (backup.service)");
    // Anybody can print that, and have a daemon of root log it.
    let mut logged = killed("0");
    logged["_COMM"] = json!("sshd");
    logged["_EXE"] = json!("/usr/sbin/sshd");
    logged["_TRANSPORT"] = json!("syslog");
    for said in [killed("1000"), logged] {
        let mut host = Host::new();
        host.journal(1001, said);
        let answer = host.ask(cookie(1, 1000, 1002, 0, 830));
        assert_eq!(reason(&answer), Some(UnknownReason::CompletedByUdev));
        let mut of_job = answer.suspects().filter(|it| it.who.pid == Some(812));
        assert!(of_job.all(|it| it.doubts.contains(&Doubt::Forgeable)));
    }
}

#[test]
fn the_journal_names_the_last_operator() {
    let mut host = Host::new();
    host.journal(
        1000,
        json!({"_PID": "700", "_UID": "0", "_COMM": "storaged", "_EXE": "/opt/storaged",
               "_CMDLINE": "storaged --pool a", "_SYSTEMD_UNIT": "storaged.service",
               "MESSAGE": "device busy"}),
    );
    let answer = host.ask(cookie(1, 1000, 1000, 1, 700));
    assert_eq!(named(&answer), "storaged[700] (storaged.service)");
    // udev's own.
    host.journal(
        1000,
        json!({"_PID": "701", "_UID": "0", "_COMM": "dmsetup",
               "_SYSTEMD_UNIT": "systemd-udevd.service", "MESSAGE": "x"}),
    );
    let answer = host.ask(cookie(1, 1000, 1000, 1, 701));
    assert_eq!(reason(&answer), Some(UnknownReason::CompletedByUdev));
}

#[test]
fn syslog_alone() {
    let host = Host::new();
    // 2026-11-20 00:16:40 UTC; the other one is of the year before.
    host.write(
        "var/log/syslog",
        "Nov 20 00:16:40 host storage-old[700]: of last year\n\
         Nov 20 00:16:39 host storaged[699]: no\nNov 20 00:16:40 host storaged[700]: busy\n",
    );
    let answer = host.ask(cookie(1, 1000, 1000, 1, 700));
    // Two names for one number.
    assert_eq!(reason(&answer), Some(UnknownReason::Ambiguous));
    host.write(
        "var/log/syslog",
        "2026-11-20T00:16:40.123456+00:00 host storaged[700]: busy\n",
    );
    let answer = host.ask(cookie(1, 1000, 1000, 1, 700));
    assert_eq!(named(&answer), "storaged[700]");
    assert!(answer.suspect().unwrap().doubts.contains(&Doubt::Forgeable));
}

#[test]
fn nobody_says_anything() {
    let host = Host::new();
    let moments = [
        cookie(1, 1000, 1002, 0, 830),
        cookie(2, 1000, 1002, 1, 830),
        cookie(3, 1000, 0, 0, 0),
        cookie(4, 1000, 0, 1, 830),
    ];
    let witnesses = host.hear(&moments);
    let what: BTreeSet<&str> = witnesses.unread.iter().map(|it| it.what.as_str()).collect();
    assert_eq!(
        what,
        ["journal", "kernel log", "process accounting", "syslog"].into()
    );
    let answers = witnesses.inquire(&host.facts).weigh_all(&moments);
    let reasons: Vec<_> = answers.values().map(reason).collect();
    assert_eq!(
        reasons,
        [
            Some(UnknownReason::CompletedByUdev),
            Some(UnknownReason::OperatorUnknown),
            Some(UnknownReason::NoWitness),
            Some(UnknownReason::OperatorUnknown),
        ]
    );
}

#[test]
fn the_kernel_has_killed_it_for_want_of_memory() {
    let host = Host::new();
    host.write(
        "dev/kmsg",
        "6,1,500,-;Linux version\n\
         3,310,1001000000,-;Out of memory: Killed process 812 (lvcreate) total-vm:9kB, UID:0 \
         pgtables:9kB\n\
         3,310,1001000000,-;Out of memory: Killed process 814 (lvcreate) total-vm:9kB, UID:1000 \
         pgtables:9kB\n\
         11,311,1001000000,-;Out of memory: Killed process 813 (dmsetup) total-vm:9kB, UID:0 x\n",
    );
    let answer = host.ask(cookie(1, 1000, 1002, 0, 830));
    assert_eq!(named(&answer), "lvcreate[812]");
    // By the journal, in a memory cgroup.
    let mut host = Host::new();
    host.journal(
        1001,
        json!({"_TRANSPORT": "kernel", "MESSAGE": "Memory cgroup out of memory: Killed process 812 \
               (lvcreate), UID 0, total-vm:9kB"}),
    );
    let answer = host.ask(cookie(1, 1000, 1002, 0, 830));
    assert_eq!(named(&answer), "lvcreate[812]");
}

#[test]
fn anybody_can_have_a_process_that_faults() {
    let host = Host::new();
    host.write(
        "dev/kmsg",
        "6,1,1001000000,-;lvcreate[812]: segfault at 0 ip 00007f sp 00007f error 4 in lvm[55+9]\n",
    );
    let answer = host.ask(cookie(1, 1000, 1002, 0, 830));
    assert_eq!(answer.suspect(), None, "{}", named(&answer));
    assert_eq!(answer.suspects().count(), 1);
    // Accounting knows that it was root's.
    let mut host = host;
    host.ended((812, 1), "lvcreate", (999, 1001), (AXSIG, 11));
    let answer = host.ask(cookie(1, 1000, 1002, 0, 830));
    assert_eq!(named(&answer), "lvcreate[812]");
}

#[test]
fn who_acted_last_may_be_another() {
    // Somebody was killed then; but the last operator is unknown, and may be a daemon that has ended.
    let mut host = Host::new();
    host.ended((812, 1), "lvcreate", (1000, 1001), (AXSIG, 9));
    let answer = host.ask(cookie(1, 1000, 1001, 1, 500));
    assert_eq!(reason(&answer), Some(UnknownReason::OperatorUnknown));
    let Answer::Unknown { possible, .. } = &answer else {
        panic!("{answer:?}");
    };
    assert_eq!(possible.len(), 1);
}
