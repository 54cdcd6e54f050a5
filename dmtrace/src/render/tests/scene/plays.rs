//! What happens to the cookies of the scene.

use std::{sync::Arc, time::Duration};

use dmtrace_core::{
    event::{EventKind, ExitStatus, Quality},
    ids::{BootTime, IpcNs},
};

use super::{CONTAINER, OTHER_NS, Player, Stage, key, op, sample_site, sem};

/// Of which nobody has seen who made them.
pub(super) fn older_than_the_trace(stage: &mut Stage) {
    // By its fields it is leaked.
    stage.is_there(IpcNs::HOST, 3, 1, |_| {});
    // In use until its user is killed.
    stage.is_there(IpcNs::HOST, 9, 2, |_| {});
    // Somebody else's, with such a key.
    stage.is_there(IpcNs::HOST, 6, 0, |set| set.mode = 0o666);
    // It cannot be read.
    stage.is_there(IpcNs::HOST, 5, 0, |set| set.first = None);
}

pub(super) fn left_behind(stage: &mut Stage) {
    // In a container, killed, with devices and calls.
    let killed = Player {
        cgroup: CONTAINER,
        ..Player::new("lvcreate", 100)
    };
    stage.enters(killed);
    stage.makes(killed, 1);
    let made = BootTime(stage.at);
    let site = Arc::new(sample_site());
    let made_by = killed.id();
    let sem = sem(IpcNs::HOST, 1);
    stage
        .ledger
        .place_call_site(sem, key(1), made, made_by, &site);
    stage.adds(killed, 1, 1);
    stage.resumes(killed, 1, 0);
    stage.resumes(killed, 1, libc::EBUSY);
    stage.exits(killed, ExitStatus::Signal(9));
    let udev = Player::new("dmsetup", 101);
    stage.enters(udev);
    stage.adds(udev, 1, -1);
    stage.exits(udev, ExitStatus::Code(0));
    // A daemon that never waits.
    let daemon = Player::new("dockerd", 300);
    stage.enters(daemon);
    stage.makes(daemon, 4);
    stage.adds(daemon, 4, 1);
    stage.resumes(daemon, 4, libc::EBUSY);
    stage.adds(daemon, 4, -1);
    stage.makes(daemon, 14);
    stage.waits(daemon, 14);
    stage.removes(daemon, 14);
    stage.lives(daemon);
    // A user of a set that somebody unknown has made.
    let user = Player::new("dmsetup", 400);
    stage.enters(user);
    stage.adds(user, 9, -1);
    stage.waits(user, 9);
    stage.exits(user, ExitStatus::Signal(15));
}

pub(super) fn in_use(stage: &mut Stage) {
    let waiter = Player {
        ns: OTHER_NS,
        ..Player::new("lvm", 200)
    };
    stage.enters(waiter);
    stage.makes(waiter, 2);
    stage.adds(waiter, 2, 1);
    stage.adds(waiter, 2, 1);
    stage.resumes(waiter, 2, 0);
    stage.adds(waiter, 2, -1);
    stage.waits(waiter, 2);
    stage.lives(waiter);
}

/// Cookies that are gone.
pub(super) fn over(stage: &mut Stage) {
    let owner = Player::new("cryptsetup", 500);
    stage.enters(owner);
    for semid in [20, 21, 22, 23] {
        stage.makes(owner, semid);
        stage.adds(owner, semid, 1);
        stage.resumes(owner, semid, 0);
    }
    // In good order.
    let udev = Player::new("dmsetup", 501);
    stage.adds(udev, 20, -1);
    stage.adds(owner, 20, -1);
    stage.waits(owner, 20);
    stage.removes(owner, 20);
    // Removed while it was waited for.
    stage.adds(owner, 21, -1);
    stage.waits(owner, 21);
    let admin = Player::new("ipcrm", 502);
    stage.enters(admin);
    stage.removes(admin, 21);
    // Completed once too often: its own decrement finds nothing.
    stage.adds(udev, 22, -1);
    stage.adds(udev, 22, -1);
    let nothing_left = EventKind::Op {
        sem: sem(IpcNs::HOST, 22),
        key: key(22),
        ops: vec![op(-1)],
        errno: libc::EAGAIN,
    };
    stage.say(owner, nothing_left);
    stage.removes(owner, 22);
    // Its namespace ends.
    let teardown = EventKind::Destroyed {
        sem: sem(IpcNs::HOST, 23),
        key: key(23),
    };
    let quality = Quality {
        ns_teardown: true,
        ..Quality::default()
    };
    stage.say_with(Player::new("kworker", 2), teardown, quality);
    stage.at += Duration::from_secs(1).as_nanos() as u64;
    stage.exits(owner, ExitStatus::Code(0));
}
