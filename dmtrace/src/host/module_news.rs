//! Tells when a kernel module comes or goes, without asking again and again: the kernel announces
//! it on its uevent socket (kernel/module/sysfs.c:mod_sysfs_setup, kobject_uevent).

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// Group of the kernel's own uevents; 2 is udevd's.
const KERNEL: u32 = 1;
/// Announcements taken at once: a socket that overflows drops some, and stays readable.
const MAX_BATCH: usize = 64;

/// A socket on which nothing arrives but news of one module.
pub struct ModuleWatch(OwnedFd);

impl ModuleWatch {
    /// Listens. Announcements of anything else are dropped in the kernel.
    ///
    /// # Errors
    /// The system refuses the socket, or the name is too long for the filter.
    pub fn listen(module: &str) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: three numbers.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_KOBJECT_UEVENT) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut filter = build_filter(module)?;
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_mut_ptr(),
        };
        // SAFETY: the program and its instructions outlive the call; the length is that of the
        // structure.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                size_of::<libc::sock_fprog>() as u32,
            )
        };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: zeros are a valid address: any port, no group.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as u16;
        address.nl_groups = KERNEL;
        // SAFETY: the address outlives the call; the length is its own.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_nl>() as u32,
            )
        };
        if bound != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(socket))
    }

    /// Takes what has arrived, a bounded number; tells whether there was anything.
    pub fn take_announcements(&self) -> bool {
        let mut any = false;
        let mut buffer = [0u8; 64];
        for _ in 0..MAX_BATCH {
            // SAFETY: the buffer is ours and has this size; what does not fit is cut off.
            let got = unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                )
            };
            if got >= 0 {
                any = true;
                continue;
            }
            // An overflow has dropped announcements: that is news, too.
            if io::Error::last_os_error().raw_os_error() != Some(libc::ENOBUFS) {
                break;
            }
            any = true;
        }
        any
    }
}

impl AsRawFd for ModuleWatch {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// Lets announcements pass that begin with `ACTION@/module/NAME` and NUL, for the actions `add` and
/// `remove`, in classic BPF.
fn build_filter(module: &str) -> io::Result<Vec<libc::sock_filter>> {
    const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = Vec::new();
    for action in ["add", "remove"] {
        let wanted = format!("{action}@/module/{module}\0");
        let bytes = wanted.as_bytes();
        for (at, byte) in bytes.iter().enumerate() {
            // To the first instruction after this block: the rest of the comparisons and "pass".
            let rest = (bytes.len() - at) * 2 - 1;
            let rest = u8::try_from(rest).map_err(io::Error::other)?;
            program.push(instruction(LOAD_BYTE, 0, 0, at as u32));
            program.push(instruction(JUMP_EQUAL, 0, rest, u32::from(*byte)));
        }
        program.push(instruction(RETURN, 0, 0, u32::MAX));
    }
    program.push(instruction(RETURN, 0, 0, 0));
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel's interpreter does with it; a load beyond the end drops the packet.
    fn filter_passes(program: &[libc::sock_filter], packet: &[u8]) -> bool {
        let mut at = 0;
        let mut loaded = 0;
        loop {
            let step = program[at];
            at += 1;
            match u32::from(step.code) & 7 {
                libc::BPF_LD => match packet.get(step.k as usize) {
                    Some(byte) => loaded = u32::from(*byte),
                    None => return false,
                },
                libc::BPF_JMP if loaded == step.k => at += usize::from(step.jt),
                libc::BPF_JMP => at += usize::from(step.jf),
                _ => return step.k != 0,
            }
        }
    }

    #[test]
    fn only_news_of_the_module_pass() {
        let filter = build_filter("dm_mod").unwrap();
        for packet in [
            "add@/module/dm_mod\0ACTION=add\0SUBSYSTEM=module\0",
            "remove@/module/dm_mod\0ACTION=remove\0",
        ] {
            assert!(filter_passes(&filter, packet.as_bytes()), "{packet}");
        }
        for packet in [
            "",
            "add@/module/dm_mod",
            "add@/module/dm_mod_x\0ACTION=add\0",
            "add@/module/dm_mo\0ACTION=add\0",
            "change@/module/dm_mod\0",
            "add@/devices/virtual/block/dm-0\0ACTION=add\0DEVPATH=/module/dm_mod\0",
        ] {
            assert!(!filter_passes(&filter, packet.as_bytes()), "{packet}");
        }
    }

    #[test]
    fn a_name_that_no_jump_can_span_is_refused() {
        assert!(build_filter(&"x".repeat(200)).is_err());
    }

    #[test]
    fn the_kernel_takes_the_filter_and_nothing_comes_by_itself() {
        let news = ModuleWatch::listen("dm_mod").unwrap();
        assert!(!news.take_announcements());
    }
}
