//! Writing a recording while tracing. A full disk ends the recording, not the trace.

mod file;

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use dmtrace_core::{
    event::{CallSite, Package},
    facts::HostFacts,
    ids::BootTime,
    verdict::Thresholds,
};
use serde::Serialize;
use serde_json::json;

use super::run::Ending;
pub(crate) use crate::trace::recorder::file::Rotation;
use crate::{
    host::{self, Roots, package},
    output::time::Clock,
    probe::{Tracer, environment::kernel_release},
    recording::{RecordingStart, RecordingWriter, SiteOf},
    stack::FoundSite,
    trace::{
        recorder::file::{Output, Target},
        session::{Tap, Tapped},
    },
    wording::cause,
};

/// So much is kept in memory before it is written.
const BUFFER: usize = 1 << 18;

/// A recording in the making; shared between the tap in the session and the verb.
#[derive(Clone)]
pub(crate) struct Recorder(Rc<RefCell<State>>);

struct State {
    target: Target,
    /// What it is written to; `None` before it has begun, and after it has ended.
    open: Option<Open>,
    start: RecordingStart,
    /// Call sites that are in the current file.
    numbers: SiteNumbers,
    failed: Option<String>,
}

struct Open {
    writer: RecordingWriter<Vec<u8>>,
    output: Output,
    /// Size of it when the books were in it.
    books: u64,
}

impl Recorder {
    /// Looks at the name. Nothing is created before tracing has begun.
    ///
    /// # Errors
    /// It exists and must not, or its directory does not exist.
    pub(crate) fn create(path: &Path, overwrite: bool, rotation: Option<Rotation>) -> Result<Self> {
        Ok(Self(Rc::new(RefCell::new(State {
            target: Target::look(path, overwrite, rotation)?,
            open: None,
            start: RecordingStart::default(),
            numbers: SiteNumbers::default(),
            failed: None,
        }))))
    }

    /// Writes the beginning, and returns what writes the rest.
    ///
    /// # Errors
    /// Writing fails.
    pub(crate) fn tap(&self, tracer: &Tracer, began: BootTime) -> Result<Tap> {
        let (wall, wall_nanos) = Clock::now().moment_at(began).as_parts();
        let start = RecordingStart {
            abi: dmtrace_common::ABI,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: kernel_release(),
            boot_id: host::clock::boot_id(&Roots::host()),
            began,
            wall,
            wall_nanos,
            backend: tracer.backend().name().to_owned(),
            command: std::env::args().collect(),
            parts_before: 0,
        };
        let mut state = self.0.borrow_mut();
        state.start = start;
        let path = state.target.path().display().to_string();
        state.open = Some(state.begin().context(path)?);
        drop(state);
        let (shared, due, place) = (self.clone(), self.clone(), self.clone());
        Ok(Tap {
            write: Box::new(move |tapped| shared.take(tapped)),
            is_full: Box::new(move || due.0.borrow().is_full()),
            place: Box::new(move || place.0.borrow().target.place()),
        })
    }

    /// Tracing has begun: from now on the file has its name, unless one with that name is to be
    /// replaced at the end. Then this returns where it is until then.
    ///
    /// # Errors
    /// Writing fails, or something took the name meanwhile.
    pub(crate) fn begun(&self) -> Result<Option<PathBuf>> {
        let mut state = self.0.borrow_mut();
        let State { target, open, .. } = &mut *state;
        let path = target.path().display().to_string();
        if let Some(open) = open {
            open.flush().context(path.clone())?;
            open.output.begun(target).context(path)?;
        }
        Ok(target.meanwhile())
    }

    /// Hands what is buffered to the system.
    pub(crate) fn flush(&self) {
        self.with(|open, _| open.flush());
    }

    /// Why the recording has ended early, if it has.
    pub(crate) fn failed(&self) -> Option<String> {
        self.0.borrow().failed.clone()
    }

    /// Writes the facts, the packages and the balance, and closes the file.
    pub(crate) fn end(&self, ending: &Ending) {
        self.with(|open, _| open.writer.write_facts(&ending.facts));
        let packages = packages(ending);
        if !packages.is_empty() {
            self.with(|open, _| open.writer.write_packages(&packages));
        }
        let mut state = self.0.borrow_mut();
        if let Err(error) = state.end(&ending.accounting) {
            state.fail(&error);
        }
    }

    fn take(&self, tapped: Tapped<'_>) {
        match tapped {
            Tapped::Message(bytes) => self.with(|open, _| open.writer.write_message(bytes)),
            Tapped::Sem(key, record) => self.with(|open, _| open.writer.write_sem(key, record)),
            Tapped::Proc(record) => self.with(|open, _| open.writer.write_process(record)),
            Tapped::Snapshot(snapshot) => self.with(|open, _| open.writer.write_snapshot(snapshot)),
            Tapped::Site(found) => {
                self.with(|open, numbers| numbers.write(&mut open.writer, found));
            }
            Tapped::NextFile { facts, deficits } => self.next_file(facts, deficits),
            Tapped::BooksWritten => {
                let mut state = self.0.borrow_mut();
                if let Err(error) = state.books_written() {
                    state.fail(&error);
                }
            }
        }
    }

    /// Ends this file, and begins the next one, beside it.
    fn next_file(&self, facts: &HostFacts, deficits: &[String]) {
        self.with(|open, _| open.writer.write_facts(facts));
        let mut state = self.0.borrow_mut();
        let balance = json!({ "deficits": deficits, "continued": true });
        let begun = state.end(&balance).and_then(|()| {
            if state.failed.is_none() {
                state.start.parts_before += 1;
                state.numbers = SiteNumbers::default();
                state.open = Some(state.begin()?);
            }
            Ok(())
        });
        if let Err(error) = begun {
            state.fail(&error);
        }
    }

    /// Does something with the current file, and writes out what has become much.
    fn with(&self, write: impl FnOnce(&mut Open, &mut SiteNumbers) -> io::Result<()>) {
        let mut state = self.0.borrow_mut();
        let State { open, numbers, .. } = &mut *state;
        let Some(open) = open else { return };
        let written = write(open, numbers).and_then(|()| {
            if open.writer.writer_mut().len() < BUFFER {
                return Ok(());
            }
            open.flush()
        });
        if let Err(error) = written {
            state.fail(&error);
        }
    }
}

impl Open {
    fn flush(&mut self) -> io::Result<()> {
        let frames = self.writer.writer_mut();
        let written = self.output.write(frames);
        frames.clear();
        written
    }
}

impl State {
    /// A file with its first frame.
    fn begin(&self) -> io::Result<Open> {
        let mut open = Open {
            writer: RecordingWriter::begin(Vec::with_capacity(BUFFER), &self.start)?,
            output: self.target.create()?,
            books: 0,
        };
        open.flush()?;
        Ok(open)
    }

    /// Whether it is time for the next file. What the books take in a new one does not count much:
    /// they may be larger than the limit.
    fn is_full(&self) -> bool {
        let (Some(open), Some(rotation)) = (&self.open, self.target.rotation) else {
            return false;
        };
        let written = open.output.written();
        written >= rotation.max && written - open.books >= rotation.max / 4
    }

    /// The new file can be read by itself: it takes the place of the current one.
    fn books_written(&mut self) -> io::Result<()> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        open.flush()?;
        open.output.sync()?;
        open.books = open.output.written();
        self.target.shift()?;
        open.output.begun(&self.target)
    }

    /// Writes the end, and gives the file its name.
    fn end(&mut self, balance: &impl Serialize) -> io::Result<()> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        let Open {
            writer, mut output, ..
        } = open;
        let written = writer
            .finish(balance)
            .and_then(|frames| output.write(&frames));
        let finished = written.and_then(|()| output.finish(&self.target));
        finished.inspect_err(|_| self.keep(output))
    }

    /// For the message of an error: where it is.
    fn keep(&mut self, output: Output) {
        self.open = Some(Open {
            writer: RecordingWriter::resume(Vec::new()),
            output,
            books: 0,
        });
    }

    /// Keeps what was written: a recording without an end is readable.
    fn fail(&mut self, error: &io::Error) {
        let path = self.target.path().display();
        let meanwhile = self.target.meanwhile();
        let beside = self.open.take().and(meanwhile);
        let place = beside.map_or_else(String::new, |beside| {
            format!(
                "; {path} is still what it was, the new one is {}",
                beside.display()
            )
        });
        let message = format!("{path}: {}; the recording ends here{place}", cause(error));
        eprintln!("dmtrace: {message}");
        self.failed = Some(message);
    }
}

/// Time for looking up packages, in all.
const LOOK_UP: Duration = Duration::from_secs(2);
/// Executables whose package is looked up.
const LOOKED_UP: usize = 16;

/// Packages of the executables that findings are about: another machine cannot look them up.
fn packages(ending: &Ending) -> BTreeMap<String, Result<Package, String>> {
    let until = Instant::now() + LOOK_UP;
    let roots = Roots::host();
    let ledger = ending.session.ledger();
    let mut found = BTreeMap::new();
    let judged = ending.judge(&Thresholds::default());
    let closed = ending.judge_closed(&Thresholds::default());
    for judged in judged.iter().chain(&closed) {
        if !judged.verdict.class.is_finding() {
            continue;
        }
        let image = judged
            .semaphore
            .creator
            .image()
            .and_then(|image| ledger.process(image)?.image.as_deref());
        let Some((image, key)) =
            image.and_then(|image| Some((image, package::package_key(image)?)))
        else {
            continue;
        };
        if found.len() < LOOKED_UP {
            found
                .entry(key)
                .or_insert_with(|| package::of_process(&roots, image, until));
        }
    }
    found
}

/// Call sites that were written, by their numbers.
#[derive(Default)]
struct SiteNumbers(HashMap<Arc<CallSite>, u32>);

impl SiteNumbers {
    /// Writes the call site of a cookie; what others have in common only once.
    fn write(
        &mut self,
        writer: &mut RecordingWriter<Vec<u8>>,
        found: &FoundSite,
    ) -> io::Result<()> {
        let next = self.0.len() as u32;
        let number = *self.0.entry(Arc::clone(&found.site)).or_insert(next);
        if number == next {
            writer.write_site(number, &found.site)?;
        }
        writer.site_of(&SiteOf {
            sem: found.sem,
            key: found.key,
            at: found.at,
            maker: found.maker,
            site: number,
        })
    }
}
