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
    verdict::{BookLosses, Thresholds},
};
use serde::Serialize;
use serde_json::json;

use super::run::TraceEnd;
pub(crate) use crate::trace::recorder::file::{Overwrite, Rotation};
use crate::{
    host::{self, Roots, package},
    output::{print_remark, time::Clock},
    probe::{Tracer, environment::kernel_release},
    recording::{RecordingStart, RecordingWriter, SiteOf},
    stack::FoundSite,
    trace::{
        recorder::file::{RecordingFile, RecordingTarget},
        session::{Tap, TappedInput},
    },
    wording::cause_text,
};

/// So much is kept in memory before it is written.
const BUFFER: usize = 1 << 18;

/// A recording in the making; shared between the tap in the session and the verb.
#[derive(Clone)]
pub(crate) struct Recorder(Rc<RefCell<RecorderState>>);

struct RecorderState {
    target: RecordingTarget,
    /// What it is written to; `None` before it has begun, and after it has ended.
    open: Option<OpenFile>,
    start: RecordingStart,
    /// Call sites that are in the current file.
    numbers: SiteNumbers,
    failed: Option<String>,
}

struct OpenFile {
    writer: RecordingWriter<Vec<u8>>,
    output: RecordingFile,
    /// Size of it when the books were in it.
    books: u64,
}

impl Recorder {
    /// Looks at the name. Nothing is created before tracing has begun.
    ///
    /// # Errors
    /// It exists and must not, or its directory does not exist.
    pub(crate) fn create(
        path: &Path,
        overwrite: Overwrite,
        rotation: Option<Rotation>,
    ) -> Result<Self> {
        Ok(Self(Rc::new(RefCell::new(RecorderState {
            target: RecordingTarget::inspect(path, overwrite, rotation)?,
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
    pub(crate) fn start_tap(&self, tracer: &Tracer, began: BootTime) -> Result<Tap> {
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
        state.open = Some(state.begin_file().context(path)?);
        drop(state);
        let (shared, due, place) = (self.clone(), self.clone(), self.clone());
        Ok(Tap {
            write: Box::new(move |tapped| shared.record_input(tapped)),
            is_full: Box::new(move || due.0.borrow().is_full()),
            place: Box::new(move || place.0.borrow().target.readable_path()),
        })
    }

    /// Tracing has begun: from now on the file has its name, unless one with that name is to be
    /// replaced at the end. Then this returns where it is until then.
    ///
    /// # Errors
    /// Writing fails, or something took the name meanwhile.
    pub(crate) fn name_file(&self) -> Result<Option<PathBuf>> {
        let mut state = self.0.borrow_mut();
        let RecorderState { target, open, .. } = &mut *state;
        let path = target.path().display().to_string();
        if let Some(open) = open {
            open.flush().context(path.clone())?;
            open.output.take_name(target).context(path)?;
        }
        Ok(target.temporary_path())
    }

    /// Hands what is buffered to the system.
    pub(crate) fn flush(&self) {
        self.with_file(|open, _| open.flush());
    }

    /// Why the recording has ended early, if it has.
    pub(crate) fn failure_text(&self) -> Option<String> {
        self.0.borrow().failed.clone()
    }

    /// Writes the facts, the packages and the balance, and closes the file.
    pub(crate) fn finish(&self, ending: &TraceEnd) {
        self.with_file(|open, _| open.writer.write_facts(&ending.facts));
        let packages = find_packages(ending);
        if !packages.is_empty() {
            self.with_file(|open, _| open.writer.write_packages(&packages));
        }
        let mut state = self.0.borrow_mut();
        if let Err(error) = state.finish_recording(&ending.accounting) {
            state.record_failure(&error);
        }
    }

    fn record_input(&self, tapped: TappedInput<'_>) {
        match tapped {
            TappedInput::Message(bytes) => {
                self.with_file(|open, _| open.writer.write_message(bytes));
            }
            TappedInput::Sem(key, record) => {
                self.with_file(|open, _| open.writer.write_sem(key, record));
            }
            TappedInput::Proc(record) => {
                self.with_file(|open, _| open.writer.write_process(record));
            }
            TappedInput::Snapshot(snapshot) => {
                self.with_file(|open, _| open.writer.write_snapshot(snapshot));
            }
            TappedInput::Site(found) => {
                self.with_file(|open, numbers| numbers.write_site(&mut open.writer, found));
            }
            TappedInput::NextFile {
                facts,
                deficits,
                losses,
            } => self.next_file(facts, deficits, losses),
            TappedInput::BooksWritten => {
                let mut state = self.0.borrow_mut();
                if let Err(error) = state.books_written() {
                    state.record_failure(&error);
                }
            }
        }
    }

    /// Ends this file, and begins the next one, beside it.
    fn next_file(&self, facts: &HostFacts, deficits: &[String], losses: BookLosses) {
        self.with_file(|open, _| open.writer.write_facts(facts));
        let mut state = self.0.borrow_mut();
        let balance = json!({ "deficits": deficits, "losses": losses, "continued": true });
        let begun = state.close_file(&balance).and_then(|_| {
            if state.failed.is_none() {
                state.start.parts_before += 1;
                state.numbers = SiteNumbers::default();
                state.open = Some(state.begin_file()?);
            }
            Ok(())
        });
        if let Err(error) = begun {
            state.record_failure(&error);
        }
    }

    /// Does something with the current file, and writes out what has become much.
    fn with_file(&self, write: impl FnOnce(&mut OpenFile, &mut SiteNumbers) -> io::Result<()>) {
        let mut state = self.0.borrow_mut();
        let RecorderState { open, numbers, .. } = &mut *state;
        let Some(open) = open else { return };
        let written = write(open, numbers).and_then(|()| {
            if open.writer.writer_mut().len() < BUFFER {
                return Ok(());
            }
            open.flush()
        });
        if let Err(error) = written {
            state.record_failure(&error);
        }
    }
}

impl OpenFile {
    fn flush(&mut self) -> io::Result<()> {
        let frames = self.writer.writer_mut();
        let written = self.output.write_frames(frames);
        frames.clear();
        written
    }
}

impl RecorderState {
    /// A file with its first frame.
    fn begin_file(&self) -> io::Result<OpenFile> {
        let mut open = OpenFile {
            writer: RecordingWriter::begin(Vec::with_capacity(BUFFER), &self.start)?,
            output: self.target.create_file()?,
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
        let written = open.output.written_bytes();
        written >= rotation.max && written - open.books >= rotation.max / 4
    }

    /// The new file can be read by itself: it takes the place of the current one.
    fn books_written(&mut self) -> io::Result<()> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        open.flush()?;
        open.output.sync_data()?;
        open.books = open.output.written_bytes();
        if !self.target.is_current_there() {
            print_remark(&format!(
                "{}: a file was removed or renamed while it was written; the recording goes on in \
                 the next one",
                self.target.path().display()
            ));
        }
        self.target.shift_files()?;
        open.output.take_name(&mut self.target)
    }

    /// Writes the end of the last file, and gives it the name that was asked for.
    fn finish_recording(&mut self, balance: &impl Serialize) -> io::Result<()> {
        let Some(mut output) = self.close_file(balance)? else {
            return Ok(());
        };
        let finished = output.finish(&self.target);
        finished.inspect_err(|_| self.keep_output(output))
    }

    /// Writes the end of a file.
    fn close_file(&mut self, balance: &impl Serialize) -> io::Result<Option<RecordingFile>> {
        let Some(open) = self.open.take() else {
            return Ok(None);
        };
        let OpenFile {
            writer, mut output, ..
        } = open;
        let written = writer
            .finish(balance)
            .and_then(|frames| output.write_frames(&frames));
        match written.and_then(|()| output.sync_data()) {
            Ok(()) => Ok(Some(output)),
            Err(error) => {
                self.keep_output(output);
                Err(error)
            }
        }
    }

    /// For the message of an error: where it is.
    fn keep_output(&mut self, output: RecordingFile) {
        self.open = Some(OpenFile {
            writer: RecordingWriter::resume(Vec::new()),
            output,
            books: 0,
        });
    }

    /// Keeps what was written: a recording without an end is readable.
    fn record_failure(&mut self, error: &io::Error) {
        let path = self.target.path().display();
        let meanwhile = self.target.temporary_path();
        let beside = meanwhile.filter(|_| self.target.is_current_there());
        self.open = None;
        let place = beside.map_or_else(String::new, |beside| {
            format!(
                "; {path} is still what it was, the new one is {}",
                beside.display()
            )
        });
        let message = format!(
            "{path}: {}; the recording ends here{place}",
            cause_text(error)
        );
        print_remark(&message);
        self.failed = Some(message);
    }
}

/// Time for looking up packages, in all.
const PACKAGE_LOOKUP_TIME: Duration = Duration::from_secs(2);
/// Executables whose package is looked up.
const MAX_PACKAGE_LOOKUPS: usize = 16;

/// Packages of the executables that findings are about: another machine cannot look them up.
fn find_packages(ending: &TraceEnd) -> BTreeMap<String, Result<Package, String>> {
    let until = Instant::now() + PACKAGE_LOOKUP_TIME;
    let roots = Roots::host();
    let ledger = ending.session.ledger();
    let mut found = BTreeMap::new();
    let judged = ending.judge_cookies(&Thresholds::default());
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
        if found.len() < MAX_PACKAGE_LOOKUPS {
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
    fn write_site(
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
