//! Metrics by HTTP: one request a connection, small, soon over.

use std::{
    fs,
    io::{self, ErrorKind},
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, UnixListener},
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

use super::{
    ExpositionFormat, Exposure, ListenAddress,
    request::{HEAD_MAX, RequestedResource, read_request},
};

/// Conversations at the same time; others wait in the kernel's queue.
const MAX_CONVERSATIONS: usize = 4;
/// Time for one.
const CONVERSATION_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed `accept`, such as for want of descriptors.
const ACCEPT_RETRY_PAUSE: Duration = Duration::from_secs(1);
/// What a scraper may send after its request before it hears the answer.
const MAX_DRAIN_BYTES: u64 = 64 << 10;

/// Somebody wants the metrics.
pub(crate) struct ScrapeRequest {
    pub format: ExpositionFormat,
    /// Takes the text, see [`expose`](super::expose).
    pub answer: oneshot::Sender<String>,
}

/// A socket on which metrics are asked for. On drop nobody is answered any more, and the file of a
/// socket in the file system is removed.
pub(crate) struct Endpoint {
    /// Requests that wait for an answer.
    pub scrapes: mpsc::Receiver<ScrapeRequest>,
    /// The port that the kernel chose for port 0.
    #[cfg_attr(
        all(not(test), feature = "live"),
        expect(dead_code, reason = "for tests: port 0")
    )]
    address: Option<SocketAddr>,
    listener: tokio::task::JoinHandle<()>,
    path: Option<PathBuf>,
}

impl Endpoint {
    /// Listens. Must be called in a runtime. A socket in the file system is for root, and for the
    /// members of `group`.
    ///
    /// # Errors
    /// The address is not permitted, or taken.
    pub(crate) fn open(
        listen: &ListenAddress,
        exposure: Exposure,
        group: Option<u32>,
    ) -> Result<Self> {
        listen.check_exposure(exposure)?;
        let (send, scrapes) = mpsc::channel(MAX_CONVERSATIONS);
        let failed = |place: String| format!("{place}: metrics cannot be served there");
        let mut local = None;
        let (listener, path) = match listen {
            ListenAddress::Tcp(address) => {
                let listener = bind_tcp(*address).with_context(|| failed(address.to_string()))?;
                local = listener.local_addr().ok();
                (tokio::spawn(serve_listener(listener, send)), None)
            }
            ListenAddress::Unix(path) => {
                let listener =
                    bind_socket(path, group).with_context(|| failed(path.display().to_string()))?;
                (
                    tokio::spawn(serve_listener(listener, send)),
                    Some(path.clone()),
                )
            }
        };
        Ok(Self {
            scrapes,
            address: local,
            listener,
            path,
        })
    }

    /// The address of a TCP socket, with the port that the kernel chose for port 0.
    #[cfg(test)]
    pub(crate) const fn tcp_address(&self) -> Option<SocketAddr> {
        self.address
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.listener.abort();
        if let Some(path) = &self.path {
            let _gone_already = fs::remove_file(path);
        }
    }
}

/// A socket in the file system. What lies there is replaced if it is a socket that nobody listens
/// on any more.
fn bind_socket(path: &Path, group: Option<u32>) -> Result<UnixListener> {
    if let Ok(meta) = fs::symlink_metadata(path) {
        if !meta.file_type().is_socket() {
            bail!("something else lies there; remove it, or choose another path");
        }
        match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            _ => bail!("another process listens there"),
        }
    }
    let listener = UnixListener::bind(path)?;
    chown(path, None, group)?;
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// What both kinds of sockets have.
trait AcceptConnection: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept_stream(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl AcceptConnection for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn accept_stream(&self) -> io::Result<Self::Stream> {
        Ok(Self::accept(self).await?.0)
    }
}

impl AcceptConnection for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn accept_stream(&self) -> io::Result<Self::Stream> {
        Ok(Self::accept(self).await?.0)
    }
}

async fn serve_listener(listener: impl AcceptConnection, send: mpsc::Sender<ScrapeRequest>) {
    let places = Arc::new(Semaphore::new(MAX_CONVERSATIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Ok(stream) = listener.accept_stream().await else {
            tokio::time::sleep(ACCEPT_RETRY_PAUSE).await;
            continue;
        };
        let send = send.clone();
        tokio::spawn(async move {
            // Whoever is too slow, or breaks off, gets no answer.
            let _unheard = timeout(CONVERSATION_TIMEOUT, handle_conversation(stream, send)).await;
            drop(place);
        });
    }
}

async fn handle_conversation(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    send: mpsc::Sender<ScrapeRequest>,
) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(1024);
    let wanted = loop {
        let room = (HEAD_MAX - bytes.len()) as u64;
        if (&mut stream).take(room).read_buf(&mut bytes).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if let Some(wanted) = read_request(&bytes) {
            break wanted;
        }
    };
    let answer = match wanted {
        RequestedResource::Metrics(format) | RequestedResource::Head(format) => {
            let gone = || io::Error::from(ErrorKind::BrokenPipe);
            let (answer, reply) = oneshot::channel();
            let scrape = ScrapeRequest { format, answer };
            send.send(scrape).await.map_err(|_| gone())?;
            let body = reply.await.map_err(|_| gone())?;
            let head = response_head("200 OK", format.content_type(), body.len());
            match wanted {
                RequestedResource::Head(_) => head,
                _ => head + &body,
            }
        }
        RequestedResource::Error(why) => {
            let body = format!("{}; there is GET /metrics\n", why.status_line());
            response_head(why.status_line(), "text/plain; charset=utf-8", body.len()) + &body
        }
    };
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // Closing a socket with something unread breaks off the answer (RFC 9112, 9.6).
    let mut rest = stream.take(MAX_DRAIN_BYTES);
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
    Ok(())
}

fn response_head(status: &str, content_type: &str, length: usize) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\
         Connection: close\r\nCache-Control: no-store\r\n\r\n"
    )
}

#[cfg(test)]
mod tests;
