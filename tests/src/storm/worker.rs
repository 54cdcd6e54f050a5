//! One user of device-mapper: an operation after the other, some of them killed.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::Result;

use super::{
    StormShared,
    command::{CommandEnd, CommandFate, run_command},
};
use crate::dm;

pub(super) struct StormWorker<'a> {
    number: usize,
    lvm: PathBuf,
    disk: String,
    shared: &'a StormShared,
    random: fastrand::Rng,
    names: u32,
    /// How long the programs take that are let live.
    usual: BTreeMap<String, Duration>,
}

/// What an operation does to a node.
#[derive(Clone, Copy)]
enum Node<'a> {
    /// It is there afterwards.
    Made(&'a str),
    /// It is gone afterwards.
    Removed(&'a str),
    /// The first is gone, the second is there.
    Renamed(&'a str, &'a str),
    /// Not looked at here.
    Any,
}

/// Semaphore calls at which programs are killed.
const CALLS: [&str; 3] = ["semtimedop", "semctl", "semget"];
/// Cookies of one run of the actor without a device.
const CYCLES: &str = "20";
/// Steps at which the actor kills itself.
const STEPS: [&str; 6] = [
    "after-semget",
    "after-setval",
    "after-inc",
    "after-ioctl",
    "after-wait",
    "in-wait",
];

/// Steps at which it rests.
const DEVICE_STEPS: [&str; 4] = ["after-semget", "after-setval", "after-ioctl", "after-wait"];
const CYCLE_STEPS: [&str; 4] = ["after-setval", "after-inc", "after-complete", "after-wait"];

impl<'a> StormWorker<'a> {
    pub(super) fn new(
        number: usize,
        place: &Path,
        shared: &'a StormShared,
        random: fastrand::Rng,
    ) -> Self {
        let disk = fs::read_to_string(place.join("disk")).unwrap_or_default();
        Self {
            number,
            lvm: place.to_owned(),
            disk: disk.trim().to_owned(),
            shared,
            random,
            names: 0,
            usual: BTreeMap::new(),
        }
    }

    /// Works until the storm ends.
    pub(super) fn run_until_end(&mut self) {
        self.repeat_turn(Self::take_turn);
    }

    /// Works until the storm ends, without devices: many cookies in a short time.
    pub(super) fn run_cycles(&mut self) {
        self.repeat_turn(Self::cookie_cycles);
    }

    fn repeat_turn(&mut self, turn: fn(&mut Self) -> Result<()>) {
        while self.shared.is_running() {
            if let Err(error) = turn(self) {
                self.shared
                    .harms
                    .report_harm("storm", &format!("{error:#}"));
            }
        }
    }

    /// Cookies whose uevents children complete.
    fn cookie_cycles(&mut self) -> Result<()> {
        if let Some(pause) = self.pause_in_lull() {
            let step = CYCLE_STEPS[self.random.usize(..CYCLE_STEPS.len())];
            let line = self.actor_args(&["cycle", "--stop-at", step]);
            let line = pausing(&line, &pause);
            return self.run_live("cycles", &line, Node::Any);
        }
        let line = self.actor_args(&["cycle", "--count", CYCLES, "--events", "2"]);
        if self.random.bool() {
            // Not at a call: its children, who stand in for udev, would be killed at theirs.
            let fate = self.some_time(&line);
            return self.run_victim("cycles", &line, fate);
        }
        self.run_live("cycles", &line, Node::Any)
    }

    fn take_turn(&mut self) -> Result<()> {
        self.names += 1;
        let name = format!("w{}n{}", self.number, self.names);
        if let Some(pause) = self.pause_in_lull() {
            return self.rest(&name, &pause);
        }
        let vg = format!("vg{}", self.number);
        let killed = self.random.u8(..100) < 45;
        match (self.random.u8(..100), killed) {
            (0..32, false) => self.run_dmsetup(&name),
            (0..32, true) => {
                self.run_killed("dmsetup", &dm_create(&name))?;
                self.remove_devices(&name);
                Ok(())
            }
            (32..68, false) => self.run_library(&name),
            (32..68, true) => self.library_killed(&name),
            (68..88, false) => self.run_lvm(&vg, &name),
            (68..88, true) => self.lvm_killed(&vg, &name),
            (88..94, false) => self.run_crypt(&name),
            (88..94, true) => {
                let disk = self.disk.clone();
                self.run_killed("cryptsetup", &open_crypt(&disk, &name))?;
                self.remove_devices(&name);
                Ok(())
            }
            _ => self.run_transaction(&name, ["0", "0"]),
        }
    }

    /// How long to rest in the middle of something, in milliseconds, if this is the time for it.
    fn pause_in_lull(&mut self) -> Option<String> {
        let left = self.shared.lull_left()?;
        // Not all of them go on in the same moment.
        let left = left + Duration::from_millis(self.random.u64(..3000));
        Some(left.as_millis().to_string())
    }

    /// Somebody in mid-transaction, until the end of the lull.
    fn rest(&mut self, name: &str, pause: &str) -> Result<()> {
        let (seconds, _) = pause.split_at(pause.len().saturating_sub(3));
        let seconds = if seconds.is_empty() { "0" } else { seconds };
        match self.random.u8(..4) {
            0 => self.run_transaction(name, [seconds, "0"]),
            1 => self.run_transaction(name, ["0", seconds]),
            _ => {
                let step = DEVICE_STEPS[self.random.usize(..DEVICE_STEPS.len())];
                let line = self.actor_args(&["device", "--name", name, "--stop-at", step]);
                let line = pausing(&line, pause);
                self.run_live("library", &line, Node::Removed(name))
            }
        }
    }

    /// The actor; where nothing traces, it keeps what it knows to itself.
    fn actor_args<'b>(&self, words: &[&'b str]) -> Vec<&'b str> {
        let mut line = vec!["cookie-actor"];
        line.extend(words);
        if !self.shared.cleaner.is_traced() {
            line.push("--no-numbers");
        }
        line
    }

    /// `dmsetup create`, perhaps `rename`, `remove`.
    fn run_dmsetup(&mut self, name: &str) -> Result<()> {
        self.run_live("dmsetup", &dm_create(name), Node::Made(name))?;
        let mut name = name.to_owned();
        if self.random.bool() {
            let new = format!("{name}b");
            let rename = ["dmsetup", "rename", &name, &new];
            self.run_live("dmsetup", &rename, Node::Renamed(&name, &new))?;
            name = new;
        }
        let remove = ["dmsetup", "remove", "--retry", &name];
        self.run_live("dmsetup", &remove, Node::Removed(&name))
    }

    /// The library's calls without a tool around them.
    fn run_library(&mut self, name: &str) -> Result<()> {
        let line = self.actor_args(&["device", "--name", name]);
        self.run_live("library", &line, Node::Removed(name))
    }

    fn library_killed(&mut self, name: &str) -> Result<()> {
        let mut line = self.actor_args(&["device", "--name", name]);
        if self.random.bool() {
            self.run_killed("library", &line)?;
        } else {
            let step = STEPS[self.random.usize(..STEPS.len())];
            line.extend(["--stop-at", step, "--how", "kill"]);
            // It does so itself; no time is too long.
            let fate = CommandFate::After(Duration::from_secs(100));
            self.run_victim("library", &line, fate)?;
        }
        self.remove_devices(name);
        Ok(())
    }

    /// A volume that is zeroed, so that lvcreate needs its node; sometimes with a snapshot, whose
    /// origin is suspended meanwhile.
    fn run_lvm(&mut self, vg: &str, name: &str) -> Result<()> {
        let node = format!("{vg}-{name}");
        let path = format!("{vg}/{name}");
        let create = lvcreate_args(vg, name);
        self.run_live("lvm", &create, Node::Made(&node))?;
        match self.random.u8(..8) {
            0 => {
                let (snap, snap_node) = (format!("{name}s"), format!("{vg}-{name}s"));
                let line = ["lvcreate", "-q", "-y", "-s", "-l", "1", "-n", &snap, &path];
                self.run_live("lvm", &line, Node::Made(&snap_node))?;
                let snap_path = format!("{vg}/{snap}");
                let remove = ["lvremove", "-q", "-y", &snap_path];
                self.run_live("lvm", &remove, Node::Removed(&snap_node))?;
            }
            1 | 2 => {
                let extend = ["lvextend", "-q", "-l", "+1", &path];
                self.run_live("lvm", &extend, Node::Made(&node))?;
            }
            _ => {}
        }
        let remove = ["lvremove", "-q", "-y", &path];
        self.run_live("lvm", &remove, Node::Removed(&node))
    }

    fn lvm_killed(&mut self, vg: &str, name: &str) -> Result<()> {
        let path = format!("{vg}/{name}");
        match self.random.u8(..3) {
            0 => {
                // A killed removal: the making is a live operation.
                let node = format!("{vg}-{name}");
                self.run_live("lvm", &lvcreate_args(vg, name), Node::Made(&node))?;
                self.run_killed("lvm", &["lvremove", "-q", "-y", &path])?;
            }
            _ => self.run_killed("lvm", &lvcreate_args(vg, name))?,
        }
        self.resume_devices(&format!("{vg}-"));
        // It may be there or not. Nobody kills this one, and nobody counts it.
        let remove = ["lvremove", "-q", "-y", "-f", &path];
        let (_either, _) = run_command(&remove, "", &self.lvm, CommandFate::Live)?;
        self.remove_devices(&format!("{vg}-"));
        Ok(())
    }

    fn run_crypt(&mut self, name: &str) -> Result<()> {
        let disk = self.disk.clone();
        self.run_live("cryptsetup", &open_crypt(&disk, name), Node::Made(name))?;
        let close = ["cryptsetup", "close", name];
        self.run_live("cryptsetup", &close, Node::Removed(name))
    }

    /// One cookie for several programs, kept by a script, which sleeps before and after the making.
    fn run_transaction(&mut self, name: &str, [before, after]: [&str; 2]) -> Result<()> {
        let script = format!(
            "set -e; c=$(dmsetup udevcreatecookie); c=${{c##*=}}; sleep {before}; \
             dmsetup create {name} --table '0 2048 zero' --udevcookie $c; sleep {after}; \
             dmsetup udevreleasecookie $c"
        );
        self.run_live("dmsetup", &["sh", "-c", &script], Node::Made(name))?;
        let remove = ["dmsetup", "remove", "--retry", name];
        self.run_live("dmsetup", &remove, Node::Removed(name))
    }

    /// Must succeed, in time, and its node must be as it should.
    fn run_live(&mut self, tool: &str, line: &[&str], node: Node<'_>) -> Result<()> {
        let (end, took) = run_command(line, INPUT, &self.lvm, CommandFate::Live)?;
        self.shared.count_one(&format!("operation {tool}"));
        let harms = &self.shared.harms;
        let shown = line.join(" ");
        match end {
            // What rests says nothing of how long it takes.
            CommandEnd::Well if line.contains(&"--pause-ms") => {}
            CommandEnd::Well => {
                *self.usual.entry(line[..2].join(" ")).or_insert(took) = took;
            }
            CommandEnd::Badly(why) => harms.report_harm("failed", &why),
            CommandEnd::Hung | CommandEnd::Killed => harms.report_harm("hung", &shown),
        }
        let there = |name: &str| Path::new("/dev/mapper").join(name).exists();
        let link = |name: &str| {
            let path = Path::new("/dev/mapper").join(name);
            path.symlink_metadata().is_ok()
        };
        let (made, removed) = match node {
            Node::Made(name) => (Some(name), None),
            Node::Removed(name) => (None, Some(name)),
            Node::Renamed(old, new) => (Some(new), Some(old)),
            Node::Any => (None, None),
        };
        if let Some(name) = made.filter(|name| !there(name)) {
            harms.report_harm("no node", &format!("{name} after {shown}"));
        }
        if let Some(name) = removed.filter(|name| link(name)) {
            harms.report_harm("node left", &format!("{name} after {shown}"));
        }
        Ok(())
    }

    /// Is killed at a random moment, or at a random semaphore call.
    fn run_killed(&mut self, tool: &str, line: &[&str]) -> Result<()> {
        let fate = if self.random.u8(..3) == 0 {
            let call = CALLS[self.random.usize(..CALLS.len())];
            CommandFate::AtCall(call, self.random.u32(1..5))
        } else {
            self.some_time(line)
        };
        self.run_victim(tool, line, fate)
    }

    fn some_time(&mut self, line: &[&str]) -> CommandFate {
        let usual = self.usual.get(&line[..2].join(" "));
        let usual = usual.copied().unwrap_or(Duration::from_millis(500));
        CommandFate::After(usual.mul_f64(self.random.f64()))
    }

    fn run_victim(&mut self, tool: &str, line: &[&str], fate: CommandFate) -> Result<()> {
        match run_command(line, INPUT, &self.lvm, fate)?.0 {
            CommandEnd::Killed => self.shared.count_one(&format!("kill {tool}")),
            // It was faster, or has not so many calls.
            CommandEnd::Well => self.shared.count_one(&format!("operation {tool}")),
            CommandEnd::Badly(why) => self.shared.harms.report_harm("failed", &why),
            CommandEnd::Hung => self.shared.harms.report_harm("hung", &line.join(" ")),
        }
        Ok(())
    }

    /// Whatever a killed program has left suspended.
    fn resume_devices(&self, prefix: &str) {
        for (name, suspended) in dm::list_devices(prefix) {
            if suspended {
                let _gone_by_itself = dm::resume_at_once(&name);
            }
        }
    }

    /// Whatever a killed program has left of its devices. Not of the cookies.
    fn remove_devices(&self, prefix: &str) {
        for _ in 0..200 {
            self.resume_devices(prefix);
            let left = dm::list_devices(prefix);
            if left.is_empty() {
                return;
            }
            for (name, _) in left {
                // udev may look at it now.
                let _again = dm::remove_at_once(&name);
            }
            thread::sleep(Duration::from_millis(50));
        }
        self.shared
            .harms
            .report_harm("storm", &format!("{prefix} cannot be removed"));
    }
}

/// The passphrase; whoever reads nothing does not mind.
const INPUT: &str = "secret\n";

const fn dm_create(name: &str) -> [&str; 5] {
    ["dmsetup", "create", name, "--table", "0 2048 zero"]
}

/// The actor, which goes on after so many milliseconds.
fn pausing<'a>(line: &[&'a str], pause: &'a str) -> Vec<&'a str> {
    [line, &["--how", "pause", "--pause-ms", pause]].concat()
}

fn open_crypt<'a>(disk: &'a str, name: &'a str) -> Vec<&'a str> {
    let mut line = vec!["cryptsetup", "open", "--type", "plain"];
    line.extend(["--cipher", "aes-cbc-essiv:sha256", "--key-size", "256"]);
    line.extend(["--hash", "sha256", disk, name]);
    line
}

fn lvcreate_args<'a>(vg: &'a str, name: &'a str) -> Vec<&'a str> {
    vec!["lvcreate", "-q", "-y", "-W", "n", "-l", "1", "-n", name, vg]
}
