//! The books of a running trace, for other commands: they ask over a socket beside its file in the
//! registry, and judge by the same books and the same facts as the trace itself. So there is one
//! truth; the kernel's maps alone lack what is gone and what came after.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc as blocking,
    },
    thread,
    time::Duration,
};

use borsh::BorshDeserialize;
use dmtrace_core::{
    facts::{HostFacts, Snapshot},
    ids::BootTime,
    ledger::Ledger,
    verdict::{Completeness, Thresholds},
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// The form of the books: that of the version, and of the types of the core in this build.
const LAYOUT: &str = concat!(env!("CARGO_PKG_VERSION"), " ", env!("DMTRACE_BOOKS_FORM"));
/// Those who are answered at the same time; others wait in the kernel's queue.
const MAX_CONVERSATIONS: usize = 16;
/// Time for the trace to look at everything and to write its books down.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the other side to take each part of the answer.
const TALK_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for it to send its line, which it does at once: who is silent holds a place no longer.
const LINE_TIMEOUT: Duration = Duration::from_millis(500);
/// Between two looks for a free place.
const PLACE_PAUSE: Duration = Duration::from_millis(5);
/// More than the books of a host whose semaphores are used up, ten times.
const MAX_BYTES: u64 = 1 << 30;

/// Everything that a trace judges by, at one moment.
#[derive(Debug)]
pub(crate) struct TraceBooks {
    pub ledger: Ledger,
    pub snapshot: Snapshot,
    pub moment: TraceMoment,
}

/// What the books and the kernel's tables are judged with.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TraceMoment {
    pub facts: HostFacts,
    pub completeness: Completeness,
    pub thresholds: Thresholds,
    /// From when on everything was seen.
    pub since: BootTime,
    /// What was lost for good so far, in words.
    pub losses: Vec<String>,
}

/// The first line of an answer.
#[derive(Serialize, Deserialize)]
struct AnswerHead {
    layout: String,
    /// What follows the line.
    bytes: u64,
}

/// Takes the encoded books.
type BooksReply = blocking::Sender<Arc<Vec<u8>>>;

/// Those who wait for the books.
pub(crate) struct BooksQuestions(Vec<BooksReply>);

impl BooksQuestions {
    /// Sends the books to all of them.
    ///
    /// # Errors
    /// The books cannot be written down.
    pub(super) fn send_books(
        self,
        ledger: &Ledger,
        snapshot: &Snapshot,
        moment: &TraceMoment,
    ) -> anyhow::Result<()> {
        let mut bytes = Vec::new();
        ledger.write_books(&mut bytes)?;
        borsh::to_writer(&mut bytes, snapshot)?;
        serde_json::to_writer(&mut bytes, moment)?;
        let bytes = Arc::new(bytes);
        for reply in self.0 {
            // Whoever asked may have gone.
            let _gone = reply.send(Arc::clone(&bytes));
        }
        Ok(())
    }
}

/// The socket of a trace. Its file is removed on drop.
pub(crate) struct BooksSocket {
    path: PathBuf,
    questions: mpsc::Receiver<BooksReply>,
}

impl BooksSocket {
    /// Binds, and listens on a thread.
    ///
    /// # Errors
    /// The socket cannot be made: then others must do with the maps.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let (send, questions) = mpsc::channel(MAX_CONVERSATIONS);
        thread::Builder::new()
            .name("books".to_owned())
            .spawn(move || listen_loop(&listener, &send))?;
        Ok(Self {
            path: path.to_owned(),
            questions,
        })
    }

    /// Waits until somebody asks; all who ask by then get the same answer.
    pub(crate) async fn next_questions(&mut self) -> BooksQuestions {
        let mut waiting = Vec::new();
        match self.questions.recv().await {
            Some(reply) => waiting.push(reply),
            None => std::future::pending().await,
        }
        while let Ok(reply) = self.questions.try_recv() {
            waiting.push(reply);
        }
        BooksQuestions(waiting)
    }
}

impl Drop for BooksSocket {
    fn drop(&mut self) {
        let _gone_already = fs::remove_file(&self.path);
    }
}

/// Ends with the process, or when the trace listens no more.
fn listen_loop(listener: &UnixListener, send: &mpsc::Sender<BooksReply>) {
    let busy = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        if send.is_closed() {
            return;
        }
        let Ok(stream) = stream else {
            thread::sleep(Duration::from_millis(100));
            continue;
        };
        while busy.load(Ordering::Relaxed) >= MAX_CONVERSATIONS {
            thread::sleep(PLACE_PAUSE);
        }
        busy.fetch_add(1, Ordering::Relaxed);
        let (send, done) = (send.clone(), Arc::clone(&busy));
        let talk = move || {
            let _gone = answer_request(stream, &send);
            done.fetch_sub(1, Ordering::Relaxed);
        };
        if thread::Builder::new()
            .name("books-answer".to_owned())
            .spawn(talk)
            .is_err()
        {
            busy.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn answer_request(mut stream: UnixStream, send: &mpsc::Sender<BooksReply>) -> io::Result<()> {
    stream.set_read_timeout(Some(LINE_TIMEOUT))?;
    stream.set_write_timeout(Some(TALK_TIMEOUT))?;
    let mut line = String::new();
    BufReader::new((&stream).take(256)).read_line(&mut line)?;
    let head = |bytes| -> io::Result<Vec<u8>> {
        let mut head = serde_json::to_vec(&AnswerHead {
            layout: LAYOUT.to_owned(),
            bytes,
        })?;
        head.push(b'\n');
        Ok(head)
    };
    if line.trim_end() != LAYOUT {
        return stream.write_all(&head(0)?);
    }
    let (reply, answer) = blocking::channel();
    send.try_send(reply).map_err(|_| ErrorKind::WouldBlock)?;
    let books = answer
        .recv_timeout(ANSWER_TIMEOUT)
        .map_err(|_| ErrorKind::TimedOut)?;
    stream.write_all(&head(books.len() as u64)?)?;
    stream.write_all(&books)
}

/// Asks a running trace for its books.
///
/// # Errors
/// It does not answer, or is of another version.
pub(crate) fn ask_books(path: &Path) -> io::Result<TraceBooks> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(TALK_TIMEOUT))?;
    stream.write_all(format!("{LAYOUT}\n").as_bytes())?;
    let mut reader = BufReader::with_capacity(1 << 16, stream);
    let mut line = String::new();
    (&mut reader)
        .take(256)
        .read_line(&mut line)
        .map_err(silence_error)?;
    let head: AnswerHead = serde_json::from_str(&line)
        .map_err(|_| io::Error::new(ErrorKind::UnexpectedEof, "it gives no answer"))?;
    if head.layout != LAYOUT {
        let version = head.layout.split(' ').next().unwrap_or_default();
        let text = format!("it is another build of dmtrace ({version})");
        return Err(io::Error::new(ErrorKind::Unsupported, text));
    }
    if head.bytes > MAX_BYTES {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::new();
    reader.take(head.bytes).read_to_end(&mut bytes)?;
    let mut rest = bytes.as_slice();
    let ledger = Ledger::read_books(&mut rest).map_err(io::Error::other)?;
    let snapshot = <Snapshot as BorshDeserialize>::deserialize(&mut rest)?;
    Ok(TraceBooks {
        ledger,
        snapshot,
        moment: serde_json::from_slice(rest)?,
    })
}

/// In words, where the time is up.
fn silence_error(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => io::Error::new(
            ErrorKind::TimedOut,
            format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()),
        ),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment() -> TraceMoment {
        TraceMoment {
            facts: HostFacts::default(),
            completeness: Completeness::default(),
            thresholds: Thresholds::default(),
            since: BootTime(7),
            losses: vec!["3 messages".to_owned()],
        }
    }

    fn answer_all(mut socket: BooksSocket, rounds: usize) {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.build().unwrap();
        for _ in 0..rounds {
            let questions = runtime.block_on(socket.next_questions());
            questions
                .send_books(&Ledger::new(), &Snapshot::default(), &moment())
                .unwrap();
        }
    }

    #[test]
    fn who_asks_gets_what_the_trace_judges_by() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.sock");
        let socket = BooksSocket::open(&path).unwrap();
        thread::scope(|all| {
            all.spawn(|| answer_all(socket, 1));
            let books = ask_books(&path).unwrap();
            assert_eq!(books.moment.since, BootTime(7));
            assert_eq!(books.moment.losses, ["3 messages"]);
        });
        assert!(!path.exists(), "removed with the trace");
        assert_eq!(ask_books(&path).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn another_version_is_told_apart_from_silence() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.sock");
        let _socket = BooksSocket::open(&path).unwrap();
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"9.9.9 1\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let head: AnswerHead = serde_json::from_str(&answer).unwrap();
        assert_eq!((head.layout.as_str(), head.bytes), (LAYOUT, 0));
    }

    #[test]
    fn a_trace_that_ends_leaves_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.sock");
        let socket = BooksSocket::open(&path).unwrap();
        thread::scope(|all| {
            let asked = all.spawn(|| ask_books(&path));
            // The question is there, and the trace ends without an answer.
            while socket.questions.is_empty() {
                thread::sleep(Duration::from_millis(1));
            }
            drop(socket);
            assert!(asked.join().unwrap().is_err());
        });
    }
}
