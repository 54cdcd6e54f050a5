//! What systemd is told (sd_notify(3)). Without systemd nothing is sent.

use std::{process::Stdio, time::Duration};

use sd_notify::NotifyState;
use tokio::{
    process::Command,
    time::{Instant, sleep_until, timeout},
};

/// For an answer of systemd, which on a busy host takes seconds. It gives a service 90 s to end
/// (`DefaultTimeoutStopSec=`).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

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
    let mut command = Command::new("systemctl");
    command
        .args(["list-jobs", "--no-legend", "--plain", "--full", &unit])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    match timeout(ANSWER_TIMEOUT, command.output()).await {
        Ok(Ok(output)) => Some(is_restart(&String::from_utf8_lossy(&output.stdout), &unit)),
        _ => None,
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
}
