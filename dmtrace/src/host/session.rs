//! Work inside an IPC namespace, on a thread of its own.

use std::{
    fs::File,
    io,
    marker::PhantomData,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
    sync::mpsc,
    thread::{self, JoinHandle},
};

use dmtrace_core::ids::IpcNs;

use super::{
    HostError, Roots,
    namespaces::{Namespace, Search, discover_namespaces, own_ns},
    processes,
};

type Request = Box<dyn FnOnce(&Inside) + Send>;

/// Proof that the calling thread is in this IPC namespace: whoever has one may use `semctl` and
/// `semop` with semids of the namespace. It cannot leave its thread.
#[derive(Debug)]
pub struct Inside {
    ns: IpcNs,
    stays: PhantomData<*const ()>,
}

impl Inside {
    /// The namespace.
    pub const fn namespace(&self) -> IpcNs {
        self.ns
    }
}

/// A thread in an IPC namespace that runs requests there. The namespace lives as long as the
/// session: keep sessions short.
///
/// `setns(2)` moves one thread only, so the rest of the process stays where it is. Dropping the
/// session moves the thread back home before it ends: the end of a thread is reported to `join`
/// (`exit_mm`) before it gives up its namespaces (`exit_task_namespaces`).
#[derive(Debug)]
pub struct NsSession {
    ns: IpcNs,
    requests: Option<mpsc::Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl NsSession {
    /// Enters a namespace that was discovered before.
    ///
    /// # Errors
    /// [`HostError::Gone`] when no way into it exists any more; [`HostError::Enter`] when one
    /// exists and the kernel refuses (`ipcns_install` wants CAP_SYS_ADMIN in the user namespaces
    /// of both sides).
    pub fn enter(namespace: &Namespace) -> Result<Self, HostError> {
        let target = namespace.clone();
        let (requests, inbox) = mpsc::channel::<Request>();
        let (report, entered) = mpsc::sync_channel(1);
        let ns = namespace.ns;
        let thread = thread::Builder::new()
            .name(format!("ipcns {}", ns.0))
            .spawn(move || serve_requests(&target, &report, &inbox))
            .map_err(|source| HostError::Thread { ns, source })?;
        let session = Self {
            ns,
            requests: Some(requests),
            thread: Some(thread),
        };
        // On an error the drop of `session` joins the thread.
        entered.recv().map_err(|_| HostError::Ended { ns })??;
        Ok(session)
    }

    /// Finds a namespace by number and enters it.
    ///
    /// # Errors
    /// As [`NsSession::enter`].
    pub fn find(roots: &Roots, ns: IpcNs) -> Result<Self, HostError> {
        if own_ns() == Some(ns) {
            return Self::enter(&Namespace {
                ns,
                ..Namespace::default()
            });
        }
        let list = processes::list_processes(roots);
        discover_namespaces(roots, &list, Search::default())
            .namespaces
            .iter()
            .find(|namespace| namespace.ns == ns)
            .map_or(Err(HostError::Gone { ns }), Self::enter)
    }

    /// The namespace.
    pub const fn namespace(&self) -> IpcNs {
        self.ns
    }

    /// Runs `request` inside and waits for its result.
    ///
    /// # Errors
    /// [`HostError::Ended`] when the request panicked, now or earlier.
    pub fn run<R, F>(&self, request: F) -> Result<R, HostError>
    where
        F: FnOnce(&Inside) -> R + Send + 'static,
        R: Send + 'static,
    {
        let ended = HostError::Ended { ns: self.ns };
        let (report, result) = mpsc::sync_channel(1);
        let job: Request = Box::new(move |inside| {
            // The receiver waits below; if it is gone nobody wants the result.
            let _ = report.send(request(inside));
        });
        let Some(requests) = &self.requests else {
            return Err(ended);
        };
        if requests.send(job).is_err() {
            return Err(ended);
        }
        result.recv().map_err(|_| ended)
    }
}

impl Drop for NsSession {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(thread) = self.thread.take() {
            // A panic in a request was reported by `run`.
            let _ = thread.join();
        }
    }
}

/// The thread of a session.
fn serve_requests(
    target: &Namespace,
    report: &mpsc::SyncSender<Result<(), HostError>>,
    inbox: &mpsc::Receiver<Request>,
) {
    let home = match enter_namespace(target) {
        Ok(home) => home,
        Err(error) => {
            let _ = report.send(Err(error));
            return;
        }
    };
    let _ = report.send(Ok(()));
    let inside = Inside {
        ns: target.ns,
        stays: PhantomData,
    };
    for request in inbox {
        request(&inside);
    }
    if let Some(home) = home {
        // If it fails the end of the thread releases the namespace a moment later.
        let _ = set_ns(&home);
    }
}

/// Enters, and returns the way home if the thread has moved.
fn enter_namespace(target: &Namespace) -> Result<Option<File>, HostError> {
    let ns = target.ns;
    if own_ns() == Some(ns) {
        return Ok(None);
    }
    let home =
        File::open("/proc/thread-self/ns/ipc").map_err(|source| HostError::Enter { ns, source })?;
    let mut refused = None;
    for way in &target.ways {
        match enter_by(way, ns) {
            Ok(()) => return Ok(Some(home)),
            Err(error) if processes::is_gone(&error) => {}
            Err(source) => refused = Some(source),
        }
    }
    Err(match refused {
        Some(source) => HostError::Enter { ns, source },
        None => HostError::Gone { ns },
    })
}

/// Enters by a file that may have been replaced meanwhile: the process number may belong to
/// another process, and below a container's root anything can lie at the path. So it is looked at
/// (`O_PATH` opens nothing) before it is opened.
fn enter_by(way: &Path, ns: IpcNs) -> io::Result<()> {
    let seen = File::options()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(way)?;
    if seen.metadata()?.ino() != u64::from(ns.0) || !is_nsfs(&seen)? {
        return Err(io::Error::from_raw_os_error(libc::ENOENT));
    }
    set_ns(&File::open(format!(
        "/proc/thread-self/fd/{}",
        seen.as_raw_fd()
    ))?)
}

fn is_nsfs(file: &File) -> io::Result<bool> {
    let mut stat = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the descriptor is open and `stat` has the size of the structure.
    if unsafe { libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeros are a valid statfs, and the kernel has filled it.
    let stat = unsafe { stat.assume_init() };
    // Signed or not, by C library.
    Ok(i128::from(stat.f_type) == NSFS_MAGIC)
}

/// `linux/magic.h`.
const NSFS_MAGIC: i128 = 0x6e73_6673;

fn set_ns(file: &impl std::os::fd::AsFd) -> io::Result<()> {
    let fd: BorrowedFd<'_> = file.as_fd();
    // SAFETY: the descriptor is open; the kernel refuses anything but an IPC namespace.
    match unsafe { libc::setns(fd.as_raw_fd(), libc::CLONE_NEWIPC) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_namespace_needs_no_privilege() {
        let ns = own_ns().unwrap();
        let session = NsSession::find(&Roots::host(), ns).unwrap();
        assert_eq!(session.run(Inside::namespace).unwrap(), ns);
        assert_eq!(session.namespace(), ns);
    }

    #[test]
    fn a_namespace_that_does_not_exist_is_gone() {
        let error = NsSession::find(&Roots::host(), IpcNs(7)).unwrap_err();
        assert!(matches!(error, HostError::Gone { ns: IpcNs(7) }));
    }

    #[test]
    fn a_panic_inside_is_an_error_outside() {
        let session = NsSession::find(&Roots::host(), own_ns().unwrap()).unwrap();
        let result: Result<(), _> = session.run(|_| panic!("on purpose"));
        assert!(matches!(result, Err(HostError::Ended { .. })));
        assert!(session.run(|_| ()).is_err());
    }
}
