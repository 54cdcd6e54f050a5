//! Removes proven leaks by itself, if it is told to: by `dmtrace clean`, with all its rules and its
//! audit record, in a process of its own.

use std::{path::PathBuf, process::Stdio, time::Duration};

use crate::wording::cause_text;
use tokio::{
    process::Command,
    sync::mpsc,
    time::{Instant, sleep_until},
};

/// Between two clean-ups at least.
const PAUSE: Duration = Duration::from_secs(60);
/// Between two while the same findings stand.
const AGAIN: Duration = Duration::from_secs(600);
/// Ages of the kernel are whole seconds.
const GRACE: Duration = Duration::from_secs(2);

/// Cleans up when leaks stand long enough.
pub(super) struct Janitor {
    /// Untouched for so long; `None`: never.
    age: Option<Duration>,
    audit: Option<PathBuf>,
    next: Option<Instant>,
    last: Option<Instant>,
    /// Leaks that stood at the last look.
    leaks: usize,
    send: mpsc::Sender<Result<String, String>>,
    said: mpsc::Receiver<Result<String, String>>,
}

impl Janitor {
    /// `age`: how long leaks must have been left alone; `None` never cleans.
    pub(super) fn new(age: Option<Duration>, audit: Option<PathBuf>) -> Self {
        let (send, said) = mpsc::channel(1);
        Self {
            age,
            audit,
            next: None,
            last: None,
            leaks: 0,
            send,
            said,
        }
    }

    /// So many leaks stand now.
    pub(super) fn looked(&mut self, leaks: usize, now: Instant) {
        let Some(age) = self.age else {
            return;
        };
        if leaks == 0 {
            self.next = None;
        } else if leaks > self.leaks || self.next.is_none() {
            let wait = if leaks > self.leaks {
                age + GRACE
            } else {
                AGAIN
            };
            let due = now + wait;
            let earliest = self.last.map_or(due, |last| due.max(last + PAUSE));
            self.next = Some(self.next.map_or(earliest, |next| next.min(earliest)));
        }
        self.leaks = leaks;
    }

    /// Waits until it is time, or until a clean-up is over: its words, or why there was none.
    pub(super) async fn due(&mut self) -> Option<Result<String, String>> {
        let next = self.next;
        tokio::select! {
            said = self.said.recv() => said,
            () = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            } => None,
        }
    }

    /// Cleans up, beside everything else.
    pub(super) fn clean(&mut self, now: Instant) {
        self.last = Some(now);
        self.next = None;
        let (Some(age), Ok(send)) = (self.age, self.send.clone().try_reserve_owned()) else {
            return;
        };
        let age = format!("{}ms", age.as_millis());
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["clean", "--apply", "--yes", "--older-than", &age])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if let Some(audit) = &self.audit {
            command.arg("--audit").arg(audit);
        }
        tokio::spawn(async move {
            let said = command.output().await;
            send.send(match said {
                Ok(output) => {
                    let lines = if matches!(output.status.code(), Some(0 | 1 | 4)) {
                        Ok(output.stdout)
                    } else {
                        Err([output.stdout, output.stderr].concat())
                    };
                    let text = |bytes: Vec<u8>| {
                        let text = String::from_utf8_lossy(&bytes);
                        text.trim_end().to_owned()
                    };
                    lines.map(text).map_err(text)
                }
                Err(error) => Err(cause_text(&error)),
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: Duration = Duration::from_secs(300);

    #[test]
    fn nothing_is_cleaned_unless_it_is_wanted() {
        let mut janitor = Janitor::new(None, None);
        janitor.looked(5, Instant::now());
        assert_eq!(janitor.next, None);
    }

    #[test]
    fn leaks_are_left_alone_for_a_time_and_clean_ups_are_rare() {
        let now = Instant::now();
        let mut janitor = Janitor::new(Some(AGE), None);
        janitor.looked(1, now);
        let due = now + AGE + GRACE;
        assert_eq!(janitor.next, Some(due));
        // More of them do not put it off.
        janitor.looked(2, now + AGE);
        assert_eq!(janitor.next, Some(due));
        janitor.last = Some(due);
        janitor.next = None;
        // What it could not remove is tried again much later.
        janitor.looked(2, due);
        assert_eq!(janitor.next, Some(due + AGAIN));
        janitor.looked(0, due);
        assert_eq!(janitor.next, None);
    }

    #[test]
    fn a_flood_of_leaks_does_not_make_a_flood_of_clean_ups() {
        let now = Instant::now();
        let mut janitor = Janitor::new(Some(Duration::ZERO), None);
        janitor.last = Some(now);
        janitor.looked(1, now);
        assert_eq!(janitor.next, Some(now + PAUSE));
    }
}
