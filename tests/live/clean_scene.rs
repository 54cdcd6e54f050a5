//! What the tests of `clean` share: a namespace with a trace over it, and what is played in it.

use std::{collections::BTreeSet, fs, thread, time::Duration};

use anyhow::{Context as _, Result};
use dmtrace_tests::{
    harness::{ActorLine, RunningActor, in_private_ns, ns_of, start_actor},
    sysv,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::tracer::{WatchProcess, dmtrace_json};

/// A private IPC namespace with a trace over it, and a directory for files.
pub(crate) struct Scene {
    /// Its number, as text.
    pub ns: String,
    /// For plans and audit records.
    pub dir: TempDir,
    /// What keeps its cookies, and removes them at the end.
    pub cast: Vec<RunningActor>,
    _tracer: Option<WatchProcess>,
}

impl Scene {
    /// Runs `body` in one.
    pub(crate) fn run_in(
        traced: bool,
        body: impl FnOnce(&mut Self) -> Result<()> + Send,
    ) -> Result<()> {
        in_private_ns(|| {
            let mut scene = Self {
                ns: ns_of("thread-self")?.to_string(),
                dir: tempfile::tempdir()?,
                cast: Vec::new(),
                _tracer: traced.then(|| WatchProcess::start(&[])).transpose()?,
            };
            body(&mut scene)
        })?
    }

    /// Plays, and returns what was made.
    pub(crate) fn play_actor(&mut self, args: &[&str], until: &str) -> Result<Cookie> {
        let mut running = start_actor(args)?;
        let line = running.read_until(until)?;
        if !args.contains(&"hold") && !args.contains(&"--hold") {
            running.read_to_end()?;
        }
        self.cast.push(running);
        Cookie::from_line(&line)
    }

    /// A cookie whose owner has ended at this step.
    pub(crate) fn leak_at(&mut self, step: &str) -> Result<Cookie> {
        let args = ["cycle", "--stop-at", step, "--how", "kill"];
        self.play_actor(&args, "created")
    }

    /// Path of a file in the directory.
    pub(crate) fn file_path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Arguments for this namespace only, with an audit record of its own.
    pub(crate) fn clean_args<'a>(&'a self, audit: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let mut args = vec!["clean", "--audit", audit];
        args.extend(more);
        if !(more.contains(&"--plan") && more.contains(&"--apply")) {
            args.extend(["--older-than", "0s", "--ipc-ns", &self.ns]);
        }
        args
    }

    /// Runs `clean --json` here.
    pub(crate) fn run_clean(&self, more: &[&str]) -> Result<(Value, i32)> {
        let audit = self.file_path("audit");
        dmtrace_json(&self.clean_args(&audit, more))
    }

    /// Lines of the audit record.
    pub(crate) fn read_audit(&self) -> Result<Vec<Value>> {
        audit_lines(&fs::read_to_string(self.file_path("audit"))?)
    }
}

/// The readable lines; only the last may be torn.
pub(crate) fn audit_lines(text: &str) -> Result<Vec<Value>> {
    let mut lines = Vec::new();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    for line in whole.lines() {
        lines.push(serde_json::from_str(line).with_context(|| line.to_owned())?);
    }
    Ok(lines)
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Cookie {
    pub key: u32,
    pub semid: i32,
}

impl Cookie {
    /// The set of a line of an actor.
    pub(crate) fn from_line(line: &ActorLine) -> Result<Self> {
        Ok(Self {
            key: line.key()?,
            semid: line.semid()?,
        })
    }

    /// Whether it is there.
    pub(crate) fn exists(self) -> bool {
        sysv::get_key(self.semid).is_ok_and(|key| key == self.key)
    }

    /// Its key, as arguments and output write it.
    pub(crate) fn text(self) -> String {
        format!("{:#010x}", self.key)
    }
}

/// Long enough to be no longer too young to tell.
pub(crate) fn grow_up() {
    thread::sleep(Duration::from_millis(1500));
}

/// semids that a plan removes.
pub(crate) fn planned_semids(plan: &Value) -> BTreeSet<i64> {
    let entries = plan["plan"]["entries"].as_array();
    entries
        .into_iter()
        .flatten()
        .filter(|entry| entry["action"]["action"] == "destroy")
        .filter_map(|entry| entry["semid"].as_i64())
        .collect()
}

/// Outcome of one set.
pub(crate) fn outcome_of(result: &Value, cookie: Cookie) -> Option<&str> {
    result["cookies"]
        .as_array()?
        .iter()
        .find(|entry| entry["semid"] == cookie.semid)?["outcome"]
        .as_str()
}
