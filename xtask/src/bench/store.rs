//! Results of the parts, kept as JSON with what they are of.

use std::{
    fs,
    hash::{DefaultHasher, Hasher as _},
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::part::BenchPart;
use crate::host;

/// Where results are kept.
pub(super) struct ResultStore {
    dir: PathBuf,
    program: String,
}

impl ResultStore {
    /// Opens it for dmtrace as its sources are now.
    pub(super) fn open() -> Result<Self> {
        let dir = host::target_dir()?.join("bench");
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(Self {
            dir,
            program: sources_key()?,
        })
    }

    /// Keeps what a part came to.
    pub(super) fn keep_result(&self, part: BenchPart, data: &Value) -> Result<()> {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let command: Vec<String> = std::env::args().skip(1).collect();
        let whole = json!({
            "program": self.program,
            "at": seconds,
            "command": format!("cargo xtask {}", command.join(" ")),
            "machine": machine_json(),
            "data": data,
        });
        let path = self.result_path(part);
        fs::write(&path, format!("{whole:#}\n")).with_context(|| path.display().to_string())
    }

    /// What was kept of this dmtrace, with the circumstances.
    pub(super) fn read_result(&self, part: BenchPart) -> Option<Value> {
        let text = fs::read_to_string(self.result_path(part)).ok()?;
        let whole: Value = serde_json::from_str(&text).ok()?;
        (whole["program"] == self.program.as_str()).then_some(whole)
    }

    pub(super) fn read_data(&self, part: BenchPart) -> Option<Value> {
        self.read_result(part).map(|whole| whole["data"].clone())
    }

    fn result_path(&self, part: BenchPart) -> PathBuf {
        self.dir.join(format!("{}.json", part.name()))
    }
}

/// Names the sources of dmtrace: parts may be measured one by one, with programs for other targets.
fn sources_key() -> Result<String> {
    let mut hasher = DefaultHasher::new();
    let mut open: Vec<PathBuf> = ["Cargo.toml", "Cargo.lock", "dmtrace/build.rs"]
        .into_iter()
        .chain(["dmtrace/src", "dmtrace-common/src", "dmtrace-ebpf/src"])
        .map(|name| host::workspace_root().join(name))
        .collect();
    while let Some(path) = open.pop() {
        let shown = || path.display().to_string();
        if path.is_dir() {
            let entries = fs::read_dir(&path).with_context(shown)?;
            let mut below = entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<Result<Vec<_>, _>>()
                .with_context(shown)?;
            below.sort();
            open.extend(below);
        } else {
            hasher.write(&fs::read(&path).with_context(shown)?);
        }
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// What it is measured on.
fn machine_json() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let model = read("/proc/cpuinfo").lines().find_map(|line| {
        Some(
            line.strip_prefix("model name")?
                .split_once(':')?
                .1
                .trim()
                .to_owned(),
        )
    });
    let load = read("/proc/loadavg");
    json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cpus": std::thread::available_parallelism().map_or(1, usize::from),
        "model": model,
        "load": load.split(' ').next(),
    })
}
