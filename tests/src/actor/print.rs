//! What the actor says of its steps.

use std::{
    fmt::Write as _,
    io,
    sync::atomic::{AtomicBool, Ordering},
};

use super::MadeCookie;

/// What is printed.
static PRINTING: AtomicBool = AtomicBool::new(true);

/// From now on only failures are printed, and without numbers: whoever reads them would have those.
pub fn hide_numbers() {
    PRINTING.store(false, Ordering::Relaxed);
}

/// Prints one JSON line with one `write`, so that lines of several processes do not mix.
pub fn print_step(step: &str, cookie: Option<MadeCookie>, more: &[(&str, i64)]) {
    if PRINTING.load(Ordering::Relaxed) {
        print_line(step, cookie, more);
    }
}

fn print_line(step: &str, cookie: Option<MadeCookie>, more: &[(&str, i64)]) {
    let mut line = format!("{{\"step\":\"{step}\",\"pid\":{}", std::process::id());
    if let Some(cookie) = cookie {
        let _ = write!(line, ",\"key\":{},\"semid\":{}", cookie.key, cookie.semid);
    }
    for (name, value) in more {
        let _ = write!(line, ",\"{name}\":{value}");
    }
    line.push_str("}\n");
    // SAFETY: the buffer lives across the call. A reader that has gone is no concern of ours.
    unsafe { libc::write(1, line.as_ptr().cast(), line.len()) };
}

/// Prints a step that ended with an error.
pub fn print_failure(step: &str, cookie: MadeCookie, error: &io::Error) {
    let errno = error.raw_os_error().unwrap_or(0);
    let cookie = PRINTING.load(Ordering::Relaxed).then_some(cookie);
    print_line(step, cookie, &[("errno", errno.into())]);
}
