//! The only writer of standard output: tables, JSON, and what to do when the reader has gone.

pub(crate) mod json;
pub(crate) mod table;
pub(crate) mod time;
mod wrap;
pub(crate) mod zone;

pub(crate) use wrap::{wrap_hanging, wrap_text};

use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
};

use dmtrace_core::event::text::{escape_controls, is_printable_ascii, steers_terminal};

/// Width of a terminal that does not tell.
const DEFAULT_WIDTH: usize = 80;
/// Prose in wider lines is hard to read.
const MAX_PROSE_WIDTH: usize = 100;
/// Narrower than any terminal that people use; less would only break words.
const MIN_WIDTH: usize = 20;

/// Standard output, buffered, with what the verbs need to know about it.
pub(crate) struct Out {
    inner: io::BufWriter<Box<dyn Write>>,
    color: bool,
    width: Option<usize>,
    /// What an error names.
    name: String,
}

/// Says something to a person, on standard error: broken into lines as standard output is.
pub(crate) fn print_remark(text: &str) {
    // It may be closed, too; that must not end anything.
    let _unheard = write_remark(text, &mut Out::to_stderr());
}

fn write_remark(text: &str, out: &mut Out) -> io::Result<()> {
    for line in format!("dmtrace: {text}").split('\n') {
        out.print_line(line)?;
    }
    out.flush()
}

/// What [`Out::paint_state`] adds.
const PAINT: [&str; 3] = [RED, YELLOW, PLAIN];
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const PLAIN: &str = "\x1b[0m";

/// A line as it may go to a terminal. Names in it come from processes, recordings, histories and
/// plans of others: nothing but colours reaches the terminal as a control character.
fn visible_line(text: &str, color: bool) -> Cow<'_, str> {
    if is_printable_ascii(text) || !text.contains(steers_terminal) {
        return Cow::Borrowed(text);
    }
    let mut visible = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(steers_terminal) {
        let (before, control) = rest.split_at(at);
        visible.push_str(before);
        let paint = PAINT.iter().find(|it| color && control.starts_with(**it));
        let length = paint.map_or_else(
            || control.chars().next().map_or(0, char::len_utf8),
            |paint| paint.len(),
        );
        let (shown, after) = control.split_at(length);
        if paint.is_some() {
            visible.push_str(shown);
        } else {
            visible.push_str(&escape_controls(shown));
        }
        rest = after;
    }
    visible.push_str(rest);
    Cow::Owned(visible)
}

/// JSON of which nothing is a command to a terminal: it escapes the others by itself.
fn visible_json(json: &str) -> Cow<'_, str> {
    // Below U+0020 it has escaped itself.
    let raw = |letter: char| letter >= ' ' && steers_terminal(letter);
    if is_printable_ascii(json) || !json.contains(raw) {
        return Cow::Borrowed(json);
    }
    let shown = json.chars().map(|letter| match letter {
        letter if raw(letter) => format!("\\u{:04x}", u32::from(letter)),
        letter => letter.to_string(),
    });
    Cow::Owned(shown.collect())
}

impl Out {
    /// Opens it. `color` is what `--color` decided; `None` asks the terminal and `NO_COLOR`.
    pub(crate) fn new(color: Option<bool>) -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let width = width_of(libc::STDOUT_FILENO, terminal);
        Self {
            color: color.unwrap_or(terminal && !plain),
            width,
            name: "standard output".to_owned(),
            inner: io::BufWriter::new(Box::new(stdout)),
        }
    }

    /// Somewhere else, such as a file, with its name for errors.
    pub(crate) fn with_writer(writer: Box<dyn Write>, name: &str) -> Self {
        Self {
            color: false,
            width: None,
            name: name.to_owned(),
            inner: io::BufWriter::new(writer),
        }
    }

    /// Standard error, beside a command that owns standard output.
    pub(crate) fn to_stderr() -> Self {
        let stderr = io::stderr();
        let terminal = stderr.is_terminal();
        Self {
            width: width_of(libc::STDERR_FILENO, terminal),
            ..Self::with_writer(Box::new(stderr), "standard error")
        }
    }

    /// As if on a terminal of this width.
    #[cfg(test)]
    pub(crate) const fn with_width(mut self, width: usize) -> Self {
        self.width = Some(width);
        self
    }

    /// Width in columns; `None` for no limit: a pipe or a file, where the whole line is wanted.
    pub(crate) const fn width(&self) -> Option<usize> {
        self.width
    }

    /// Columns for running text, as [`wrap`] takes them.
    pub(crate) fn prose_width(&self) -> usize {
        self.width
            .map_or(usize::MAX, |width| width.min(MAX_PROSE_WIDTH))
    }

    /// Prints a line, broken at blanks where it is wider than the terminal. The lines that follow
    /// are indented by four more columns than it is.
    ///
    /// # Errors
    /// Writing fails; a reader that has gone is `BrokenPipe`.
    pub(crate) fn print_line(&mut self, text: &str) -> io::Result<()> {
        self.print_hanging(text, wrap::own_indent(text))
    }

    /// As [`Out::print_line`]; the lines that follow are indented by so many columns.
    ///
    /// # Errors
    /// As [`Out::print_line`].
    pub(crate) fn print_hanging(&mut self, text: &str, indent: usize) -> io::Result<()> {
        let width = self.width.unwrap_or(usize::MAX);
        // A table is made of many lines that are not too long.
        if text.len() <= width {
            return self.whole_line(text);
        }
        wrap_hanging(&visible_line(text, self.color), indent, width)
            .iter()
            .try_for_each(|line| self.whole_line(line))
    }

    /// Prints a line of any length, for programs.
    ///
    /// # Errors
    /// As [`Out::print_line`].
    pub(crate) fn whole_line(&mut self, text: &str) -> io::Result<()> {
        let text = visible_line(text, self.color);
        let written = self.inner.write_all(text.as_bytes());
        let written = written.and_then(|()| self.inner.write_all(b"\n"));
        written.map_err(|error| self.named_error(error))
    }

    /// The error of a write, with where it went. Its kind stays.
    fn named_error(&self, error: io::Error) -> io::Error {
        match self.name.as_str() {
            "" => error,
            name => io::Error::new(error.kind(), format!("{name}: {error}")),
        }
    }

    /// Prints a value as one line of JSON.
    ///
    /// # Errors
    /// As [`Out::print_line`].
    pub(crate) fn print_json(&mut self, value: &impl serde::Serialize) -> io::Result<()> {
        let json = serde_json::to_string(value).map_err(io::Error::from)?;
        let json = visible_json(&json);
        let written = self.inner.write_all(json.as_bytes());
        let written = written.and_then(|()| self.inner.write_all(b"\n"));
        written.map_err(|error| self.named_error(error))
    }

    /// Hands what was printed to the reader.
    ///
    /// # Errors
    /// As [`Out::print_line`].
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let flushed = self.inner.flush();
        flushed.map_err(|error| self.named_error(error))
    }

    /// A state in its colour: red for findings, yellow for what is not certain, plain otherwise.
    pub(crate) fn paint_state(&self, state: &str) -> String {
        let color = match state {
            "leaked" | "stuck" | "accident" | "over-completed" => RED,
            "unknown" | "slow-udev" => YELLOW,
            _ => return state.to_owned(),
        };
        if self.color {
            format!("{color}{state}{PLAIN}")
        } else {
            state.to_owned()
        }
    }
}

/// Columns of what a descriptor leads to: of the terminal, or what `COLUMNS` asks for. `None` is no
/// limit: what goes into a pipe or a file is for `grep` and for reading later, at any width.
fn width_of(descriptor: libc::c_int, terminal: bool) -> Option<usize> {
    let asked = std::env::var("COLUMNS").ok();
    let asked = asked.and_then(|columns| columns.parse().ok());
    let real = terminal.then(|| terminal_width(descriptor)).flatten();
    choose_width(real, asked.filter(|&columns| columns > 0), terminal)
}

fn choose_width(real: Option<usize>, asked: Option<usize>, terminal: bool) -> Option<usize> {
    let width = real.or(asked).or(terminal.then_some(DEFAULT_WIDTH));
    width.map(|width| width.max(MIN_WIDTH))
}

/// Width of the terminal behind a descriptor, if it says so.
fn terminal_width(descriptor: libc::c_int) -> Option<usize> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ fills a winsize.
    let done = unsafe { libc::ioctl(descriptor, libc::TIOCGWINSZ, &raw mut size) };
    (done == 0 && size.ws_col > 0).then_some(usize::from(size.ws_col))
}

#[cfg(test)]
pub(crate) mod testing {
    use std::{
        io::{self, Write},
        sync::{Arc, Mutex, PoisonError},
    };

    use super::Out;

    #[derive(Clone, Default)]
    struct SharedBuffer(Arc<Mutex<Vec<u8>>>);

    impl Write for SharedBuffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is printed at a width.
    pub(crate) fn capture_output(
        width: Option<usize>,
        print: impl FnOnce(&mut Out) -> anyhow::Result<()>,
    ) -> String {
        let shared = SharedBuffer::default();
        let mut out = Out::with_writer(Box::new(shared.clone()), "");
        out.width = width;
        print(&mut out).expect("memory can be written");
        out.flush().expect("memory can be written");
        let all = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&all).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remark_has_lines_and_brings_nothing_else_to_the_terminal() {
        let text = "plan: `\u{1b}[31mX`\r\nline 2\u{9b}";
        assert_eq!(
            testing::capture_output(Some(80), |out| Ok(write_remark(text, out)?)),
            "dmtrace: plan: `\\u{1b}[31mX`\\r\nline 2\\u{9b}\n"
        );
    }

    #[test]
    fn nothing_commands_the_terminal_but_colours() {
        let name = "\x1b[2J\x07\u{9b}31m\r";
        let print = |out: &mut Out| {
            let state = out.paint_state("leaked");
            out.print_line(&format!("{state} {name}"))?;
            out.whole_line(name)?;
            out.print_json(&serde_json::json!({"comm": name}))?;
            Ok(())
        };
        let shown = "\\u{1b}[2J\\u{7}\\u{9b}31m\\r";
        let json = "{\"comm\":\"\\u001b[2J\\u0007\\u009b31m\\r\"}";
        let plain = testing::capture_output(None, print);
        assert_eq!(plain, format!("leaked {shown}\n{shown}\n{json}\n"));
        let painted = testing::capture_output(Some(80), |out| {
            out.color = true;
            print(out)
        });
        let red = format!("{RED}leaked{PLAIN}");
        assert_eq!(painted, format!("{red} {shown}\n{shown}\n{json}\n"));
        let read: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(read["comm"], name);
        // Where it is broken into lines, too.
        let long = format!("{name} ").repeat(20);
        let wrapped = testing::capture_output(Some(40), |out| Ok(out.print_line(&long)?));
        let raw = |letter: char| letter.is_control() && letter != '\n';
        assert!(!wrapped.contains(raw), "{wrapped:?}");
    }

    #[test]
    fn the_terminal_decides_then_columns_and_a_pipe_has_no_limit() {
        assert_eq!(choose_width(Some(120), Some(60), true), Some(120));
        assert_eq!(choose_width(None, Some(60), true), Some(60));
        assert_eq!(choose_width(None, None, true), Some(80));
        assert_eq!(choose_width(None, Some(60), false), Some(60));
        assert_eq!(choose_width(None, None, false), None);
        assert_eq!(choose_width(Some(1), None, true), Some(20));
    }

    #[test]
    fn a_full_disk_is_told_with_what_goes_there() {
        let full = std::fs::File::options().write(true).open("/dev/full");
        let mut out = Out::with_writer(Box::new(full.unwrap()), "standard output");
        out.print_line("a line").unwrap();
        let error = out.flush().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(
            crate::wording::cause_text(&error),
            "standard output: No space left on device"
        );
    }

    #[test]
    fn a_long_line_goes_on_below_itself() {
        let text = "  kept  0x0d4d1234: process 12345, which uses it, is alive";
        let print = |width| testing::capture_output(width, |out| Ok(out.print_line(text)?));
        assert_eq!(print(None), format!("{text}\n"));
        assert_eq!(
            print(Some(40)),
            "  kept  0x0d4d1234: process 12345, which\n      uses it, is alive\n"
        );
        let whole = testing::capture_output(Some(20), |out| Ok(out.whole_line(text)?));
        assert_eq!(whole, format!("{text}\n"));
    }
}
