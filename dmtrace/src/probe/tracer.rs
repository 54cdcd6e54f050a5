//! The kernel side, attached.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, PerCpuArray, RingBuf},
};
use dmtrace_common::{CookieKey, Counter, control};
use dmtrace_core::{backend::Backend, ids::BootTime};

use super::{
    attach::Attempt,
    btf::Btf,
    catalog::subject_of,
    choose::Chosen,
    counters::KernelCounts,
    dm::{DeviceMapper, DmState},
    kernel_log::KernelLog,
    maps::{MapIds, Maps},
    pins::Pins,
    shared::SharedArray,
    skipped::{Misses, SkippedRuns},
    spec::ProgramPlan,
};

/// The kernel side, loaded and attached. Dropping it detaches everything.
pub(crate) struct Tracer {
    pub(super) chosen: Chosen,
    pub(super) dm: DeviceMapper,
    /// Semids of live cookies by key.
    pub(super) keys: HashMap<MapData, CookieKey, i32>,
    pub(super) attempts: Vec<Attempt>,
    pub(super) missing_detail: Vec<&'static str>,
    pub(super) maps: Maps,
    pub(super) ids: MapIds,
    pub(super) counts: PerCpuArray<MapData, u64>,
    pub(super) prefilter: SharedArray,
    pub(super) control: SharedArray,
    /// The two maps behind these: programs that are loaded later name them by descriptor.
    pub(super) _mapped: [Map; 2],
    pub(super) ring: Option<RingBuf<MapData>>,
    pub(super) stacks: Option<RingBuf<MapData>>,
    pub(super) ring_bytes: u32,
    pub(super) max_sems: u32,
    pub(super) max_procs: u32,
    /// Keeps the programs in their places, and the maps, alive.
    pub(super) ebpf: Ebpf,
    /// Programs that were in their places already.
    pub(super) adopted: Vec<(String, OwnedFd)>,
    pub(super) pins: Option<Pins>,
    /// Where the links are pinned.
    pub(super) pinned: Option<PathBuf>,
    pub(super) log: Option<KernelLog>,
}

impl Tracer {
    /// The backend in use.
    pub(crate) const fn backend(&self) -> Backend {
        self.chosen.backend
    }

    /// Which of the backend's programs.
    pub(crate) const fn plan(&self) -> ProgramPlan {
        self.chosen.plan
    }

    /// How device-mapper is seen.
    pub(crate) const fn dm_state(&self) -> &DmState {
        self.dm.state()
    }

    /// Whether device-mapper has been seen all the time since an earlier process.
    pub(crate) const fn dm_was_adopted(&self) -> bool {
        self.dm.was_adopted()
    }

    /// What was tried to see device-mapper, and what came of it.
    pub(crate) fn dm_attempts(&self) -> &[Attempt] {
        self.dm.attempts()
    }

    /// Attaches to device-mapper if it is there and was not before. Cheap otherwise. Tells
    /// whether something was attached now.
    pub(crate) fn try_attach_dm(&mut self) -> bool {
        self.attach_dm_with(None)
    }

    pub(super) fn attach_dm_with(&mut self, kernel: Option<&Rc<Btf>>) -> bool {
        let Some(md_disk) = self.dm.try_attach(&mut self.ebpf, kernel) else {
            return false;
        };
        self.control.set64(control::MD_DISK, u64::from(md_disk));
        true
    }

    /// What was tried, and what came of it.
    pub(crate) fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// What this kernel does not let the programs capture.
    pub(crate) fn missing_detail(&self) -> &[&'static str] {
        &self.missing_detail
    }

    /// The ring buffer; taken once, by the consumer.
    pub(crate) const fn take_ring(&mut self) -> Option<RingBuf<MapData>> {
        self.ring.take()
    }

    /// The ring with the stacks of those who make cookies; taken once, by its consumer.
    pub(crate) const fn take_stacks(&mut self) -> Option<RingBuf<MapData>> {
        self.stacks.take()
    }

    /// The maps, to write what other processes read.
    pub(crate) const fn maps_mut(&mut self) -> &mut Maps {
        &mut self.maps
    }

    /// Size of the ring buffer in bytes.
    pub(crate) const fn ring_bytes(&self) -> u32 {
        self.ring_bytes
    }

    /// The kernel side's counters now.
    pub(crate) fn counts(&self) -> KernelCounts {
        KernelCounts::read(&self.counts)
    }

    fn misses(&self) -> Misses {
        let mut misses = Misses::from_ebpf(&self.ebpf);
        for (name, program) in &self.adopted {
            misses.add_program(name, program.as_fd());
        }
        self.dm.count_misses(&mut misses);
        misses
    }

    /// Runs of the probes that the kernel has skipped.
    pub(crate) fn skipped_runs(&self) -> SkippedRuns {
        let misses = self.misses();
        let own = self.chosen.attached.attachments.iter();
        let counts = self.counts();
        let noticed = |counter| self.noticed_skips(&counts, counter);
        let mut runs = misses.judge_attached(own.chain(self.dm.attachments()), noticed);
        // All runs at a place were skipped, and the programs have noticed.
        runs.lost += counts.ends_unseen;
        runs
    }

    /// Skipped runs that a later program has noticed.
    fn noticed_skips(&self, counts: &KernelCounts, counter: Counter) -> u64 {
        match counter {
            Counter::NOTICED_SETVAL => counts.noticed_setvals,
            Counter::NOTICED_LOOKUP => {
                // Until the first was attached the later one has noticed that it did not run.
                let before = self.control.get64(control::NOTICED_BEFORE);
                counts.noticed_lookups.saturating_sub(before)
            }
            _ => 0,
        }
    }

    /// Programs of which skipped runs may have been lost.
    pub(crate) fn skipped_programs(&self) -> Vec<&'static str> {
        let counts = self.counts();
        let own = self.chosen.attached.attachments.iter();
        let all = own.chain(self.dm.attachments());
        let judged = self
            .misses()
            .by_program(all, |counter| self.noticed_skips(&counts, counter));
        let lost = judged.into_iter().filter(|(_, runs)| runs.lost > 0);
        lost.map(|(program, _)| program).collect()
    }

    /// The same by what the programs let us see.
    pub(crate) fn skipped_by_subject(&self) -> BTreeMap<&'static str, SkippedRuns> {
        let misses = self.misses();
        let own = self.chosen.attached.attachments.iter();
        let counts = self.counts();
        let noticed = |counter| self.noticed_skips(&counts, counter);
        let mut sums = BTreeMap::<_, SkippedRuns>::new();
        for (program, runs) in misses.by_program(own.chain(self.dm.attachments()), noticed) {
            let sum = sums.entry(subject_of(program)).or_default();
            *sum = sum.saturating_sum(runs);
        }
        let unseen = sums.entry("operate").or_default();
        unseen.lost += counts.ends_unseen;
        sums
    }

    /// The maps that hold the truth.
    pub(crate) const fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Numbers by which another process finds the maps.
    pub(crate) const fn map_ids(&self) -> MapIds {
        self.ids
    }

    /// Diagnostics of the kernel side since the last time, one line each.
    pub(crate) fn kernel_messages(&mut self) -> Vec<String> {
        self.log
            .as_mut()
            .map(KernelLog::take_lines)
            .unwrap_or_default()
    }

    /// Where the links are pinned, if they are.
    pub(crate) fn pin_dir(&self) -> Option<&Path> {
        self.pinned.as_deref()
    }

    /// When tracing began, by the maps; 0 before [`Tracer::mark_started`].
    pub(crate) fn trace_start(&self) -> BootTime {
        BootTime(self.control.get64(control::BEGAN))
    }

    /// Everything that was there before is entered: from here on the maps are worth keeping.
    pub(crate) fn mark_started(&self, at: BootTime) {
        self.control.set64(control::TRACER_ENDED, 0);
        self.control.set64(control::BEGAN, at.0);
    }

    /// Gives up what is pinned: the kernel side ends with this process.
    pub(crate) fn unpin(&mut self) {
        if let Some(pins) = self.pins.take() {
            pins.remove_all();
        }
        self.pinned = None;
    }

    /// Stops the probes; maps and ring stay readable.
    pub(crate) fn detach(&mut self) {
        self.chosen.attached.links.clear();
        self.dm.detach();
    }
}

/// How many records of removed sets may wait for userspace.
pub(super) const fn sem_tombstones(max_sems: u32) -> u32 {
    max_sems / 4
}

/// How many records of ended processes may wait for userspace.
pub(super) const fn proc_tombstones(max_procs: u32) -> u32 {
    max_procs / 4
}
