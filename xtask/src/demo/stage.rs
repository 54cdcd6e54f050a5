//! Where the demo plays: an IPC namespace of its own, whose cookies vanish with its last process
//! however that ends, and a folder in memory that vanishes likewise. Without the privilege for
//! that, the namespace and the temporary folder of whoever runs it.

use std::{
    ffi::CStr,
    fs,
    io::{self, BufRead, BufReader},
    os::unix::{fs::symlink, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::{
    DemoPrograms,
    cast::{ActorPart, Until},
};
use crate::host;

/// Set by Ctrl-C.
static STOP: AtomicBool = AtomicBool::new(false);

/// Folders that every Linux has and hardly a program is in.
const FOLDERS: [&CStr; 3] = [c"/mnt", c"/media", c"/srv"];

/// The place, the actors that live, and the sets that they made.
pub(super) struct DemoStage {
    folder: PathBuf,
    temporary: Option<TempDir>,
    held: Vec<(Child, BufReader<ChildStdout>)>,
    made: Vec<StagedSet>,
}

/// A set that an actor made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct StagedSet {
    key: u32,
    semid: i32,
}

impl DemoStage {
    /// Moves this process there.
    ///
    /// # Errors
    /// No folder can be had, or the actor is not in it.
    pub(super) fn enter(programs: &DemoPrograms) -> Result<Self> {
        let (folder, temporary) = match enter_private(programs) {
            Ok(folder) => (folder, None),
            Err(_) => {
                let dir = tempfile::tempdir().context("temporary folder")?;
                (dir.path().to_owned(), Some(dir))
            }
        };
        Self::furnish(programs, folder, temporary)
    }

    /// The same, where nothing of the host may be touched; `None` without the privilege for that.
    ///
    /// # Errors
    /// The actor is not in the folder.
    pub(super) fn enter_apart(programs: &DemoPrograms) -> Result<Option<Self>> {
        let folder = enter_private(programs).ok();
        let stage = folder.map(|folder| Self::furnish(programs, folder, None));
        stage.transpose()
    }

    fn furnish(
        programs: &DemoPrograms,
        folder: PathBuf,
        temporary: Option<TempDir>,
    ) -> Result<Self> {
        let actor = folder.join("cookie-actor");
        fs::copy(&programs.actor, &actor)
            .with_context(|| format!("{}: cannot be copied", programs.actor.display()))?;
        // udev's rules complete with `dmsetup`; the actor plays it under that name.
        symlink(&actor, folder.join("dmsetup")).context("dmsetup")?;
        Ok(Self {
            folder,
            temporary,
            held: Vec::new(),
            made: Vec::new(),
        })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether nothing of the host is touched.
    pub(super) fn is_private(&self) -> bool {
        self.temporary.is_none()
    }

    /// Lets an actor play up to the end of its part.
    ///
    /// # Errors
    /// It cannot be started or does not come so far.
    pub(super) fn play_part(&mut self, part: &ActorPart) -> Result<()> {
        let mut command = Command::new(self.folder.join("cookie-actor"));
        command.arg0("cookie-actor").args(part.line);
        command.current_dir(&self.folder);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        die_with_parent(&mut command, libc::SIGKILL);
        let mut child = command.spawn().context("cookie-actor: cannot be started")?;
        let stdout = child.stdout.take().context("cookie-actor: no pipe")?;
        self.held.push((child, BufReader::new(stdout)));
        let Some((_, lines)) = self.held.last_mut() else {
            bail!("cookie-actor: lost");
        };
        let mut key = None;
        let reached = read_actor(lines, &mut self.made, |line| {
            key = parse_number(line, "key").or(key);
            matches!(part.until, Until::Step(step) if is_step(line, step))
        });
        ensure!(
            reached || matches!(part.until, Until::End) || stop_requested(),
            "cookie-actor {}: ended too early",
            part.line.join(" ")
        );
        if part.looks_elsewhere {
            self.look_elsewhere(key.context("cookie-actor: no key")?)?;
        }
        Ok(())
    }

    /// What udev does for a program whose IPC namespace it does not share. In a third namespace, so
    /// that no cookie of the host can be meant.
    fn look_elsewhere(&self, key: u32) -> Result<()> {
        let mut command = Command::new(self.folder.join("dmsetup"));
        command
            .args(["complete", "--new-ipc-ns", "--key", &format!("{key:#010x}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // That it fails is the point.
        command
            .status()
            .context("dmsetup: cannot be started")
            .map(drop)
    }

    /// Notes a set that something else has made in here.
    pub(super) fn note_set(&mut self, line: &str) {
        note_set(line, &mut self.made);
    }

    /// Ends the actors and removes the sets that are still theirs. Returns the semids of those that
    /// could not be removed.
    pub(super) fn clear_stage(&mut self) -> Vec<String> {
        for (mut child, mut lines) in self.held.drain(..) {
            // Gone already is as good.
            let _ = child.kill();
            let _ = child.wait();
            read_actor(&mut lines, &mut self.made, |_| false);
        }
        let left = self.made.drain(..).filter_map(|made| made.remove().err());
        left.collect()
    }
}

impl Drop for DemoStage {
    fn drop(&mut self) {
        self.clear_stage();
    }
}

impl StagedSet {
    /// Removes it if it still has the key that the actor gave it.
    fn remove(self) -> Result<(), String> {
        // The key is the first member of `struct semid_ds` in every C library; the buffer is larger
        // than any of them.
        let mut found = [0_u64; 32];
        // SAFETY: the buffer is aligned for and larger than `struct semid_ds`, which IPC_STAT fills.
        let there = unsafe { libc::semctl(self.semid, 0, libc::IPC_STAT, found.as_mut_ptr()) } == 0;
        let [a, b, c, d, ..] = found[0].to_ne_bytes();
        if !there || u32::from_ne_bytes([a, b, c, d]) != self.key {
            return Ok(());
        }
        // SAFETY: three numbers.
        if unsafe { libc::semctl(self.semid, 0, libc::IPC_RMID) } == 0 {
            return Ok(());
        }
        match io::Error::last_os_error().raw_os_error() {
            // Gone meanwhile.
            Some(libc::EINVAL | libc::EIDRM) => Ok(()),
            _ => Err(self.semid.to_string()),
        }
    }
}

/// New namespaces, and a folder in memory at a place that no program of ours is in.
fn enter_private(programs: &DemoPrograms) -> io::Result<PathBuf> {
    let root = host::workspace_root();
    let ours = [&*root, &*programs.dmtrace, &*programs.actor];
    let path = |folder: &CStr| PathBuf::from(folder.to_string_lossy().into_owned());
    let free = FOLDERS.into_iter().find(|&folder| {
        let folder = path(folder);
        folder.is_dir() && !ours.iter().any(|ours| ours.starts_with(&folder))
    });
    let folder = free.ok_or(io::ErrorKind::NotFound)?;
    let check = |result| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    let none = std::ptr::null();
    // SAFETY: numbers; this process has one thread yet.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWIPC) })?;
    let (root, ours_only) = (c"/".as_ptr(), libc::MS_REC | libc::MS_PRIVATE);
    // SAFETY: numbers, and a string that ends with a zero.
    check(unsafe { libc::mount(none, root, none, ours_only, none.cast()) })?;
    let kind = c"tmpfs".as_ptr();
    // SAFETY: as above.
    check(unsafe { libc::mount(kind, folder.as_ptr(), kind, 0, none.cast()) })?;
    Ok(path(folder))
}

/// Reads what an actor says; whether what was awaited came before the end.
fn read_actor(
    lines: &mut BufReader<ChildStdout>,
    made: &mut Vec<StagedSet>,
    mut awaited: impl FnMut(&str) -> bool,
) -> bool {
    for line in lines.lines().map_while(Result::ok) {
        note_set(&line, made);
        if awaited(&line) {
            return true;
        }
    }
    false
}

fn note_set(line: &str, made: &mut Vec<StagedSet>) {
    let (Some(key), Some(semid)) = (parse_number(line, "key"), parse_number(line, "semid")) else {
        return;
    };
    let set = StagedSet { key, semid };
    if is_step(line, "created") {
        made.push(set);
    } else if is_step(line, "destroyed") {
        made.retain(|made| *made != set);
    }
}

fn is_step(line: &str, step: &str) -> bool {
    line.contains(&format!("\"step\":\"{step}\""))
}

fn parse_number<T: std::str::FromStr>(line: &str, name: &str) -> Option<T> {
    let (_, rest) = line.split_once(&format!("\"{name}\":"))?;
    rest.split([',', '}']).next()?.parse().ok()
}

/// Lets the kernel send this signal to a child when this process ends, also where that is killed.
pub(super) fn die_with_parent(command: &mut Command, signal: i32) {
    let ask = move || {
        // SAFETY: numbers only.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) };
        Ok(())
    };
    // SAFETY: prctl is safe between fork and exec.
    unsafe { command.pre_exec(ask) };
}

/// Whether the end was asked for.
pub(super) fn stop_requested() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Asks for the end.
pub(super) fn request_stop() {
    STOP.store(true, Ordering::Relaxed);
}

/// Ctrl-C, an end by another process and a closed terminal lead through the clean-up.
pub(super) fn stop_on_signals() {
    extern "C" fn handle_signal(_: i32) {
        request_stop();
    }
    let handler: extern "C" fn(i32) = handle_signal;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores into an atomic.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_account_of_what_actors_say() {
        let mut made = Vec::new();
        note_set(
            "{\"step\":\"created\",\"pid\":7,\"key\":223155479,\"semid\":12}",
            &mut made,
        );
        let set = StagedSet {
            key: 223_155_479,
            semid: 12,
        };
        assert_eq!(made, [set]);
        note_set("{\"step\":\"holding\",\"pid\":7}", &mut made);
        assert_eq!(made, [set]);
        note_set(
            "{\"step\":\"destroyed\",\"pid\":7,\"key\":223155479,\"semid\":12}",
            &mut made,
        );
        assert_eq!(made, []);
    }
}
