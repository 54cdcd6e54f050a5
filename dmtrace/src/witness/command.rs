//! Runs a program whose output may be endless, or never come.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Instant,
};

use crate::wording::cause_text;

/// Only what an administrator has put there is run.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// What a program has printed.
pub(super) struct Output {
    pub lines: Vec<Vec<u8>>,
    /// Why that may not be all.
    pub cut: Option<&'static str>,
}

/// Lines that a program prints: so many, of so many bytes together, until the deadline; then it is
/// killed.
///
/// # Errors
/// It cannot be started.
pub(super) fn read_lines(
    command: &mut Command,
    most: usize,
    bytes: u64,
    deadline: Instant,
) -> Result<Output, String> {
    let mut child = command
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| cause_text(&error))?;
    let (sender, receiver) = mpsc::sync_channel(256);
    let reader = child.stdout.take().map(|output| {
        thread::spawn(move || {
            let mut output = BufReader::new(output.take(bytes));
            loop {
                let mut line = Vec::new();
                match output.read_until(b'\n', &mut line) {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                }
                if sender.send(line).is_err() {
                    break;
                }
            }
        })
    });
    let mut lines: Vec<Vec<u8>> = Vec::new();
    let mut sum = 0_u64;
    let cut = loop {
        if lines.len() >= most {
            break Some("there are more lines than are read");
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match receiver.recv_timeout(left) {
            Ok(line) => {
                sum += line.len() as u64;
                lines.push(line);
            }
            Err(mpsc::RecvTimeoutError::Timeout) => break Some("it took too long"),
            Err(mpsc::RecvTimeoutError::Disconnected) if sum >= bytes => {
                break Some("its lines are too long");
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break None,
        }
    };
    drop(receiver);
    // It may have ended: then there is nothing to kill.
    let _ = child.kill();
    let _ = child.wait();
    if let Some(reader) = reader {
        let _ = reader.join();
    }
    Ok(Output { lines, cut })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_a_program_prints_is_bounded() {
        let deadline = || Instant::now() + Duration::from_millis(500);
        let run = |command: &mut Command, most, bytes| read_lines(command, most, bytes, deadline());
        let output = run(&mut Command::new("yes"), 7, 1 << 20).unwrap();
        assert_eq!((output.lines.len(), output.cut.is_some()), (7, true));
        // One line without an end.
        let mut zeros = Command::new("cat");
        let output = run(zeros.arg("/dev/zero"), 7, 1000).unwrap();
        assert_eq!(output.lines.len(), 1);
        assert_eq!(output.cut, Some("its lines are too long"));
        let began = Instant::now();
        let mut silent = Command::new("sleep");
        let output = run(silent.arg("60"), 7, 1000).unwrap();
        assert_eq!(
            (output.lines.len(), output.cut),
            (0, Some("it took too long"))
        );
        assert!(began.elapsed() < Duration::from_secs(30));
        assert!(run(&mut Command::new("/nosuch/program"), 7, 1000).is_err());
    }
}
