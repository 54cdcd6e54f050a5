//! Lines that were logged when a cookie was made or last touched, as far as they can be about it.
//!
//! A log has much that is nobody's business here: passwords on command lines, what other tenants do.
//! Only lines of suspects and of the last operator are shown, what the kernel says of processes that it
//! killed and of device-mapper, and what udev says.

use serde::{Deserialize, Serialize};

use super::{
    Answer, Author, CookieMoment, Inquiry, Testimony, When, Who, Witness,
    clock::{SLACK, Span},
    programs::is_udev,
};
use crate::ids::{BootTime, UnixTime};

/// So many lines are shown; each is no longer than [`MAX_LINE`](super::MAX_LINE).
pub const MAX_CONTEXT_LINES: usize = 12;

/// A line of a log, or a record in words.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ContextLine {
    /// The second of the wall clock that it is marked with, if any.
    pub stamp: Option<UnixTime>,
    /// When that was, as exactly as is known.
    pub since_boot: BootTime,
    /// Who has it.
    pub witness: Witness,
    /// Where: a path, or `journal`.
    pub source: String,
    /// What it says.
    pub line: String,
}

/// Whom a line is about; the first ones are kept where there are too many.
#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
enum Topic {
    Suspect,
    Operator,
    KilledByKernel,
    DeviceMapper,
}

impl Inquiry<'_> {
    /// What was logged within two seconds of the moments of a cookie and can be about it, oldest
    /// first, and how many such lines were left out.
    pub fn find_context(
        &self,
        moment: &CookieMoment,
        answer: &Answer,
    ) -> (Vec<ContextLine>, usize) {
        let moments: Vec<Span> = [moment.ctime, moment.otime]
            .into_iter()
            .filter(|stamp| stamp.0 != 0)
            .map(|stamp| self.timeline.locate(stamp))
            .collect();
        let is_then = |at: Span| {
            let near = |it: &Span| at.from <= it.to + SLACK && at.to >= it.from - SLACK;
            moments.iter().any(near)
        };
        let mut found: Vec<(Topic, i64, &Testimony)> = Vec::new();
        for testimony in self.testimonies {
            let Some(topic) = topic_of(testimony, moment, answer) else {
                continue;
            };
            let (begun, ended) = self.timeline.place(testimony);
            if is_then(begun) || is_then(ended) {
                found.push((topic, ended.from, testimony));
            }
        }
        // Of the same line in several logs the first one is enough.
        found.sort_by_key(|(topic, at, it)| (*topic, *at, it.witness));
        let mut kept: Vec<(Topic, i64, &Testimony)> = Vec::new();
        for entry in found {
            let known = kept.iter().any(|it| is_same(it, &entry));
            if !known {
                kept.push(entry);
            }
        }
        let left_out = kept.len().saturating_sub(MAX_CONTEXT_LINES);
        kept.truncate(MAX_CONTEXT_LINES);
        kept.sort_by_key(|(_, at, it)| (*at, it.witness));
        let lines = kept.into_iter().map(|(_, at, it)| ContextLine {
            stamp: match it.when {
                When::Second { at } | When::Life { ended: at, .. } => Some(at),
                When::SinceBoot { .. } => None,
            },
            since_boot: BootTime(at.max(0).unsigned_abs()),
            witness: it.witness,
            source: it.source.clone(),
            line: it.line.clone(),
        });
        (lines.collect(), left_out)
    }
}

/// Whom it is about; `None` for what is nobody's business.
fn topic_of(testimony: &Testimony, moment: &CookieMoment, answer: &Answer) -> Option<Topic> {
    if answer.suspects().any(|it| is_of(testimony, &it.who)) {
        return Some(Topic::Suspect);
    }
    if moment.last_pid != 0 && testimony.pid == Some(moment.last_pid) {
        return Some(Topic::Operator);
    }
    if testimony.author == Author::Kernel {
        return Some(match testimony.tells_kill() {
            true => Topic::KilledByKernel,
            false => Topic::DeviceMapper,
        });
    }
    let of_udev = testimony.name.as_deref().is_some_and(is_udev)
        || testimony
            .unit
            .as_deref()
            .is_some_and(|it| it.starts_with("systemd-udevd"));
    of_udev.then_some(Topic::DeviceMapper)
}

/// Whether it is of this process, or of its unit as a whole.
fn is_of(testimony: &Testimony, who: &Who) -> bool {
    match testimony.pid {
        Some(pid) => who.pid == Some(pid),
        None => testimony.unit.is_some() && testimony.unit == who.unit,
    }
}

/// Whether two are one line: a log repeats what another has, with its own name before it.
fn is_same(one: &(Topic, i64, &Testimony), other: &(Topic, i64, &Testimony)) -> bool {
    let text = |it: &str| it.trim_end_matches('…').to_owned();
    let (a, b) = (text(&one.2.line), text(&other.2.line));
    one.2.witness != other.2.witness
        && one.1.abs_diff(other.1) <= SLACK.unsigned_abs()
        && (a.ends_with(&b) || b.ends_with(&a))
}
