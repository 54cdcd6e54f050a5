//! The join of a cookie with device-mapper's ioctls, devices and uevents.

use dmtrace_common::SemRecord;

use super::*;
use crate::{
    event::{DmCommand, DmIoctl, Uevent, UeventAction},
    ids::DevNum,
};

const NUMBER: DevNum = DevNum {
    major: 253,
    minor: 3,
};

fn sample_ioctl(semid: i32, command: DmCommand, name: &str) -> DmIoctl {
    DmIoctl {
        sem: sem_id(semid),
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

fn ioctl_event(at: u64, ioctl: DmIoctl) -> Event {
    event_at(at, 7, EventKind::Ioctl(Box::new(ioctl)))
}

fn uevent_event(at: u64, semid: i32, action: UeventAction, name: &str) -> Event {
    let what = Uevent {
        sem: sem_id(semid),
        key: KEY,
        action,
        command: DmCommand::Remove,
        name: name.to_owned(),
        uuid: None,
        device: Some(NUMBER),
    };
    event_at(at, 7, EventKind::Uevent(Box::new(what)))
}

fn armed_ledger() -> Ledger {
    let mut ledger = Ledger::new();
    for event in [
        created_event(1, 7, 5, KEY),
        setval_event(2, 7, 5),
        op_event(3, 7, 5, 1),
    ] {
        ledger.apply(&event);
    }
    ledger
}

fn only_cookie(ledger: &Ledger) -> &Cookie {
    let set = ledger
        .semaphore(sem_id(5))
        .or(ledger.closed_cookie(sem_id(5)));
    set.and_then(|set| set.cookie.as_deref()).expect("a cookie")
}

#[test]
fn a_failed_ioctl_is_told_with_its_device() {
    let mut ledger = armed_ledger();
    let failed = DmIoctl {
        errno: libc::EBUSY,
        uevent: false,
        ..sample_ioctl(5, DmCommand::Remove, "vg-lv")
    };
    let changes = ledger.apply(&ioctl_event(4, failed));
    assert!(
        matches!(&changes[..], [Change { kind: ChangeKind::Ioctl { errno, .. }, .. }] if *errno == libc::EBUSY)
    );
    let cookie = only_cookie(&ledger);
    let counts = cookie.counts;
    assert_eq!(
        (counts.ioctls, counts.ioctls_failed, counts.uevents),
        (1, 1, 0)
    );
    let [device] = &cookie.devices[..] else {
        panic!("{:?}", cookie.devices)
    };
    assert_eq!(device.full_label(), "vg-lv (253:3)");
    assert_eq!(device.errno, Some(libc::EBUSY));
    for wanted in [
        "vg-lv",
        "/dev/mapper/vg-lv",
        "LVM-x",
        "253:3",
        "dm-3",
        "/dev/dm-3",
    ] {
        assert!(device.matches(wanted), "{wanted}");
    }
    assert!(!device.matches("vg-l") && !device.matches("3"));
    let last = cookie.timeline.iter().last().expect("a step");
    assert!(matches!(
        last.what,
        CookieCall::Ioctl {
            command: DmCommand::Remove,
            ..
        }
    ));
    assert_eq!(last.errno, libc::EBUSY);
    ledger.check_invariants().expect("books in order");
}

#[test]
fn a_uevent_and_its_ioctl_are_one_entry() {
    let mut ledger = armed_ledger();
    ledger.apply(&uevent_event(4, 5, UeventAction::Remove, "vg-lv"));
    assert_eq!(only_cookie(&ledger).devices[0].errno, None);
    ledger.apply(&ioctl_event(5, sample_ioctl(5, DmCommand::Remove, "vg-lv")));
    let cookie = only_cookie(&ledger);
    assert_eq!(cookie.devices.len(), 1);
    assert_eq!(cookie.devices[0].action, Some(UeventAction::Remove));
    assert!(cookie.devices[0].uevent);
    assert_eq!(cookie.counts.uevents, 1);
}

#[test]
fn a_number_that_is_used_again_is_another_device() {
    let mut ledger = armed_ledger();
    ledger.apply(&ioctl_event(4, sample_ioctl(5, DmCommand::Remove, "v-tp")));
    ledger.apply(&ioctl_event(
        5,
        sample_ioctl(5, DmCommand::Resume, "v-tp_tmeta"),
    ));
    let rename = DmIoctl {
        new_name: Some("v-x".to_owned()),
        ..sample_ioctl(5, DmCommand::Rename, "v-tp")
    };
    ledger.apply(&ioctl_event(6, rename));
    let names: Vec<&str> = only_cookie(&ledger)
        .devices
        .iter()
        .map(|it| it.name.as_str())
        .collect();
    assert_eq!(names, ["v-tp_tmeta", "v-x"]);
}

#[test]
fn the_key_joins_where_the_kernel_side_does_not_know_the_set() {
    let mut ledger = armed_ledger();
    let unknown = DmIoctl {
        sem: sem_id(-1),
        ..sample_ioctl(5, DmCommand::Resume, "a")
    };
    ledger.apply(&ioctl_event(4, unknown.clone()));
    assert_eq!(only_cookie(&ledger).counts.ioctls, 1);
    let elsewhere = DmIoctl {
        sem: SemId {
            ns: IpcNs(4),
            semid: -1,
        },
        ..unknown
    };
    let changes = ledger.apply(&ioctl_event(5, elsewhere));
    assert_eq!(only_cookie(&ledger).counts.ioctls, 1, "another namespace");
    assert_eq!(changes[0].sem.semid, -1);
    assert_eq!(ledger.totals().sets.live, 1);
}

#[test]
fn devices_are_bounded_and_the_failed_ones_stay() {
    let mut ledger = armed_ledger();
    let failed = DmIoctl {
        errno: libc::EBUSY,
        ..sample_ioctl(5, DmCommand::Remove, "busy")
    };
    ledger.apply(&ioctl_event(4, failed));
    for at in 0..100 {
        ledger.apply(&ioctl_event(
            5 + at,
            sample_ioctl(5, DmCommand::Resume, &format!("d{at}")),
        ));
    }
    let cookie = only_cookie(&ledger);
    assert_eq!(cookie.devices.len(), MAX_DEVICES);
    assert_eq!(cookie.devices_more as usize, 101 - MAX_DEVICES);
    assert_eq!(cookie.devices[0].name.as_str(), "busy");
    assert_eq!(cookie.counts.ioctls, 101);
}

#[test]
fn after_the_removal_it_still_finds_its_cookie_but_not_the_next_one() {
    let mut ledger = armed_ledger();
    ledger.apply(&destroyed_event(10, 9, 5, KEY));
    ledger.apply(&ioctl_event(9, sample_ioctl(5, DmCommand::Resume, "a")));
    assert_eq!(only_cookie(&ledger).counts.ioctls, 1);
    ledger.apply(&ioctl_event(11, sample_ioctl(5, DmCommand::Resume, "b")));
    assert_eq!(only_cookie(&ledger).counts.ioctls, 1);
    ledger.check_invariants().expect("books in order");
}

#[test]
fn an_ioctl_does_not_touch_the_semaphore() {
    let mut ledger = armed_ledger();
    let before = only_cookie(&ledger).clone();
    ledger.apply(&ioctl_event(90, sample_ioctl(5, DmCommand::Resume, "a")));
    let after = only_cookie(&ledger);
    assert_eq!(after.last_call, before.last_call);
    assert_eq!(after.users, before.users);
    assert_eq!(after.value(), before.value());
    assert_eq!(after.last_dm, Some(BootTime(90)));
}

#[test]
fn what_the_map_keeps_stands_in_for_lost_messages() {
    let mut ledger = armed_ledger();
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
        ledger.adopt_record(sem_id(5), &lost);
        // When the last uevent was sent: udevd may be younger.
        assert_eq!(only_cookie(&ledger).last_dm, Some(BootTime(50)));
        let mut kept = ioctl_event(50, sample_ioctl(5, DmCommand::Resume, "a"));
        kept.quality.from_map = true;
        assert!(ledger.apply(&kept).is_empty());
    }
    ledger.apply(&ioctl_event(49, sample_ioctl(5, DmCommand::Resume, "a")));
    let cookie = only_cookie(&ledger);
    let counts = cookie.counts;
    assert_eq!(
        (counts.ioctls, counts.ioctls_failed, counts.uevents),
        (3, 1, 2)
    );
    assert!(cookie.gaps.devices && !cookie.gaps.affects_verdicts());
    assert_eq!(cookie.devices.len(), 1);
}
