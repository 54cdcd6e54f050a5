//! Results of the parts, kept as JSON with the program they are of.

use std::{
    fs,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Part, programs::Programs};
use crate::{host, vm::suite};

/// Where results are kept.
pub struct Store {
    dir: PathBuf,
    program: String,
}

impl Store {
    /// Opens it for one dmtrace.
    pub fn open(programs: &Programs) -> Result<Self> {
        let dir = host::target_dir()?.join("bench");
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(Self {
            dir,
            program: suite::fingerprint(&programs.dmtrace)?,
        })
    }

    /// Keeps what a part came to.
    pub fn keep(&self, part: Part, data: &Value) -> Result<()> {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let command: Vec<String> = std::env::args().skip(1).collect();
        let whole = json!({
            "program": self.program,
            "at": seconds,
            "command": format!("cargo xtask {}", command.join(" ")),
            "machine": machine(),
            "data": data,
        });
        let path = self.path(part);
        fs::write(&path, format!("{whole:#}\n")).with_context(|| path.display().to_string())
    }

    /// What was kept of this dmtrace, with the circumstances.
    pub fn read(&self, part: Part) -> Option<Value> {
        let text = fs::read_to_string(self.path(part)).ok()?;
        let whole: Value = serde_json::from_str(&text).ok()?;
        (whole["program"] == self.program.as_str()).then_some(whole)
    }

    /// The numbers alone.
    pub fn data(&self, part: Part) -> Option<Value> {
        self.read(part).map(|whole| whole["data"].clone())
    }

    fn path(&self, part: Part) -> PathBuf {
        self.dir.join(format!("{}.json", part.name()))
    }
}

/// What it is measured on.
fn machine() -> Value {
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
