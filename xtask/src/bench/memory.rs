//! What a cookie that is there costs in memory.

use std::{
    fs,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{pipeline, programs::BenchPrograms, tracer::BenchTracer};

/// Cookies that are there at the same time.
const COUNT: u32 = 30_000;

pub(super) fn measure_memory(programs: &BenchPrograms) -> Result<Value> {
    let running = BenchTracer::start_dmtrace(programs, &["watch"])?;
    thread::sleep(Duration::from_millis(1500));
    let before = ProcessSizes::of_child(&running.child)?;
    let mut load = Command::new(programs.load_path()?)
        .args(["hold", "--count", &COUNT.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("bench-load")?;
    pipeline::read_json_line(&mut load)?;
    // Some looks at the whole.
    thread::sleep(Duration::from_secs(4));
    let after = ProcessSizes::of_child(&running.child)?;
    drop(load.stdin.take());
    load.wait()?;
    running.stop()?;
    Ok(json!({
        "cookies": COUNT,
        "resident_before": before.resident,
        "resident_after": after.resident,
        "maps_before": before.maps,
        "maps_after": after.maps,
    }))
}

/// Bytes of a process.
struct ProcessSizes {
    /// Resident, pages shared with files left out.
    resident: u64,
    /// Of its BPF maps, as the kernel accounts them.
    maps: u64,
}

impl ProcessSizes {
    fn of_child(child: &Child) -> Result<Self> {
        let proc = format!("/proc/{}", child.id());
        let status = fs::read_to_string(format!("{proc}/status")).context("dmtrace is gone")?;
        let mut maps = 0;
        for entry in fs::read_dir(format!("{proc}/fdinfo"))?.flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            if text.contains("map_type:") {
                maps += parse_number(&text, "memlock:").unwrap_or(0);
            }
        }
        Ok(Self {
            resident: parse_number(&status, "RssAnon:").context("no RssAnon")? * 1024,
            maps,
        })
    }
}

/// The number behind a name in one of the kernel's lists.
fn parse_number(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_their_names() {
        let text = "map_type:\t1\nmemlock:\t4096\nVmRSS:\t  12 kB\n";
        assert_eq!(parse_number(text, "memlock:"), Some(4096));
        assert_eq!(parse_number(text, "VmRSS:"), Some(12));
        assert_eq!(parse_number(text, "RssAnon:"), None);
    }
}
