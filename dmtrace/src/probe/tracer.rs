//! Loading the kernel side and keeping it attached.

use std::{path::Path, rc::Rc};

use anyhow::{Context, Result};
use aya::{
    Btf as AyaBtf, Ebpf, EbpfLoader, Endianness,
    maps::{HashMap, Map, MapData, PerCpuArray, RingBuf},
};
use dmtrace_common::{
    CookieKey, PREFILTER_SLOTS, SEM_ANNOUNCED, SEM_COOKIE, SEM_MISSED, SEM_PREEXISTING,
    SEM_TOMBSTONE, SemKey, SemRecord, control,
};

use super::{
    attach::{Attempt, one_line},
    btf::Btf,
    choose::{Chosen, choose},
    counters::Counts,
    dm::{DeviceMapper, DmState},
    environment::{BTF_FILE, Environment, Lockdown},
    kernel_log::KernelLog,
    maps::{MapIds, Maps, Parts},
    offsets,
    shared::SharedArray,
    skipped::{Misses, SkippedRuns},
    spec::{Backend, Plan},
};
use crate::facts::Snapshot;

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("DMTRACE_BPF_PATH"));

/// The ring for stacks holds at least two.
const STACKS_MIN: u32 = 256 << 10;

/// How to trace.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Options {
    /// This backend and no other.
    pub backend: Option<Backend>,
    /// Bytes of the ring buffer; rounded up to a power of two pages.
    pub ring_bytes: u32,
    /// Semaphore sets that can be followed at the same time.
    pub max_sems: u32,
    /// Processes that can be kept at the same time.
    pub max_procs: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            backend: None,
            ring_bytes: 4 << 20,
            max_sems: 65_536,
            max_procs: 8192,
        }
    }
}

/// Why tracing cannot start: one line that names the cause and the fix.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Capabilities are missing.
    #[error("not permitted to trace: {missing} missing; run as root (sudo dmtrace ...)")]
    Privilege {
        /// Names of the capabilities.
        missing: String,
    },
    /// Lockdown forbids it.
    #[error(
        "kernel lockdown is in mode confidentiality, which forbids programs to read kernel \
         memory; boot without lockdown=confidentiality, or use: dmtrace list"
    )]
    Lockdown,
    /// The kernel has no BTF.
    #[error(
        "{BTF_FILE} is missing: the kernel was built without CONFIG_DEBUG_INFO_BTF; use: dmtrace list"
    )]
    NoBtf,
    /// The kernel lacks fields that the programs need.
    #[error("this kernel's BTF lacks {0}; please report the kernel version; use: dmtrace list")]
    UnknownKernel(String),
    /// No backend could be attached.
    #[error("no way to attach: {0}")]
    NoBackend(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// The kernel side, loaded and attached. Dropping it detaches everything.
pub struct Tracer {
    chosen: Chosen,
    dm: DeviceMapper,
    /// Semids of live cookies by key.
    keys: HashMap<MapData, CookieKey, i32>,
    attempts: Vec<Attempt>,
    missing_detail: Vec<&'static str>,
    maps: Maps,
    ids: MapIds,
    counts: PerCpuArray<MapData, u64>,
    prefilter: SharedArray,
    control: SharedArray,
    /// The two maps behind these: programs that are loaded later name them by descriptor.
    _mapped: [Map; 2],
    ring: Option<RingBuf<MapData>>,
    stacks: Option<RingBuf<MapData>>,
    /// As asked for, the ring's size as it is.
    options: Options,
    /// Keeps the programs in their places, and the maps, alive.
    ebpf: Ebpf,
    log: Option<KernelLog>,
}

/// Why the kernel side does not know a set of a snapshot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Seed {
    /// It is older than the trace.
    Older,
    /// Its creation was not seen.
    Missed,
}

impl Tracer {
    /// Loads, and attaches the best backend that this kernel takes.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(options: Options) -> Result<Self, StartError> {
        let environment = Environment::read();
        let missing = environment.capabilities.missing_for_tracing();
        if !missing.is_empty() {
            return Err(StartError::Privilege {
                missing: missing.join(" and "),
            });
        }
        if environment.lockdown == Lockdown::Confidentiality {
            return Err(StartError::Lockdown);
        }
        if !environment.btf {
            return Err(StartError::NoBtf);
        }
        let btf = Btf::from_file(Path::new(BTF_FILE))
            .map_err(|error| StartError::Other(error.to_string()))?;
        let offsets = offsets::resolve(&btf);
        if !offsets.missing_core.is_empty() {
            return Err(StartError::UnknownKernel(offsets.missing_core.join(", ")));
        }
        let mut tracer = Self::load(options, &environment, &offsets, &btf)?;
        tracer.attend(Some(&Rc::new(btf)));
        Ok(tracer)
    }

    fn load(
        options: Options,
        environment: &Environment,
        offsets: &offsets::Offsets,
        btf: &Btf,
    ) -> Result<Self, StartError> {
        let ring_bytes = ring_size(options.ring_bytes);
        let own = std::process::id();
        // Userspace collects tombstones well before half of the map is taken by them.
        let tombstones = sem_tombstones(options.max_sems);
        let proc_tombstones = u64::from(proc_tombstones(options.max_procs));
        let aya_btf = AyaBtf::parse(btf.bytes(), Endianness::default()).ok();
        let plan = environment.preemption.plan();
        let mut loader = EbpfLoader::new();
        if plan == Plan::Plain {
            loader.map_max_entries("PENDING", 1);
        }
        loader
            .btf(aya_btf.as_ref())
            .map_max_entries("RING", ring_bytes)
            .map_max_entries("STACKS", ring_bytes.max(STACKS_MIN))
            .map_max_entries("SEMS", options.max_sems.max(1))
            .map_max_entries("PROCS", options.max_procs.max(1))
            .override_global("SELF_TGID", &own, true)
            .override_global("TOMBSTONES_MAX", &tombstones, true)
            .override_global("PROC_TOMBS_MAX", &proc_tombstones, true);
        for (name, value) in &offsets.globals {
            loader.override_global(name, value, true);
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| {
            StartError::Other(format!("cannot load the eBPF object: {}", one_line(&error)))
        })?;
        let mut attempts = Vec::new();
        let chosen = choose(
            &mut ebpf,
            aya_btf.as_ref(),
            options.backend,
            environment,
            &offsets.missing_preempted,
            &mut attempts,
        )?;
        let dm = DeviceMapper::new(&ebpf, OBJECT, options.backend, plan);
        Self::assemble(
            ebpf,
            dm,
            chosen,
            attempts,
            offsets,
            Options {
                ring_bytes,
                ..options
            },
        )
        .map_err(|error| StartError::Other(format!("{error:#}")))
    }

    fn assemble(
        mut ebpf: Ebpf,
        dm: DeviceMapper,
        chosen: Chosen,
        attempts: Vec<Attempt>,
        offsets: &offsets::Offsets,
        options: Options,
    ) -> Result<Self> {
        let mut take = |name: &str| {
            ebpf.take_map(name)
                .with_context(|| format!("the object has no map {name}"))
        };
        let parts = Parts {
            sems: take("SEMS")?,
            procs: take("PROCS")?,
            devices: take("DEVICES")?,
            lookups: take("LOOKUPS")?,
            sites: take("SITES")?,
        };
        let ids = Maps::ids(&parts)?;
        let mapped = [take("PREFILTER")?, take("CONTROL")?];
        let prefilter = shared(&mapped[0], PREFILTER_SLOTS)?;
        let control = shared(&mapped[1], control::SLOTS)?;
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
            options,
            log: KernelLog::open(&mut ebpf),
            ebpf,
        })
    }

    /// The backend in use.
    pub const fn backend(&self) -> Backend {
        self.chosen.backend
    }

    /// Which of the backend's programs.
    pub const fn plan(&self) -> Plan {
        self.chosen.plan
    }

    /// How device-mapper is seen.
    pub const fn dm(&self) -> &DmState {
        self.dm.state()
    }

    /// What was tried to see device-mapper, and what came of it.
    pub fn dm_attempts(&self) -> &[Attempt] {
        self.dm.attempts()
    }

    /// Attaches to device-mapper if it is there and was not before. Cheap otherwise. Tells
    /// whether something was attached now.
    pub fn attend_dm(&mut self) -> bool {
        self.attend(None)
    }

    fn attend(&mut self, kernel: Option<&Rc<Btf>>) -> bool {
        let Some(md_disk) = self.dm.attend(&mut self.ebpf, kernel) else {
            return false;
        };
        self.control.set64(control::MD_DISK, u64::from(md_disk));
        true
    }

    /// What was tried, and what came of it.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// What this kernel does not let the programs capture.
    pub fn missing_detail(&self) -> &[&'static str] {
        &self.missing_detail
    }

    /// The ring buffer; taken once, by the consumer.
    pub const fn take_ring(&mut self) -> Option<RingBuf<MapData>> {
        self.ring.take()
    }

    /// The ring with the stacks of those who make cookies; taken once, by its consumer.
    pub const fn take_stacks(&mut self) -> Option<RingBuf<MapData>> {
        self.stacks.take()
    }

    /// The maps, to write what other processes read.
    pub const fn maps_mut(&mut self) -> &mut Maps {
        &mut self.maps
    }

    /// Size of the ring buffer in bytes.
    pub const fn ring_bytes(&self) -> u32 {
        self.options.ring_bytes
    }

    /// The kernel side's counters now.
    pub fn counts(&self) -> Counts {
        Counts::read(&self.counts)
    }

    /// Runs of the probes that the kernel has skipped.
    pub fn skipped_runs(&self) -> SkippedRuns {
        let mut misses = Misses::of(&self.ebpf);
        self.dm.count_misses(&mut misses);
        let own = self.chosen.attached.attachments.iter();
        let mut runs = misses.judged(own.chain(self.dm.attachments()));
        // All runs at a place were skipped, and the programs have noticed.
        runs.lost += self.counts().ends_unseen;
        runs
    }

    /// The maps that hold the truth.
    pub const fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Numbers by which another process finds the maps.
    pub const fn map_ids(&self) -> MapIds {
        self.ids
    }

    /// Diagnostics of the kernel side since the last time, one line each.
    pub fn kernel_messages(&mut self) -> Vec<String> {
        self.log.as_mut().map(KernelLog::take).unwrap_or_default()
    }

    /// Stops the probes; maps and ring stay readable.
    pub fn detach(&mut self) {
        self.chosen.attached.links.clear();
        self.dm.detach();
    }

    /// Enters the sets of a snapshot that the kernel side does not know, so that their operations
    /// and removals are followed. Returns how many were entered.
    pub fn seed(&mut self, snapshot: &Snapshot, why: Seed) -> usize {
        let missed = match why {
            Seed::Older => 0,
            Seed::Missed => SEM_MISSED,
        };
        let mut entered = 0;
        for ns in &snapshot.namespaces {
            for set in &ns.sets {
                let cookie = set.key.has_cookie_magic();
                let record = SemRecord {
                    key: set.key.0,
                    nsems: set.nsems,
                    semflg: set.mode,
                    value: set.first.map_or(0, |first| first.value),
                    state: SEM_PREEXISTING
                        | SEM_ANNOUNCED
                        | missed
                        | if cookie { SEM_COOKIE } else { 0 },
                    ..SemRecord::default()
                };
                if self.maps.seed(
                    SemKey {
                        ns: ns.ns.0,
                        semid: set.semid,
                    },
                    record,
                ) {
                    entered += 1;
                    if cookie {
                        let name = CookieKey {
                            ns: ns.ns.0,
                            key: set.key.0,
                        };
                        // Full: the books join by the key.
                        let _joined_later = self.keys.insert(name, set.semid, 0);
                        self.prefilter
                            .add32(set.semid as u32 & (PREFILTER_SLOTS - 1), 1);
                    }
                }
            }
        }
        entered
    }

    /// Removes records that userspace has taken in.
    pub fn reap_tombstones(&mut self, sems: &[SemKey], procs: &[dmtrace_common::ProcKey]) {
        let sems = sems
            .iter()
            .filter(|key| self.maps.remove_sem(**key))
            .count();
        self.control.sub64(control::TOMBSTONES, sems as u64);
        let procs = procs
            .iter()
            .filter(|key| self.maps.remove_proc(**key))
            .count();
        self.control.sub64(control::PROC_TOMBSTONES, procs as u64);
    }

    /// Removes the record of a set whose removal the kernel side did not see.
    pub fn forget(&mut self, key: SemKey) {
        let Some(record) = self.maps.sem(key) else {
            return;
        };
        if record.state & SEM_TOMBSTONE == 0
            && self.maps.remove_sem(key)
            && record.state & SEM_COOKIE != 0
        {
            let name = CookieKey {
                ns: key.ns,
                key: record.key,
            };
            if self.keys.get(&name, 0).ok() == Some(key.semid) {
                let _gone_already = self.keys.remove(&name);
            }
            self.prefilter
                .add32(key.semid as u32 & (PREFILTER_SLOTS - 1), u32::MAX);
        }
    }

    /// Whether so many records of removed sets wait to be taken in that there may soon be no room
    /// for more.
    pub fn tombstones_crowded(&self) -> bool {
        self.control.get64(control::TOMBSTONES) > sem_tombstones(self.options.max_sems) / 4
    }

    /// Whether records of ended processes take more than half of the room that they have.
    pub fn proc_tombstones_crowded(&self) -> bool {
        self.control.get64(control::PROC_TOMBSTONES)
            > u64::from(proc_tombstones(self.options.max_procs)) / 2
    }

    /// Processes that can be kept at the same time.
    pub const fn max_procs(&self) -> u32 {
        self.options.max_procs
    }

    /// Removes the record of a process whose end the kernel side could not connect with it.
    pub fn forget_process(&mut self, key: dmtrace_common::ProcKey) {
        self.maps.remove_proc(key);
    }

    /// Records of removed sets that wait to be taken in.
    pub fn tombstones(&self) -> u64 {
        self.control.get64(control::TOMBSTONES) + self.control.get64(control::PROC_TOMBSTONES)
    }
}

/// How many records of removed sets may wait for userspace.
const fn sem_tombstones(max_sems: u32) -> u64 {
    (max_sems / 4) as u64
}

/// How many records of ended processes may wait for userspace.
const fn proc_tombstones(max_procs: u32) -> u32 {
    max_procs / 4
}

/// A power of two, at least one page: what `BPF_MAP_TYPE_RINGBUF` takes.
fn ring_size(wanted: u32) -> u32 {
    wanted.clamp(4096, 1 << 30).next_power_of_two()
}

fn shared(map: &Map, slots: u32) -> Result<SharedArray> {
    let Map::Array(data) = map else {
        anyhow::bail!("a control map is not an array")
    };
    SharedArray::map(data.fd(), slots).context("cannot map a control array")
}
