//! Finding a binary again: by its path where the process sees it, and by its build-id wherever it
//! is. A file of another build is as good as none.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use dmtrace_core::{event::BuildId, ids::ProcId};

use super::Binary;
use crate::host::Roots;

/// Binaries that are kept.
const MAX_CACHED_BINARIES: usize = 128;
/// How long it is believed that a binary is nowhere, and which mount namespaces there are.
const ABSENCE_TTL: Duration = Duration::from_secs(5);
/// Where distributions put what they have stripped, by build-id.
const DEBUG_FILES: &str = "/usr/lib/debug/.build-id";

/// What is known of a binary.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub(crate) struct BinaryLocation {
    /// Its path as the process knows it; empty if that is not known.
    pub path: String,
    pub build_id: Option<BuildId>,
    /// Mount namespace of the process; 0 if not known.
    pub mnt_ns: u32,
    /// The process, which may have ended.
    pub process: Option<ProcId>,
    /// It is the program of the process, not a library.
    pub program: bool,
}

/// Device, inode, size and time of change of a file.
type BinaryVersion = (u64, u64, u64, i64, i64);

/// Finds binaries, and keeps those that it has found.
#[derive(Default)]
pub(crate) struct Finder {
    by_build: HashMap<BuildId, Rc<Binary>>,
    by_file: HashMap<BinaryVersion, Rc<Binary>>,
    missing: HashMap<BinaryLocation, (Instant, String)>,
    /// A process of each mount namespace.
    namespaces: Option<(Instant, BTreeMap<u32, u32>)>,
}

impl Finder {
    /// Whether nothing is kept.
    #[cfg(feature = "live")]
    pub(super) fn is_empty(&self) -> bool {
        self.by_file.is_empty() && self.missing.is_empty() && self.namespaces.is_none()
    }

    /// The binary.
    ///
    /// # Errors
    /// Why not, in words that name it.
    pub(crate) fn find_binary(&mut self, place: &BinaryLocation) -> Result<Rc<Binary>, String> {
        if let Some(found) = place.build_id.as_ref().and_then(|id| self.by_build.get(id)) {
            return Ok(Rc::clone(found));
        }
        if let Some((at, why)) = self.missing.get(place)
            && at.elapsed() < ABSENCE_TTL
        {
            return Err(why.clone());
        }
        let found = self.search_binary(place);
        if let Err(why) = &found {
            clear_if_full(&mut self.missing);
            self.missing
                .insert(place.clone(), (Instant::now(), why.clone()));
        }
        found
    }

    /// The file with what was stripped off a binary.
    pub(crate) fn debug_file(&mut self, build_id: &BuildId) -> Option<Rc<Binary>> {
        let (dir, file) = build_id.path_parts()?;
        let path = format!("{DEBUG_FILES}/{dir}/{file}.debug");
        let file = Roots::host().open_regular(Path::new(&path)).ok()?;
        let binary = self.load_binary(file)?;
        (binary.headers.build_id.as_ref() == Some(build_id)).then_some(binary)
    }

    fn search_binary(&mut self, place: &BinaryLocation) -> Result<Rc<Binary>, String> {
        let alive = place.process.filter(|process| is_alive(*process));
        if let Some(process) = alive {
            if place.program {
                // Also of a file that is deleted by now.
                let link = PathBuf::from(format!("/proc/{}/exe", process.tgid));
                let open = File::open(link).ok();
                if let Some(found) = open.and_then(|file| self.accept_file(file, place, true)) {
                    return Ok(found);
                }
            }
            if let Some(found) = self.below_process(process.tgid, place, true) {
                return Ok(found);
            }
        }
        if place.path.is_empty() {
            return Err(match &place.build_id {
                Some(id) => format!("the path of its program with build-id {id} is not known"),
                None => "the path of its program is not known".to_owned(),
            });
        }
        let path = Path::new(&place.path);
        let host = mount_namespace(1).or_else(|| mount_namespace(std::process::id()));
        let same = host.is_some_and(|host| host == place.mnt_ns) || place.mnt_ns == 0;
        if let Ok(file) = Roots::host().open_regular(path)
            && let Some(found) = self.accept_file(file, place, same)
        {
            return Ok(found);
        }
        let namespaces = self.mount_namespaces().clone();
        if let Some(pid) = namespaces.get(&place.mnt_ns)
            && let Some(found) = self.below_process(*pid, place, true)
        {
            return Ok(found);
        }
        if place.build_id.is_some() {
            for pid in namespaces.values() {
                if let Some(found) = self.below_process(*pid, place, false) {
                    return Ok(found);
                }
            }
        }
        Err(match &place.build_id {
            Some(id) => format!("{} with build-id {id} is not found", place.path),
            None => format!("{} is not found where its process ran", place.path),
        })
    }

    fn below_process(
        &mut self,
        pid: u32,
        place: &BinaryLocation,
        same: bool,
    ) -> Option<Rc<Binary>> {
        let roots = Roots {
            proc: PathBuf::from("/proc"),
            fs: PathBuf::from(format!("/proc/{pid}/root")),
        };
        let file = roots.open_regular(Path::new(&place.path)).ok()?;
        self.accept_file(file, place, same)
    }

    /// Takes a file if it is the right one: by its build-id, or without one, by its path in the
    /// right mount namespace.
    fn accept_file(
        &mut self,
        file: File,
        place: &BinaryLocation,
        same: bool,
    ) -> Option<Rc<Binary>> {
        let binary = self.load_binary(file)?;
        let right = match &place.build_id {
            Some(id) => binary.headers.build_id.as_ref() == Some(id),
            None => same,
        };
        right.then_some(binary)
    }

    fn load_binary(&mut self, file: File) -> Option<Rc<Binary>> {
        let meta = file.metadata().ok()?;
        let id = (
            meta.dev(),
            meta.ino(),
            meta.size(),
            meta.ctime(),
            meta.ctime_nsec(),
        );
        if let Some(found) = self.by_file.get(&id) {
            return Some(Rc::clone(found));
        }
        let binary = Rc::new(Binary::open(file)?);
        clear_if_full(&mut self.by_file);
        self.by_file.insert(id, Rc::clone(&binary));
        if let Some(build_id) = &binary.headers.build_id
            && binary.has_unwind_info()
        {
            clear_if_full(&mut self.by_build);
            self.by_build.insert(build_id.clone(), Rc::clone(&binary));
        }
        Some(binary)
    }

    fn mount_namespaces(&mut self) -> &BTreeMap<u32, u32> {
        let fresh = |known: &(Instant, BTreeMap<u32, u32>)| known.0.elapsed() < ABSENCE_TTL;
        let known = self.namespaces.take().filter(fresh);
        &self
            .namespaces
            .insert(known.unwrap_or_else(|| (Instant::now(), mount_namespaces())))
            .1
    }
}

/// Forgets everything once it is too much: what is needed comes back.
fn clear_if_full<K, V>(map: &mut HashMap<K, V>) {
    if map.len() >= MAX_CACHED_BINARIES {
        map.clear();
    }
}

/// Whether this very process, not another of the same number, is there.
pub(super) fn is_alive(process: ProcId) -> bool {
    crate::host::identity::start_ticks(&Roots::host(), process.tgid)
        .is_some_and(|ticks| ticks == process.start_ticks())
}

/// Mount namespace of a process.
fn mount_namespace(pid: u32) -> Option<u32> {
    let meta = fs::metadata(format!("/proc/{pid}/ns/mnt")).ok()?;
    u32::try_from(meta.ino()).ok()
}

fn mount_namespaces() -> BTreeMap<u32, u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((mount_namespace(pid)?, pid)))
        .collect()
}
