//! What a filter looks at.

use std::time::Duration;

#[cfg(feature = "live")]
use dmtrace_core::ledger::{Change, Ledger};
use dmtrace_core::{
    ids::{IpcNs, Key},
    ledger::{Device, Process},
    verdict::State,
};

#[cfg(feature = "live")]
use crate::render::row::devices;
use crate::{
    history::StoredFinding,
    render::{leak_end::is_removal, row::Row},
};

/// What filters look at. `None`: it is not known, or there is no such thing.
#[derive(Clone, Debug, Default)]
pub struct Candidate<'a> {
    pub pid: Option<u32>,
    /// Its name; empty if it is not known.
    pub comm: &'a str,
    /// Its real uid, or the set's creator's.
    pub uid: Option<u32>,
    /// Its cgroup; empty if it is not known.
    pub cgroup: &'a str,
    pub ns: Option<IpcNs>,
    pub key: Option<Key>,
    pub semid: Option<i32>,
    pub state: Option<State>,
    /// Another state that it is in as well: a leak that a history has kept, and that was removed
    /// since, is `leaked`, as it was found, and `cleaned-up`.
    pub later_state: Option<State>,
    pub age: Option<Duration>,
    /// Devices that it was used for.
    pub devices: &'a [Device],
}

impl Row<'_> {
    /// What the filters look at.
    pub(crate) fn candidate(&self) -> Candidate<'_> {
        Candidate {
            pid: self.pid(),
            comm: self.comm(),
            uid: self
                .image
                .map(|image| image.uid)
                .or_else(|| self.set.map(|set| set.cuid)),
            cgroup: self.image.map_or("", |image| image.cgroup.as_str()),
            ns: Some(self.semaphore.id.ns),
            key: Some(self.semaphore.key),
            semid: Some(self.semaphore.id.semid),
            state: self.filter_state(),
            later_state: None,
            age: self.age,
            devices: self.devices(),
        }
    }
}

impl Row<'_> {
    /// Only cookies are judged; what no cookie can be is ordinary without that.
    fn filter_state(&self) -> Option<State> {
        match &self.verdict {
            Some(verdict) => Some(verdict.class.state()),
            None => (!self.semaphore.key.has_cookie_magic()).then_some(State::Ordinary),
        }
    }
}

impl<'a> Candidate<'a> {
    /// A finding of a history.
    pub(crate) fn from_stored(finding: &'a StoredFinding) -> Self {
        let cookie = &finding.story.cookie;
        let owner = cookie.owner.as_ref();
        let image = cookie.image();
        let fields = cookie.fields.as_ref();
        let state = State::from_name(&finding.state);
        let gone = finding.gone.as_ref();
        let removed = gone.is_some_and(|gone| is_removal(gone.how));
        Self {
            pid: owner.map(|owner| owner.pid),
            comm: owner.map_or("", |owner| owner.comm.as_str()),
            uid: image
                .map(|image| image.uid)
                .or_else(|| fields.and_then(|fields| fields.cuid)),
            cgroup: image.map_or("", |image| image.cgroup.as_str()),
            ns: Some(finding.sem.ns),
            key: Some(finding.key),
            semid: Some(finding.sem.semid),
            state,
            later_state: (state == Some(State::Leaked) && removed).then_some(State::CleanedUp),
            age: cookie.age_seconds.map(Duration::from_secs),
            devices: cookie.devices(),
        }
    }

    /// A process that got no semaphore. It has no key, semid, state, age or device.
    pub fn from_process(process: &'a Process) -> Self {
        let image = process.image.as_deref();
        Self {
            pid: Some(process.image_id.id.tgid),
            comm: process.name.as_str(),
            uid: image.map(|image| image.uid),
            cgroup: image.map_or("", |image| image.cgroup.as_str()),
            ns: image.map(|image| image.ipc_ns),
            ..Self::default()
        }
    }
}

#[cfg(feature = "live")]
impl<'a> Candidate<'a> {
    /// A step in the life of a set. It is in no state: only findings are.
    pub fn from_change(change: &Change, ledger: &'a Ledger) -> Self {
        let semaphore = ledger
            .semaphore(change.sem)
            .or_else(|| ledger.closed_cookie(change.sem));
        // Who failed to make one, or made one that is gone already, stands for its creator. Who
        // only uses a set of an unknown creator has not made it.
        let creator = match semaphore {
            Some(set) => set.creator.image(),
            None => change.who.as_ref().map(|who| who.image),
        };
        let process = creator.and_then(|image| ledger.process(image));
        let image = process.and_then(|process| process.image.as_deref());
        Self {
            pid: creator.map(|image| image.id.tgid),
            comm: process.map_or("", |process| process.name.as_str()),
            uid: image.map(|image| image.uid),
            cgroup: image.map_or("", |image| image.cgroup.as_str()),
            ns: Some(change.sem.ns),
            key: Some(change.key),
            semid: Some(change.sem.semid),
            state: None,
            later_state: None,
            age: semaphore.and_then(|set| Some(change.at.duration_since(set.created?))),
            devices: semaphore.map_or(&[], devices),
        }
    }
}
