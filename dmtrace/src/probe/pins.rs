//! The kernel side outlives this process: maps and links with names in a BPF file system.
//!
//! ```text
//! /sys/fs/bpf/dmtrace/layout-CRC/          maps of one layout: sizes, types, versions
//!     m_NAME                               a map
//!     build-CRC_BACKEND_PLAN_END/          programs of one build of dmtrace, in their places
//!         l_N_PROGRAM                      a link
//!         p_PROGRAM                        a program, for its counter of skipped runs
//!         dm_0 or dm_1/                    the same in device-mapper; 1: with uevents
//! ```
//!
//! A directory of links is made under another name, and renamed when it is whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use aya::{
    maps::{Array, Map, MapData},
    programs::links::{FdLink, PinnedLink},
};
use dmtrace_common::{ABI, control};
use dmtrace_core::{backend::Backend, ids::BootTime};

use super::{
    DEFAULT_PINS,
    attach::{AttachOutcome, Attached, Attempt, Links},
    bpf,
    link::Link,
    spec::{ProbeSubject, ProgramPlan},
};
use crate::{host::kernel_fs::KernelFs, wording::cause_text};

/// Calls in flight: worth nothing after a time without probes.
const CALL_MAPS: [&str; 4] = ["CALLS", "IN_CALL", "PENDING", "DM_CALLS"];

/// Longest wait for the kernel to let programs go.
const MAX_RELEASE_WAIT: Duration = Duration::from_secs(5);

/// Names of one layout and one build.
pub(super) struct Pins {
    layout: PathBuf,
    build: String,
}

/// What an earlier process has left.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum PinsLeft {
    /// Nothing that can be used.
    Nothing,
    /// Maps. Tracing ended with it, at this time if that was seen.
    Maps { ended: Option<BootTime> },
    /// Maps, and programs of another build in their places.
    OtherBuild(PathBuf),
    /// Maps, and the programs of this build in their places.
    Links(PathBuf),
}

/// Programs in their places, found there.
pub(super) struct AdoptedLinks {
    pub attached: Attached,
    pub attempts: Vec<Attempt>,
    pub programs: Vec<(String, OwnedFd)>,
}

impl Pins {
    /// `maps` describes all maps, `build` the programs and what was asked for. Makes the
    /// directory.
    ///
    /// # Errors
    /// There is no BPF file system; in words.
    pub(super) fn open(root: &Path, maps: &str, build: &[u8]) -> Result<Self, String> {
        check_root(root)?;
        let layout = crc32fast::hash(format!("{ABI} {maps}").as_bytes());
        let pins = Self {
            layout: root.join(format!("layout-{layout:08x}")),
            build: format!("build-{:08x}", crc32fast::hash(build)),
        };
        // Who may read the maps is decided here: a BPF file system is open to all by default.
        make_dir(root)
            .and_then(|()| fs::set_permissions(root, fs::Permissions::from_mode(0o700)))
            .and_then(|()| make_dir(&pins.layout))
            .map_err(|error| format!("{}: {}", root.display(), cause_text(&error)))?;
        Ok(pins)
    }

    /// Removes what other layouts have left, their programs included. Tells whether there was any.
    pub(super) fn remove_other_layouts(&self) -> bool {
        let mut any = false;
        for path in dir_entries(self.layout.parent()) {
            if path != self.layout {
                any = true;
                let _left = fs::remove_dir_all(path);
            }
        }
        any
    }

    /// What is left, made fit for use.
    pub(super) fn inspect_left(&self) -> PinsLeft {
        let Some(control) = self.open_control() else {
            self.clear_transient();
            return PinsLeft::Nothing;
        };
        let word = |slot| control.get(&slot, 0).ok().filter(|word| *word != 0);
        if word(control::BEGAN).is_none() {
            // Killed at its start, before the sets that were there were entered.
            self.clear_transient();
            return PinsLeft::Nothing;
        }
        let mut builds: Vec<PathBuf> = self.complete_builds().collect();
        let own = builds.iter().position(|path| self.is_own(path));
        let kept = own.map(|own| builds.swap_remove(own));
        if let Some(kept) = kept {
            for other in builds {
                take_out(&other);
            }
            return PinsLeft::Links(kept);
        }
        if let Some(other) = builds.pop() {
            return PinsLeft::OtherBuild(other);
        }
        for name in CALL_MAPS {
            let _none = fs::remove_file(self.map_path(name));
        }
        PinsLeft::Maps {
            ended: word(control::TRACER_ENDED).map(BootTime),
        }
    }

    fn open_control(&self) -> Option<Array<MapData, u64>> {
        let map = MapData::from_pin(self.map_path("CONTROL")).ok()?;
        Array::try_from(Map::Array(map)).ok()
    }

    /// Directories of links that are whole; others are removed.
    fn complete_builds(&self) -> impl Iterator<Item = PathBuf> {
        dir_entries(Some(&self.layout)).filter(|path| {
            let whole = file_name(path).starts_with("build-");
            if !whole && path.is_dir() {
                let _left = fs::remove_dir_all(path);
            }
            whole
        })
    }

    fn is_own(&self, path: &Path) -> bool {
        file_name(path).split('_').next() == Some(&self.build)
    }

    fn clear_transient(&self) {
        let _left = fs::remove_dir_all(&self.layout);
        let _made = make_dir(&self.layout);
    }

    /// Where a map is, or will be.
    pub(super) fn map_path(&self, name: &str) -> PathBuf {
        self.layout.join(format!("m_{name}"))
    }

    /// Gives the links and their programs names; all or none.
    ///
    /// # Errors
    /// One of them cannot be pinned; in words.
    pub(super) fn keep_links(
        &self,
        backend: Backend,
        plans: (ProgramPlan, ProgramPlan),
        attached: &Attached,
        program: impl Fn(&str) -> Option<OwnedFd>,
    ) -> Result<PathBuf, String> {
        let (plan, end) = (word_of(plans.0), word_of(plans.1));
        let dir = format!("{}_{backend}_{plan}_{end}", self.build);
        let dir = self.layout.join(dir);
        pin_all(&dir, attached, program)?;
        Ok(dir)
    }

    /// Removes everything of this layout: with the last descriptor the programs go.
    pub(super) fn remove_all(&self) {
        let _left = fs::remove_dir_all(&self.layout);
        // Stays if there is another layout.
        let _left = self.layout.parent().map(fs::remove_dir);
    }
}

/// Backend and plans of a directory of links.
pub(super) fn read_name(dir: &Path) -> Option<(Backend, ProgramPlan, ProgramPlan)> {
    let name = file_name(dir);
    let mut words = name.split('_').skip(1);
    let backend = words.next()?;
    let backend = Backend::ALL.into_iter().find(|it| it.name() == backend)?;
    let plans = [ProgramPlan::Plain, ProgramPlan::Preempted];
    let mut plan = || {
        let word = words.next()?;
        plans.into_iter().find(|plan| word_of(*plan) == word)
    };
    Some((backend, plan()?, plan()?))
}

const fn word_of(plan: ProgramPlan) -> &'static str {
    match plan {
        ProgramPlan::Plain => "plain",
        ProgramPlan::Preempted => "preempted",
    }
}

/// Gives the links and their programs names in a new directory; all or none.
///
/// # Errors
/// One of them cannot be pinned; in words.
pub(super) fn pin_all(
    dir: &Path,
    attached: &Attached,
    program: impl Fn(&str) -> Option<OwnedFd>,
) -> Result<(), String> {
    if !attached.links.iter().all(Link::can_stay) {
        return Err("this kernel ends probes of this kind with their process".to_owned());
    }
    let new = dir.with_file_name("new");
    let pinned = || -> io::Result<()> {
        let _none = fs::remove_dir_all(&new);
        make_dir(&new)?;
        let mut programs = BTreeSet::new();
        for (index, (link, at)) in attached.links.iter().zip(&attached.attachments).enumerate() {
            link.pin(&new.join(format!("l_{index}_{}", at.program)))?;
            if programs.insert(at.program)
                && let Some(fd) = program(at.program)
            {
                bpf::pin_object(fd.as_fd(), &new.join(format!("p_{}", at.program)))?;
            }
        }
        fs::rename(&new, dir)
    };
    pinned().map_err(|error| {
        let _half = fs::remove_dir_all(&new);
        format!("{}: {}", dir.display(), cause_text(&error))
    })
}

/// Opens links and programs.
///
/// # Errors
/// One of them is gone, or is of no use.
pub(super) fn adopt_links<'a>(
    dir: &Path,
    backend: Backend,
    subjects: impl Iterator<Item = &'a ProbeSubject>,
) -> io::Result<AdoptedLinks> {
    let mut links: BTreeMap<usize, (String, OwnedFd)> = BTreeMap::new();
    let mut programs = Vec::new();
    for path in dir_entries(Some(dir)) {
        let name = file_name(&path);
        if let Some(rest) = name.strip_prefix("l_") {
            let (index, program) = rest.split_once('_').ok_or(io::ErrorKind::InvalidData)?;
            let index = index.parse().map_err(io::Error::other)?;
            links.insert(index, (program.to_owned(), bpf::open_pinned(&path)?));
        } else if let Some(program) = name.strip_prefix("p_") {
            programs.push((program.to_owned(), bpf::open_pinned(&path)?));
        }
    }
    if links.is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let there: BTreeSet<&str> = links.values().map(|(name, _)| name.as_str()).collect();
    let mut attachments = Vec::new();
    let mut attempts = Vec::new();
    for subject in subjects {
        let mut ways = subject.ways.iter();
        let way = ways.find(|way| way.iter().all(|at| there.contains(at.program)));
        let way = way.copied().unwrap_or_default();
        attempts.push(Attempt {
            backend,
            subject: subject.name,
            provides: subject.provides,
            hooks: way.iter().map(|at| at.hook.to_string()).collect(),
            outcome: if way.is_empty() {
                AttachOutcome::Failed("an earlier start could not attach it".to_owned())
            } else {
                AttachOutcome::Attached
            },
        });
        attachments.extend(way);
    }
    let links: Links = links.into_values().map(|(_, fd)| Link::Raw(fd)).collect();
    Ok(AdoptedLinks {
        attached: Attached { links, attachments },
        attempts,
        programs,
    })
}

/// Takes the programs of a directory out of their places, and waits until they are: the kernel lets
/// a removed pin go only after a grace period (kernel/bpf/inode.c:bpf_free_inode), and two programs
/// in one place would count everything twice.
pub(super) fn take_out(dir: &Path) {
    let links = dir_entries(Some(dir)).chain(dir_entries(Some(&dir.join("dm_0"))));
    let links = links.chain(dir_entries(Some(&dir.join("dm_1"))));
    let links = links.filter(|path| file_name(path).starts_with("l_"));
    let ids: Vec<u32> = links
        .filter_map(|path| {
            let link = FdLink::from(PinnedLink::from_pin(path).ok()?);
            Some(link.info().ok()?.id())
        })
        .collect();
    let _left = fs::remove_dir_all(dir);
    let until = Instant::now() + MAX_RELEASE_WAIT;
    for id in ids {
        while bpf::open_link(id).is_ok() && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
    }
    // The number goes right before the program does.
    thread::sleep(Duration::from_millis(1));
}

/// Whether an earlier process has left anything there.
pub(super) fn holds_any(root: &Path) -> bool {
    fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_some())
}

/// Removes everything under `root`: programs that are only held there are gone with it.
///
/// # Errors
/// As of the file system.
pub(crate) fn remove_all(root: &Path) -> io::Result<bool> {
    if check_root(root).is_err() || !root.exists() {
        return Ok(false);
    }
    let any = dir_entries(Some(root)).next().is_some();
    fs::remove_dir_all(root)?;
    Ok(any)
}

/// Whether `root` is, or would be, in a BPF file system.
fn check_root(root: &Path) -> Result<(), String> {
    let there = root.ancestors().find(|path| path.exists());
    match KernelFs::Bpf.contains(there.unwrap_or(Path::new("/"))) {
        Ok(true) => Ok(()),
        _ => Err(no_bpf_fs(root, KernelFs::Bpf.mount_point().as_deref())),
    }
}

/// A mount of our own would be of no use: it ends with the process, and what is pinned with it.
fn no_bpf_fs(root: &Path, mounted: Option<&Path>) -> String {
    let fix = mounted.map_or_else(
        || {
            let mount = KernelFs::Bpf.mount_command();
            let elsewhere = !root.starts_with(DEFAULT_PINS);
            let leave = if elsewhere {
                "leave out --pins, and "
            } else {
                ""
            };
            format!("{leave}have root run: {mount}")
        },
        |dir| format!("use --pins {}", dir.join("dmtrace").display()),
    );
    format!("{}: not in a BPF file system; {fix}", root.display())
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn dir_entries(dir: Option<&Path>) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = dir.and_then(|dir| fs::read_dir(dir).ok());
    entries.into_iter().flatten().flatten().map(|it| it.path())
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_directory_says_what_is_in_it() {
        for backend in Backend::ALL {
            let dir = format!("/x/build-0123abcd_{backend}_plain_preempted");
            let read = read_name(Path::new(&dir));
            assert_eq!(
                read,
                Some((backend, ProgramPlan::Plain, ProgramPlan::Preempted))
            );
        }
        assert_eq!(read_name(Path::new("/x/build-0123abcd_fentry_plain")), None);
    }

    #[test]
    fn another_file_system_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = Pins::open(&dir.path().join("pins"), "", b"").err().unwrap();
        assert!(error.contains("not in a BPF file system"), "{error}");
        assert!(!dir.path().join("pins").exists());
    }

    #[test]
    fn the_way_to_a_file_system_for_pins_is_said() {
        let root = Path::new("/sys/fs/bpf/dmtrace");
        let said = no_bpf_fs(root, None);
        assert!(
            said.ends_with("; have root run: mount -t bpf bpf /sys/fs/bpf"),
            "{said}"
        );
        let said = no_bpf_fs(Path::new("/srv/pins"), None);
        let fix = "; leave out --pins, and have root run: mount -t bpf bpf /sys/fs/bpf";
        assert!(said.ends_with(fix), "{said}");
        let said = no_bpf_fs(root, Some(Path::new("/mnt/bpf")));
        assert!(said.ends_with("use --pins /mnt/bpf/dmtrace"), "{said}");
    }
}
