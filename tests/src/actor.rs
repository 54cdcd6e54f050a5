//! The cookie protocol, call by call as libdm makes it (`libdm-common.c`), and the ways to break
//! it. Runs in the binary `cookie-actor`, in processes with one thread.

mod print;

use std::{fs::File, io, io::Read, path::Path, time::Duration};

pub use print::{hide_numbers, print_failure, print_step};

use crate::{
    dm,
    sysv::{self, Abi},
};

/// Upper half of a cookie.
pub const MAGIC: u32 = 0x0d4d;

/// Where a cycle can be made to stop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ActorStep {
    /// The set exists with value 0.
    AfterSemget,
    /// The value is 1.
    AfterSetval,
    /// The value counts the uevents.
    AfterInc,
    /// Device-mapper has sent its uevent; only of a device.
    AfterIoctl,
    /// udev has completed all of them, the owner has not waited.
    AfterComplete,
    /// The owner sleeps; nobody completes.
    InWait,
    /// The owner has woken and not removed the set.
    AfterWait,
}

impl ActorStep {
    /// From its name on the command line.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "after-semget" => Self::AfterSemget,
            "after-setval" => Self::AfterSetval,
            "after-inc" => Self::AfterInc,
            "after-ioctl" => Self::AfterIoctl,
            "after-complete" => Self::AfterComplete,
            "in-wait" => Self::InWait,
            "after-wait" => Self::AfterWait,
            _ => return None,
        })
    }
}

/// What happens where a cycle stops.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum StepFate {
    /// SIGKILL.
    #[default]
    Kill,
    /// `_exit(0)`; in a wait, where nobody can call it, SIGTERM.
    Exit,
    /// Sleep for ever with the cookie open.
    Hold,
    /// Sleep so long with the cookie open, and go on.
    Pause(Duration),
}

/// How to play.
#[derive(Clone, Copy, Debug, Default)]
pub struct Actor {
    /// Which system call.
    pub abi: Abi,
    /// A fixed cookie instead of a random one.
    pub key: Option<u32>,
    /// Where to stop.
    pub stop: Option<(ActorStep, StepFate)>,
    /// Decrement without `IPC_NOWAIT`, which libdm never does.
    pub may_sleep: bool,
}

/// A semaphore that was made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MadeCookie {
    /// The cookie.
    pub key: u32,
    /// What `semget` returned.
    pub semid: i32,
}

impl Actor {
    /// `_udev_notify_sem_create`.
    ///
    /// # Errors
    /// Those of `semget`, except `EEXIST` for a random key.
    pub fn create_cookie(&self) -> io::Result<MadeCookie> {
        let cookie = self.make_set()?;
        sysv::set_value(cookie.semid, 1)?;
        sysv::get_value(cookie.semid)?;
        self.report_step(ActorStep::AfterSetval, "set", cookie);
        Ok(cookie)
    }

    /// Its first half: the set has value 0.
    fn make_set(&self) -> io::Result<MadeCookie> {
        let mut random = File::open("/dev/urandom")?;
        let cookie = loop {
            let mut base = [0; 2];
            random.read_exact(&mut base)?;
            let base = u16::from_ne_bytes(base);
            let key = self.key.unwrap_or(MAGIC << 16 | u32::from(base));
            if key & 0xffff == 0 {
                continue;
            }
            match sysv::get_set(key, 1, 0o600 | libc::IPC_CREAT | libc::IPC_EXCL) {
                Ok(semid) => break MadeCookie { key, semid },
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) && self.key.is_none() => {}
                Err(error) => return Err(error),
            }
        };
        self.report_step(ActorStep::AfterSemget, "created", cookie);
        Ok(cookie)
    }

    /// Many cookies, each left at a random step of its making.
    ///
    /// # Errors
    /// Those of the calls.
    pub fn leave_crowd(&self, count: u32, seed: u64) -> io::Result<()> {
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..count {
            let step = random.u8(..4);
            let cookie = if step == 0 {
                self.make_set()?
            } else {
                self.create_cookie()?
            };
            if step > 1 {
                self.increment(cookie)?;
            }
            if step > 2 {
                self.complete_cookie(cookie.key)?;
            }
        }
        Ok(())
    }

    /// `_udev_notify_sem_inc`: one more uevent will come.
    ///
    /// # Errors
    /// Those of the calls.
    pub fn increment(&self, cookie: MadeCookie) -> io::Result<()> {
        sysv::semop_one(self.abi, cookie.semid, 1, 0)?;
        sysv::get_value(cookie.semid)?;
        Ok(())
    }

    /// `dm_udev_complete`, by key as `dmsetup udevcomplete` does.
    ///
    /// # Errors
    /// `ENOENT` for an unknown cookie, `EAGAIN` for one that is zero already.
    pub fn complete_cookie(&self, key: u32) -> io::Result<i32> {
        let semid = sysv::get_set(key, 1, 0)?;
        sysv::get_value(semid)?;
        let flags = if self.may_sleep { 0 } else { libc::IPC_NOWAIT };
        sysv::semop_one(self.abi, semid, -1, flags)?;
        Ok(semid)
    }

    /// `dm_udev_wait`: gives up the own count, waits for zero, removes.
    ///
    /// # Errors
    /// Those of the calls. libdm goes on after `EINTR`, and takes `EIDRM` for success. An
    /// over-completed cookie is removed and the error returned.
    pub fn wait_cookie(&self, key: u32) -> io::Result<()> {
        let semid = sysv::get_set(key, 1, 0)?;
        let cookie = MadeCookie { key, semid };
        sysv::get_value(semid)?;
        if let Err(error) = sysv::semop_one(self.abi, semid, -1, libc::IPC_NOWAIT) {
            print_failure("over-completed", cookie, &error);
            sysv::remove_set(semid)?;
            return Err(error);
        }
        print_step("waiting", Some(cookie), &[]);
        if let Some((ActorStep::InWait, fate)) = self.stop {
            kill_sleeper(semid, fate)?;
        }
        loop {
            match sysv::semop_one(self.abi, semid, 0, 0) {
                Ok(()) => break,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EIDRM) => {
                        print_failure("removed-by-another", cookie, &error);
                        return Ok(());
                    }
                    _ => return Err(error),
                },
            }
        }
        self.report_step(ActorStep::AfterWait, "woken", cookie);
        sysv::remove_set(semid)?;
        print_step("destroyed", Some(cookie), &[]);
        Ok(())
    }

    /// A whole cycle with `events` uevents; children stand in for udev's `dmsetup udevcomplete`
    /// and complete after `delay`, unless the cycle is to stop in its wait.
    ///
    /// # Errors
    /// Those of the calls.
    pub fn play_cycle(&self, events: u32, delay: Duration) -> io::Result<()> {
        let cookie = self.create_cookie()?;
        for _ in 0..events {
            self.increment(cookie)?;
        }
        self.report_step(ActorStep::AfterInc, "armed", cookie);
        let stop = self.stop.map(|(step, _)| step);
        let mut udev = Vec::new();
        if stop != Some(ActorStep::InWait) {
            for _ in 0..events {
                udev.push(self.spawn_completer(cookie, delay)?);
            }
        }
        if stop == Some(ActorStep::AfterComplete) {
            udev.drain(..).try_for_each(reap)?;
            self.report_step(ActorStep::AfterComplete, "completed", cookie);
        }
        self.wait_cookie(cookie.key)?;
        udev.into_iter().try_for_each(reap)
    }

    /// A cycle on a thread that stays when the first one has ended: the process looks like a zombie.
    /// Ends the process.
    ///
    /// # Errors
    /// Those of the calls.
    pub fn play_leaderless(&self, pause: Duration) -> io::Result<()> {
        let actor = *self;
        std::thread::spawn(move || {
            let cycle = || -> io::Result<()> {
                let cookie = actor.create_cookie()?;
                actor.increment(cookie)?;
                std::thread::sleep(pause);
                actor.complete_cookie(cookie.key)?;
                actor.wait_cookie(cookie.key)
            };
            let code = i32::from(cycle().is_err());
            // SAFETY: ends the process; nothing of it is needed any more.
            unsafe { libc::_exit(code) };
        });
        // SAFETY: ends this thread only, which has nothing that the other one uses.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
        Ok(())
    }

    /// A child that completes once and exits.
    ///
    /// # Errors
    /// No process.
    pub fn spawn_completer(&self, cookie: MadeCookie, delay: Duration) -> io::Result<i32> {
        fork(|| {
            std::thread::sleep(delay);
            match self.complete_cookie(cookie.key) {
                Ok(_) => print_step("udev-completed", Some(cookie), &[]),
                Err(error) => print_failure("udev-failed", cookie, &error),
            }
        })
    }

    /// What docker did for a device that was busy: the uevent that will not come is completed by
    /// the owner, and nobody waits.
    ///
    /// # Errors
    /// `ENOSPC` when the limits are exhausted.
    pub fn leak_like_moby(&self) -> io::Result<MadeCookie> {
        let cookie = self.create_cookie()?;
        self.increment(cookie)?;
        self.complete_cookie(cookie.key)?;
        print_step("leaked", Some(cookie), &[]);
        Ok(cookie)
    }

    /// What a program does that forgets the last step: udev completes, the wait is over, and the
    /// cookie is not removed.
    ///
    /// # Errors
    /// `ENOSPC` when the limits are exhausted.
    pub fn leave_after_wait(&self) -> io::Result<MadeCookie> {
        let cookie = self.create_cookie()?;
        self.increment(cookie)?;
        reap(self.spawn_completer(cookie, Duration::ZERO)?)?;
        sysv::semop_one(self.abi, cookie.semid, -1, libc::IPC_NOWAIT)?;
        sysv::semop_one(self.abi, cookie.semid, 0, 0)?;
        print_step("leaked", Some(cookie), &[]);
        Ok(cookie)
    }

    /// What moby did in 2017 with a device that may be busy: the wait is only on the path of
    /// success.
    ///
    /// # Errors
    /// Those of the semaphore calls; `ENOSPC` when the limits are exhausted.
    pub fn remove_device_like_moby(&self, name: &str) -> io::Result<()> {
        let cookie = self.create_cookie()?;
        self.increment(cookie)?;
        match dm::remove_device(name, cookie.key) {
            Ok(generated) => {
                if !generated {
                    self.complete_cookie(cookie.key)?;
                }
                self.wait_cookie(cookie.key)
            }
            Err(error) => {
                self.complete_cookie(cookie.key)?;
                print_failure("leaked", cookie, &error);
                Ok(())
            }
        }
    }

    /// A real device by the library's calls, as devicemapper-rs: made, resumed, waited for, removed,
    /// waited for. udev completes. Returns what is wrong with its node when udev is said to have
    /// finished.
    ///
    /// # Errors
    /// Those of the calls. `EBUSY` at the removal is tried again: udev may look at the device.
    pub fn play_device(&self, name: &str) -> io::Result<Option<&'static str>> {
        let node = Path::new("/dev/mapper").join(name);
        dm::create_zero(name, 2048)?;
        let cookie = self.announce_cookie()?;
        self.finish_operation(cookie, dm::resume_device(name, cookie.key))?;
        let there = node.exists();
        let mut tries = 0;
        let cookie = loop {
            let cookie = self.announce_cookie()?;
            match self.finish_operation(cookie, dm::remove_device(name, cookie.key)) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && tries < 200 => {
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(50));
                }
                done => break done.map(|()| cookie),
            }
        }?;
        print_step("removed", Some(cookie), &[]);
        Ok(match (there, node.symlink_metadata().is_ok()) {
            (false, _) => Some("no node when it was made"),
            (_, true) => Some("a node when it was removed"),
            _ => None,
        })
    }

    /// A cookie with one operation announced.
    fn announce_cookie(&self) -> io::Result<MadeCookie> {
        let cookie = self.create_cookie()?;
        self.increment(cookie)?;
        self.report_step(ActorStep::AfterInc, "armed", cookie);
        Ok(cookie)
    }

    /// What follows the ioctl of an operation: the own completion where udev has none to make, and
    /// always the wait.
    fn finish_operation(&self, cookie: MadeCookie, done: io::Result<bool>) -> io::Result<()> {
        self.report_step(ActorStep::AfterIoctl, "called", cookie);
        if !matches!(done, Ok(true)) {
            self.complete_cookie(cookie.key)?;
        }
        self.wait_cookie(cookie.key)?;
        done.map(drop)
    }

    /// What devicemapper-rs does when a signal comes: gives up the wait and the cookie.
    ///
    /// # Errors
    /// Those of the calls.
    pub fn abandon_on_eintr(&self) -> io::Result<MadeCookie> {
        let cookie = self.create_cookie()?;
        self.increment(cookie)?;
        sysv::semop_one(self.abi, cookie.semid, -1, libc::IPC_NOWAIT)?;
        print_step("waiting", Some(cookie), &[]);
        alarms(Duration::from_millis(20))?;
        let result = sysv::semop_one(self.abi, cookie.semid, 0, 0);
        alarms(Duration::ZERO)?;
        match result {
            Ok(()) => print_step("woken", Some(cookie), &[]),
            Err(error) => print_failure("abandoned", cookie, &error),
        }
        Ok(cookie)
    }

    /// Reports a step, and stops there if asked to.
    fn report_step(&self, step: ActorStep, name: &str, cookie: MadeCookie) {
        print_step(name, Some(cookie), &[]);
        match self.stop {
            Some((stop, fate)) if stop == step => end(fate),
            _ => {}
        }
    }
}

/// Sleeps for ever.
pub fn sleep_forever() -> ! {
    print_step("holding", None, &[]);
    loop {
        // SAFETY: no argument; returns after a signal.
        unsafe { libc::pause() };
    }
}

fn end(fate: StepFate) {
    match fate {
        // SAFETY: a signal to ourselves; it does not return.
        StepFate::Kill => unsafe { libc::raise(libc::SIGKILL) },
        // SAFETY: ends the process as libdm's users may, without running anything more.
        StepFate::Exit => unsafe { libc::_exit(0) },
        StepFate::Hold => sleep_forever(),
        StepFate::Pause(time) => {
            std::thread::sleep(time);
            0
        }
    };
}

/// Lets a child kill us as soon as we sleep on `semid`.
fn kill_sleeper(semid: i32, fate: StepFate) -> io::Result<()> {
    let signal = match fate {
        StepFate::Kill => libc::SIGKILL,
        StepFate::Exit => libc::SIGTERM,
        StepFate::Hold | StepFate::Pause(_) => return Ok(()),
    };
    let us = std::process::id().cast_signed();
    fork(|| {
        while sysv::count_waiters(semid).is_ok_and(|waiters| waiters == 0) {
            std::thread::sleep(Duration::from_millis(1));
        }
        // SAFETY: two numbers; we are still its child, so the number is still its.
        unsafe { libc::kill(us, signal) };
    })?;
    Ok(())
}

fn fork(child: impl FnOnce()) -> io::Result<i32> {
    // SAFETY: this process has one thread, so the child may do anything.
    match sysv::check_result(unsafe { libc::fork() })? {
        0 => {
            child();
            // SAFETY: ends the child without running the parent's destructors.
            unsafe { libc::_exit(0) }
        }
        pid => Ok(pid),
    }
}

fn reap(pid: i32) -> io::Result<()> {
    // SAFETY: no status is asked for.
    sysv::check_result(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) }).map(drop)
}

/// SIGALRM every `period` with a handler that does nothing; zero stops it. Repeated, because the
/// first may come before the sleep that it is to interrupt.
fn alarms(period: Duration) -> io::Result<()> {
    extern "C" fn nothing(_: i32) {}
    let handler: extern "C" fn(i32) = nothing;
    // SAFETY: the handler touches nothing. semop is never restarted, whatever the flags.
    unsafe { libc::signal(libc::SIGALRM, handler as libc::sighandler_t) };
    let period = libc::timeval {
        tv_sec: 0,
        tv_usec: period.subsec_micros() as _,
    };
    let timer = libc::itimerval {
        it_interval: period,
        it_value: period,
    };
    // SAFETY: `timer` outlives the call; the old value is not asked for.
    sysv::check_result(unsafe {
        libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut())
    })
    .map(drop)
}

/// Moves this process into a new IPC namespace.
///
/// # Errors
/// Those of `unshare(2)`: it wants root.
pub fn new_ipc_ns() -> io::Result<()> {
    // SAFETY: one number.
    sysv::check_result(unsafe { libc::unshare(libc::CLONE_NEWIPC) }).map(drop)
}
