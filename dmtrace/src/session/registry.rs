//! How other commands find a running trace: one small file per tracer, with the numbers of its
//! BPF maps. The maps themselves end with the tracer, so a stale file leads nowhere.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    host::{self, Roots},
    ids::{BootTime, ProcId},
    probe::{Backend, MapIds, Maps, Tracer},
};

const DIRECTORY: &str = "/run/dmtrace";

/// A trace that runs now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunningTracer {
    /// The process that traces.
    pub pid: u32,
    /// Its start, clock ticks since boot.
    start_ticks: u64,
    /// When it began.
    pub since: BootTime,
    /// Name of its backend.
    pub backend: String,
    /// The recording that it writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recording: Option<PathBuf>,
    maps: MapIds,
    boot_id: Option<String>,
}

impl RunningTracer {
    /// Opens its maps.
    ///
    /// # Errors
    /// It has ended meanwhile, or this process may not.
    pub fn open(&self) -> anyhow::Result<Maps> {
        Maps::open(self.maps)
    }

    /// Its backend.
    pub fn backend(&self) -> Option<Backend> {
        Backend::ALL
            .into_iter()
            .find(|backend| backend.name() == self.backend)
    }
}

/// The file of this process; removed on drop.
pub(super) struct Registration(PathBuf);

impl Drop for Registration {
    fn drop(&mut self) {
        let _best_effort = fs::remove_file(&self.0);
    }
}

/// Makes a trace known. `None` where `/run` cannot be written: tracing works all the same.
pub(super) fn register(
    tracer: &Tracer,
    since: BootTime,
    recording: Option<PathBuf>,
) -> Option<Registration> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    let pid = std::process::id();
    let start_ticks = start_ticks(pid)?;
    let entry = RunningTracer {
        pid,
        start_ticks,
        since,
        backend: tracer.backend().name().to_owned(),
        recording,
        maps: tracer.map_ids(),
        boot_id: host::clock::boot_id(&Roots::host()),
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(DIRECTORY)
        .ok()?;
    let path = Path::new(DIRECTORY).join(format!("tracer-{pid}.json"));
    let _stale = fs::remove_file(&path);
    remove_stale();
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .ok()?;
    serde_json::to_writer(file, &entry).ok()?;
    Some(Registration(path))
}

/// Removes the files of tracers that were killed before they could.
fn remove_stale() {
    for entry in fs::read_dir(DIRECTORY)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
    {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| {
            name.strip_prefix("tracer-")?
                .strip_suffix(".json")?
                .parse()
                .ok()
        });
        if pid.is_some_and(|pid| start_ticks(pid).is_none()) {
            let _gone_already = fs::remove_file(entry.path());
        }
    }
}

/// Traces that run now, the oldest first: it has seen most.
pub fn running_tracers() -> Vec<RunningTracer> {
    let boot_id = host::clock::boot_id(&Roots::host());
    let mut found: Vec<RunningTracer> = fs::read_dir(DIRECTORY)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| fs::read(entry.path()).ok())
        .filter_map(|bytes| serde_json::from_slice::<RunningTracer>(&bytes).ok())
        .filter(|tracer| {
            tracer.boot_id == boot_id && start_ticks(tracer.pid) == Some(tracer.start_ticks)
        })
        .collect();
    found.sort_by_key(|tracer| tracer.since);
    found
}

fn start_ticks(pid: u32) -> Option<u64> {
    host::identity::image_of(&Roots::host(), pid).map(|image| ProcId::start_ticks(image.id))
}
