//! Removes proven leaks by itself, if it is told to: by `dmtrace clean`, with all its rules and its
//! audit record, in a process of its own.

use std::{
    path::PathBuf,
    process::{Output, Stdio},
    time::Duration,
};

use dmtrace_core::ids::IpcNs;
use serde_json::Value;
use tokio::{
    process::Command,
    sync::mpsc,
    time::{Instant, sleep_until},
};

use crate::{
    cleanup::result::{CleanResult, CleanedCookie, OutcomeKind},
    wording::{cause_text, count_noun},
};

/// Between two clean-ups at least.
const PAUSE: Duration = Duration::from_secs(60);
/// Between two while the same findings stand.
const AGAIN: Duration = Duration::from_secs(600);
/// Removed at once: a larger plan is left to a person who looks at it.
const MAX_REMOVED: &str = "100";
/// Ages of the kernel are whole seconds.
const GRACE: Duration = Duration::from_secs(2);

/// What came of a clean-up.
#[derive(Debug, Default)]
pub(super) struct CleanUp {
    /// What it has done, if it came to that.
    pub result: Option<CleanResult>,
    /// Why it did not end well.
    pub failure: Option<String>,
}

impl CleanUp {
    fn from_output(output: &Output) -> Self {
        let value: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        let result: Option<CleanResult> = value.and_then(|it| serde_json::from_value(it).ok());
        let good = matches!(output.status.code(), Some(0 | 1 | 4)) && result.is_some();
        let failure = (!good).then(|| match String::from_utf8_lossy(&output.stderr).trim() {
            "" if result.is_some() => "not everything that was planned was done".to_owned(),
            "" => format!("dmtrace clean: {}", output.status),
            text => text.to_owned(),
        });
        Self { result, failure }
    }

    /// How many came to such an end.
    pub(super) fn count_where(&self, wanted: impl Fn(OutcomeKind) -> bool) -> u64 {
        let result = self.result.as_ref();
        result.map_or(0, |result| result.count(wanted) as u64)
    }

    /// What the log says of it: what was done, and what went wrong.
    pub(super) fn log_lines(&self) -> (Vec<String>, Vec<String>) {
        let mut done = Vec::new();
        if let Some(result) = &self.result {
            done.extend(result.cookies.iter().map(cookie_line));
            done.push(if result.planned == 0 {
                "nothing to do".to_owned()
            } else {
                format!(
                    "{} of {} removed; audit record in {}",
                    result.count(OutcomeKind::is_removal),
                    count_noun(result.planned, "cookie", "cookies"),
                    result.audit.display()
                )
            });
        }
        let failure = self.failure.as_deref().unwrap_or_default().lines();
        let failure = failure.filter(|line| !line.trim().is_empty());
        (done, failure.map(str::to_owned).collect())
    }
}

/// What came of one cookie.
fn cookie_line(cookie: &CleanedCookie) -> String {
    let what = match cookie.outcome {
        OutcomeKind::RemovedInUse => "REMOVED WHILE IN USE",
        OutcomeKind::NotTried => "not tried",
        outcome if outcome.is_kept() => "kept",
        outcome => outcome.label(),
    };
    let ns = match cookie.ipc_ns {
        IpcNs::HOST => String::new(),
        ns => format!(" [{ns}]"),
    };
    let why = cookie.detail.as_ref().unwrap_or(&cookie.verdict.text);
    let owner = cookie.owner.as_ref().map_or_else(String::new, |owner| {
        format!("; left by {}[{}]", owner.name, owner.id.tgid)
    });
    format!(
        "{what} {} semid {}{ns}: {why}{owner}",
        cookie.key, cookie.semid
    )
}

/// Cleans up when leaks stand long enough.
pub(super) struct Janitor {
    /// Untouched for so long; `None`: never.
    age: Option<Duration>,
    audit: Option<PathBuf>,
    next: Option<Instant>,
    last: Option<Instant>,
    /// Leaks that stood at the last look.
    leaks: usize,
    send: mpsc::Sender<CleanUp>,
    said: mpsc::Receiver<CleanUp>,
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
    pub(super) fn survey_done(&mut self, leaks: usize, now: Instant) {
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

    /// Waits until it is time, or until a clean-up is over: what came of it.
    pub(super) async fn next_event(&mut self) -> Option<CleanUp> {
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
    pub(super) fn start_clean(&mut self, now: Instant) {
        self.last = Some(now);
        self.next = None;
        let (Some(age), Ok(send)) = (self.age, self.send.clone().try_reserve_owned()) else {
            return;
        };
        let age = format!("{}ms", age.as_millis());
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["clean", "--json", "--apply", "--yes", "--max", MAX_REMOVED])
            .args(["--older-than", &age])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if let Some(audit) = &self.audit {
            command.arg("--audit").arg(audit);
        }
        tokio::spawn(async move {
            let said = command.output().await;
            send.send(match said {
                Ok(output) => CleanUp::from_output(&output),
                Err(error) => CleanUp {
                    result: None,
                    failure: Some(cause_text(&error)),
                },
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use dmtrace_core::cleanup::plan::VerdictSummary;

    use super::*;
    use crate::{cleanup::result::KIND, output::json::json_envelope};

    const AGE: Duration = Duration::from_secs(300);

    #[test]
    fn nothing_is_cleaned_unless_it_is_wanted() {
        let mut janitor = Janitor::new(None, None);
        janitor.survey_done(5, Instant::now());
        assert_eq!(janitor.next, None);
    }

    #[test]
    fn leaks_are_left_alone_for_a_time_and_clean_ups_are_rare() {
        let now = Instant::now();
        let mut janitor = Janitor::new(Some(AGE), None);
        janitor.survey_done(1, now);
        let due = now + AGE + GRACE;
        assert_eq!(janitor.next, Some(due));
        // More of them do not put it off.
        janitor.survey_done(2, now + AGE);
        assert_eq!(janitor.next, Some(due));
        janitor.last = Some(due);
        janitor.next = None;
        // What it could not remove is tried again much later.
        janitor.survey_done(2, due);
        assert_eq!(janitor.next, Some(due + AGAIN));
        janitor.survey_done(0, due);
        assert_eq!(janitor.next, None);
    }

    #[test]
    fn a_flood_of_leaks_does_not_make_a_flood_of_clean_ups() {
        let now = Instant::now();
        let mut janitor = Janitor::new(Some(Duration::ZERO), None);
        janitor.last = Some(now);
        janitor.survey_done(1, now);
        assert_eq!(janitor.next, Some(now + PAUSE));
    }

    #[test]
    fn a_clean_up_is_read_as_it_is_printed() {
        use std::os::unix::process::ExitStatusExt as _;
        let output = |code: i32, stdout: &str, stderr: &str| Output {
            status: std::process::ExitStatus::from_raw(code << 8),
            stdout: stdout.as_bytes().to_vec(),
            stderr: stderr.as_bytes().to_vec(),
        };
        let cookie = |semid, outcome, detail: Option<&str>| CleanedCookie {
            ipc_ns: IpcNs::HOST,
            semid,
            key: format!("{:#010x}", 0x0d4d_0000 + semid),
            outcome,
            detail: detail.map(str::to_owned),
            owner: None,
            verdict: VerdictSummary {
                class: "leaked".to_owned(),
                text: "leaked: owner gone".to_owned(),
                brief: String::new(),
                observed: true,
                evidence: Vec::new(),
            },
        };
        let result = CleanResult {
            complete: true,
            planned: 2,
            audit: "/a".into(),
            cookies: vec![
                cookie(1, OutcomeKind::Removed, None),
                cookie(2, OutcomeKind::InUse, Some("somebody uses it now")),
            ],
            ..CleanResult::default()
        };
        let text = json_envelope(KIND, &result).to_string();
        let clean_up = CleanUp::from_output(&output(0, &text, "dmtrace: a note\n"));
        assert_eq!(clean_up.result.as_ref(), Some(&result));
        let (done, failed) = clean_up.log_lines();
        assert_eq!(
            done,
            [
                "removed 0x0d4d0001 semid 1: leaked: owner gone",
                "kept 0x0d4d0002 semid 2: somebody uses it now",
                "1 of 2 cookies removed; audit record in /a",
            ]
        );
        assert!(failed.is_empty());
        // What was done in part is counted, and the rest is a failure.
        let partly = CleanUp::from_output(&output(5, &text, "dmtrace: the disk is full\n"));
        assert_eq!(partly.count_where(OutcomeKind::is_removal), 1);
        assert_eq!(partly.log_lines().1, ["dmtrace: the disk is full"]);
        for (code, stdout) in [(3, ""), (0, ""), (0, "removed 0x0d4d0001 semid 1")] {
            let failed = CleanUp::from_output(&output(code, stdout, ""));
            assert!(failed.result.is_none() && failed.failure.is_some());
        }
    }
}
