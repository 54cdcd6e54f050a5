//! The device-mapper ioctls that end an operation with a cookie, called as libdm calls them.

use std::{fs::OpenOptions, io, os::fd::AsRawFd};

use crate::sysv::check;

/// Length of `struct dm_ioctl`, which is the same for 32 and 64 bits.
const LEN: usize = 312;
const NAME: usize = 48;
const EVENT_NR: usize = 32;
const FLAGS: usize = 28;
/// `DM_UEVENT_GENERATED_FLAG`
const UEVENT_GENERATED: u32 = 0x2000;
/// `_IOWR(0xfd, 4, struct dm_ioctl)`
const DEV_REMOVE: u32 = 0xc138_fd04;

/// `DM_DEV_REMOVE` of the device `name`, with a cookie; returns whether a uevent was made.
///
/// # Errors
/// Those of the call: `EBUSY` for a device that is open, `ENXIO` for one that is not there.
pub fn remove(name: &str, cookie: u32) -> io::Result<bool> {
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/mapper/control")?;
    let mut args = [0_u8; LEN];
    // Version 4.0.0.
    put(&mut args, 0, 4);
    put(&mut args, 12, LEN as u32);
    put(&mut args, 16, LEN as u32);
    // DM_UDEV_PRIMARY_SOURCE_FLAG, and the base of the cookie.
    put(&mut args, EVENT_NR, 0x0040_0000 | cookie & 0xffff);
    for (to, from) in args[NAME..NAME + 127].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: the structure says its own length, and outlives the call.
    check(unsafe {
        libc::ioctl(
            control.as_raw_fd(),
            DEV_REMOVE as libc::Ioctl,
            args.as_mut_ptr(),
        )
    })?;
    let [a, b, c, d] = [
        args[FLAGS],
        args[FLAGS + 1],
        args[FLAGS + 2],
        args[FLAGS + 3],
    ];
    Ok(u32::from_ne_bytes([a, b, c, d]) & UEVENT_GENERATED != 0)
}

fn put(args: &mut [u8; LEN], at: usize, value: u32) {
    args[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}
