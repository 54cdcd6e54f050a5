//! Attaching to tracepoints of the perf kind. aya does it too, but only where tracefs is mounted.

use std::{
    cell::OnceCell,
    ffi::c_ulong,
    io,
    os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use aya_obj::generated::{
    PERF_EVENT_IOC_ENABLE, PERF_EVENT_IOC_SET_BPF, PERF_FLAG_FD_CLOEXEC,
    bpf_attach_type::BPF_PERF_EVENT, perf_event_attr, perf_event_sample_format::PERF_SAMPLE_RAW,
    perf_type_id::PERF_TYPE_TRACEPOINT,
};

use super::{
    bpf,
    link::{Link, PERF_LINKS},
};
use crate::host::kernel_fs::{KernelFs, KernelFsRoot, error_text};

/// The tracepoints of this kernel. tracefs is opened when the first is asked for, and let go with
/// this: a mount that is held cannot be unmounted.
#[derive(Default)]
pub(super) struct Tracepoints {
    tracefs: OnceCell<Result<KernelFsRoot, String>>,
}

impl Tracepoints {
    /// Puts a program in its place.
    ///
    /// # Errors
    /// There is no such tracepoint, or the kernel refuses; in words.
    pub(super) fn attach_program(
        &self,
        program: BorrowedFd<'_>,
        category: &str,
        name: &str,
    ) -> Result<Link, String> {
        let event = open_event(self.tracepoint_id(category, name)?)
            .map_err(|error| format!("perf_event_open: {}", error_text(&error)))?;
        if *PERF_LINKS {
            let link = link_program(program, event.as_fd())
                .map_err(|error| format!("bpf_link_create: {}", error_text(&error)))?;
            return Ok(Link::Raw(link));
        }
        enable_program(program, event.as_fd())
            .map_err(|error| format!("PERF_EVENT_IOC_SET_BPF: {}", error_text(&error)))?;
        Ok(Link::Bound(Box::new(event)))
    }

    /// The number of a tracepoint.
    fn tracepoint_id(&self, category: &str, name: &str) -> Result<u64, String> {
        let tracefs = self
            .tracefs
            .get_or_init(|| KernelFs::Trace.open().map_err(|error| error.to_string()));
        let tracefs = tracefs.as_ref().map_err(Clone::clone)?;
        let file = format!("events/{category}/{name}/id");
        let text = tracefs
            .read(&file)
            .map_err(|error| format!("{}: {}", tracefs.display_path(&file), error_text(&error)))?;
        text.trim()
            .parse()
            .map_err(|_| format!("{}: not a number", tracefs.display_path(&file)))
    }
}

/// The event that a tracepoint is for perf, of all processes: programs run on all processors,
/// whichever is named.
fn open_event(id: u64) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers, for which zero is a value.
    let mut attr = unsafe { std::mem::zeroed::<perf_event_attr>() };
    attr.type_ = PERF_TYPE_TRACEPOINT as u32;
    attr.size = size_of::<perf_event_attr>() as u32;
    attr.config = id;
    attr.sample_type = PERF_SAMPLE_RAW as u64;
    attr.__bindgen_anon_2.wakeup_events = 1;
    let (every_process, processor, no_group) = (-1, 0, -1);
    // SAFETY: the attribute outlives the call and names its own size; the rest are numbers.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attr,
            every_process,
            processor,
            no_group,
            c_ulong::from(PERF_FLAG_FD_CLOEXEC),
        )
    };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A link of the kernel, which holds the event. Linux 5.15.
fn link_program(program: BorrowedFd<'_>, event: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        program: program.as_raw_fd() as u32,
        target: event.as_raw_fd() as u32,
        attach_type: BPF_PERF_EVENT as u32,
        flags: 0,
        cookie: 0,
    };
    // SAFETY: the attribute has no pointers; the command returns a descriptor.
    unsafe { bpf::bpf_fd(bpf::LINK_CREATE, &mut attr) }
}

/// Before that the program stands as long as the event is open.
fn enable_program(program: BorrowedFd<'_>, event: BorrowedFd<'_>) -> io::Result<()> {
    let event = event.as_raw_fd();
    for (request, argument) in [
        (PERF_EVENT_IOC_SET_BPF, program.as_raw_fd()),
        (PERF_EVENT_IOC_ENABLE, 0),
    ] {
        // The type of requests depends on the C library.
        // SAFETY: both requests take a number.
        if unsafe { libc::ioctl(event, request as _, argument) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Members of `union bpf_attr` for links of perf events.
#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    cookie: u64,
}
