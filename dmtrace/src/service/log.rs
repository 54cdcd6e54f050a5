//! What a service says: lines on standard error, with the priority in front where the journal
//! reads them (sd-daemon(3)).

use std::{
    fmt,
    io::{self, Write},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use crate::wording::count_noun;

/// Priority of a line, as syslog(3) numbers it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum LogLevel {
    /// Something does not work any more.
    Error = 3,
    /// Somebody should look at it.
    Warning = 4,
    /// Normal, and worth to know.
    Notice = 5,
    /// For the record.
    Info = 6,
    Debug = 7,
}

impl LogLevel {
    const fn level_word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Notice => "notice",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// So many lines about cookies in [`WINDOW`]: a program that leaks a thousand cookies a minute
/// must not fill the journal.
const LINES: u32 = 100;
const WINDOW: Duration = Duration::from_secs(60);

/// Lets a bounded number of lines pass.
#[derive(Clone, Copy, Debug, Default)]
struct Limiter {
    since: Option<Instant>,
    passed: u32,
    held: u64,
}

impl Limiter {
    /// Whether a line may pass; and how many did not before it, once the next may.
    fn let_pass(&mut self, now: Instant) -> (bool, u64) {
        let over = self
            .since
            .is_none_or(|since| now.saturating_duration_since(since) >= WINDOW);
        if over {
            self.since = Some(now);
            self.passed = 0;
        }
        if self.passed >= LINES {
            self.held += 1;
            return (false, 0);
        }
        self.passed += 1;
        (true, std::mem::take(&mut self.held))
    }
}

/// Where the lines go.
pub(super) struct Log {
    out: Box<dyn Write>,
    journal: bool,
    verbose: bool,
    limiter: Limiter,
}

impl Log {
    /// Standard error. `verbose` lets [`LogLevel::Debug`] pass.
    pub(super) fn to_stderr(verbose: bool) -> Self {
        Self {
            out: Box::new(io::stderr()),
            journal: is_journal(&io::stderr()),
            verbose,
            limiter: Limiter::default(),
        }
    }

    /// To a test.
    #[cfg(test)]
    pub(super) fn to(out: Box<dyn Write>) -> Self {
        Self {
            out,
            journal: false,
            verbose: false,
            limiter: Limiter::default(),
        }
    }

    pub(super) fn write_line(&mut self, level: LogLevel, text: impl fmt::Display) {
        if level == LogLevel::Debug && !self.verbose {
            return;
        }
        let text = text.to_string();
        let text = text.replace(dmtrace_core::event::text::steers_terminal, " ");
        // Standard error may be closed, or its disk full; that must not end the trace.
        let _unheard = if self.journal {
            writeln!(self.out, "<{}>{text}", level as u8)
        } else {
            writeln!(self.out, "dmtrace: {}: {text}", level.level_word())
        };
    }

    /// Says something of which there may be very much.
    pub(super) fn say_often(&mut self, level: LogLevel, text: impl fmt::Display) {
        if level == LogLevel::Debug && !self.verbose {
            return;
        }
        let (pass, held) = self.limiter.let_pass(Instant::now());
        if held > 0 {
            self.write_line(
                LogLevel::Warning,
                format_args!(
                    "{} left out; dmtrace report has everything",
                    count_noun(held, "more line was", "more lines were")
                ),
            );
        }
        if pass {
            self.write_line(level, text);
        }
    }
}

/// Whether a stream is connected to the journal: systemd tells device and inode number of the
/// stream that it gave us (systemd.exec(5), `JOURNAL_STREAM`).
fn is_journal(stream: &impl AsRawFd) -> bool {
    let Ok(told) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let mut stat = std::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: the descriptor is open, and `stat` has the size of the structure.
    if unsafe { libc::fstat(stream.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: zeros are a valid stat, and the kernel has filled it.
    let stat = unsafe { stat.assume_init() };
    told == format!("{}:{}", stat.st_dev, stat.st_ino)
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use super::*;

    #[derive(Clone, Default)]
    struct KeptLines(Rc<RefCell<Vec<u8>>>);

    impl Write for KeptLines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn sample_log(journal: bool, verbose: bool) -> (Log, impl Fn() -> String) {
        let kept = KeptLines::default();
        let log = Log {
            out: Box::new(kept.clone()),
            journal,
            verbose,
            limiter: Limiter::default(),
        };
        let text = move || String::from_utf8(kept.0.borrow().clone()).unwrap();
        (log, text)
    }

    #[test]
    fn the_journal_gets_priorities_and_people_get_words() {
        let (mut log, text) = sample_log(true, false);
        log.write_line(LogLevel::Warning, "leaked");
        log.write_line(LogLevel::Debug, "a step");
        assert_eq!(text(), "<4>leaked\n");
        let (mut log, text) = sample_log(false, true);
        log.write_line(LogLevel::Error, "no disk");
        log.write_line(LogLevel::Debug, "a step");
        assert_eq!(text(), "dmtrace: error: no disk\ndmtrace: debug: a step\n");
    }

    #[test]
    fn a_name_with_line_breaks_stays_one_line() {
        let (mut log, text) = sample_log(true, false);
        log.write_line(LogLevel::Warning, "leaked by evil\n<0>panic\x1b[2J");
        assert_eq!(text(), "<4>leaked by evil <0>panic [2J\n");
    }

    #[test]
    fn a_flood_is_cut_and_counted() {
        let mut limiter = Limiter::default();
        let now = Instant::now();
        let passed = (0..1000).filter(|_| limiter.let_pass(now).0).count();
        assert_eq!(passed, LINES as usize);
        assert_eq!(limiter.let_pass(now + WINDOW), (true, 900));
        assert_eq!(limiter.let_pass(now + WINDOW), (true, 0));
    }
}
