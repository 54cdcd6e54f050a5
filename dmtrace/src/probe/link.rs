//! What holds a program in its place.

use std::{
    any::Any,
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::LazyLock,
};

use aya::programs::links::FdLink;

use super::bpf;

/// Whether the kernel makes links of its own for kprobes and tracepoints, so that aya does, too.
pub(super) static PERF_LINKS: LazyLock<bool> =
    LazyLock::new(|| aya::sys::is_perf_link_supported().unwrap_or(false));

/// A link. Dropping it detaches the program, unless it is pinned.
pub(super) enum Link {
    /// Of the kernel's own kind: can be pinned.
    Fd(FdLink),
    /// The same, made or found without aya.
    Raw(OwnedFd),
    /// Anything else: ends with this process.
    Bound(#[expect(dead_code, reason = "held for its drop")] Box<dyn Any>),
}

impl Link {
    /// A link of a kprobe: before Linux 5.15 that is no link of the kernel.
    pub(super) fn of_perf<T: TryInto<FdLink> + 'static>(link: T) -> Self {
        if !*PERF_LINKS {
            return Self::Bound(Box::new(link));
        }
        match link.try_into() {
            Ok(link) => Self::Fd(link),
            // Cannot be: the feature says what aya has made.
            Err(_) => Self::Bound(Box::new(())),
        }
    }

    /// Whether it can be pinned.
    pub(super) const fn can_stay(&self) -> bool {
        !matches!(self, Self::Bound(_))
    }

    /// Gives it a name in a BPF file system, which keeps it when this process is gone.
    ///
    /// # Errors
    /// It cannot be pinned.
    pub(super) fn pin(&self, path: &Path) -> io::Result<()> {
        match self {
            Self::Fd(link) => {
                // aya would give up its descriptor, and with it the link where pinning fails.
                let id = link.info().map_err(io::Error::other)?.id();
                bpf::pin_object(bpf::open_link(id)?.as_fd(), path)
            }
            Self::Raw(link) => bpf::pin_object(link.as_fd(), path),
            Self::Bound(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}
