//! The kernel's own records.

use std::{
    ffi::CString, fs, os::unix::ffi::OsStrExt as _, process::Command, thread, time::Duration,
};

use dmtrace_core::{facts::HostFacts, ids::SemId, ids::UnixTime, witness::CookieMoment};

use super::scene::{Host, named};
use crate::host::clock;

/// Process accounting, as long as it lives.
struct Accounting;

impl Drop for Accounting {
    fn drop(&mut self) {
        // SAFETY: without a file it is turned off.
        unsafe { libc::acct(std::ptr::null()) };
    }
}

#[test]
#[ignore = "turns process accounting on: needs root, and a machine whose accounting nobody uses"]
fn the_kernel_says_who_was_killed() {
    let mut host = Host::new();
    host.write("var/log/account/pacct", "");
    let program = host.path("lvcreate");
    fs::copy("/bin/sleep", &program).unwrap();
    let file = host.path("var/log/account/pacct");
    let file = CString::new(file.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path is a C string that outlives the call.
    let on = unsafe { libc::acct(file.as_ptr()) };
    assert_eq!(on, 0, "{}", std::io::Error::last_os_error());
    let accounting = Accounting;
    let mut bystander = Command::new(&program).arg("0").spawn().unwrap();
    bystander.wait().unwrap();
    let mut child = Command::new(&program).arg("60").spawn().unwrap();
    thread::sleep(Duration::from_millis(300));
    let made = clock::wall_now();
    thread::sleep(Duration::from_millis(1200));
    child.kill().unwrap();
    child.wait().unwrap();
    thread::sleep(Duration::from_millis(300));
    let touched = clock::wall_now();
    drop(accounting);
    let (wall, wall_nanos) = clock::wall_with_nanos();
    host.facts = HostFacts {
        now: clock::boot_now(),
        wall,
        wall_nanos,
        ..HostFacts::default()
    };
    let moment = |ctime: UnixTime, otime: UnixTime| CookieMoment {
        sem: SemId::default(),
        ctime,
        otime,
        value: Some(0),
        last_pid: u32::MAX,
        ..CookieMoment::default()
    };
    let ask = |moment: CookieMoment| {
        let witnesses = host.hear_as_is(&[moment]);
        named(&witnesses.inquire(&host.facts).weigh(&moment))
    };
    let pid = child.id();
    assert_eq!(ask(moment(made, touched)), format!("lvcreate[{pid}]"));
    let earlier = UnixTime(made.0 - 20);
    let other = ask(moment(earlier, earlier));
    assert!(other.starts_with("unknown"), "{other}");
}
