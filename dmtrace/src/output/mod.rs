//! The only writer of standard output: tables, JSON, and what to do when the reader has gone.

pub mod duration;
pub mod json;
pub mod table;
pub mod time;
mod wrap;

pub use wrap::wrap;

use std::io::{self, IsTerminal, Write};

/// Standard output, buffered, with what the verbs need to know about it.
pub struct Out {
    inner: io::BufWriter<Box<dyn Write>>,
    color: bool,
    width: Option<usize>,
}

impl Out {
    /// Opens it. `color` is what `--color` decided; `None` asks the terminal and `NO_COLOR`.
    pub fn new(color: Option<bool>) -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let width = terminal.then(terminal_width).flatten();
        Self {
            color: color.unwrap_or(terminal && !plain),
            width,
            inner: io::BufWriter::new(Box::new(stdout)),
        }
    }

    /// Somewhere else: standard error beside a command that owns standard output, or a file.
    pub fn to(writer: Box<dyn Write>) -> Self {
        Self {
            color: false,
            width: None,
            inner: io::BufWriter::new(writer),
        }
    }

    /// Width of the terminal in columns; `None` when it is not a terminal.
    pub const fn width(&self) -> Option<usize> {
        self.width
    }

    /// Prints a line.
    ///
    /// # Errors
    /// Writing fails; a reader that has gone is `BrokenPipe`.
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        self.inner.write_all(text.as_bytes())?;
        self.inner.write_all(b"\n")
    }

    /// Prints a value as one line of JSON.
    ///
    /// # Errors
    /// As [`Out::line`].
    pub fn json(&mut self, value: &impl serde::Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.inner, value).map_err(io::Error::from)?;
        self.inner.write_all(b"\n")
    }

    /// Hands what was printed to the reader.
    ///
    /// # Errors
    /// As [`Out::line`].
    pub fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }

    /// A state in its colour: red for findings, yellow for what is not certain, plain otherwise.
    pub fn state(&self, state: &str) -> String {
        let code = match state {
            "leaked" | "stuck" | "accident" | "over-completed" => "31",
            "unknown" | "slow-udev" => "33",
            _ => return state.to_owned(),
        };
        if self.color {
            format!("\x1b[{code}m{state}\x1b[0m")
        } else {
            state.to_owned()
        }
    }
}

/// Width of the terminal on standard output.
fn terminal_width() -> Option<usize> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ fills a winsize.
    let done = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (done == 0 && size.ws_col > 0).then_some(usize::from(size.ws_col))
}
