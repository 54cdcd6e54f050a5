//! What the host says of the small kernel, and what its maps hold.

use std::collections::BTreeMap;

use dmtrace_common::{ProcKey, ProcRecord};

use super::world::{WALL0, World};
use crate::{
    event::{CommandPrint, ProcessImage},
    facts::{
        HostFacts, LiveProcess, NsSnapshot, SemState, SetSnapshot, Snapshot, UdevFacts, Waiter,
    },
    ids::{BootTime, IpcNs, Key, SemId, UnixTime},
    wall_clock::{ClockHistory, ClockOffset},
};

impl World {
    pub(super) fn snapshot(&self) -> Snapshot {
        let mut namespaces: BTreeMap<IpcNs, Vec<SetSnapshot>> = BTreeMap::new();
        namespaces.entry(IpcNs::HOST).or_default();
        for (sem, set) in &self.sems {
            namespaces.entry(sem.ns).or_default().push(SetSnapshot {
                semid: sem.semid,
                key: set.key,
                mode: 0o600,
                nsems: 1,
                otime: UnixTime(set.otime),
                ctime: UnixTime(set.ctime),
                first: set.key.has_cookie_magic().then_some(SemState {
                    value: set.value,
                    pid: set.pid,
                    ncnt: 0,
                    zcnt: set.waiters.len() as u32,
                }),
                ..SetSnapshot::default()
            });
        }
        Snapshot {
            began: BootTime(self.now),
            ended: BootTime(self.now + 1000),
            wall: UnixTime(self.wall()),
            namespaces: namespaces
                .into_iter()
                .map(|(ns, sets)| NsSnapshot {
                    ns,
                    sets,
                    ..NsSnapshot::default()
                })
                .collect(),
            unreadable: Vec::new(),
            incomplete: Vec::new(),
        }
    }

    /// `threads` gives process and tid of a waiting thread.
    pub(super) fn facts(&self, threads: impl Fn(usize) -> (u32, u32)) -> HostFacts {
        let alive = || self.procs.iter().filter(|proc| proc.alive);
        let mut carriers: BTreeMap<Key, Vec<u32>> = BTreeMap::new();
        for proc in alive() {
            if let Some(key) = proc.carries {
                carriers.entry(key).or_default().push(proc.id.tgid);
            }
        }
        let mut waiters: BTreeMap<SemId, Vec<Waiter>> = BTreeMap::new();
        for (&sem, set) in &self.sems {
            for &thread in &set.waiters {
                let (tgid, tid) = threads(thread);
                waiters.entry(sem).or_default().push(Waiter { tgid, tid });
            }
        }
        HostFacts {
            now: BootTime(self.now + 2000),
            wall: UnixTime(self.wall()),
            wall_nanos: ((self.now + 2000) % 1_000_000_000) as u32,
            clock: ClockHistory::steady(
                BootTime(self.now + 2000),
                ClockOffset(WALL0 * 1_000_000_000),
            ),
            processes_complete: true,
            processes: alive()
                .map(|proc| {
                    let live = LiveProcess {
                        ending: false,
                        start_ticks: proc.id.start_ticks(),
                        comm: proc.name.to_owned(),
                        ppid: 1,
                        session: proc.id.tgid,
                        ipc_ns: Some(proc.ns),
                        command: CommandPrint::of_arguments(&proc.args),
                    };
                    (proc.id.tgid, live)
                })
                .collect(),
            waiters,
            carriers,
            carriers_complete: true,
            udev: UdevFacts::new_working(),
            ..HostFacts::default()
        }
    }
}

/// As the kernel side would write it.
pub(super) fn record_of(image: &ProcessImage, now: u64) -> ProcRecord {
    // SAFETY: a plain struct of integers; zeros are valid.
    let mut record: ProcRecord = unsafe { std::mem::zeroed() };
    record.header.actor = ProcKey {
        start: image.id.start.0,
        tgid: image.id.tgid,
        exec: 0,
    };
    record.header.ts = now;
    record.ipc_ns = image.ipc_ns.0;
    fill_bytes(&mut record.comm, image.comm.as_bytes());
    let line = image.cmdline.clone().unwrap_or_default().join("\0");
    record.cmdline_len = fill_bytes(&mut record.cmdline, line.as_bytes());
    for (slot, parent) in record.parents.iter_mut().zip(&image.parents) {
        slot.tgid = parent.id.tgid;
        slot.start = parent.id.start.0;
        fill_bytes(&mut slot.comm, parent.comm.as_bytes());
    }
    record
}

fn fill_bytes(place: &mut [u8], bytes: &[u8]) -> u32 {
    let len = bytes.len().min(place.len());
    place[..len].copy_from_slice(&bytes[..len]);
    len as u32
}
