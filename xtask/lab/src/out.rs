//! What a run leaves: the guest's `/out`, and the table of several kernels.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::outcome::RunOutcome;

/// Unpacks the guest's `/out` into `dir`. Without a directory it is dropped.
pub(crate) fn unpack_out(tar: &[u8], dir: Option<&Path>) -> Result<()> {
    let Some(dir) = dir else { return Ok(()) };
    fs::create_dir_all(dir).with_context(|| format!("{}: cannot be made", dir.display()))?;
    // -m: a guest may have any time, and tar would complain of every file from the future.
    let mut child = Command::new("tar")
        .args(["-x", "-m", "--no-same-owner", "-f", "-", "-C"])
        .arg(dir)
        .stdin(Stdio::piped())
        .spawn()
        .context("tar: cannot be started")?;
    if let Some(mut stdin) = child.stdin.take() {
        // tar's own status says more than a broken pipe would.
        let _ = stdin.write_all(tar);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!(
            "{}: the guest's /out cannot be unpacked there: tar: {status}",
            dir.display()
        );
    }
    Ok(())
}

/// A table of several runs, a line each: the kernel's name, and the outcome or why there is none.
pub fn format_table(rows: &[(String, std::result::Result<RunOutcome, String>)]) -> String {
    let mut lines = vec![
        [
            "kernel", "release", "boot", "total", "boots", "by", "result",
        ]
        .map(str::to_owned),
    ];
    for (name, row) in rows {
        lines.push(match row {
            Ok(run) => [
                name.clone(),
                run.kernel.release.clone(),
                run.boot_time
                    .map_or_else(|| "-".to_owned(), |time| format_seconds(time.as_secs_f64())),
                format_seconds(run.total_time.as_secs_f64()),
                run.boots.to_string(),
                run.accel.name().to_owned(),
                shorten_text(&run.summary()),
            ],
            Err(error) => {
                let dash = || "-".to_owned();
                [
                    name.clone(),
                    dash(),
                    dash(),
                    dash(),
                    dash(),
                    dash(),
                    shorten_text(&format!("lab: {error}")),
                ]
            }
        });
    }
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].len())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..6).map(width).collect();
    lines
        .iter()
        .map(|line| {
            let mut text = String::new();
            for (cell, width) in line.iter().zip(&widths) {
                text.push_str(&format!("{cell:width$}  "));
            }
            text + &line[6] + "\n"
        })
        .collect()
}

/// The beginning of a text that was shown in full before the table.
fn shorten_text(text: &str) -> String {
    match text.char_indices().nth(70) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

fn format_seconds(time: f64) -> String {
    format!("{time:.1}s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_could_not_be_had_has_a_row() {
        let text = format_table(&[("5.10".to_owned(), Err("gone".to_owned()))]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("kernel  release"));
        assert!(lines[1].starts_with("5.10    -") && lines[1].ends_with("lab: gone"));
    }
}
