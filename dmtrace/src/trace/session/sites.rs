//! Call sites of a running trace: from the worker into the books, to the recording, and to other
//! processes.

use std::{
    io,
    time::{Duration, Instant},
};

use dmtrace_common::SITE_LEN;
use dmtrace_core::{
    event::{CallSite, ProcessImage},
    ids::SemId,
    ledger::SitePlacement,
};

use super::{Session, TappedInput};
use crate::{
    probe::{Maps, StartError, Tracer},
    stack::{FoundSite, Worker},
    wording::cause_text,
};

/// How long a call site waits for its set: the message of its creation may have been dropped.
const MAX_SITE_WAIT: Duration = Duration::from_secs(10);
/// Call sites that wait.
const MAX_WAITING_SITES: usize = 4096;
/// How often those are tried again that wait, if they are more than a few.
const RETRY_PERIOD: Duration = Duration::from_millis(20);
const FEW: usize = 64;

/// The worker, and what has no place in the books yet.
pub(super) struct SiteWorker {
    worker: Worker,
    waiting: Vec<(Instant, FoundSite)>,
    /// When all that wait were tried last.
    tried: Instant,
}

impl SiteWorker {
    /// `names`: resolve at once, for a recording.
    pub(super) fn start(
        tracer: &mut Tracer,
        names: bool,
        kept: Option<Duration>,
    ) -> Result<Option<Self>, StartError> {
        let Some(ring) = tracer.take_stacks() else {
            return Ok(None);
        };
        let other = |error: io::Error| {
            StartError::Other(format!("cannot take stacks: {}", cause_text(&error)))
        };
        // Its own handles: the worker is another thread.
        let maps = Maps::open(tracer.map_ids()).ok();
        let programs = move |key| {
            let record = maps.as_ref()?.proc_record(key)?;
            ProcessImage::from_record(&record).exe
        };
        let worker = Worker::start(ring, Box::new(programs), names, kept).map_err(other)?;
        Ok(Some(Self {
            worker,
            waiting: Vec::new(),
            tried: Instant::now(),
        }))
    }

    pub(super) async fn wait_sites(&self) {
        self.worker.wait_sites().await;
    }

    /// Works off everything, at the end.
    pub(super) fn finish_work(&mut self) {
        self.worker.finish();
        self.tried = self.tried.checked_sub(RETRY_PERIOD).unwrap_or(self.tried);
    }

    pub(super) fn received_count(&self) -> u64 {
        self.worker.received_count()
    }
}

impl Session {
    /// Enters what the worker has found. Tells whether there was any.
    pub(crate) fn place_sites(&mut self) -> bool {
        let Some(sites) = &mut self.sites else {
            return false;
        };
        let news = sites.worker.take_sites();
        let any = !news.is_empty();
        let now = Instant::now();
        let all = sites.waiting.len() <= FEW || now.duration_since(sites.tried) >= RETRY_PERIOD;
        let mut open = if all {
            sites.tried = now;
            std::mem::take(&mut sites.waiting)
        } else {
            Vec::new()
        };
        open.extend(news.into_iter().map(|found| (now, found)));
        open.retain(|(since, found)| {
            let placed = self.ledger.place_call_site(
                found.sem,
                found.key,
                found.at,
                found.maker,
                &found.site,
            );
            if placed == SitePlacement::Yes {
                self.publish_site(found);
            }
            placed == SitePlacement::NotYet && now.duration_since(*since) < MAX_SITE_WAIT
        });
        if let Some(sites) = &mut self.sites {
            let waiting = &mut sites.waiting;
            waiting.append(&mut open);
            let surplus = waiting.len().saturating_sub(MAX_WAITING_SITES);
            waiting.drain(..surplus);
        }
        any
    }

    fn publish_site(&mut self, found: &FoundSite) {
        self.tap_input(TappedInput::Site(found));
        let live = self.ledger.semaphore(found.sem);
        if let Some(created) = live.and_then(|set| set.created)
            && let Some(json) = json_fitting(&found.site)
        {
            let maps = self.tracer.maps_mut();
            let _only_here = maps.put_site(found.sem.into(), created.0, &json);
        }
    }

    /// A set is gone.
    pub(super) fn forget_site(&mut self, sem: SemId) {
        if self.sites.is_some() {
            self.tracer.maps_mut().remove_site(sem.into());
        }
    }
}

/// As JSON, shortened at the outer end until it fits.
fn json_fitting(site: &CallSite) -> Option<Vec<u8>> {
    let mut site = site.clone();
    // The names of functions can be found again.
    for frame in &mut site.frames {
        frame.symbols.clear();
    }
    loop {
        let json = serde_json::to_vec(&site).ok()?;
        if json.len() <= SITE_LEN {
            return Some(json);
        }
        let fewer = site.frames.len().checked_sub(4).filter(|left| *left > 0)?;
        site.truncate(fewer);
    }
}
