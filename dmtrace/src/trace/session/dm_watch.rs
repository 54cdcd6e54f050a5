//! When to try to attach to device-mapper: after the kernel has announced its module, and not
//! again and again.

use std::{collections::VecDeque, future::pending, time::Duration};

use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, sleep, sleep_until},
};

use crate::host::module_news::ModuleWatch;

/// A module is announced before it can be attached to.
const ATTACH_DELAY: [Duration; 3] = [
    Duration::from_millis(20),
    Duration::from_millis(200),
    Duration::from_secs(1),
];
/// Where no announcements can be had.
const POLL_PERIOD: Duration = Duration::from_secs(1);

/// News of the module, and what is to be done about them.
pub(super) struct DmWatch {
    module_watch: Option<AsyncFd<ModuleWatch>>,
    tries: VecDeque<Instant>,
}

impl DmWatch {
    /// Listens. Must be called in a runtime.
    pub(super) fn open() -> Self {
        // SAFETY: the descriptor belongs to the socket inside, lives as long as it, and is the same
        // at every call.
        let register = |news| unsafe { AsyncFd::register_with_interest(news, Interest::READABLE) };
        let module_watch = ModuleWatch::listen("dm_mod")
            .ok()
            .and_then(|news| register(news).ok());
        Self {
            module_watch,
            tries: VecDeque::new(),
        }
    }

    /// Waits until it is time to look for the module, which may be never. `wanted`: it is missing,
    /// or may go unnoticed.
    pub(super) async fn wait_due(&mut self, wanted: bool) {
        if let Some(next) = self.tries.front().copied() {
            sleep_until(next).await;
            self.tries.pop_front();
            return;
        }
        let Some(news) = &self.module_watch else {
            return match wanted {
                true => sleep(POLL_PERIOD).await,
                false => pending().await,
            };
        };
        // Whatever fails here fails again at once: better no news than a busy loop.
        let Ok(mut ready) = news.readable().await else {
            return pending().await;
        };
        news.get_ref().take_announcements();
        ready.clear_ready();
        let now = Instant::now();
        self.tries.extend(ATTACH_DELAY.map(|after| now + after));
    }
}
