//! The join of a cookie with device-mapper's ioctls, devices and uevents.

use dmtrace_common::SemRecord;

use super::*;
use crate::{
    event::{Action, Command, Ioctl, Uevent},
    ids::DevNum,
};

const NUMBER: DevNum = DevNum {
    major: 253,
    minor: 3,
};

fn sample(semid: i32, command: Command, name: &str) -> Ioctl {
    Ioctl {
        sem: sem(semid),
        key: KEY,
        command,
        errno: 0,
        began: BootTime(0),
        name: name.to_owned(),
        new_name: None,
        uuid: Some("LVM-x".to_owned()),
        device: Some(NUMBER),
        uevent: true,
        deferred: false,
        udev_flags: 0,
    }
}

fn ioctl(at: u64, ioctl: Ioctl) -> Event {
    event(at, 7, What::Ioctl(Box::new(ioctl)))
}

fn uevent(at: u64, semid: i32, action: Action, name: &str) -> Event {
    let what = Uevent {
        sem: sem(semid),
        key: KEY,
        action,
        command: Command::Remove,
        name: name.to_owned(),
        uuid: None,
        device: Some(NUMBER),
    };
    event(at, 7, What::Uevent(Box::new(what)))
}

fn armed() -> Ledger {
    let mut ledger = Ledger::new();
    for event in [created(1, 7, 5, KEY), setval(2, 7, 5), op(3, 7, 5, 1)] {
        ledger.apply(&event);
    }
    ledger
}

fn cookie(ledger: &Ledger) -> &Cookie {
    let set = ledger.semaphore(sem(5)).or(ledger.closed_cookie(sem(5)));
    set.and_then(|set| set.cookie.as_deref()).expect("a cookie")
}

#[test]
fn a_failed_ioctl_is_told_with_its_device() {
    let mut ledger = armed();
    let failed = Ioctl {
        errno: libc::EBUSY,
        uevent: false,
        ..sample(5, Command::Remove, "vg-lv")
    };
    let changes = ledger.apply(&ioctl(4, failed));
    assert!(
        matches!(&changes[..], [Change { kind: ChangeKind::Ioctl { errno, .. }, .. }] if *errno == libc::EBUSY)
    );
    let cookie = cookie(&ledger);
    let counts = cookie.counts;
    assert_eq!(
        (counts.ioctls, counts.ioctls_failed, counts.uevents),
        (1, 1, 0)
    );
    let [device] = &cookie.devices[..] else {
        panic!("{:?}", cookie.devices)
    };
    assert_eq!(device.full(), "vg-lv (253:3)");
    assert_eq!(device.errno, Some(libc::EBUSY));
    for wanted in [
        "vg-lv",
        "/dev/mapper/vg-lv",
        "LVM-x",
        "253:3",
        "dm-3",
        "/dev/dm-3",
    ] {
        assert!(device.is(wanted), "{wanted}");
    }
    assert!(!device.is("vg-l") && !device.is("3"));
    let last = cookie.timeline.iter().last().expect("a step");
    assert!(matches!(
        last.what,
        Call::Ioctl {
            command: Command::Remove,
            ..
        }
    ));
    assert_eq!(last.errno, libc::EBUSY);
    ledger.check().expect("books in order");
}

#[test]
fn a_uevent_and_its_ioctl_are_one_entry() {
    let mut ledger = armed();
    ledger.apply(&uevent(4, 5, Action::Remove, "vg-lv"));
    assert_eq!(cookie(&ledger).devices[0].errno, None);
    ledger.apply(&ioctl(5, sample(5, Command::Remove, "vg-lv")));
    let cookie = cookie(&ledger);
    assert_eq!(cookie.devices.len(), 1);
    assert_eq!(cookie.devices[0].action, Some(Action::Remove));
    assert!(cookie.devices[0].uevent);
    assert_eq!(cookie.counts.uevents, 1);
}

#[test]
fn a_number_that_is_used_again_is_another_device() {
    let mut ledger = armed();
    ledger.apply(&ioctl(4, sample(5, Command::Remove, "v-tp")));
    ledger.apply(&ioctl(5, sample(5, Command::Resume, "v-tp_tmeta")));
    let rename = Ioctl {
        new_name: Some("v-x".to_owned()),
        ..sample(5, Command::Rename, "v-tp")
    };
    ledger.apply(&ioctl(6, rename));
    let names: Vec<&str> = cookie(&ledger)
        .devices
        .iter()
        .map(|it| it.name.as_str())
        .collect();
    assert_eq!(names, ["v-tp_tmeta", "v-x"]);
}

#[test]
fn the_key_joins_where_the_kernel_side_does_not_know_the_set() {
    let mut ledger = armed();
    let unknown = Ioctl {
        sem: sem(-1),
        ..sample(5, Command::Resume, "a")
    };
    ledger.apply(&ioctl(4, unknown.clone()));
    assert_eq!(cookie(&ledger).counts.ioctls, 1);
    let elsewhere = Ioctl {
        sem: SemId {
            ns: IpcNs(4),
            semid: -1,
        },
        ..unknown
    };
    let changes = ledger.apply(&ioctl(5, elsewhere));
    assert_eq!(cookie(&ledger).counts.ioctls, 1, "another namespace");
    assert_eq!(changes[0].sem.semid, -1);
    assert_eq!(ledger.totals().sets.live, 1);
}

#[test]
fn devices_are_bounded_and_the_failed_ones_stay() {
    let mut ledger = armed();
    let failed = Ioctl {
        errno: libc::EBUSY,
        ..sample(5, Command::Remove, "busy")
    };
    ledger.apply(&ioctl(4, failed));
    for at in 0..100 {
        ledger.apply(&ioctl(
            5 + at,
            sample(5, Command::Resume, &format!("d{at}")),
        ));
    }
    let cookie = cookie(&ledger);
    assert_eq!(cookie.devices.len(), DEVICES);
    assert_eq!(cookie.devices_more as usize, 101 - DEVICES);
    assert_eq!(cookie.devices[0].name.as_str(), "busy");
    assert_eq!(cookie.counts.ioctls, 101);
}

#[test]
fn after_the_removal_it_still_finds_its_cookie_but_not_the_next_one() {
    let mut ledger = armed();
    ledger.apply(&destroyed(10, 9, 5, KEY));
    ledger.apply(&ioctl(9, sample(5, Command::Resume, "a")));
    assert_eq!(cookie(&ledger).counts.ioctls, 1);
    ledger.apply(&ioctl(11, sample(5, Command::Resume, "b")));
    assert_eq!(cookie(&ledger).counts.ioctls, 1);
    ledger.check().expect("books in order");
}

#[test]
fn an_ioctl_does_not_touch_the_semaphore() {
    let mut ledger = armed();
    let before = cookie(&ledger).clone();
    ledger.apply(&ioctl(90, sample(5, Command::Resume, "a")));
    let after = cookie(&ledger);
    assert_eq!(after.last_call, before.last_call);
    assert_eq!(after.users, before.users);
    assert_eq!(after.value(), before.value());
    assert_eq!(after.last_dm, Some(BootTime(90)));
}

#[test]
fn what_the_map_keeps_stands_in_for_lost_messages() {
    let mut ledger = armed();
    let lost = SemRecord {
        created: 1,
        key: KEY.0,
        nsems: 1,
        state: dmtrace_common::SEM_ANNOUNCED
            | dmtrace_common::SEM_COOKIE
            | dmtrace_common::SEM_DM_DROPPED,
        last_dm: 50,
        ioctls: 3,
        ioctls_failed: 1,
        uevents: 2,
        ..SemRecord::default()
    };
    for _twice in 0..2 {
        ledger.adopt(sem(5), &lost);
        // When the last uevent was sent: udevd may be younger.
        assert_eq!(cookie(&ledger).last_dm, Some(BootTime(50)));
        let mut kept = ioctl(50, sample(5, Command::Resume, "a"));
        kept.quality.from_map = true;
        assert!(ledger.apply(&kept).is_empty());
    }
    ledger.apply(&ioctl(49, sample(5, Command::Resume, "a")));
    let cookie = cookie(&ledger);
    let counts = cookie.counts;
    assert_eq!(
        (counts.ioctls, counts.ioctls_failed, counts.uevents),
        (3, 1, 2)
    );
    assert!(cookie.gaps.devices && !cookie.gaps.any());
    assert_eq!(cookie.devices.len(), 1);
}
