//! Reads the witnesses that remain on a host of those who made cookies before any trace: process
//! accounting, the audit, the journal, syslog, the kernel's log, logs of package managers, cron and timers.
//!
//! Each is optional, is read for the seconds that matter only, and is bounded in bytes and time; where
//! one could not be read, [`Witnesses::unread`] says why. Nothing is opened that is no regular file,
//! but the kernel's log, which never waits. All text is of others: it is cut, and what steers a
//! terminal is made visible, before it goes any further. What it means is weighed in
//! [`dmtrace_core::witness`].

mod accounting;
mod audit;
mod command;
mod journal;
mod kernel_log;
mod options;
mod packages;
mod schedules;
mod syslog;
#[cfg(test)]
mod tests;
mod text_file;
mod windows;

use std::{collections::BTreeSet, time::Instant};

use dmtrace_core::{
    facts::{HostFacts, Snapshot},
    witness::{
        CookieMoment, Inquiry, LocalMoment, Schedule, Testimony, TimePattern, fitting_schedules,
    },
};
pub use journal::{Journal, SystemJournal};
pub use options::Limits;
use serde::{Deserialize, Serialize};

pub use crate::output::zone::Zone;
use crate::{host::Roots, witness::windows::Windows};

/// A witness that could not be heard.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Unread {
    /// Which.
    pub what: String,
    /// Why not.
    pub why: String,
}

/// Everything that was found.
#[derive(Clone, Debug, Default)]
pub struct Witnesses {
    /// What is said of processes, in no order.
    pub testimonies: Vec<Testimony>,
    /// Packages that were changed shortly before the first cookie, oldest first.
    pub updates: Vec<Testimony>,
    /// When the cookies were made.
    pub pattern: TimePattern,
    /// Entries of cron and timers that start just then.
    pub schedules: Vec<Schedule>,
    /// Who could not be heard.
    pub unread: Vec<Unread>,
}

/// Hears all witnesses of the host about these cookies.
pub fn call_witnesses(moments: &[CookieMoment], roots: &Roots, limits: &Limits) -> Witnesses {
    call_with(moments, roots, limits, &SystemJournal::new(roots))
}

/// The same with another journal, for tests.
fn call_with(
    moments: &[CookieMoment],
    roots: &Roots,
    limits: &Limits,
    journal: &dyn Journal,
) -> Witnesses {
    let mut found = Witnesses::default();
    let windows = Windows::around(moments);
    if windows.is_empty() {
        return found;
    }
    let deadline = Instant::now() + limits.total_time;
    let pids: BTreeSet<u32> = moments
        .iter()
        .map(|it| it.last_pid)
        .filter(|&pid| pid != 0)
        .collect();
    let mut hearing = Hearing {
        roots,
        limits,
        windows: &windows,
        pids: &pids,
        deadline,
        found: &mut found,
    };
    // The surest first: there is a limit to what is kept.
    audit::read(&mut hearing);
    accounting::read(&mut hearing);
    journal::read(&mut hearing, journal);
    syslog::read(&mut hearing);
    kernel_log::read(&mut hearing);
    packages::read(&mut hearing);
    let local: Vec<LocalMoment> = moments.iter().map(|it| limits.local(it.ctime)).collect();
    found.pattern = TimePattern::find(&local);
    if found.pattern.rhythm.is_some() {
        let all = schedules::read(roots);
        let fitting = fitting_schedules(&found.pattern, &all);
        found.schedules = fitting.into_iter().cloned().collect();
        schedules::look_inside(roots, &mut found.schedules);
    }
    found
}

/// The cookies of a snapshot, as far as they look like some.
pub fn moments_of(snapshot: &Snapshot) -> Vec<CookieMoment> {
    snapshot
        .sets()
        .filter(|(_, set)| set.looks_like_cookie())
        .map(|(sem, set)| CookieMoment {
            sem,
            key: set.key,
            ctime: set.ctime,
            otime: set.otime,
            value: set.first.map(|it| it.value),
            last_pid: set.first.map_or(0, |it| it.pid),
        })
        .collect()
}

impl Witnesses {
    /// Puts together what is said, to weigh it.
    pub fn inquire<'a>(&'a self, facts: &'a HostFacts) -> Inquiry<'a> {
        Inquiry::new(&self.testimonies, facts)
    }
}

/// What all readers need, and where they put what they find.
struct Hearing<'a> {
    roots: &'a Roots,
    limits: &'a Limits,
    windows: &'a Windows,
    /// Last operators.
    pids: &'a BTreeSet<u32>,
    deadline: Instant,
    found: &'a mut Witnesses,
}

impl Hearing<'_> {
    fn is_late(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Adds what somebody says; not if there is too much of it already.
    fn add(&mut self, testimony: Testimony) {
        if self.found.testimonies.len() >= self.limits.testimonies {
            let what = testimony.witness.to_string();
            return self.cannot_read(&what, "there is more of that time than is kept");
        }
        self.found.testimonies.push(testimony);
    }

    fn cannot_read(&mut self, what: &str, why: impl Into<String>) {
        let unread = Unread {
            what: what.to_owned(),
            why: why.into(),
        };
        if !self.found.unread.contains(&unread) {
            self.found.unread.push(unread);
        }
    }
}
