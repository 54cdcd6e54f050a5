//! What systemd is told (sd_notify(3)). Without systemd nothing is sent.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, sleep_until};

/// The watchdog of the unit, if it has one.
pub struct Watchdog {
    period: Option<Duration>,
    next: Instant,
}

impl Watchdog {
    /// As the unit says.
    pub fn of_unit() -> Self {
        // Twice in the time after which systemd would lose its patience.
        let period = sd_notify::watchdog_enabled().map(|limit| limit / 2);
        Self {
            period,
            next: Instant::now() + period.unwrap_or_default(),
        }
    }

    /// Waits until a sign of life is due; for ever without a watchdog.
    pub async fn due(&self) {
        match self.period {
            Some(_) => sleep_until(self.next).await,
            None => std::future::pending().await,
        }
    }

    /// Gives it.
    pub fn alive(&mut self) {
        tell(&[NotifyState::Watchdog]);
        self.next = Instant::now() + self.period.unwrap_or_default();
    }
}

/// Tracing has begun.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The line that `systemctl status` shows.
pub fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// The end has begun.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(states: &[NotifyState<'_>]) {
    // systemd that does not listen is its own problem; the watchdog will tell.
    let _unheard = sd_notify::notify(states);
}
