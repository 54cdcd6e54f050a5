//! What systemd is told (sd_notify(3)). Without systemd nothing is sent.

use std::{process::Stdio, time::Duration};

use sd_notify::NotifyState;
use tokio::{
    process::Command,
    time::{Instant, sleep, sleep_until, timeout},
};

/// For an answer of systemd, which on a busy host takes seconds. It gives a service 90 s to end
/// (`DefaultTimeoutStopSec=`).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Between a question that failed and the next.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The watchdog of the unit, if it has one.
pub(super) struct Watchdog {
    period: Option<Duration>,
    next: Instant,
}

impl Watchdog {
    /// As the unit says.
    pub(super) fn of_unit() -> Self {
        // Twice in the time after which systemd would lose its patience.
        let period = sd_notify::watchdog_enabled().map(|limit| limit / 2);
        Self {
            period,
            next: Instant::now() + period.unwrap_or_default(),
        }
    }

    /// Waits until a sign of life is due; for ever without a watchdog.
    pub(super) async fn wait_due(&self) {
        match self.period {
            Some(_) => sleep_until(self.next).await,
            None => std::future::pending().await,
        }
    }

    pub(super) fn notify_alive(&mut self) {
        notify_systemd(&[NotifyState::Watchdog]);
        self.next = Instant::now() + self.period.unwrap_or_default();
    }
}

pub(super) fn notify_ready(status: &str) {
    notify_systemd(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The line that `systemctl status` shows.
pub(super) fn notify_status(text: &str) {
    notify_systemd(&[NotifyState::Status(text)]);
}

/// The end has begun.
pub(super) fn notify_stopping() {
    notify_systemd(&[NotifyState::Stopping]);
}

/// Whether systemd ends this service in order to start it again at once (`systemctl restart`): its
/// job on the unit says so. The signal is the same as for an end for good. `None` if systemd does
/// not answer in time.
pub(super) async fn will_restart() -> Option<bool> {
    if std::env::var_os("INVOCATION_ID").is_none() {
        return Some(false);
    }
    let Some(unit) = unit_name() else {
        return Some(false);
    };
    let question = ["list-jobs", "--no-legend", "--plain", "--full", &unit];
    let jobs = timeout(ANSWER_TIMEOUT, ask_until_answered("systemctl", &question)).await;
    Some(is_restart(&jobs.ok()??, &unit))
}

/// What a program prints when it succeeds; asked again for as long as it fails. A first one may not
/// live to answer: systemd sends the signal of a stop to the service, and then to whatever it finds
/// in its control group, which is this program, too, if the service was quick to start it. `None` if it
/// cannot be started.
async fn ask_until_answered(program: &str, args: &[&str]) -> Option<String> {
    loop {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.ok()?;
        if output.status.success() {
            return Some(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        sleep(RETRY_PAUSE).await;
    }
}

/// Name of the unit that this process belongs to.
fn unit_name() -> Option<String> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut units = groups.lines().filter_map(|line| {
        let (_, name) = line.rsplit_once('/')?;
        name.ends_with(".service").then(|| name.to_owned())
    });
    units.next()
}

/// Whether this is a list with a restart of the unit: number, unit, type, state.
fn is_restart(jobs: &str, unit: &str) -> bool {
    jobs.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (name, kind) = (words.next(), words.next());
        name == Some(unit) && kind.is_some_and(|kind| kind.ends_with("restart"))
    })
}

fn notify_systemd(states: &[NotifyState<'_>]) {
    // systemd that does not listen is its own problem; the watchdog will tell.
    let _unheard = sd_notify::notify(states);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_told_from_a_stop() {
        let unit = "dmtrace.service";
        assert!(is_restart("123 dmtrace.service restart running\n", unit));
        assert!(!is_restart("123 dmtrace.service stop running\n", unit));
        assert!(!is_restart("9 other.service restart waiting\n", unit));
        assert!(!is_restart("No jobs running.\n", unit));
        assert!(!is_restart("", unit));
    }

    #[tokio::test]
    async fn a_question_that_was_killed_is_asked_again() {
        let asked = tempfile::tempdir().expect("a directory");
        let script = format!(
            "cd {}; for fault in killed failed; do [ -e $fault ] && continue; : > $fault; \
             [ $fault = failed ] && exit 1; kill -TERM $$; done; echo answered",
            asked.path().display()
        );
        let answer = ask_until_answered("sh", &["-c", &script]).await;
        assert_eq!(answer.as_deref(), Some("answered\n"));
        assert_eq!(ask_until_answered("/no/such/program", &[]).await, None);
    }
}
