//! `bpf(2)`, as far as aya does not do it for us.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

const BPF_OBJ_PIN: u32 = 6;
const BPF_OBJ_GET: u32 = 7;
/// `BPF_LINK_CREATE`.
pub(super) const LINK_CREATE: u32 = 28;
const BPF_LINK_GET_FD_BY_ID: u32 = 30;

/// # Safety
/// `attr` must be what `command` takes, and its pointers valid for the call.
pub(super) unsafe fn bpf_call<T>(command: u32, attr: &mut T) -> io::Result<i32> {
    // SAFETY: the caller vouches for the attribute; the kernel takes its size from us.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        i32::try_from(result).map_err(io::Error::other)
    }
}

/// # Safety
/// As [`bpf_call`], and `command` must be one that returns a descriptor.
pub(super) unsafe fn bpf_fd<T>(command: u32, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller vouches for it.
    let fd = unsafe { bpf_call(command, attr) }?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn pointer_address<T>(pointer: *const T) -> u64 {
    pointer.addr() as u64
}

/// Gives an object of the kernel a name in a BPF file system, which keeps it.
///
/// # Errors
/// The name is taken, or the object cannot be pinned.
pub(super) fn pin_object(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = NamedObject {
        pathname: pointer_address(name.as_ptr()),
        bpf_fd: object.as_raw_fd() as u32,
        file_flags: 0,
    };
    // SAFETY: the attribute points to a C string that outlives the call.
    unsafe { bpf_call(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens a pinned object.
///
/// # Errors
/// There is none of this name.
pub(super) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = NamedObject {
        pathname: pointer_address(name.as_ptr()),
        ..NamedObject::default()
    };
    // SAFETY: as in `pin`; the command returns a descriptor.
    unsafe { bpf_fd(BPF_OBJ_GET, &mut attr) }
}

/// Opens a link by its number.
///
/// # Errors
/// There is none.
pub(super) fn open_link(id: u32) -> io::Result<OwnedFd> {
    let mut attr = id;
    // SAFETY: the attribute begins with the number and needs no more; the command returns a
    // descriptor.
    unsafe { bpf_fd(BPF_LINK_GET_FD_BY_ID, &mut attr) }
}

/// Members of `union bpf_attr` for objects with a name.
#[repr(C)]
#[derive(Default)]
struct NamedObject {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}
