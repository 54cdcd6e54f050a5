//! Cookies that appear at the same time each night, and what was changed before.

use dmtrace_core::witness::{CookieMoment, Grade, Rhythm};

use super::scene::{Host, cookie};

const DAY: i64 = 86_400;

/// At 03:00:30, 03:01 and 03:02 of some nights.
fn nights(days: &[i64]) -> Vec<CookieMoment> {
    let mut moments = Vec::new();
    for day in days {
        for minute in 0..3 {
            let at = day * DAY + 3 * 3600 + minute * 60 + 30;
            let number = u32::try_from(moments.len()).unwrap() + 1;
            moments.push(cookie(number, at, at, 0, 9));
        }
    }
    moments
}

fn cron_host() -> Host {
    let host = Host::new();
    host.write(
        "etc/crontab",
        "SHELL=/bin/sh\n17 * * * * root run-parts /etc/cron.hourly\n",
    );
    host.write(
        "etc/cron.d/snap",
        "# nightly\n0 3 * * *  root  /usr/local/bin/snap.sh -q\n",
    );
    host.write("etc/cron.d/often", "* * * * * root /bin/true\n");
    host.write("etc/cron.d/noon", "0 12 * * * root /usr/sbin/lvcreate\n");
    host.write(
        "usr/local/bin/snap.sh",
        "#!/bin/sh\n# lvremove\nlvcreate -s -n snap vg/root\n",
    );
    host
}

#[test]
fn a_job_at_night() {
    let host = cron_host();
    let moments = nights(&[1, 2, 3, 4]);
    let witnesses = host.hear(&moments);
    assert_eq!(
        witnesses.pattern.rhythm,
        Some(Rhythm::Daily {
            from: 180,
            to: 182,
            days: 4
        })
    );
    assert_eq!(witnesses.pattern.bursts.len(), 4);
    assert_eq!(witnesses.pattern.by_minute.len(), 3);
    let [schedule] = witnesses.schedules.as_slice() else {
        panic!("{:?}", witnesses.schedules);
    };
    assert_eq!(schedule.source, "/etc/cron.d/snap");
    assert_eq!(schedule.when, "0 3 * * *");
    let suspect = schedule.to_suspect(&witnesses.pattern, true);
    assert_eq!(suspect.grade, Grade::Inferred);
    assert_eq!(suspect.who.to_string(), "cron job /etc/cron.d/snap");
    let among_others = schedule.to_suspect(&witnesses.pattern, false);
    assert_eq!(among_others.grade, Grade::Possible);
    // No cookie is put down to it alone.
    let answers = witnesses.inquire(&host.facts).weigh_all(&moments);
    assert!(answers.values().all(|it| it.suspect().is_none()));
}

#[test]
fn a_single_night_is_chance() {
    let host = cron_host();
    let witnesses = host.hear(&nights(&[2]));
    assert_eq!(witnesses.pattern.rhythm, None);
    assert!(witnesses.schedules.is_empty());
}

#[test]
fn timers_that_something_starts() {
    let host = Host::new();
    let folder = "usr/lib/systemd/system";
    host.write(
        &format!("{folder}/snap.timer"),
        "[Timer]\nOnCalendar=*-*-* 02:50\nUnit=mk.service\n",
    );
    host.write(
        &format!("{folder}/mk.service"),
        "[Service]\nExecStart=-/usr/sbin/lvcreate x\n",
    );
    host.write(
        &format!("{folder}/off.timer"),
        "[Timer]\nOnCalendar=*-*-* 03:00\n",
    );
    host.write(
        &format!("{folder}/late.timer"),
        "[Timer]\nOnCalendar=daily\nRandomizedDelaySec=4h\n",
    );
    host.write(
        &format!("{folder}/mon.timer"),
        "[Timer]\nOnCalendar=Mon *-*-* 03:00:00\n",
    );
    for name in ["snap", "late", "mon"] {
        host.write(
            &format!("etc/systemd/system/timers.target.wants/{name}.timer"),
            "",
        );
    }
    let witnesses = host.hear(&nights(&[1, 2, 3]));
    let mut found: Vec<(&str, bool)> = witnesses
        .schedules
        .iter()
        .map(|it| (it.what.as_str(), it.uses_cookies))
        .collect();
    found.sort_unstable();
    assert_eq!(found, [("late.service", false), ("mk.service", true)]);
}

#[test]
fn the_same_minute_of_each_hour() {
    let host = Host::new();
    host.write(
        "etc/crontab",
        "17 * * * * root /usr/sbin/lvs\n0 * * * * root /bin/true\n",
    );
    let moments: Vec<CookieMoment> = (0..5_u32)
        .map(|hour| cookie(hour + 1, i64::from(hour) * 3600 + 17 * 60 + 5, 0, 1, 9))
        .collect();
    let witnesses = host.hear(&moments);
    assert!(matches!(
        witnesses.pattern.rhythm,
        Some(Rhythm::Hourly {
            from: 17,
            to: 17,
            hours: 5
        })
    ));
    let sources: Vec<&str> = witnesses
        .schedules
        .iter()
        .map(|it| it.when.as_str())
        .collect();
    assert_eq!(sources, ["17 * * * *"]);
}

#[test]
fn packages_changed_before() {
    let host = Host::new();
    host.write(
        "var/log/dpkg.log",
        "2026-11-10 10:00:00 upgrade lvm2:amd64 1 2\n\
         2026-11-20 10:00:00 upgrade lvm2:amd64 2 3\n\
         2026-11-20 10:00:01 status installed lvm2:amd64 3\n\
         2026-11-20 10:00:02 upgrade vim:amd64 2 3\n\
         2026-11-25 10:00:00 upgrade lvm2:amd64 3 4\n",
    );
    host.write(
        "var/log/dnf.rpm.log",
        "2026-11-20T11:00:00+0000 SUBDEBUG Upgrade: docker-ce-25\n",
    );
    let witnesses = host.hear(&nights(&[2]));
    let lines: Vec<&str> = witnesses
        .updates
        .iter()
        .map(|it| it.line.as_str())
        .collect();
    assert_eq!(
        lines,
        [
            "2026-11-20 10:00:00 upgrade lvm2:amd64 2 3",
            "2026-11-20T11:00:00+0000 SUBDEBUG Upgrade: docker-ce-25"
        ]
    );
}
