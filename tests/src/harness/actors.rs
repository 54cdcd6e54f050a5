//! Actors as children of a test: their lines, their end, and what they leave behind.

use std::{
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context, bail};
use serde_json::Value;

use super::programs::actor_bin;
use crate::sysv;

/// How long a step may take. Generous: the machine may be busy with a build.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(30);

/// A line of the actor.
#[derive(Clone, Debug, PartialEq)]
pub struct ActorLine {
    /// What happened.
    pub step: String,
    /// Who said so.
    pub pid: u32,
    /// All fields.
    pub fields: Value,
}

impl ActorLine {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let fields: Value = serde_json::from_str(text).with_context(|| text.to_owned())?;
        let step = fields["step"].as_str().context("no step")?.to_owned();
        let pid = u32::try_from(fields["pid"].as_u64().context("no pid")?)?;
        Ok(Self { step, pid, fields })
    }

    /// A number in it.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn number(&self, name: &str) -> anyhow::Result<i64> {
        let number = self.fields[name].as_i64();
        number.with_context(|| format!("no {name} in {}", self.fields))
    }

    /// The cookie.
    ///
    /// # Errors
    /// There is none.
    pub fn key(&self) -> anyhow::Result<u32> {
        Ok(u32::try_from(self.number("key")?)?)
    }

    /// The semid.
    ///
    /// # Errors
    /// There is none.
    pub fn semid(&self) -> anyhow::Result<i32> {
        Ok(i32::try_from(self.number("semid")?)?)
    }
}

/// A running actor. At its end it is killed with all its children, and the sets that it made are
/// removed if they still have the key that it gave them.
#[derive(Debug)]
pub struct RunningActor {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<ActorLine>,
    cleans: bool,
}

/// Starts `cookie-actor` with these arguments, in the IPC namespace of the calling thread.
///
/// # Errors
/// No such program, no process.
pub fn start_actor(args: &[&str]) -> anyhow::Result<RunningActor> {
    let mut child = Command::new(actor_bin()?)
        .arg0("cookie-actor")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("cookie-actor")?;
    let stdout = child.stdout.take().context("no pipe")?;
    let (send, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                break;
            }
        }
    });
    Ok(RunningActor {
        child,
        lines,
        seen: Vec::new(),
        // Semids of another namespace mean other sets here, and it vanishes with the actor.
        cleans: !args.contains(&"--new-ipc-ns"),
    })
}

impl RunningActor {
    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line; `None` when there will be no more.
    ///
    /// # Errors
    /// Nothing came for long, or it is not a line of an actor.
    pub fn next_line(&mut self) -> anyhow::Result<Option<ActorLine>> {
        match self.lines.recv_timeout(OUTPUT_TIMEOUT) {
            Ok(text) => {
                let line = ActorLine::parse(&text)?;
                self.seen.push(line.clone());
                Ok(Some(line))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Ok(None),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bail!("cookie-actor: silent for {OUTPUT_TIMEOUT:?}")
            }
        }
    }

    /// Reads up to the line of this step.
    ///
    /// # Errors
    /// It does not come.
    pub fn read_until(&mut self, step: &str) -> anyhow::Result<ActorLine> {
        while let Some(line) = self.next_line()? {
            if line.step == step {
                return Ok(line);
            }
        }
        bail!("cookie-actor ended without step {step}: {:?}", self.seen)
    }

    /// Reads to the end, waits, and returns all lines.
    ///
    /// # Errors
    /// It does not end.
    pub fn read_to_end(&mut self) -> anyhow::Result<(Vec<ActorLine>, ExitStatus)> {
        while self.next_line()?.is_some() {}
        let status = self.child.wait().context("cookie-actor")?;
        Ok((self.seen.clone(), status))
    }

    /// Kills it and its children with SIGKILL; what it made stays.
    pub fn kill_group(&mut self) {
        let group = self.child.id().cast_signed();
        // SAFETY: two numbers. The group is ours: we have not waited for its leader yet, or it is
        // empty and the call fails; its number is not reused while a member lives.
        unsafe { libc::kill(-group, libc::SIGKILL) };
        // It may have ended long ago.
        let _ = self.child.wait();
    }
}

impl Drop for RunningActor {
    fn drop(&mut self) {
        self.kill_group();
        if !self.cleans {
            return;
        }
        // Also what it said while nobody read.
        while let Ok(text) = self.lines.recv_timeout(Duration::from_secs(1)) {
            self.seen.extend(ActorLine::parse(&text));
        }
        for line in &self.seen {
            if line.step == "created"
                && let (Ok(key), Ok(semid)) = (line.key(), line.semid())
                && sysv::get_key(semid).is_ok_and(|found| found == key)
            {
                // Lost races are fine: the goal is that it is gone.
                let _ = sysv::remove_set(semid);
            }
        }
    }
}
