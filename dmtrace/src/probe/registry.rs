//! How other commands find a running trace: one small file per tracer, with the numbers of its
//! BPF maps. The maps end with the tracer, so a stale file leads nowhere; those of a service whose
//! kernel side outlives it stay with their links, and the file holds as long.
//!
//! A tracer holds a lock beside its file as long as it lives. That tells its life to whoever sees
//! the file, also from another PID namespace, where `/proc` says nothing of it.

use std::{
    fmt,
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use dmtrace_core::{backend::Backend, ids::BootTime, ledger::Activity, wall_clock::ClockHistory};
use serde::{Deserialize, Serialize};

use crate::{
    host::{
        self, Roots,
        clock::history::{Records, read_clocks},
        run_dir::{RUN_DIR, create_private_dir, create_private_file},
    },
    probe::{DEFAULT_PINS, MapIds, Maps, Tracer},
};

/// A trace that runs now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RunningTracer {
    /// The process that traces.
    pub pid: u32,
    /// When it began.
    pub since: BootTime,
    /// Name of its backend.
    pub backend: String,
    /// The recording that it writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recording: Option<PathBuf>,
    /// Where its links are pinned: tracing goes on as long as they are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pinned: Option<PathBuf>,
    maps: MapIds,
    boot_id: Option<String>,
    /// What it knew of the wall clock when this was written.
    #[serde(default, skip_serializing_if = "ClockHistory::is_empty")]
    pub clock: ClockHistory,
    /// Where this was read.
    #[serde(skip)]
    file: PathBuf,
}

impl RunningTracer {
    /// Opens its maps.
    ///
    /// # Errors
    /// It has ended meanwhile, or this process may not.
    pub(crate) fn open_maps(&self) -> anyhow::Result<Maps> {
        Maps::open(self.maps)
    }

    /// What processes did besides the cookies that they left, as far as it has looked.
    pub(crate) fn read_activity(&self) -> Vec<Activity> {
        fs::read(activity_file(&self.file))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    /// Where its process answers those who ask for its books.
    pub(crate) fn books_socket(&self) -> PathBuf {
        books_socket(&self.file)
    }

    /// Whether its process runs, and takes in what happens.
    pub(crate) fn is_attended(&self) -> bool {
        is_held(&self.file)
    }

    /// The option of `dmtrace serve` with which it finds this trace, after a space; empty where none
    /// is needed.
    pub(crate) fn pins_option(&self) -> String {
        // Links are in a directory of their build, in one of their layout.
        let below = |it: &&Path| {
            let name = it.file_name().and_then(|it| it.to_str()).unwrap_or("");
            name.starts_with("build-") || name.starts_with("layout-")
        };
        let pinned = self.pinned.as_deref().into_iter();
        let root = pinned.flat_map(Path::ancestors).find(|it| !below(it));
        match root {
            Some(root) if root != Path::new(DEFAULT_PINS) => format!(" --pins {}", root.display()),
            _ => String::new(),
        }
    }

    fn is_active(&self) -> bool {
        self.is_attended() || self.is_pinned()
    }

    /// Whether its kernel side has outlived it.
    fn is_pinned(&self) -> bool {
        self.boot_id == host::clock::boot_id(&Roots::host())
            && self.pinned.as_deref().is_some_and(Path::exists)
    }

    pub(crate) fn backend(&self) -> Option<Backend> {
        Backend::ALL
            .into_iter()
            .find(|backend| backend.name() == self.backend)
    }
}

/// The file of this process; removed on drop.
pub(crate) struct Registration {
    path: Option<PathBuf>,
    /// What processes did, as it was written last.
    activity: Vec<Activity>,
    /// How many moments of the wall clock's history were written last.
    anchors: usize,
    /// Locked: its tracer lives.
    _held: File,
}

impl Registration {
    /// The recording is somewhere else from now on.
    pub(crate) fn set_recording(&self, recording: Option<PathBuf>) {
        self.change_entry(|entry| {
            let changed = entry.recording != recording;
            entry.recording = recording;
            changed
        });
    }

    /// Writes the file anew where `change` has changed what is in it.
    fn change_entry(&self, change: impl FnOnce(&mut RunningTracer) -> bool) {
        let Some(path) = &self.path else { return };
        let entry: Option<RunningTracer> = fs::read(path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if let Some(mut entry) = entry
            && change(&mut entry)
        {
            let _best_effort = replace_file(path, &entry);
        }
    }

    /// Writes down what this process knows of the wall clock, if there is more to know than that time
    /// has passed: then somebody has set it.
    pub(crate) fn write_clock(&mut self, clock: &ClockHistory) {
        let anchors = clock.anchors().len();
        if self.anchors == anchors {
            return;
        }
        self.anchors = anchors;
        self.change_entry(|entry| {
            entry.clock.clone_from(clock);
            true
        });
    }

    /// Writes down what processes did besides the cookies that they left, if that has changed.
    pub(crate) fn write_activity(&mut self, activity: Vec<Activity>) {
        let Some(path) = &self.path else { return };
        if self.activity == activity {
            return;
        }
        let _best_effort = replace_file(&activity_file(path), &activity);
        self.activity = activity;
    }

    /// Where to answer those who ask for the books of this trace.
    pub(crate) fn books_socket(&self) -> Option<PathBuf> {
        self.path.as_deref().map(books_socket)
    }

    /// Leaves the file: tracing goes on.
    pub(crate) fn leave_file(mut self) {
        self.path = None;
    }
}

/// Processes of several PID namespaces may have the same number: then the one that comes later
/// takes another name.
fn own_file() -> PathBuf {
    let pid = std::process::id();
    let name = Path::new(RUN_DIR).join(format!("tracer-{pid}.json"));
    if !is_held(&name) {
        return name;
    }
    let namespace = fs::metadata("/proc/self/ns/pid").map_or(0, |ns| ns.ino());
    Path::new(RUN_DIR).join(format!("tracer-{pid}-{namespace}.json"))
}

/// Beside the file of a tracer.
fn activity_file(path: &Path) -> PathBuf {
    path.with_extension("activity")
}

/// Where a tracer gives its books to whoever asks.
fn books_socket(path: &Path) -> PathBuf {
    path.with_extension("sock")
}

/// What a tracer keeps locked.
fn lock_file(path: &Path) -> PathBuf {
    path.with_extension("lock")
}

/// Whether the tracer that has written this file lives.
fn is_held(path: &Path) -> bool {
    // Whoever may not open it cannot use the trace either.
    let file = File::open(lock_file(path));
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Makes the lock of this file, and takes it.
fn hold_lock(path: &Path) -> io::Result<File> {
    let file = create_private_file(&lock_file(path))?;
    // Waits for those who look at it in this moment.
    file.lock()?;
    Ok(file)
}

/// Removes what a tracer has written; the lock last, which says that it lives.
fn remove_files(path: &Path) {
    let _gone_already = fs::remove_file(path);
    let _none = fs::remove_file(activity_file(path));
    let _none = fs::remove_file(books_socket(path));
    let _none = fs::remove_file(lock_file(path));
}

/// Writes the file anew: readers see the old one or the new one.
fn replace_file(path: &Path, entry: &impl Serialize) -> Option<()> {
    let beside = path.with_extension("new");
    let _stale = fs::remove_file(&beside);
    let file = create_private_file(&beside).ok()?;
    serde_json::to_writer(file, entry).ok()?;
    fs::rename(beside, path).ok()
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            remove_files(&path);
        }
    }
}

/// Makes a trace known. `None` where `/run` cannot be written: tracing works all the same.
pub(crate) fn register_trace(
    tracer: &Tracer,
    since: BootTime,
    recording: Option<PathBuf>,
) -> Option<Registration> {
    let path = own_file();
    let entry = RunningTracer {
        pid: std::process::id(),
        since,
        backend: tracer.backend().name().to_owned(),
        recording,
        pinned: tracer.pin_dir().map(Path::to_owned),
        maps: tracer.map_ids(),
        boot_id: host::clock::boot_id(&Roots::host()),
        clock: read_clocks(&Roots::host(), Records::NotNeeded).history,
        file: path.clone(),
    };
    create_private_dir(Path::new(RUN_DIR)).ok()?;
    // Of a process that had the same number.
    remove_files(&path);
    remove_stale(entry.pinned.as_deref());
    let held = hold_lock(&path).ok()?;
    serde_json::to_writer(create_private_file(&path).ok()?, &entry).ok()?;
    Some(Registration {
        path: Some(path),
        activity: Vec::new(),
        anchors: entry.clock.anchors().len(),
        _held: held,
    })
}

/// Removes the files of tracers that were killed before they could. `pinned`: what this process
/// has taken over.
fn remove_stale(pinned: Option<&Path>) {
    for (path, tracer) in tracer_files() {
        let taken = tracer.as_ref().is_some_and(|tracer| {
            !tracer.is_attended() && tracer.pinned.is_some() && tracer.pinned.as_deref() == pinned
        });
        let goes_on = match &tracer {
            // Whether the pins are there cannot be told from every mount namespace; a file too
            // many does no harm.
            Some(tracer) => tracer.is_attended() || tracer.pinned.is_some(),
            // Of another version, or being written.
            None => is_held(&path),
        };
        if taken || !goes_on {
            remove_files(&path);
        }
    }
}

/// Removes the files of tracers whose links in this place were removed.
pub(crate) fn remove_unpinned(root: &Path) {
    for (path, tracer) in tracer_files() {
        let gone = tracer.is_some_and(|tracer| {
            let pinned = tracer.pinned.as_deref();
            !tracer.is_attended() && pinned.is_some_and(|it| it.starts_with(root) && !it.exists())
        });
        if gone {
            remove_files(&path);
        }
    }
}

/// Files of tracers, and what is in them.
fn tracer_files() -> impl Iterator<Item = (PathBuf, Option<RunningTracer>)> {
    let entries = fs::read_dir(RUN_DIR).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let name = entry.file_name();
        let name = name.to_str()?;
        if !name.starts_with("tracer-") || !name.ends_with(".json") {
            return None;
        }
        let path = entry.path();
        let bytes = fs::read(&path).ok()?;
        let tracer: Option<RunningTracer> = serde_json::from_slice(&bytes).ok();
        let tracer = tracer.map(|tracer| RunningTracer {
            file: path.clone(),
            ..tracer
        });
        Some((path, tracer))
    })
}

/// Why it cannot be told which traces go on.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum UnreadRegistry {
    /// The directory of their files cannot be read.
    Directory(io::ErrorKind, String),
    /// The file of a living process cannot.
    File(PathBuf),
}

impl UnreadRegistry {
    /// What to do about it.
    pub(crate) const fn fix(&self) -> &'static str {
        match self {
            Self::Directory(io::ErrorKind::PermissionDenied, _) => "run as root",
            Self::Directory(..) => "see what is in the way there",
            Self::File(_) => "use the dmtrace that runs there",
        }
    }
}

impl fmt::Display for UnreadRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(_, reason) => write!(f, "{RUN_DIR}: {reason}"),
            Self::File(path) => write!(f, "{} is of another version", path.display()),
        }
    }
}

/// As [`running_tracers`], where it matters whether there are none or nothing could be read.
///
/// # Errors
/// It cannot be told.
pub(crate) fn registered_tracers() -> Result<Vec<RunningTracer>, UnreadRegistry> {
    check_readable(fs::read_dir(RUN_DIR))?;
    let files: Vec<_> = tracer_files().collect();
    let unread = |(path, tracer): &&(PathBuf, Option<_>)| tracer.is_none() && is_held(path);
    if let Some((path, _)) = files.iter().find(unread) {
        return Err(UnreadRegistry::File(path.clone()));
    }
    Ok(active_tracers(files))
}

/// Without the directory nobody has registered.
fn check_readable<T>(directory: io::Result<T>) -> Result<(), UnreadRegistry> {
    match directory {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let reason = host::kernel_fs::error_text(&error);
            Err(UnreadRegistry::Directory(error.kind(), reason))
        }
        _ => Ok(()),
    }
}

/// Traces that go on now, the oldest first: it has seen most.
pub(crate) fn running_tracers() -> Vec<RunningTracer> {
    active_tracers(tracer_files())
}

fn active_tracers(
    files: impl IntoIterator<Item = (PathBuf, Option<RunningTracer>)>,
) -> Vec<RunningTracer> {
    let mut found: Vec<RunningTracer> = files
        .into_iter()
        .filter_map(|(_, tracer)| tracer)
        .filter(RunningTracer::is_active)
        .collect();
    found.sort_by_key(|tracer| tracer.since);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_that_is_pinned_elsewhere_is_named_with_its_place() {
        let option = |pinned: Option<&str>| {
            let entry = serde_json::json!({
                "pid": 7, "start_ticks": 1, "since": 2, "backend": "fentry", "pinned": pinned,
                "boot_id": null,
                "maps": {"sems": 1, "procs": 2, "devices": 3, "lookups": 4, "sites": 5},
            });
            let tracer: RunningTracer = serde_json::from_value(entry).unwrap();
            tracer.pins_option()
        };
        assert_eq!(option(None), "");
        let links = "layout-01234567/build-01234567_fentry_plain_plain";
        assert_eq!(option(Some(&format!("{DEFAULT_PINS}/{links}"))), "");
        let elsewhere = format!("/sys/fs/bpf/mine/{links}");
        assert_eq!(option(Some(&elsewhere)), " --pins /sys/fs/bpf/mine");
    }

    #[test]
    fn a_directory_that_is_not_there_is_not_one_that_cannot_be_read() {
        let of = |kind: io::ErrorKind| check_readable::<()>(Err(kind.into()));
        assert_eq!(of(io::ErrorKind::NotFound), Ok(()));
        let refused = of(io::ErrorKind::PermissionDenied).unwrap_err();
        assert_eq!(refused.fix(), "run as root");
        assert!(refused.to_string().starts_with("/run/dmtrace: "));
        assert!(of(io::ErrorKind::NotADirectory).is_err());
    }

    #[test]
    fn a_tracer_lives_as_long_as_its_lock_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tracer-7.json");
        assert!(!is_held(&path));
        let held = hold_lock(&path).unwrap();
        // Looking does not take it away, and several may look.
        assert!(is_held(&path) && is_held(&path));
        assert!(hold_lock(&path).is_err(), "another took the same name");
        drop(held);
        assert!(!is_held(&path));
    }
}
