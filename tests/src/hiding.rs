//! Processes that hold the number of a cookie where it is hard, slow or dangerous to look.
//!
//! The cookie is made by a child that ends, which hands its number on with all bits inverted; the
//! holder writes it byte by byte. So the number is in the place that is asked for, and nowhere else.

mod fuse;
mod places;

use std::io::{self, PipeReader, Read as _, Write as _};

use crate::{
    actor::{Actor, print_step, sleep_forever},
    sysv::check_result,
};

/// Where the number is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HidingPlace {
    /// An ordinary page, beside a mapping of a file whose pages nobody delivers.
    BesideFuse,
    /// A page of such a file that was delivered, and was written to.
    FusePage,
    /// An ordinary page; the process stands still in `mmap(2)`, because somebody who reads its
    /// memory waits for such a file. So does everybody else who looks at it.
    BehindLock,
    /// A page of a range that a userfaultfd serves, which never answers; a thread waits for it.
    Userfault,
    /// `memfd_secret`.
    Secret,
    /// The last but one page of 64 GiB, of which no other was ever touched.
    Lazy,
    /// One of many processes.
    Crowd(u32),
    /// The memory of a process whose first thread has ended.
    DeadLeader,
    /// A page that the process itself may not read.
    NoAccess,
}

impl HidingPlace {
    /// From its name on the command line; `processes` are those of a crowd.
    pub fn from_name(name: &str, processes: u32) -> Option<Self> {
        Some(match name {
            "beside-fuse" => Self::BesideFuse,
            "fuse-page" => Self::FusePage,
            "behind-lock" => Self::BehindLock,
            "userfault" => Self::Userfault,
            "secret" => Self::Secret,
            "lazy" => Self::Lazy,
            "crowd" => Self::Crowd(processes),
            "dead-leader" => Self::DeadLeader,
            "no-access" => Self::NoAccess,
            _ => return None,
        })
    }
}

/// Makes a cookie, hides its number and waits for ever. What it starts ends with it.
///
/// # Errors
/// Those of the calls: this kernel, or this user, cannot hide it there.
pub fn hide_cookie(actor: Actor, place: HidingPlace) -> io::Result<()> {
    // What can fail comes first: a cookie that is in no place would be an orphan at once.
    match place {
        HidingPlace::BesideFuse => {
            let _file = fuse::map_silent_file()?;
            let page = places::new_page()?;
            places::write_number(page, number_from_child(actor)?);
        }
        HidingPlace::FusePage => {
            let file = fuse::map_silent_file()?;
            places::write_number(file, number_from_child(actor)?);
        }
        HidingPlace::BehindLock => {
            let file = fuse::map_silent_file()?;
            let page = places::new_page()?;
            let number = number_from_child(actor)?;
            // The children that it takes are not to inherit the number.
            fuse::hold_lock(file)?;
            places::write_number(page, number);
            fuse::wait_for_lock()?;
        }
        HidingPlace::Userfault => {
            let page = places::serve_nothing()?;
            places::write_number(page, number_from_child(actor)?);
        }
        HidingPlace::Secret => {
            let page = places::secret_page()?;
            places::write_number(page, number_from_child(actor)?);
        }
        HidingPlace::Lazy => {
            let page = places::lazy_page()?;
            places::write_number(page, number_from_child(actor)?);
        }
        HidingPlace::Crowd(count) => {
            let number = number_from_child(actor)?;
            for place in 0..count {
                start_child(|| {
                    if place == count / 2
                        && let Ok(page) = places::new_page()
                    {
                        places::write_number(page, number);
                    }
                    wait_quietly();
                })?;
            }
        }
        HidingPlace::DeadLeader => {
            let page = places::new_page()?;
            places::write_number(page, number_from_child(actor)?);
            places::end_leader()?;
        }
        HidingPlace::NoAccess => {
            let page = places::new_page()?;
            places::write_number(page, number_from_child(actor)?);
            places::forbid_page(page)?;
        }
    }
    print_step("hidden", None, &[]);
    sleep_forever();
}

/// The number of a cookie, inverted. Its value is 1: a script may still wait for it.
#[derive(Clone, Copy)]
struct Inverted(u32);

fn number_from_child(actor: Actor) -> io::Result<Inverted> {
    let (mut reader, mut writer) = io::pipe()?;
    start_child(move || {
        // What it says would be a place where the number is, too.
        // SAFETY: a descriptor that nobody else in this child uses.
        unsafe { libc::close(1) };
        let made = actor.create_cookie().and_then(|cookie| {
            actor.increment(cookie)?;
            actor.complete_cookie(cookie.key)?;
            Ok(cookie.key)
        });
        if let Ok(key) = made {
            let _told = writer.write_all(&(!key).to_ne_bytes());
        }
    })?;
    Ok(Inverted(u32::from_ne_bytes(read_number(&mut reader)?)))
}

fn read_number(from: &mut PipeReader) -> io::Result<[u8; 4]> {
    let mut bytes = [0; 4];
    let read = from.read_exact(&mut bytes);
    read.map_err(|_| io::Error::other("the child made no cookie"))?;
    Ok(bytes)
}

/// A child that does something and ends, or ends with its parent.
fn start_child(work: impl FnOnce()) -> io::Result<i32> {
    // SAFETY: this process has one thread, so the child may do anything.
    let pid = check_result(unsafe { libc::fork() })?;
    if pid == 0 {
        // SAFETY: numbers.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        work();
        // SAFETY: ends the child without running the parent's destructors.
        unsafe { libc::_exit(0) };
    }
    Ok(pid)
}

/// Sleeps for ever and says nothing.
fn wait_quietly() -> ! {
    loop {
        // SAFETY: no argument; returns after a signal.
        unsafe { libc::pause() };
    }
}
