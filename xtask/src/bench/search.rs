//! How fast memory is searched for the number of a cookie.

use std::{
    io,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    pipeline,
    programs::BenchPrograms,
    stat::Spread,
    table::{MarkdownTable, json_numbers},
    tracer, usage,
};

/// Memory of the process that is searched.
const MIB: u32 = 1024;

/// In pairs with a copy of the same memory.
pub(super) fn measure_search(programs: &BenchPrograms, rounds: u32) -> Result<Value> {
    let (mut searches, mut copies) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (empty, _) = with_memory(programs, 0, |_, _, _| Ok(()))?;
        let (full, copy) = with_memory(programs, MIB, copy_memory)?;
        searches.push(full.saturating_sub(empty).as_secs_f64());
        copies.push(copy.as_secs_f64());
    }
    let bytes = u64::from(MIB) << 20;
    Ok(json!({ "bytes": bytes, "search_seconds": searches, "copy_seconds": copies }))
}

/// The time of a search while a process has that much memory, and what else is done with it.
fn with_memory<T>(
    programs: &BenchPrograms,
    mib: u32,
    also: impl FnOnce(&Child, u64, u64) -> Result<T>,
) -> Result<(Duration, T)> {
    let mut load = Command::new(programs.load_path()?)
        .args(["fill", "--mib", &mib.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("bench-load")?;
    let line = pipeline::read_json_line(&mut load)?;
    let number = |name: &str| line[name].as_u64().context("bench-load: no place");
    let done = also(&load, number("address")?, number("bytes")?)?;
    let mut list = Command::new(programs.dmtrace_path()?);
    list.args(["list", "--search", "fast"]);
    list.stdin(Stdio::null()).stderr(tracer::null_sink()?);
    let (time, used) = usage::run_command(list.stdout(tracer::null_sink()?))?;
    drop(load.stdin.take());
    load.wait()?;
    ensure!(
        used.status.code().is_some_and(|code| code < 2),
        "dmtrace list: {}",
        used.status
    );
    Ok((time, done))
}

/// The time of a copy in the same pieces as the search reads.
fn copy_memory(load: &Child, address: u64, bytes: u64) -> Result<Duration> {
    const PIECE: usize = 256 << 10;
    let mut piece = vec![0_u8; PIECE];
    let pid = libc::pid_t::try_from(load.id())?;
    let begun = Instant::now();
    let mut at = usize::try_from(address)?;
    let end = at + usize::try_from(bytes)?;
    while at < end {
        let length = PIECE.min(end - at);
        let into = libc::iovec {
            iov_base: piece.as_mut_ptr().cast(),
            iov_len: length,
        };
        let from = libc::iovec {
            iov_base: std::ptr::without_provenance_mut(at),
            iov_len: length,
        };
        // SAFETY: `into` is a buffer of ours that outlives the call; the kernel checks `from`.
        let read =
            unsafe { libc::process_vm_readv(pid, &raw const into, 1, &raw const from, 1, 0) };
        let read = usize::try_from(read).map_err(|_| io::Error::last_os_error());
        at += read.context("process_vm_readv")?;
    }
    Ok(begun.elapsed())
}

/// Speed of the search as part of that of the copy; the median of the rounds.
pub(super) fn relative_speed(data: &Value) -> Option<f64> {
    let searches = json_numbers(&data["search_seconds"]);
    let copies = json_numbers(&data["copy_seconds"]);
    let shares = searches
        .iter()
        .zip(&copies)
        .map(|(search, copy)| copy / search);
    Some(Spread::of_values(shares)?.median)
}

pub(super) fn search_table(data: &Value) -> String {
    let mut table = MarkdownTable::new(&["", "GB/s"]);
    let bytes = data["bytes"].as_f64().unwrap_or_default();
    for (name, list) in [("search", "search_seconds"), ("copy", "copy_seconds")] {
        let speeds = json_numbers(&data[list])
            .into_iter()
            .map(|it| bytes / it / 1e9);
        let speed = Spread::of_values(speeds).map_or_else(|| "-".to_owned(), |it| it.text(2));
        table.push_row(&[name.to_owned(), speed]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_relative_to_the_copy() {
        let data = json!({ "bytes": 2e9, "search_seconds": [2.0], "copy_seconds": [1.0] });
        assert_eq!(relative_speed(&data), Some(0.5));
        assert!(search_table(&data).contains("| copy | 2.00"));
        assert_eq!(relative_speed(&json!({})), None);
    }
}
