//! A program on a terminal of its own, whose output goes on to ours and is not kept.
//!
//! Whoever has the number of a cookie in its memory may be a user of it, and `clean` rightly keeps
//! such a cookie. We are root and print what names cookies: the next search would find them here.
//! So a line is in one place that is wiped, and what is needed later is stored in a form that is no
//! number and no text.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd as _, AsRawFd as _},
    process::{Child, Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    stage::{request_stop, stop_requested},
    terminal::{TerminalInput, spawn_on_terminal},
};

const TICK: Duration = Duration::from_millis(100);
/// How long a program may take to end in good order.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);
/// What a byte of the store differs in from what was printed.
const MASK: u8 = 0x80;
/// Longer lines go on as another one.
const LINE_MAX: usize = 4096;
/// So many lines that begin alike are shown.
const SHOWN: usize = 2;
/// How such lines begin.
const FOLDED: [&[u8]; 3] = [b"would remove ", b"removed ", b"kept "];
/// How a question ends, and what is answered.
const QUESTION: &[u8] = b"[y/N] ";
const ANSWER: &[u8] = b"y\n";

/// When output is shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Showing {
    /// As it comes: to a terminal.
    AtOnce,
    /// When all programs have run: whoever reads a pipe would have the numbers meanwhile.
    AtEnd,
}

/// Passes on what programs print.
pub(super) struct Relay {
    showing: Showing,
    /// Never grows, so that there is no other copy of it.
    line: Vec<u8>,
    /// So much of it was shown.
    sent: usize,
    folding: Folding,
    /// All lines, masked.
    store: Vec<u8>,
}

/// Lines that begin alike.
#[derive(Default)]
struct Folding {
    kind: Option<&'static [u8]>,
    lines: usize,
}

impl Relay {
    pub(super) fn new(showing: Showing) -> Self {
        Self {
            showing,
            line: Vec::with_capacity(LINE_MAX),
            sent: 0,
            folding: Folding::default(),
            store: Vec::new(),
        }
    }

    /// Runs a program to its end; answers its question with yes.
    ///
    /// # Errors
    /// No terminal, no such program, or its end cannot be told.
    pub(super) fn run(&mut self, command: Command, columns: u16) -> Result<ExitStatus> {
        let (ours, mut child) = spawn_on_terminal(command, columns, TerminalInput::Terminal)?;
        self.pass_on(&mut File::from(ours), &mut child)?;
        child.wait().context("end of a program")
    }

    /// To the end of the output; Ctrl-C here ends the program.
    fn pass_on(&mut self, terminal: &mut File, child: &mut Child) -> Result<()> {
        let mut bytes = [0; 1024];
        let mut deadline = None;
        loop {
            if stop_requested() {
                let since = *deadline.get_or_insert_with(|| {
                    // SAFETY: two numbers; the child is not reaped yet, so the number is its.
                    unsafe { libc::kill(child.id().cast_signed(), libc::SIGTERM) };
                    Instant::now()
                });
                if since.elapsed() > EXIT_TIMEOUT {
                    child.kill().context("kill")?;
                }
            }
            if !has_more(terminal) {
                self.show_part();
                if self.line.ends_with(QUESTION) && !stop_requested() {
                    terminal.write_all(ANSWER).context("terminal")?;
                }
                // What it has left running keeps the terminal open.
                if deadline.is_some() && child.try_wait().context("end of a program")?.is_some() {
                    break;
                }
                continue;
            }
            // A terminal that the last program has left reads as an error.
            let Ok(read @ 1..) = terminal.read(&mut bytes) else {
                break;
            };
            for &byte in &bytes[..read] {
                self.take_byte(byte);
            }
            bytes.fill(0);
            std::hint::black_box(&bytes);
        }
        if !self.line.is_empty() {
            self.end_line();
        }
        self.end_fold();
        Ok(())
    }

    fn take_byte(&mut self, byte: u8) {
        match byte {
            b'\n' => self.end_line(),
            // Progress, which is written over.
            b'\r' => {
                self.show_part();
                self.show(b"\r");
                self.wipe_line();
            }
            _ => {
                if self.line.len() == LINE_MAX {
                    self.end_line();
                }
                self.line.push(byte);
            }
        }
    }

    /// Shows what has come of a line that is not at its end.
    fn show_part(&mut self) {
        let known = FOLDED.iter().any(|kind| kind.starts_with(&self.line));
        if !known && self.kind_of_line().is_none() {
            self.show(&self.line[self.sent..]);
            self.sent = self.line.len();
        }
    }

    fn end_line(&mut self) {
        let kind = self.kind_of_line();
        let goes_on = self.line.starts_with(b"  ") && self.folding.kind.is_some();
        if !goes_on && kind != self.folding.kind {
            self.end_fold();
            self.folding.kind = kind;
        }
        if !goes_on && kind.is_some() {
            self.folding.lines += 1;
        }
        if self.folding.lines <= SHOWN {
            self.show(&self.line[self.sent..]);
            self.show(b"\n");
            self.store.extend(self.line.iter().map(|byte| byte ^ MASK));
            self.store.push(b'\n' ^ MASK);
        }
        self.wipe_line();
    }

    fn kind_of_line(&self) -> Option<&'static [u8]> {
        FOLDED.into_iter().find(|kind| self.line.starts_with(kind))
    }

    /// Says how many lines were left out.
    fn end_fold(&mut self) {
        let Folding { lines, .. } = std::mem::take(&mut self.folding);
        let more = lines.saturating_sub(SHOWN);
        if more > 0 {
            self.print_line(&format!("... ({more} more such lines)"));
        }
    }

    /// A line of our own, without a number in it.
    pub(super) fn print_line(&mut self, line: &str) {
        self.show(line.as_bytes());
        self.show(b"\n");
        let bytes = line.bytes().chain(*b"\n");
        self.store.extend(bytes.map(|byte| byte ^ MASK));
    }

    fn wipe_line(&mut self) {
        self.line.fill(0);
        std::hint::black_box(&self.line);
        self.line.clear();
        self.sent = 0;
    }

    /// Past the buffer of the standard library, which keeps what was written.
    fn show(&self, mut bytes: &[u8]) {
        if self.showing == Showing::AtEnd {
            return;
        }
        let out = io::stdout();
        let fd = out.as_fd().as_raw_fd();
        while !bytes.is_empty() {
            // SAFETY: the bytes outlive the call.
            let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
            match usize::try_from(written) {
                Ok(written) => bytes = &bytes[written..],
                Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                // Whoever reads has gone: no use in going on.
                Err(_) => return request_stop(),
            }
        }
    }

    /// All lines so far; from now on this process has what they name.
    pub(super) fn lines(&self) -> Vec<String> {
        let bytes: Vec<u8> = self.store.iter().map(|byte| byte ^ MASK).collect();
        let text = String::from_utf8_lossy(&bytes);
        text.lines().map(str::to_owned).collect()
    }
}

/// Whether there is something to read, or the end; waits a moment for it.
fn has_more(terminal: &File) -> bool {
    let mut wanted = libc::pollfd {
        fd: terminal.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let milliseconds = i32::try_from(TICK.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one structure, which outlives the call.
    let ready = unsafe { libc::poll(&raw mut wanted, 1, milliseconds) };
    if ready < 0 {
        // Interrupted; not to be asked again at once for ever.
        thread::sleep(Duration::from_millis(1));
    }
    ready > 0
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Seek as _};

    use super::*;

    fn relayed(script: &str) -> Result<(Vec<String>, Option<i32>)> {
        let mut relay = Relay::new(Showing::AtEnd);
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let status = relay.run(command, 80)?;
        Ok((relay.lines(), status.code()))
    }

    #[test]
    fn lines_that_begin_alike_are_folded_with_what_belongs_to_them() -> Result<()> {
        let script = "for i in 1 2 3 4; do echo removed  $i; echo '    more'; done; echo end
                      for i in 1 2 3; do echo kept $i; done; echo kept, and why; exit 3";
        let (lines, code) = relayed(script)?;
        let expected = [
            "removed 1",
            "    more",
            "removed 2",
            "    more",
            "... (2 more such lines)",
            "end",
            "kept 1",
            "kept 2",
            "... (1 more such lines)",
            "kept, and why",
        ];
        assert_eq!(lines, expected);
        assert_eq!(code, Some(3));
        Ok(())
    }

    #[test]
    fn a_question_is_answered_on_a_terminal_and_progress_is_left_out() -> Result<()> {
        let script = r"printf '\rsearching\r         \r'; printf 'remove? [y/N] '; test -t 0
                       read answer; echo got $answer";
        let (lines, code) = relayed(script)?;
        assert_eq!(lines, ["remove? [y/N] y", "got y"]);
        assert_eq!(code, Some(0));
        Ok(())
    }

    /// Whether a text, given masked, is anywhere in this process's memory.
    fn in_memory(masked: &[u8]) -> Result<bool> {
        let maps = fs::read_to_string("/proc/self/maps")?;
        let mut memory = File::open("/proc/self/mem")?;
        let first = masked.first().context("nothing to look for")? ^ MASK;
        for line in maps.lines().filter(|line| line.contains(" rw")) {
            let range = line.split(' ').next().and_then(|it| it.split_once('-'));
            let (start, end) = range.context("maps")?;
            let (start, end) = (
                u64::from_str_radix(start, 16)?,
                u64::from_str_radix(end, 16)?,
            );
            let mut bytes = vec![0; usize::try_from(end - start)?];
            memory.seek(io::SeekFrom::Start(start))?;
            // Some cannot be read, or went meanwhile.
            if memory.read_exact(&mut bytes).is_err() {
                continue;
            }
            let found = bytes
                .windows(masked.len())
                .filter(|it| it.first() == Some(&first))
                .any(|it| it.iter().zip(masked).all(|(a, b)| *a == b ^ MASK));
            bytes.fill(0);
            std::hint::black_box(&bytes);
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }

    #[test]
    fn what_was_passed_on_is_not_in_memory() -> Result<()> {
        let mut relay = Relay::new(Showing::AtEnd);
        let mut command = Command::new("sh");
        // Put together by the program, so that its arguments have it nowhere.
        command.args([
            "-c",
            "echo number 0x0d4d$((6 * 7))aa; printf part$((6 * 7))bb",
        ]);
        relay.run(command, 80)?;
        let masked = |text: [&str; 2]| -> Vec<u8> {
            text.iter()
                .flat_map(|it| it.bytes())
                .map(|it| it ^ MASK)
                .collect()
        };
        for text in [["x0d4d4", "2aa"], ["part4", "2bb"]] {
            assert!(!in_memory(&masked(text))?, "{text:?}");
        }
        let lines = relay.lines();
        assert_eq!(lines.len(), 2);
        assert!(in_memory(&masked(["x0d4d4", "2aa"]))?, "{}", lines.len());
        Ok(())
    }
}
