//! What the tests of `clean` share: a namespace with a trace over it, and what is played in it.

use std::{collections::BTreeSet, fs, thread, time::Duration};

use anyhow::{Context as _, Result};
use dmtrace_tests::{
    harness::{Line, Running, actor, in_private_ns, ns_of},
    sysv,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::tracer::{Tracer, dmtrace_json};

/// A private IPC namespace with a trace over it, and a directory for files.
pub(crate) struct Scene {
    /// Its number, as text.
    pub ns: String,
    /// For plans and audit records.
    pub dir: TempDir,
    /// What keeps its cookies, and removes them at the end.
    pub cast: Vec<Running>,
    _tracer: Option<Tracer>,
}

impl Scene {
    /// Runs `body` in one.
    pub(crate) fn run(
        traced: bool,
        body: impl FnOnce(&mut Self) -> Result<()> + Send,
    ) -> Result<()> {
        in_private_ns(|| {
            let mut scene = Self {
                ns: ns_of("thread-self")?.to_string(),
                dir: tempfile::tempdir()?,
                cast: Vec::new(),
                _tracer: traced.then(|| Tracer::start(&[])).transpose()?,
            };
            body(&mut scene)
        })?
    }

    /// Plays, and returns what was made.
    pub(crate) fn play(&mut self, args: &[&str], until: &str) -> Result<Cookie> {
        let mut running = actor(args)?;
        let line = running.until(until)?;
        if !args.contains(&"hold") && !args.contains(&"--hold") {
            running.finish()?;
        }
        self.cast.push(running);
        Cookie::of(&line)
    }

    /// A cookie whose owner has ended at this step.
    pub(crate) fn leak(&mut self, step: &str) -> Result<Cookie> {
        let args = ["cycle", "--stop-at", step, "--how", "kill"];
        self.play(&args, "created")
    }

    /// Path of a file in the directory.
    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Arguments for this namespace only, with an audit record of its own.
    pub(crate) fn args<'a>(&'a self, audit: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let mut args = vec!["clean", "--audit", audit];
        args.extend(more);
        if !(more.contains(&"--plan") && more.contains(&"--apply")) {
            args.extend(["--older-than", "0s", "--ipc-ns", &self.ns]);
        }
        args
    }

    /// Runs `clean --json` here.
    pub(crate) fn clean(&self, more: &[&str]) -> Result<(Value, i32)> {
        let audit = self.path("audit");
        dmtrace_json(&self.args(&audit, more))
    }

    /// Lines of the audit record.
    pub(crate) fn audit(&self) -> Result<Vec<Value>> {
        audit_lines(&fs::read_to_string(self.path("audit"))?)
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
    pub(crate) fn of(line: &Line) -> Result<Self> {
        Ok(Self {
            key: line.key()?,
            semid: line.semid()?,
        })
    }

    /// Whether it is there.
    pub(crate) fn exists(self) -> bool {
        sysv::key(self.semid).is_ok_and(|key| key == self.key)
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
pub(crate) fn planned(plan: &Value) -> BTreeSet<i64> {
    let entries = plan["plan"]["entries"].as_array();
    entries
        .into_iter()
        .flatten()
        .filter(|entry| entry["action"]["action"] == "destroy")
        .filter_map(|entry| entry["semid"].as_i64())
        .collect()
}

/// Outcome of one set.
pub(crate) fn outcome(result: &Value, cookie: Cookie) -> Option<&str> {
    result["cookies"]
        .as_array()?
        .iter()
        .find(|entry| entry["semid"] == cookie.semid)?["outcome"]
        .as_str()
}
