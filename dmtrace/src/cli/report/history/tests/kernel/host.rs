//! What the host says of it.

use std::collections::BTreeMap;

use dmtrace_core::{
    facts::{HostFacts, LiveProcess, NsSnapshot, SemState, SetSnapshot, Snapshot, UdevFacts},
    ids::{BootTime, IpcNs, UnixTime},
};

use super::{FakeKernel, WALL0};

impl FakeKernel {
    fn wall_time(&self, at: u64) -> UnixTime {
        UnixTime(WALL0 + (at / 1_000_000_000) as i64)
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut namespaces = BTreeMap::new();
        namespaces.insert(IpcNs::HOST, Vec::new());
        for (sem, set) in &self.sets {
            let sets: &mut Vec<SetSnapshot> = namespaces.entry(sem.ns).or_default();
            sets.push(SetSnapshot {
                semid: sem.semid,
                key: set.key,
                mode: 0o600,
                nsems: 1,
                otime: self.wall_time(set.touched),
                ctime: self.wall_time(set.touched),
                first: Some(SemState {
                    value: set.value,
                    pid: set.last,
                    ncnt: 0,
                    zcnt: u32::from(set.waits),
                }),
                ..SetSnapshot::default()
            });
        }
        Snapshot {
            began: BootTime(self.now + 1),
            ended: BootTime(self.now + 2),
            wall: self.wall_time(self.now),
            namespaces: namespaces
                .into_iter()
                .map(|(ns, sets)| NsSnapshot {
                    ns,
                    sets,
                    ..NsSnapshot::default()
                })
                .collect(),
            ..Snapshot::default()
        }
    }

    pub(crate) fn facts(&self) -> HostFacts {
        let processes = self.alive.values().map(|proc| {
            let live = LiveProcess {
                ending: false,
                start_ticks: proc.id.start_ticks(),
                comm: proc.name.to_owned(),
                ppid: 1,
                session: proc.id.tgid,
                ipc_ns: Some(proc.ns),
                command: None,
            };
            (proc.id.tgid, live)
        });
        HostFacts {
            now: BootTime(self.now + 3),
            wall: self.wall_time(self.now),
            processes_complete: true,
            processes: processes.collect(),
            carriers_complete: true,
            udev: UdevFacts::new_working(),
            ..HostFacts::default()
        }
    }
}
