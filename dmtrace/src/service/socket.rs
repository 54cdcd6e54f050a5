//! The control socket: who may ask, how much, and for how long. It has a thread of its own: a look
//! at tens of thousands of sets keeps nobody waiting.

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
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    runtime,
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

use super::{
    memory,
    request::{REQUEST_MAX, RequestError, ServiceRequest, parse_request},
    status::ServiceStatus,
};
use crate::{
    history::{HistoryAsker, NO_HISTORY},
    output::json::json_envelope,
};

pub(crate) use crate::history::SOCKET;

/// Conversations at the same time; others wait in the kernel's queue.
const CONVERSATIONS: usize = 8;
/// Time for one.
const CONVERSATION_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the request, which is sent right after the connection is made: a silent client holds
/// a place no longer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for whoever traces to say how it is. It may be in the middle of a look: then what it has
/// said last is the answer.
const BUSY: Duration = Duration::from_secs(1);
/// After a failed `accept`, such as for want of descriptors.
const PAUSE: Duration = Duration::from_secs(1);

/// Who may ask: root, and the members of this group.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct SocketAccess {
    /// Number of the group.
    pub group: Option<u32>,
}

/// How many were answered and refused.
#[derive(Debug, Default)]
pub(super) struct RequestCounts {
    pub answered: AtomicU64,
    /// Refused: not permitted, or no request.
    pub refused: AtomicU64,
}

/// Takes the answer to the question how the service is.
pub(super) type StatusReply = oneshot::Sender<ServiceStatus>;

/// What whoever traces is asked.
#[derive(Debug)]
pub(super) enum ServiceQuestion {
    /// How the service is.
    Status(StatusReply),
    /// To search; the answer is whether that was begun: not while one is being made.
    Search(oneshot::Sender<bool>),
}

/// The socket. Its file is removed on drop, and the lock that says that a service runs is given
/// up.
pub(super) struct ControlSocket {
    path: PathBuf,
    /// Questions that wait for an answer.
    pub questions: mpsc::Receiver<ServiceQuestion>,
    /// How many there were.
    pub tally: Arc<RequestCounts>,
    latest: LatestStatus,
    door: Option<ListenerParts>,
    /// Dropped, it ends the thread.
    _stop: oneshot::Sender<()>,
    _lock: fs::File,
}

/// What the thread begins with.
struct ListenerParts {
    listener: net::UnixListener,
    access: SocketAccess,
    send: mpsc::Sender<ServiceQuestion>,
    stopped: oneshot::Receiver<()>,
}

/// How the service was, and when.
type LatestStatus = Arc<Mutex<Option<(Instant, ServiceStatus)>>>;

impl ControlSocket {
    /// Binds, as the only service of the host. Who connects waits for
    /// [`ControlSocket::start_listening`].
    ///
    /// # Errors
    /// Another service runs, or the directory cannot be written.
    pub(super) fn open(path: &Path, access: SocketAccess) -> Result<Self> {
        let dir = path.parent().context("the socket has no directory")?;
        let shown = path.display();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(as_root)
            .with_context(|| format!("{}: cannot be made", dir.display()))?;
        let lock = lock_of(path)?;
        if access.group.is_some() {
            // To pass through; what lies there is for root.
            fs::set_permissions(dir, fs::Permissions::from_mode(0o711))
                .with_context(|| format!("{}: its mode cannot be set", dir.display()))?;
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("{shown}: cannot be removed"));
            }
            _ => {}
        }
        let listener =
            net::UnixListener::bind(path).with_context(|| format!("{shown}: cannot bind"))?;
        listener.set_nonblocking(true)?;
        // Who connects in between is asked for its credentials all the same.
        let mode = if access.group.is_some() { 0o660 } else { 0o600 };
        chown(path, None, access.group).with_context(|| shown.to_string())?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .with_context(|| shown.to_string())?;
        let (send, questions) = mpsc::channel(CONVERSATIONS);
        let (stop, stopped) = oneshot::channel();
        Ok(Self {
            path: path.to_owned(),
            questions,
            tally: Arc::default(),
            latest: Arc::default(),
            door: Some(ListenerParts {
                listener,
                access,
                send,
                stopped,
            }),
            _stop: stop,
            _lock: lock,
        })
    }

    /// Answers from now on, on a thread. The first time only.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub(super) fn start_listening(&mut self, history: Option<HistoryAsker>) -> Result<()> {
        let Some(door) = self.door.take() else {
            return Ok(());
        };
        let post = Conversations {
            access: door.access,
            send: door.send,
            tally: Arc::clone(&self.tally),
            latest: Arc::clone(&self.latest),
            history,
        };
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let run = move || {
            runtime.block_on(async move {
                let Ok(listener) = UnixListener::from_std(door.listener) else {
                    return;
                };
                tokio::select! {
                    () = listen_loop(listener, Arc::new(post)) => {}
                    _ = door.stopped => {}
                }
            });
        };
        thread::Builder::new()
            .name("socket".to_owned())
            .spawn(run)?;
        Ok(())
    }

    /// How the service is now: the answer while it is busy.
    pub(super) fn publish_status(&self, status: ServiceStatus) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = Some((Instant::now(), status));
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _gone_already = fs::remove_file(&self.path);
    }
}

/// Says that a service runs on this host. The kernel gives the lock up with the process, however
/// that ends.
///
/// # Errors
/// One runs, or this process may not.
pub(super) fn lock_of(socket: &Path) -> Result<fs::File> {
    let path = &socket.with_extension("lock");
    let file = fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(as_root)
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

/// An error with what helps, where it is that this user may not.
fn as_root(error: io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::PermissionDenied => {
            anyhow::anyhow!("{error}; run as root")
        }
        _ => error.into(),
    }
}

/// What every conversation needs.
struct Conversations {
    access: SocketAccess,
    send: mpsc::Sender<ServiceQuestion>,
    tally: Arc<RequestCounts>,
    latest: LatestStatus,
    history: Option<HistoryAsker>,
}

async fn listen_loop(listener: UnixListener, post: Arc<Conversations>) {
    let places = Arc::new(Semaphore::new(CONVERSATIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let post = Arc::clone(&post);
        tokio::spawn(async move {
            let answered = timeout(CONVERSATION_TIMEOUT, post.answer_request(stream)).await;
            let count = match answered {
                Ok(Ok(())) => &post.tally.answered,
                _ => &post.tally.refused,
            };
            count.fetch_add(1, Ordering::Relaxed);
            drop(place);
        });
    }
}

impl Conversations {
    /// One request, one answer.
    async fn answer_request(&self, mut stream: UnixStream) -> io::Result<()> {
        // Read in any case: closing a socket with something unread breaks off the answer.
        let request = timeout(REQUEST_TIMEOUT, read_request(&mut stream)).await??;
        if !is_permitted(&stream, self.access)? {
            let text = "only root, and the group that the service was given, may ask";
            send_refusal(&mut stream, text).await?;
            return Err(ErrorKind::PermissionDenied.into());
        }
        match request {
            Err(bad) => {
                send_refusal(&mut stream, &bad.to_string()).await?;
                Err(ErrorKind::InvalidInput.into())
            }
            Ok(ServiceRequest::Status) => {
                let line = format!(
                    "{}\n",
                    json_envelope("status", &self.current_status().await?)
                );
                // Whoever asks is to find the service as small as it is.
                memory::give_back();
                stream.write_all(line.as_bytes()).await
            }
            Ok(ServiceRequest::Search) => {
                // All processors may have to do with it: of the group's members nobody asks for that.
                if stream.peer_cred()?.uid() != 0 {
                    send_refusal(&mut stream, "only root may ask for a search").await?;
                    return Err(ErrorKind::PermissionDenied.into());
                }
                let (reply, answer) = oneshot::channel();
                let question = ServiceQuestion::Search(reply);
                let gone = |_| io::Error::from(ErrorKind::BrokenPipe);
                self.send
                    .send(question)
                    .await
                    .map_err(|_| ErrorKind::BrokenPipe)?;
                let begun = answer.await.map_err(gone)?;
                let line = format!("{}\n", json_envelope("search", &json!({ "begun": begun })));
                stream.write_all(line.as_bytes()).await
            }
            Ok(ServiceRequest::History(query)) => {
                let Some(history) = &self.history else {
                    return send_refusal(&mut stream, NO_HISTORY).await;
                };
                // By the thread of the history; writing has a time limit.
                let stream = stream.into_std()?;
                stream.set_nonblocking(false)?;
                stream.set_write_timeout(Some(CONVERSATION_TIMEOUT))?;
                history.send_query(query, stream);
                Ok(())
            }
        }
    }

    /// How the service is, or was before what it is doing now.
    async fn current_status(&self) -> io::Result<ServiceStatus> {
        let answer = timeout(BUSY, async {
            let (reply, answer) = oneshot::channel();
            let question = ServiceQuestion::Status(reply);
            self.send.send(question).await.ok()?;
            answer.await.ok()
        });
        if let Ok(answer) = answer.await {
            return answer.ok_or_else(|| ErrorKind::BrokenPipe.into());
        }
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, mut status) = latest.clone().ok_or(ErrorKind::TimedOut)?;
        status.as_of_seconds_ago = Some(at.elapsed().as_secs());
        Ok(status)
    }
}

async fn read_request(stream: &mut UnixStream) -> io::Result<Result<ServiceRequest, RequestError>> {
    let mut bytes = Vec::with_capacity(REQUEST_MAX);
    loop {
        let room = (REQUEST_MAX - bytes.len()) as u64;
        let mut bounded = (&mut *stream).take(room);
        if bounded.read_buf(&mut bytes).await? == 0 {
            return Ok(Err(RequestError::Cut));
        }
        match parse_request(&bytes) {
            Ok(None) => {}
            Ok(Some(request)) => return Ok(Ok(request)),
            Err(bad) => return Ok(Err(bad)),
        }
    }
}

async fn send_refusal(stream: &mut UnixStream, text: &str) -> io::Result<()> {
    let line = format!("{}\n", json_envelope("error", &json!({ "error": text })));
    stream.write_all(line.as_bytes()).await
}

/// By what the kernel says of the other side, not by the file's mode alone: a descriptor can be
/// handed on, and modes can be changed.
fn is_permitted(stream: &UnixStream, access: SocketAccess) -> io::Result<bool> {
    let peer = stream.peer_cred()?;
    if peer.uid() == 0 {
        return Ok(true);
    }
    let Some(group) = access.group else {
        return Ok(false);
    };
    Ok(peer.gid() == group || peer_groups(stream)?.contains(&group))
}

/// Supplementary groups of the other side.
fn peer_groups(stream: &UnixStream) -> io::Result<Vec<u32>> {
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

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    /// A socket that this user may ask.
    fn open_socket(dir: &Path) -> ControlSocket {
        // SAFETY: takes nothing.
        let group = unsafe { libc::getegid() };
        let access = SocketAccess { group: Some(group) };
        ControlSocket::open(&dir.join("s.sock"), access).unwrap()
    }

    fn ask_status(control: &ControlSocket) -> serde_json::Value {
        let mut stream = net::UnixStream::connect(&control.path).unwrap();
        stream
            .write_all(ServiceRequest::Status.to_line().as_bytes())
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    #[test]
    fn who_may_not_serve_is_told_who_may() {
        let denied = as_root(io::Error::from_raw_os_error(libc::EACCES));
        assert_eq!(
            crate::wording::chain_text(&denied.context("/run/dmtrace/serve.lock")),
            "/run/dmtrace/serve.lock: Permission denied; run as root"
        );
    }

    #[test]
    fn who_asks_during_a_look_is_told_how_it_was_before() {
        let dir = tempfile::tempdir().unwrap();
        let mut control = open_socket(dir.path());
        control.publish_status(ServiceStatus::of_process(7));
        control.start_listening(None).unwrap();
        // Nobody takes the questions: more than wait for an answer at once, all are answered.
        thread::scope(|all| {
            for _ in 0..2 * CONVERSATIONS {
                all.spawn(|| {
                    let answer = ask_status(&control);
                    assert_eq!(answer["pid"], 7);
                    assert!(answer["as_of_seconds_ago"].is_u64(), "{answer}");
                });
            }
        });
    }

    #[test]
    fn who_asks_otherwise_is_told_how_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut control = open_socket(dir.path());
        control.publish_status(ServiceStatus::of_process(7));
        control.start_listening(None).unwrap();
        let (_, mut questions) = mpsc::channel(1);
        std::mem::swap(&mut control.questions, &mut questions);
        let traces = thread::spawn(move || match questions.blocking_recv().unwrap() {
            ServiceQuestion::Status(reply) => reply.send(ServiceStatus::of_process(8)).unwrap(),
            other @ ServiceQuestion::Search(_) => panic!("{other:?}"),
        });
        let answer = ask_status(&control);
        assert_eq!(answer["pid"], 8);
        assert!(answer["as_of_seconds_ago"].is_null(), "{answer}");
        traces.join().unwrap();
    }
}
