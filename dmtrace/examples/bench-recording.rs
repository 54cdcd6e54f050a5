//! Writes a recording of any length through dmtrace's own writer, for `cargo xtask bench`.
//!
//! `bench-recording FILE EVENTS`: processes that make five cookies each, and for each cookie a
//! `dmsetup udevcomplete`, as udev starts it. The owner of every thousandth cookie is killed before
//! it waits. Prints how many events and leaks there are, as JSON.

use std::{
    fs::File,
    io::{self, BufWriter},
};

use anyhow::{Context as _, Result};
use dmtrace::recording::{RecordingStart, RecordingWriter};
use dmtrace_common::{
    ABI, CMDLINE_LEN, COMM_LEN, Header, Kind, OPS_KEPT, PATH_LEN, PROC_ANNOUNCED, PROC_READY,
    Parent, ProcKey, ProcRecord, SemBuf, SemEvent,
};
use dmtrace_core::{
    facts::{HostFacts, NsSnapshot, SemLimits, SemState, SetSnapshot, Snapshot},
    ids::{BootTime, IpcNs, Key, UnixTime},
};

/// Cookies of one owner.
const COOKIES: u64 = 5;
/// One of so many is leaked.
const LEAK: u64 = 1000;
const SECOND: u64 = 1_000_000_000;
const WALL: i64 = 1_700_000_000;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: bench-recording FILE EVENTS";
    let path = args.next().context(usage)?;
    let wanted: u64 = args.next().context(usage)?.parse().context(usage)?;
    let file = File::create(&path).with_context(|| path.clone())?;
    let start = RecordingStart {
        abi: ABI,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: "6.12.0".to_owned(),
        began: BootTime(SECOND),
        wall: UnixTime(WALL),
        backend: "fentry".to_owned(),
        ..RecordingStart::default()
    };
    let mut play = RecordingPlay {
        writer: RecordingWriter::begin(BufWriter::with_capacity(1 << 20, file), &start)?,
        events: 0,
        now: SECOND,
        pid: 1000,
        lives: 0,
        left: Vec::new(),
    };
    while play.events < wanted {
        play.play_owner()?;
    }
    let (events, leaks) = (play.events, play.left.len());
    play.write_end()?;
    println!("{{\"events\":{events},\"leaks\":{leaks}}}");
    Ok(())
}

struct RecordingPlay {
    writer: RecordingWriter<BufWriter<File>>,
    events: u64,
    now: u64,
    pid: u32,
    lives: u64,
    left: Vec<SetSnapshot>,
}

#[derive(Clone, Copy)]
struct BenchProcess {
    key: ProcKey,
    comm: [u8; COMM_LEN],
}

/// The set that is acted on.
#[derive(Clone, Copy)]
struct Set {
    semid: i32,
    key: u32,
}

impl RecordingPlay {
    fn play_owner(&mut self) -> io::Result<()> {
        let owner = self.write_process("dmsetup", b"dmsetup\0create\0vg-lv0\0--table\0", "sbin")?;
        for _ in 0..COOKIES {
            let set = self.free_set();
            self.write_event(Kind::Created, owner, set, 1, 0o1_600)?;
            self.write_event(Kind::SetVal, owner, set, 1, 0)?;
            self.write_operation(Kind::Op, owner, set, 1)?;
            if self.lives.is_multiple_of(LEAK) {
                self.left.push(left_cookie(set, owner, self.now));
                // Killed before it waits; udev has no message for it.
                return self.write_exit(owner, set, 9);
            }
            let udev =
                self.write_process("dmsetup", b"dmsetup\0udevcomplete\x0013457812\0", "sbin")?;
            self.write_operation(Kind::Op, owner, set, -1)?;
            self.write_operation(Kind::WaitBegin, owner, set, 0)?;
            self.write_operation(Kind::Op, udev, set, -1)?;
            self.write_exit(udev, set, 0)?;
            self.write_operation(Kind::Op, owner, set, 0)?;
            self.write_event(Kind::Destroyed, owner, set, 0, 0)?;
        }
        self.write_exit(owner, Set { semid: -1, key: 0 }, 0)
    }

    /// A set with a key that nobody has.
    fn free_set(&mut self) -> Set {
        loop {
            self.lives += 1;
            let set = Set {
                semid: (self.lives % 0x7fff_ffff) as i32,
                key: 0x0d4d_0000 | (1 + self.lives % 0xfffe) as u32,
            };
            if self.left.iter().all(|left| left.key != Key(set.key)) {
                return set;
            }
        }
    }

    fn write_process(&mut self, comm: &str, cmdline: &[u8], dir: &str) -> io::Result<BenchProcess> {
        self.pid = if self.pid > 4_000_000 {
            1000
        } else {
            self.pid + 1
        };
        self.now += 50_000;
        let process = BenchProcess {
            key: ProcKey {
                start: self.now,
                tgid: self.pid,
                exec: 1,
            },
            comm: fill_field(comm.as_bytes()),
        };
        let mut parents = [Parent::default(); 6];
        for (parent, (pid, name)) in
            parents
                .iter_mut()
                .zip([(900_u32, "bash"), (700, "sshd"), (1, "systemd")])
        {
            *parent = Parent {
                start: u64::from(pid) * 1_000_000,
                tgid: pid,
                _pad: 0,
                comm: fill_field(name.as_bytes()),
            };
        }
        let exe = format!("{comm}\0{dir}\0usr\0");
        let cgroup = b"session-3.scope\0user-0.slice\0user.slice\0";
        let record = ProcRecord {
            header: self.new_header(Kind::Proc, process),
            exited: 0,
            cgroup_id: 42,
            live: 0,
            created: 0,
            enospc_failures: 0,
            exit_code: 0,
            state: PROC_READY | PROC_ANNOUNCED,
            uid: 0,
            gid: 0,
            ns_pid: self.pid,
            pid_ns: 4_026_531_836,
            ipc_ns: IpcNs::HOST.0,
            mnt_ns: 4_026_531_841,
            cmdline_len: cmdline.len() as u32,
            exe_len: exe.len() as u32,
            cgroup_len: cgroup.len() as u32,
            _pad: 0,
            comm: process.comm,
            parents,
            cgroup: fill_field::<PATH_LEN>(cgroup),
            exe: fill_field::<PATH_LEN>(exe.as_bytes()),
            cmdline: fill_field::<CMDLINE_LEN>(cmdline),
        };
        self.write_message(&record)?;
        Ok(process)
    }

    fn new_header(&mut self, kind: Kind, process: BenchProcess) -> Header {
        self.now += 20_000;
        Header {
            kind: kind as u16,
            flags: 0,
            tid: process.key.tgid,
            ts: self.now,
            actor: process.key,
        }
    }

    fn new_event(&mut self, kind: Kind, process: BenchProcess, set: Set) -> SemEvent {
        SemEvent {
            header: self.new_header(kind, process),
            ns: IpcNs::HOST.0,
            semid: set.semid,
            key: set.key,
            ret: if kind == Kind::Created { set.semid } else { 0 },
            comm: process.comm,
            ..SemEvent::default()
        }
    }

    fn write_event(
        &mut self,
        kind: Kind,
        who: BenchProcess,
        set: Set,
        arg: i32,
        extra: u32,
    ) -> io::Result<()> {
        let event = SemEvent {
            arg,
            extra,
            ..self.new_event(kind, who, set)
        };
        self.write_message(&event)
    }

    fn write_exit(&mut self, who: BenchProcess, set: Set, code: i32) -> io::Result<()> {
        let none = Set { semid: -1, ..set };
        self.write_event(Kind::Exit, who, none, code, 0)
    }

    fn write_operation(
        &mut self,
        kind: Kind,
        who: BenchProcess,
        set: Set,
        op: i16,
    ) -> io::Result<()> {
        let mut ops = [SemBuf::default(); OPS_KEPT];
        ops[0].op = op;
        let event = SemEvent {
            extra: 1,
            ops,
            ..self.new_event(kind, who, set)
        };
        self.write_message(&event)
    }

    fn write_message<T: Copy>(&mut self, value: &T) -> io::Result<()> {
        self.events += 1;
        let at = std::ptr::from_ref(value).cast::<u8>();
        // SAFETY: messages of the kernel side are repr(C) without padding (their sizes are
        // asserted), so every byte is initialised.
        self.writer
            .write_message(unsafe { std::slice::from_raw_parts(at, size_of::<T>()) })
    }

    fn write_end(mut self) -> io::Result<()> {
        let (now, wall) = (BootTime(self.now), wall_time(self.now));
        self.writer.write_snapshot(&Snapshot {
            began: now,
            ended: now,
            wall,
            namespaces: vec![NsSnapshot {
                ns: IpcNs::HOST,
                limits: SemLimits {
                    semmsl: 32_000,
                    semmns: 1_024_000_000,
                    semopm: 500,
                    semmni: 32_000,
                },
                sets: self.left,
                ..NsSnapshot::default()
            }],
            ..Snapshot::default()
        })?;
        self.writer.write_facts(&HostFacts {
            now,
            wall,
            processes_complete: true,
            carriers_complete: true,
            ..HostFacts::default()
        })?;
        self.writer
            .finish(&serde_json::json!({ "deficits": [] }))
            .map(drop)
    }
}

fn wall_time(boot: u64) -> UnixTime {
    UnixTime(WALL + (boot / SECOND) as i64)
}

/// A cookie that its owner has left behind, as the kernel's table shows it.
fn left_cookie(set: Set, owner: BenchProcess, at: u64) -> SetSnapshot {
    SetSnapshot {
        semid: set.semid,
        key: Key(set.key),
        mode: 0o600,
        nsems: 1,
        ctime: wall_time(at),
        otime: wall_time(at),
        first: Some(SemState {
            value: 2,
            pid: owner.key.tgid,
            ..SemState::default()
        }),
        ..SetSnapshot::default()
    }
}

/// Bytes in a field of a fixed size, zeros behind them.
fn fill_field<const N: usize>(text: &[u8]) -> [u8; N] {
    let mut field = [0; N];
    let length = text.len().min(N);
    field[..length].copy_from_slice(&text[..length]);
    field
}
