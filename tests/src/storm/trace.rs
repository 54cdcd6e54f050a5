//! The trace as a second witness: who removed which cookie, and whether it was in use.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::cleaner::CleanedCounts;

/// A tracer at work.
pub(super) struct StormTrace {
    child: Child,
    path: PathBuf,
}

/// A set in this namespace.
type Set = (i64, String);

/// What it has seen.
#[derive(Debug, Default)]
pub(super) struct SeenCookies {
    /// Whether its accounts add up.
    pub(super) exact: bool,
    /// Calls on semaphores, and ends of processes.
    pub(super) calls: u64,
    /// Cookies that were made.
    pub(super) cookies: u64,
    /// Removals: by which process, what, and whether it was in use.
    removals: Vec<(u32, Set, bool)>,
}

impl StormTrace {
    /// Starts one, and waits until it is attached.
    pub(super) fn start(out: &Path) -> Result<Self> {
        let path = out.join("watch");
        let child = Command::new("dmtrace")
            .args(["watch", "--json"])
            .stdin(Stdio::null())
            .stdout(File::create(&path)?)
            .stderr(File::create(out.join("watch.err"))?)
            .spawn()
            .context("dmtrace watch")?;
        let trace = Self { child, path };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !fs::read_to_string(&trace.path)?.contains("\"type\":\"start\"") {
            if Instant::now() > deadline {
                bail!("dmtrace watch does not start; see watch.err");
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(trace)
    }

    /// Stops it and reads what it said.
    pub(super) fn finish(mut self) -> Result<SeenCookies> {
        let pid = i32::try_from(self.child.id())?;
        // SAFETY: two numbers; the child is not reaped yet, so the number is its.
        unsafe { libc::kill(pid, libc::SIGINT) };
        self.child.wait()?;
        let mut seen = SeenCookies::default();
        let mut ended = false;
        let file = File::open(&self.path)?;
        for line in BufReader::new(file).lines() {
            let line = line?;
            let interesting = ["\"destroyed\"", "\"accounting\""];
            if !interesting.iter().any(|word| line.contains(word)) {
                continue;
            }
            let object: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
            if object["change"] == "destroyed" {
                seen.removals.extend(parse_removal(&object));
            } else if object["accounting"].is_object() {
                ended = true;
                seen.exact = object["exact"] == true;
                seen.calls = object["accounting"]["seen"].as_u64().unwrap_or(0);
                let made = &object["totals"]["cookies"]["created"];
                seen.cookies = made.as_u64().unwrap_or(0);
            }
        }
        anyhow::ensure!(ended, "dmtrace watch has not told its accounts");
        Ok(seen)
    }
}

fn parse_removal(object: &Value) -> Option<(u32, Set, bool)> {
    let pid = u32::try_from(object["who"]["id"]["tgid"].as_u64()?).ok()?;
    let set = (
        object["sem"]["semid"].as_i64()?,
        object["key"].as_str()?.to_owned(),
    );
    Some((pid, set, object["ending"] == "while_live"))
}

/// What the cleaner did, against what it said.
#[derive(Debug, Default)]
pub(super) struct AuditCheck {
    /// Cookies that it removed.
    pub(super) removed: u64,
    /// Of these, such as were in use.
    pub(super) live: u64,
    /// Cookies in use that others removed, who are neither their users nor the cleaner.
    pub(super) live_by_others: u64,
    /// Removed without an intent in the audit record.
    pub(super) unannounced: u64,
    /// Said to be removed, and not.
    pub(super) untrue: u64,
}

/// `seen`: by the trace; without one, what the audit record says is believed.
pub(super) fn compare_audit(
    path: &Path,
    cleaned: &CleanedCounts,
    seen: Option<&SeenCookies>,
) -> Result<AuditCheck> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).context(path.display().to_string()),
    };
    let (mut announced, mut told) = (BTreeSet::new(), BTreeSet::new());
    // A line that was torn by a kill is no line.
    for line in text.lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let entry = || -> Option<(u32, Set)> {
            let pid = line["run"].as_str()?.split('-').next()?.parse().ok()?;
            let key = line["key"].as_str()?.to_owned();
            Some((pid, (line["semid"].as_i64()?, key)))
        };
        match line["type"].as_str() {
            Some("clean_intent") => announced.extend(entry()),
            Some("clean_outcome") if line["outcome"] == "removed" => told.extend(entry()),
            _ => {}
        }
    }
    let mut audit = AuditCheck::default();
    let Some(seen) = seen else {
        audit.removed = told.len() as u64;
        audit.unannounced = told.difference(&announced).count() as u64;
        return Ok(audit);
    };
    let mut removed = BTreeSet::new();
    for (pid, set, live) in &seen.removals {
        if !cleaned.pids.contains(pid) {
            audit.live_by_others += u64::from(*live);
            continue;
        }
        audit.removed += 1;
        audit.live += u64::from(*live);
        removed.insert((*pid, set.clone()));
    }
    if !announced.is_empty() || !text.is_empty() {
        audit.unannounced = removed.difference(&announced).count() as u64;
        audit.untrue = told.difference(&removed).count() as u64;
    }
    Ok(audit)
}
