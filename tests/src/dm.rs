//! The device-mapper ioctls of users of cookies, called as libdm calls them.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::AsRawFd,
};

use crate::sysv::check_result;

/// Length of `struct dm_ioctl`, which is the same for 32 and 64 bits.
const LEN: usize = 312;
/// `struct dm_target_spec`, and room for parameters.
const TARGET: usize = 48;
const DATA_SIZE: usize = 12;
const DATA_START: usize = 16;
const TARGET_COUNT: usize = 20;
const FLAGS: usize = 28;
const EVENT_NR: usize = 32;
const NAME: usize = 48;

/// `DM_UEVENT_GENERATED_FLAG`
const UEVENT_GENERATED: u32 = 0x2000;
/// `DM_UDEV_PRIMARY_SOURCE_FLAG`, where the flags of a cookie are.
const PRIMARY_SOURCE: u32 = 0x0040_0000;

/// `_IOWR(0xfd, number, struct dm_ioctl)`
const fn ioctl_number(number: u32) -> u32 {
    0xc138_fd00 | number
}
const DEV_CREATE: u32 = ioctl_number(3);
const DEV_REMOVE: u32 = ioctl_number(4);
/// A resume, unless a flag makes it a suspend.
const DEV_SUSPEND: u32 = ioctl_number(6);
const TABLE_LOAD: u32 = ioctl_number(9);

/// `DM_DEV_REMOVE` of the device `name`, with a cookie; returns whether a uevent was made.
///
/// # Errors
/// Those of the call: `EBUSY` for a device that is open, `ENXIO` for one that is not there.
pub fn remove_device(name: &str, cookie: u32) -> io::Result<bool> {
    DmCall::for_device(name)
        .with_cookie(cookie)
        .make_call(DEV_REMOVE)
}

/// As [`remove_device`], without a cookie: nobody waits for udev.
///
/// # Errors
/// As [`remove_device`].
pub fn remove_at_once(name: &str) -> io::Result<()> {
    DmCall::for_device(name).make_call(DEV_REMOVE).map(drop)
}

/// A new device of `sectors` zeros, not running yet.
///
/// # Errors
/// Those of the calls: `EBUSY` where there is one of that name.
pub fn create_zero(name: &str, sectors: u64) -> io::Result<()> {
    DmCall::for_device(name).make_call(DEV_CREATE)?;
    let mut load = DmCall::for_device(name);
    load.put_word(TARGET_COUNT, 1);
    // sector_start, length, status, next, target_type[16], no parameters.
    load.args[LEN + 8..LEN + 16].copy_from_slice(&sectors.to_ne_bytes());
    load.args[LEN + 24..LEN + 28].copy_from_slice(b"zero");
    load.make_call(TABLE_LOAD).map(drop)
}

/// `DM_DEV_SUSPEND` that resumes, with a cookie; returns whether a uevent was made.
///
/// # Errors
/// Those of the call.
pub fn resume_device(name: &str, cookie: u32) -> io::Result<bool> {
    DmCall::for_device(name)
        .with_cookie(cookie)
        .make_call(DEV_SUSPEND)
}

/// As [`resume_device`], without a cookie.
///
/// # Errors
/// Those of the call.
pub fn resume_at_once(name: &str) -> io::Result<()> {
    DmCall::for_device(name).make_call(DEV_SUSPEND).map(drop)
}

/// Devices whose names begin so: each with whether it is suspended.
pub fn list_devices(prefix: &str) -> Vec<(String, bool)> {
    let read = |path: &str| Some(fs::read_to_string(path).ok()?.trim().to_owned());
    let blocks = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    blocks
        .filter_map(|block| block.file_name().into_string().ok())
        .filter(|block| block.starts_with("dm-"))
        .filter_map(|block| {
            let name = read(&format!("/sys/block/{block}/dm/name"))?;
            let suspended = read(&format!("/sys/block/{block}/dm/suspended"))? == "1";
            name.starts_with(prefix).then_some((name, suspended))
        })
        .collect()
}

/// The argument of a call, and room for a table of one line.
struct DmCall {
    args: [u8; LEN + TARGET],
}

impl DmCall {
    fn for_device(name: &str) -> Self {
        let mut call = Self {
            args: [0; LEN + TARGET],
        };
        // Version 4.0.0.
        call.put_word(0, 4);
        call.put_word(DATA_SIZE, (LEN + TARGET) as u32);
        call.put_word(DATA_START, LEN as u32);
        for (to, from) in call.args[NAME..NAME + 127].iter_mut().zip(name.bytes()) {
            *to = from;
        }
        call
    }

    fn with_cookie(mut self, cookie: u32) -> Self {
        self.put_word(EVENT_NR, PRIMARY_SOURCE | cookie & 0xffff);
        self
    }

    fn put_word(&mut self, at: usize, value: u32) {
        self.args[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }

    fn read_flags(&self) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.args[FLAGS..FLAGS + 4]);
        u32::from_ne_bytes(bytes)
    }

    /// Makes it; returns whether a uevent was made.
    fn make_call(mut self, command: u32) -> io::Result<bool> {
        let control = open_control()?;
        // Each C library has a type of its own for the command; the kernel has one.
        // SAFETY: the structure says its own length, and outlives the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_ioctl,
                control.as_raw_fd(),
                libc::c_ulong::from(command),
                self.args.as_mut_ptr(),
            )
        };
        check_result(i32::try_from(result).map_err(io::Error::other)?)?;
        Ok(self.read_flags() & UEVENT_GENERATED != 0)
    }
}

fn open_control() -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/mapper/control")
}
