//! A program on a terminal of its own, so that it prints what a person would see.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::stage::{die_with_parent, stop_requested};

const TICK: Duration = Duration::from_millis(50);

/// How long a program may take to end in good order.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// A running program. Ended when dropped.
pub(super) struct Terminal {
    child: Child,
    lines: Receiver<String>,
}

/// What came from it.
pub(super) enum TerminalRead {
    Line(String),
    /// Nothing, for a moment.
    Nothing,
    End,
}

impl Terminal {
    /// Starts a program on a terminal this wide.
    ///
    /// # Errors
    /// No terminal, no such program.
    pub(super) fn start(command: Command, columns: u16) -> Result<Self> {
        let (ours, child) = spawn_on_terminal(command, columns, TerminalInput::Nothing)?;
        let (send, lines) = channel();
        thread::spawn(move || {
            let mut lines = BufReader::new(File::from(ours));
            let mut line = Vec::new();
            // A terminal that the last program has left reads as an error.
            while lines
                .read_until(b'\n', &mut line)
                .is_ok_and(|size| size > 0)
            {
                let text = visible_line(&String::from_utf8_lossy(&line)).map(str::to_owned);
                if text.is_some_and(|text| send.send(text).is_err()) {
                    break;
                }
                line.clear();
            }
        });
        Ok(Self { child, lines })
    }

    /// The next line, if one comes soon.
    pub(super) fn next_line(&self) -> TerminalRead {
        match self.lines.recv_timeout(TICK) {
            Ok(line) => TerminalRead::Line(line),
            Err(RecvTimeoutError::Timeout) => TerminalRead::Nothing,
            Err(RecvTimeoutError::Disconnected) => TerminalRead::End,
        }
    }

    /// All lines to the end, each handed on at once; Ctrl-C here ends the program.
    ///
    /// # Errors
    /// Its end cannot be told.
    pub(super) fn finish(mut self, mut print: impl FnMut(&str)) -> Result<ExitStatus> {
        loop {
            match self.next_line() {
                TerminalRead::Line(line) => print(&line),
                TerminalRead::Nothing if stop_requested() => self.child.kill().context("kill")?,
                TerminalRead::Nothing => {}
                TerminalRead::End => return self.child.wait().context("end of a program"),
            }
        }
    }

    pub(super) fn interrupt(&self) {
        self.send_signal(libc::SIGINT);
    }

    fn send_signal(&self, signal: i32) {
        // SAFETY: two numbers; the child is not reaped yet, so the number is its.
        unsafe { libc::kill(self.child.id().cast_signed(), signal) };
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // A trace that is killed leaves its entry in /run/dmtrace.
        self.send_signal(libc::SIGTERM);
        let deadline = Instant::now() + EXIT_TIMEOUT;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(TICK);
        }
        // Ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Both ends of a new terminal that passes on what is written as it is.
fn open_terminal(columns: u16) -> Result<(OwnedFd, OwnedFd)> {
    let (mut ours, mut theirs) = (-1, -1);
    let size = libc::winsize {
        ws_row: 24,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let null = std::ptr::null_mut();
    // SAFETY: fills two numbers; name and settings are not asked for, the size is read only.
    let done = unsafe {
        libc::openpty(
            &raw mut ours,
            &raw mut theirs,
            null,
            null.cast(),
            &raw const size,
        )
    };
    if done != 0 {
        return Err(std::io::Error::last_os_error()).context("openpty: no terminal can be made");
    }
    for fd in [ours, theirs] {
        // SAFETY: three numbers. Other programs are not to have them.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    // SAFETY: it was just opened, and nobody else has it.
    let our_end = unsafe { OwnedFd::from_raw_fd(ours) };
    // SAFETY: as above.
    let their_end = unsafe { OwnedFd::from_raw_fd(theirs) };
    // SAFETY: termios is plain data, filled by the call that follows.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and the call gets a termios.
    if unsafe { libc::tcgetattr(theirs, &raw mut settings) } == 0 {
        settings.c_oflag &= !libc::OPOST;
        // SAFETY: as above.
        unsafe { libc::tcsetattr(theirs, libc::TCSANOW, &raw const settings) };
    }
    Ok((our_end, their_end))
}

/// What a program on a terminal reads from.
#[derive(Clone, Copy, Debug)]
pub(super) enum TerminalInput {
    /// Nothing comes.
    Nothing,
    /// The terminal.
    Terminal,
}

/// Starts a program on a terminal this wide. Returns our end of it.
///
/// # Errors
/// No terminal, no such program.
pub(super) fn spawn_on_terminal(
    mut command: Command,
    columns: u16,
    input: TerminalInput,
) -> Result<(OwnedFd, Child)> {
    let (ours, theirs) = open_terminal(columns)?;
    let shown = command.get_program().display().to_string();
    match input {
        TerminalInput::Nothing => command.stdin(Stdio::null()),
        TerminalInput::Terminal => command.stdin(theirs.try_clone().context("terminal")?),
    };
    command
        .stdout(theirs.try_clone().context("terminal")?)
        .stderr(theirs);
    die_with_parent(&mut command, libc::SIGTERM);
    // Ctrl-C is for us, not for the program.
    let leave = || {
        // SAFETY: takes nothing.
        unsafe { libc::setsid() };
        Ok(())
    };
    // SAFETY: setsid is safe between fork and exec.
    unsafe { command.pre_exec(leave) };
    // Our copies of its end go with the command: they would keep it open.
    let child = command
        .spawn()
        .with_context(|| format!("{shown}: cannot be started"))?;
    Ok((ours, child))
}

/// What is left of a line on the screen: progress is overwritten. `None` if nothing was printed but that.
fn visible_line(text: &str) -> Option<&str> {
    let text = text.trim_end_matches(['\r', '\n']);
    match text.rsplit_once('\r') {
        None => Some(text.trim_end()),
        Some((_, last)) => Some(last.trim_end()).filter(|last| !last.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_overwritten() {
        for (text, visible) in [
            ("a line\r\n", Some("a line")),
            ("\r\n", Some("")),
            (
                "\rsearching: 1\rsearching: 2\r            \ra line\r\n",
                Some("a line"),
            ),
            ("\rsearching: 1\r            \r", None),
        ] {
            assert_eq!(visible_line(text), visible, "{text:?}");
        }
    }

    #[test]
    fn a_program_sees_a_terminal_of_the_width_asked_for() -> Result<()> {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "test -t 1 && test -t 2 && stty size <&1; echo err >&2; exit 3",
        ]);
        let terminal = Terminal::start(command, 77)?;
        let mut lines = Vec::new();
        let status = terminal.finish(|line| lines.push(line.to_owned()))?;
        assert_eq!(lines, ["24 77", "err"]);
        assert_eq!(status.code(), Some(3));
        Ok(())
    }
}
