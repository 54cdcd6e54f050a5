//! The control socket: who may ask, how much, and for how long.

use std::{
    fs,
    io::{self, ErrorKind},
    os::{
        fd::AsRawFd,
        unix::{
            fs::{DirBuilderExt, PermissionsExt, chown},
            net,
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

use super::request::{BadRequest, REQUEST_MAX, Request, parse};
use crate::output::json::envelope;

pub use crate::history::SOCKET;

/// Conversations at the same time; others wait in the kernel's queue.
const CONVERSATIONS: usize = 8;
/// Time for one.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time for the request, which is sent right after the connection is made: a silent client holds
/// a place no longer.
const PATIENCE_FOR_REQUEST: Duration = Duration::from_secs(1);
/// After a failed `accept`, such as for want of descriptors.
const PAUSE: Duration = Duration::from_secs(1);

/// Who may ask: root, and the members of this group.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Access {
    /// Number of the group.
    pub group: Option<u32>,
}

/// A request, and where its answer goes.
pub struct Question {
    /// The request.
    pub request: Request,
    /// Takes the answer.
    pub answer: Answer,
}

/// Where an answer goes.
pub enum Answer {
    /// One line.
    Line(oneshot::Sender<String>),
    /// As much as there is, straight to whoever has asked; writing has a time limit.
    Stream(net::UnixStream),
}

/// How many were answered and refused.
#[derive(Debug, Default)]
pub struct Tally {
    /// Answered.
    pub answered: AtomicU64,
    /// Refused: not permitted, or no request.
    pub refused: AtomicU64,
}

/// The socket. Its file is removed on drop, and the lock that says that a service runs is given
/// up.
pub struct Control {
    path: PathBuf,
    /// Questions that wait for an answer.
    pub questions: mpsc::Receiver<Question>,
    /// How many there were.
    pub tally: Arc<Tally>,
    _lock: fs::File,
}

impl Control {
    /// Listens, as the only service of the host. Must be called in a runtime.
    ///
    /// # Errors
    /// Another service runs, or the directory cannot be written.
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        let dir = path.parent().context("the socket has no directory")?;
        let shown = path.display();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("{}: cannot be made", dir.display()))?;
        let lock = lock_of(path)?;
        if access.group.is_some() {
            // To pass through; what lies there is for root.
            fs::set_permissions(dir, fs::Permissions::from_mode(0o711))
                .with_context(|| dir.display().to_string())?;
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("{shown}: cannot be removed"));
            }
            _ => {}
        }
        let listener = UnixListener::bind(path).with_context(|| format!("{shown}: cannot bind"))?;
        // Who connects in between is asked for its credentials all the same.
        let mode = if access.group.is_some() { 0o660 } else { 0o600 };
        chown(path, None, access.group).with_context(|| shown.to_string())?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .with_context(|| shown.to_string())?;
        let (send, questions) = mpsc::channel(CONVERSATIONS);
        let tally = Arc::new(Tally::default());
        tokio::spawn(listen(listener, access, send, Arc::clone(&tally)));
        Ok(Self {
            path: path.to_owned(),
            questions,
            tally,
            _lock: lock,
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _gone_already = fs::remove_file(&self.path);
    }
}

/// Says that a service runs on this host. The kernel gives the lock up with the process, however
/// that ends.
///
/// # Errors
/// One runs, or this process may not.
pub fn lock_of(socket: &Path) -> Result<fs::File> {
    let path = &socket.with_extension("lock");
    let file = fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| path.display().to_string())?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            bail!(
                "another dmtrace serve runs ({} is locked); see: dmtrace serve --status",
                path.display()
            )
        }
        Err(fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| path.display().to_string())
        }
    }
}

async fn listen(
    listener: UnixListener,
    access: Access,
    send: mpsc::Sender<Question>,
    tally: Arc<Tally>,
) {
    let places = Arc::new(Semaphore::new(CONVERSATIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let (send, tally) = (send.clone(), Arc::clone(&tally));
        tokio::spawn(async move {
            let answered = timeout(PATIENCE, converse(stream, access, send)).await;
            let count = match answered {
                Ok(Ok(())) => &tally.answered,
                _ => &tally.refused,
            };
            count.fetch_add(1, Ordering::Relaxed);
            drop(place);
        });
    }
}

/// One request, one answer.
async fn converse(
    mut stream: UnixStream,
    access: Access,
    send: mpsc::Sender<Question>,
) -> io::Result<()> {
    // Read in any case: closing a socket with something unread breaks off the answer.
    let request = timeout(PATIENCE_FOR_REQUEST, read(&mut stream)).await??;
    if !permitted(&stream, access)? {
        let text = "only root, and the group that the service was given, may ask";
        refuse(&mut stream, text).await?;
        return Err(ErrorKind::PermissionDenied.into());
    }
    let request = match request {
        Ok(request) => request,
        Err(bad) => {
            refuse(&mut stream, &bad.to_string()).await?;
            return Err(ErrorKind::InvalidInput.into());
        }
    };
    let gone = || io::Error::from(ErrorKind::BrokenPipe);
    if let Request::History(_) = request {
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let answer = Answer::Stream(stream);
        let question = Question { request, answer };
        return send.send(question).await.map_err(|_| gone());
    }
    let (answer, reply) = oneshot::channel();
    let answer = Answer::Line(answer);
    let question = Question { request, answer };
    send.send(question).await.map_err(|_| gone())?;
    let mut line = reply.await.map_err(|_| gone())?;
    line.push('\n');
    stream.write_all(line.as_bytes()).await
}

async fn read(stream: &mut UnixStream) -> io::Result<Result<Request, BadRequest>> {
    let mut bytes = Vec::with_capacity(REQUEST_MAX);
    loop {
        let room = (REQUEST_MAX - bytes.len()) as u64;
        let mut bounded = (&mut *stream).take(room);
        if bounded.read_buf(&mut bytes).await? == 0 {
            return Ok(Err(BadRequest::Cut));
        }
        match parse(&bytes) {
            Ok(None) => {}
            Ok(Some(request)) => return Ok(Ok(request)),
            Err(bad) => return Ok(Err(bad)),
        }
    }
}

async fn refuse(stream: &mut UnixStream, text: &str) -> io::Result<()> {
    let line = format!("{}\n", envelope("error", &json!({ "error": text })));
    stream.write_all(line.as_bytes()).await
}

/// By what the kernel says of the other side, not by the file's mode alone: a descriptor can be
/// handed on, and modes can be changed.
fn permitted(stream: &UnixStream, access: Access) -> io::Result<bool> {
    let peer = stream.peer_cred()?;
    if peer.uid() == 0 {
        return Ok(true);
    }
    let Some(group) = access.group else {
        return Ok(false);
    };
    Ok(peer.gid() == group || groups(stream)?.contains(&group))
}

/// Supplementary groups of the other side.
fn groups(stream: &UnixStream) -> io::Result<Vec<u32>> {
    // include/uapi/asm-generic/socket.h
    const SO_PEERGROUPS: i32 = 59;
    let mut groups = vec![0u32; 1024];
    loop {
        let mut bytes = (groups.len() * size_of::<u32>()) as u32;
        // SAFETY: the buffer has this many bytes; the kernel writes at most so many, and tells how
        // many there are.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let count = bytes as usize / size_of::<u32>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // NGROUPS_MAX
        if error.raw_os_error() != Some(libc::ERANGE) || count > 65_536 || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}
