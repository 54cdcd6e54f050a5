//! Loading the kernel side, or taking over one that is there.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
    sync::LazyLock,
    thread::{self, ScopedJoinHandle},
};

use anyhow::{Context, Result};
use aya::{
    Btf as AyaBtf, Ebpf, EbpfLoader, Endianness,
    maps::{HashMap, Map, PerCpuArray, RingBuf},
};
use dmtrace_common::{PREFILTER_SLOTS, control};
use dmtrace_core::{backend::Backend, ids::BootTime};

use super::{
    Options,
    attach::{self, Attempt, one_line},
    btf::Btf,
    catalog::subjects_of,
    choose::{Chosen, choose_backend},
    continuity::{Continuity, GapReason, PinnedPast, TracingGap},
    dm::DeviceMapper,
    environment::{BTF_FILE, Environment, Lockdown, missing_btf},
    error::StartError,
    kernel_log::KernelLog,
    maps::{MapParts, Maps},
    offsets,
    pins::{self, Pins, PinsLeft},
    shared::SharedArray,
    spec::ProgramPlan,
    tracer::{Tracer, proc_tombstones, sem_tombstones},
};
use crate::wording::cause_text;
use crate::{
    host::{clock::boot_now, heap},
    wording::chain_text,
};

/// The object, as `build.rs` has packed it: a fifth of its size. For the parser it is in memory of
/// the alignment that the allocator gives, which is enough for ELF.
pub(super) static OBJECT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let packed = include_bytes!(env!("DMTRACE_BPF_PATH"));
    // What was packed by the build: damaged, it fails to parse, with an error of its own.
    lz4_flex::block::decompress_size_prepended(packed).unwrap_or_default()
});

/// The ring for diagnostics of the kernel side, which has next to nothing to say. A ring that is
/// mapped is resident, twice.
const LOG_BYTES: u32 = 16 << 10;
/// The ring for stacks holds at least two.
const STACKS_MIN: u32 = 256 << 10;
/// Where the kernel side outlives its process, it holds at least these, for later.
const PINNED_STACKS_MIN: u32 = 512 << 10;

impl Tracer {
    /// Loads, and attaches the best backend that this kernel takes.
    ///
    /// # Errors
    /// See [`StartError`].
    pub(crate) fn start(options: Options) -> Result<Self, StartError> {
        Self::open(options, None).map(|(tracer, _)| tracer)
    }

    /// As [`Tracer::start`], with a kernel side that outlives this process: its maps, and where
    /// the kernel allows its links, are pinned under `root`. What an earlier process has left
    /// there is taken over.
    ///
    /// # Errors
    /// See [`StartError`].
    pub(crate) fn start_kept(
        options: Options,
        root: &Path,
    ) -> Result<(Self, Continuity), StartError> {
        let left_before = pins::holds_any(root);
        Self::open(options, Some(root)).inspect_err(|_| {
            if !left_before {
                let _the_start_failed_for_more = pins::remove_all(root);
            }
        })
    }

    fn open(options: Options, root: Option<&Path>) -> Result<(Self, Continuity), StartError> {
        let environment = Environment::read();
        if let Some(missing) = environment.missing_for_tracing() {
            return Err(StartError::Privilege { missing });
        }
        if environment.lockdown == Lockdown::Confidentiality {
            return Err(StartError::Lockdown);
        }
        if !environment.btf {
            return Err(StartError::NoBtf(missing_btf()));
        }
        heap::live_long();
        let btf = Btf::from_file(Path::new(BTF_FILE))
            .map_err(|error| StartError::Other(cause_text(&error)))?;
        let offsets = offsets::resolve_offsets(&btf);
        if !offsets.missing_core.is_empty() {
            return Err(StartError::UnknownKernel(offsets.missing_core.join(", ")));
        }
        let bytes = btf.bytes();
        let (mut tracer, continuity) = thread::scope(|threads| {
            // aya finds functions in types of its own. They are not needed before there are maps.
            let types = threads.spawn(|| AyaBtf::parse(bytes, Endianness::default()).ok());
            Self::load_object(types, options, root, &environment, &offsets)
        })?;
        tracer.attach_dm_with(Some(&Rc::new(btf)));
        Ok((tracer, continuity))
    }

    fn load_object(
        types: ScopedJoinHandle<'_, Option<AyaBtf>>,
        options: Options,
        root: Option<&Path>,
        environment: &Environment,
        offsets: &offsets::Offsets,
    ) -> Result<(Self, Continuity), StartError> {
        let ring_bytes = ring_size(options.ring_bytes);
        let own = std::process::id();
        // Userspace collects tombstones well before half of the map is taken by them.
        let tombstones = u64::from(sem_tombstones(options.max_sems));
        let proc_tombstones = u64::from(proc_tombstones(options.max_procs));
        let plan = environment.preemption.plan();
        let sizes = MapSizes::for_options(&options, ring_bytes, plan, root.is_some());
        let mut loader = EbpfLoader::new();
        for (name, size) in &sizes.0 {
            loader.map_max_entries(name, *size);
        }
        let mut past = root.map_or_else(Heritage::none, |root| {
            Heritage::open(root, &sizes, options.backend)
        });
        // As a `Vec`, for names that outlive the loader's use of them.
        let names = std::mem::take(&mut past.maps);
        if let Some(pins) = &past.pins {
            for name in &names {
                loader.map_pin_path(name, pins.map_path(name));
            }
        }
        loader
            .override_global("SELF_TGID", &own, true)
            .override_global("TOMBSTONES_MAX", &tombstones, true)
            .override_global("PROC_TOMBS_MAX", &proc_tombstones, true);
        for (name, value) in &offsets.globals {
            loader.override_global(name, value, true);
        }
        let mut ebpf = loader.load(&OBJECT).map_err(|error| {
            StartError::Other(format!("cannot load the eBPF object: {}", one_line(&error)))
        })?;
        drop(loader);
        let aya_btf = types.join().unwrap_or_default();
        let mut attempts = Vec::new();
        let taken = past.take_over();
        let unseen = match &past.left {
            PinsLeft::OtherBuild(dir) => {
                // Verified before the old ones go: that is what takes long.
                preload_programs(&mut ebpf, aya_btf.as_ref(), dir);
                let from = boot_now();
                pins::take_out(dir);
                Some(from)
            }
            _ => None,
        };
        let (chosen, adopted) = match taken {
            Some((chosen, made, programs)) => {
                attempts = made;
                (chosen, programs)
            }
            None => {
                let chosen = choose_backend(
                    &mut ebpf,
                    aya_btf.as_ref(),
                    options.backend,
                    environment,
                    &offsets.missing_preempted,
                    &mut attempts,
                )?;
                (chosen, Vec::new())
            }
        };
        let mut continuity = past.continuity(unseen);
        let mut dm = DeviceMapper::new(&ebpf, &OBJECT, options.backend, plan);
        let mut pinned = None;
        if let Some(pins) = &past.pins {
            let kept = match &past.left {
                PinsLeft::Links(dir) => Ok(dir.clone()),
                _ => pins.keep_links(
                    chosen.backend,
                    (chosen.plan, plan),
                    &chosen.attached,
                    |name| {
                        let program = ebpf.program(name)?.fd().ok()?;
                        program.as_fd().try_clone_to_owned().ok()
                    },
                ),
            };
            match kept {
                Ok(dir) => pinned = Some(dir),
                Err(reason) => continuity.unpinned = Some(reason),
            }
            dm.keep_in(pinned.as_deref());
        }
        let parts = Loaded {
            ebpf,
            dm,
            chosen,
            attempts,
            ring_bytes,
            max_sems: options.max_sems,
            max_procs: options.max_procs,
            adopted,
            pins: past.pins,
            pinned,
        };
        let tracer = Self::from_parts(parts, offsets)
            .map_err(|error| StartError::Other(chain_text(&error)))?;
        Ok((tracer, continuity))
    }

    fn from_parts(parts: Loaded, offsets: &offsets::Offsets) -> Result<Self> {
        let Loaded {
            mut ebpf,
            dm,
            chosen,
            attempts,
            ring_bytes,
            max_sems,
            max_procs,
            adopted,
            pins,
            pinned,
        } = parts;
        let mut take = |name: &str| {
            ebpf.take_map(name)
                .with_context(|| format!("the object has no map {name}"))
        };
        let parts = MapParts {
            sems: take("SEMS")?,
            procs: take("PROCS")?,
            devices: take("DEVICES")?,
            lookups: take("LOOKUPS")?,
            sites: take("SITES")?,
        };
        let ids = Maps::map_ids(&parts)?;
        let mapped = [take("PREFILTER")?, take("CONTROL")?];
        let prefilter = map_shared(&mapped[0], PREFILTER_SLOTS)?;
        let control = map_shared(&mapped[1], control::SLOTS)?;
        let counts = PerCpuArray::try_from(take("COUNTS")?)?;
        let ring = RingBuf::try_from(take("RING")?).context("cannot map the ring buffer")?;
        let stacks =
            RingBuf::try_from(take("STACKS")?).context("cannot map the ring for stacks")?;
        Ok(Self {
            chosen,
            dm,
            keys: HashMap::try_from(take("KEYS")?)?,
            attempts,
            missing_detail: offsets.missing_detail.clone(),
            maps: Maps::new(parts)?,
            ids,
            counts,
            prefilter,
            control,
            _mapped: mapped,
            ring: Some(ring),
            stacks: Some(stacks),
            ring_bytes,
            max_sems,
            max_procs,
            log: KernelLog::open(&mut ebpf),
            ebpf,
            adopted,
            pins,
            pinned,
        })
    }
}

/// What a tracer is assembled from.
struct Loaded {
    ebpf: Ebpf,
    dm: DeviceMapper,
    chosen: Chosen,
    attempts: Vec<Attempt>,
    ring_bytes: u32,
    max_sems: u32,
    max_procs: u32,
    adopted: Vec<(String, OwnedFd)>,
    pins: Option<Pins>,
    pinned: Option<PathBuf>,
}

/// What was in place already: programs there, what is told of them, and the programs themselves.
type AdoptedParts = (Chosen, Vec<Attempt>, Vec<(String, OwnedFd)>);

/// Sizes of maps that are not the object's.
struct MapSizes(Vec<(&'static str, u32)>);

impl MapSizes {
    fn for_options(options: &Options, ring_bytes: u32, plan: ProgramPlan, kept: bool) -> Self {
        let least = if kept { PINNED_STACKS_MIN } else { STACKS_MIN };
        let mut sizes = vec![
            ("RING", ring_bytes),
            ("AYA_LOGS", LOG_BYTES),
            ("STACKS", ring_bytes.max(least)),
            ("SEMS", options.max_sems.max(1)),
            ("PROCS", options.max_procs.max(1)),
        ];
        if plan == ProgramPlan::Plain {
            sizes.push(("PENDING", 1));
        }
        Self(sizes)
    }
}

/// What an earlier process has left, if this one is to go on with it.
struct Heritage {
    pins: Option<Pins>,
    /// Names of the maps that are pinned: all but constants.
    maps: Vec<String>,
    left: PinsLeft,
    /// Maps of another layout were there.
    foreign: bool,
    /// Why nothing can be pinned.
    refused: Option<String>,
}

impl Heritage {
    fn none() -> Self {
        Self {
            pins: None,
            maps: Vec::new(),
            left: PinsLeft::Nothing,
            foreign: false,
            refused: None,
        }
    }

    fn open(root: &Path, sizes: &MapSizes, wanted: Option<Backend>) -> Self {
        let mut heritage = Self::none();
        match heritage.find_pins(root, sizes, wanted) {
            Ok(pins) => heritage.pins = Some(pins),
            Err(reason) => heritage.refused = Some(reason),
        }
        heritage
    }

    fn find_pins(
        &mut self,
        root: &Path,
        sizes: &MapSizes,
        wanted: Option<Backend>,
    ) -> Result<Pins, String> {
        let object = aya_obj::Object::parse(&OBJECT).map_err(|error| cause_text(&error))?;
        let mut layout = Vec::new();
        for (name, map) in &object.maps {
            // Names in a BPF file system have no dots: constants are of their programs.
            if !name.starts_with('.') {
                self.maps.push(name.clone());
                let (kind, entries) = (map.map_type(), map.max_entries());
                let (key, value) = (map.key_size(), map.value_size());
                layout.push(format!("{name} {kind} {key} {value} {entries}"));
            }
        }
        layout.sort_unstable();
        let layout = format!("{layout:?} {:?}", sizes.0);
        let mut build = OBJECT.to_vec();
        build.extend(format!("{wanted:?}").bytes());
        let pins = Pins::open(root, &layout, &build)?;
        self.foreign = pins.remove_other_layouts();
        self.left = pins.inspect_left();
        Ok(pins)
    }

    /// The programs that are in their places.
    fn take_over(&mut self) -> Option<AdoptedParts> {
        let PinsLeft::Links(dir) = &self.left else {
            return None;
        };
        let adopted = pins::read_name(dir).and_then(|(backend, plan, end)| {
            let adopted = pins::adopt_links(dir, backend, subjects_of(backend, plan, end)).ok()?;
            let chosen = Chosen {
                backend,
                plan,
                attached: adopted.attached,
            };
            Some((chosen, adopted.attempts, adopted.programs))
        });
        if adopted.is_none() {
            // Somebody has removed a part: start again with the maps.
            pins::take_out(dir);
            self.left = PinsLeft::Maps { ended: None };
        }
        adopted
    }

    fn continuity(&mut self, unseen: Option<BootTime>) -> Continuity {
        let gap = |from, why| PinnedPast::Gap(TracingGap::new(from, boot_now(), why));
        let past = match (&self.left, unseen) {
            (PinsLeft::Links(_), _) => PinnedPast::Unbroken,
            (PinsLeft::OtherBuild(_), from) => gap(from, GapReason::Upgrade),
            (PinsLeft::Maps { ended }, _) => gap(*ended, GapReason::Unpinned),
            (PinsLeft::Nothing, _) if self.foreign => gap(None, GapReason::Layout),
            (PinsLeft::Nothing, _) => PinnedPast::New,
        };
        Continuity {
            past,
            unpinned: self.refused.take(),
        }
    }
}

/// Loads the programs that will take the places of those of another build.
fn preload_programs(ebpf: &mut Ebpf, btf: Option<&AyaBtf>, dir: &Path) {
    let Some((backend, plan, end)) = pins::read_name(dir) else {
        return;
    };
    for subject in subjects_of(backend, plan, end) {
        for way in subject.ways {
            // What fails here fails again, with its reason told, when it is attached.
            if way
                .iter()
                .all(|at| attach::ensure_loaded(ebpf, btf, *at).is_ok())
            {
                break;
            }
        }
    }
}

/// A power of two, at least one page: what `BPF_MAP_TYPE_RINGBUF` takes.
fn ring_size(wanted: u32) -> u32 {
    wanted.clamp(4096, 1 << 30).next_power_of_two()
}

fn map_shared(map: &Map, slots: u32) -> Result<SharedArray> {
    let Map::Array(data) = map else {
        anyhow::bail!("a control map is not an array")
    };
    SharedArray::map_array(data.fd(), slots).context("cannot map a control array")
}
