//! Writing a recording while tracing. A full disk ends the recording, not the trace.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    fs::{File, OpenOptions},
    io::{self, BufWriter},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::trace::Ending;
use crate::{
    event::recording::{SiteOf, Start, Writer},
    host::{
        self, Roots,
        package::{self, Package},
    },
    ids::{BootTime, UnixTime},
    output::time::Clock,
    probe::{Environment, Tracer},
    session::{Tap, Tapped},
    stack::{CallSite, Found},
    verdict::Thresholds,
    wording::cause,
};

/// A recording in the making; shared between the tap in the session and the verb.
#[derive(Clone)]
pub struct Recorder(Rc<RefCell<State>>);

struct State {
    path: PathBuf,
    file: Option<File>,
    writer: Option<Writer<BufWriter<File>>>,
    failed: Option<String>,
}

impl Recorder {
    /// Creates the file.
    ///
    /// # Errors
    /// It exists and must not, or cannot be written.
    pub fn create(path: &Path, overwrite: bool) -> Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = OpenOptions::new();
        // It holds command lines of other users.
        options.write(true).mode(0o600);
        if overwrite {
            options.create(true).truncate(true)
        } else {
            options.create_new(true)
        };
        let file = options.open(path).map_err(|error| {
            let hint = if error.kind() == io::ErrorKind::AlreadyExists {
                "; use --force to overwrite it"
            } else {
                ""
            };
            anyhow::anyhow!("{}: {}{hint}", path.display(), cause(&error))
        })?;
        Ok(Self(Rc::new(RefCell::new(State {
            path: path.to_owned(),
            file: Some(file),
            writer: None,
            failed: None,
        }))))
    }

    /// Writes the beginning, and returns what writes the rest.
    ///
    /// # Errors
    /// Writing fails.
    pub fn tap(&self, tracer: &Tracer, began: BootTime) -> Result<Tap> {
        let wall = Clock::now().timestamp(began);
        let start = Start {
            abi: dmtrace_common::ABI,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: Environment::read().kernel,
            boot_id: host::clock::boot_id(&Roots::host()),
            began,
            wall: UnixTime(wall.as_second()),
            wall_nanos: wall.subsec_nanosecond().unsigned_abs(),
            backend: tracer.backend().name().to_owned(),
            command: std::env::args().collect(),
        };
        let mut state = self.0.borrow_mut();
        let file = state.file.take().context("the recording was begun twice")?;
        let path = state.path.display().to_string();
        let absolute = std::path::absolute(&state.path).ok();
        state.writer =
            Some(Writer::begin(BufWriter::with_capacity(1 << 18, file), &start).context(path)?);
        drop(state);
        let shared = self.clone();
        let mut numbers = SiteNumbers::default();
        Ok(Tap {
            write: Box::new(move |tapped| {
                shared.write(|writer| match tapped {
                    Tapped::Message(bytes) => writer.message(bytes),
                    Tapped::Sem(key, record) => writer.sem(key, record),
                    Tapped::Proc(record) => writer.process(record),
                    Tapped::Snapshot(snapshot) => writer.snapshot(snapshot),
                    Tapped::Site(found) => numbers.write(writer, found),
                });
            }),
            file: absolute,
        })
    }

    /// Hands what is buffered to the system.
    pub fn flush(&self) {
        self.write(Writer::flush);
    }

    /// Why the recording has ended early, if it has.
    pub fn failed(&self) -> Option<String> {
        self.0.borrow().failed.clone()
    }

    /// Writes the facts, the packages and the balance, and closes the file.
    pub fn end(&self, ending: &Ending) {
        self.write(|writer| writer.facts(&ending.facts));
        let packages = packages(ending);
        if !packages.is_empty() {
            self.write(|writer| writer.packages(&packages));
        }
        let balance = &ending.accounting;
        let mut state = self.0.borrow_mut();
        if let Some(writer) = state.writer.take()
            && let Err(error) = writer.end(balance)
        {
            state.fail(&error);
        }
    }

    fn write(&self, write: impl FnOnce(&mut Writer<BufWriter<File>>) -> io::Result<()>) {
        let mut state = self.0.borrow_mut();
        let result = state.writer.as_mut().map(write);
        if let Some(Err(error)) = result {
            state.fail(&error);
        }
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
        let Some((image, key)) = image.and_then(|image| Some((image, package::key(image)?))) else {
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
    fn write(&mut self, writer: &mut Writer<BufWriter<File>>, found: &Found) -> io::Result<()> {
        let next = self.0.len() as u32;
        let number = *self.0.entry(Arc::clone(&found.site)).or_insert(next);
        if number == next {
            writer.site(number, &found.site)?;
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

impl State {
    /// Keeps what was written: a recording without an end is readable.
    fn fail(&mut self, error: &io::Error) {
        self.writer = None;
        let message = format!(
            "{}: {}; the recording ends here",
            self.path.display(),
            cause(error)
        );
        eprintln!("dmtrace: {message}");
        self.failed = Some(message);
    }
}
