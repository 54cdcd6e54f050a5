//! One line for each change, for people and for programs.

mod line;

use std::{cell::RefCell, collections::BTreeSet};

use anyhow::Result;
use dmtrace_core::{
    event::{CallSite, ProcessImage},
    ids::{IpcNs, SemId},
    ledger::{Change, ChangeKind, EndKind, ImageId, Ledger},
    verdict::Judged,
};
use line::{EventLine, LineColumns};
use serde_json::{Value, json};

use crate::{
    cli::{filter::Filters, watch::counted::CountedFindings},
    output::{self, Out, json, time::Clock},
    render::candidate::Candidate,
    render::change::{change_detail, change_word, dm_loaded},
    render::row::{Row, confidence_word, devices},
    stack::Symbolizer,
    trace::{
        recorder::Recorder,
        run::{BooksView, Observer},
        session::DmReport,
    },
};

/// Prints changes and findings as they come.
pub(crate) struct Printer<'a> {
    out: &'a mut Out,
    style: PrintStyle,
    filters: &'a Filters,
    clock: Clock,
    columns: LineColumns,
    recorder: Option<Recorder>,
    /// Events and findings still wanted; `None` for no limit.
    left: Option<u64>,
    /// Processes whose image was printed already (JSON): later lines refer to it.
    introduced: BTreeSet<ImageId>,
    reported: CountedFindings,
    /// Namespaces in which no semaphore could be made.
    full: BTreeSet<IpcNs>,
    /// Processes that were printed before their image was known (its message was dropped).
    nameless: BTreeSet<ImageId>,
    names: RefCell<Symbolizer>,
}

/// What is printed, and how.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct PrintStyle {
    /// JSON instead of text.
    pub json: bool,
    /// Every semaphore instead of cookies only.
    pub all: bool,
}

impl<'a> Printer<'a> {
    /// A printer to standard output.
    pub(crate) fn new(
        out: &'a mut Out,
        style: PrintStyle,
        filters: &'a Filters,
        left: Option<u64>,
        recorder: Option<Recorder>,
    ) -> Self {
        Self {
            out,
            style,
            filters,
            clock: Clock::now(),
            columns: LineColumns::default(),
            recorder,
            left,
            introduced: BTreeSet::new(),
            reported: CountedFindings::default(),
            full: BTreeSet::new(),
            nameless: BTreeSet::new(),
            names: RefCell::default(),
        }
    }

    /// The header line, or the first JSON object.
    ///
    /// # Errors
    /// Writing fails.
    pub(crate) fn print_header(&mut self, start: &Value) -> Result<()> {
        if self.style.json {
            self.out.print_json(&json::json_envelope("start", start))?;
        } else {
            self.columns.print_header(self.out)?;
        }
        Ok(self.out.flush()?)
    }

    /// Cookies with a finding that was told.
    pub(crate) fn take_reported(&mut self) -> CountedFindings {
        std::mem::take(&mut self.reported)
    }

    /// Namespaces in which no semaphore could be made.
    pub(crate) fn take_full_tables(&mut self) -> BTreeSet<IpcNs> {
        std::mem::take(&mut self.full)
    }

    /// Standard output, for the summary.
    pub(crate) const fn out_mut(&mut self) -> &mut Out {
        self.out
    }

    fn print_change(&mut self, change: &Change, ledger: &Ledger) -> Result<()> {
        if !(self.style.all || change.is_cookie())
            || !self.filters.passes(&Candidate::from_change(change, ledger))
        {
            return Ok(());
        }
        if self.left == Some(0) {
            return Ok(());
        }
        if self.style.json {
            let object = self.change_json(change, ledger);
            self.out.print_json(&object)?;
        } else {
            let value = match change.kind {
                ChangeKind::Set { to } => Some(to),
                ChangeKind::Up { to } | ChangeKind::Down { to, .. } => to,
                ChangeKind::Waiting { value } => value,
                ChangeKind::Released => Some(0),
                _ => ledger
                    .semaphore(change.sem)
                    .and_then(|set| set.cookie.as_ref()?.value()),
            };
            let who = change.who.as_ref().map_or_else(
                || "kernel".to_owned(),
                |who| format!("{}[{}]", who.name, who.image.id.tgid),
            );
            let line = EventLine {
                at: change.at,
                event: change_word(change),
                key: change.key.to_string(),
                sem: change.sem,
                value,
                who,
                detail: change_detail(change, ledger),
            };
            self.print_line(&line)?;
        }
        self.left = self.left.map(|left| left.saturating_sub(1));
        Ok(())
    }

    fn print_line(&mut self, line: &EventLine) -> Result<()> {
        Ok(self.columns.print_line(line, &self.clock, self.out)?)
    }

    /// Prints the images of processes that became known only after they were printed.
    fn introduce_late(&mut self, ledger: &Ledger) -> Result<()> {
        if self.nameless.is_empty() {
            return Ok(());
        }
        let known: Vec<ImageId> = self
            .nameless
            .iter()
            .copied()
            .filter(|id| image_of(ledger, *id).is_some())
            .collect();
        for id in known {
            self.nameless.remove(&id);
            self.introduced.insert(id);
            let image = image_of(ledger, id);
            self.out.print_json(&json::json_envelope(
                "process",
                &json!({ "process": image }),
            ))?;
        }
        Ok(())
    }

    fn change_json(&mut self, change: &Change, ledger: &Ledger) -> Value {
        let mut object = json::json_envelope("change", change);
        object["time"] = json!(self.clock.rfc3339_at(change.at));
        object["key"] = json!(format!("{:#010x}", change.key.0));
        // Whose operation was broken off.
        if change.kind
            == (ChangeKind::Destroyed {
                ending: EndKind::WhileLive,
            })
            && let Some(closed) = ledger.closed_cookie(change.sem)
        {
            object["devices"] = json!(devices(closed));
        }
        // Numbers of processes that are gone would add up for ever.
        if self.introduced.len() > 65_536 {
            self.introduced.clear();
            self.nameless.clear();
        }
        if let Some(who) = &change.who {
            match image_of(ledger, who.image) {
                Some(image) if self.introduced.insert(who.image) => {
                    object["process"] = json!(image);
                }
                Some(_) => {}
                None => {
                    self.nameless.insert(who.image);
                }
            }
        }
        object
    }
}

impl Observer for Printer<'_> {
    fn on_changes(&mut self, changes: &[Change], view: &BooksView<'_>) -> Result<()> {
        self.full.extend(full_tables(changes));
        changes
            .iter()
            .try_for_each(|change| self.print_change(change, view.ledger))?;
        self.introduce_late(view.ledger)
    }

    fn on_finding(&mut self, judged: &Judged<'_>, view: &BooksView<'_>) -> Result<()> {
        let semaphore = judged.semaphore;
        let verdict = &judged.verdict;
        let at = crate::host::clock::boot_now();
        let mut row =
            Row::from_books(view.ledger, semaphore, judged.set, at).with_names(&self.names);
        let facts = view.context.map(|context| context.facts);
        row.age = row.age.or_else(|| row.stamp_age(facts?));
        row.verdict = Some(verdict.clone());
        if !self.filters.passes(&row.candidate()) || self.left == Some(0) {
            return Ok(());
        }
        self.left = self.left.map(|left| left.saturating_sub(1));
        let site = row.call_site().cloned();
        self.reported.add(semaphore, verdict.class.label());
        if self.style.json {
            let mut object = json!({
                "time": self.clock.rfc3339_at(at),
                "ipc_ns": semaphore.id.ns,
                "semid": semaphore.id.semid,
                "key": format!("{:#010x}", semaphore.key.0),
                "verdict": verdict.class,
                "text": verdict.class.to_string(),
                "confidence": confidence_word(verdict),
                "culprit": verdict.culprit,
                "devices": devices(semaphore),
                "call_site": site.as_ref().map(CallSite::to_json),
                "evidence": verdict.evidence.iter().map(ToString::to_string).collect::<Vec<_>>(),
            });
            // Who made it, as rows of `list` have it: a culprit may be gone by the time that
            // somebody reads this.
            if let Some(image) = row.image {
                object["process"] = json!(image);
                object["workload"] = json!(row.workload());
            }
            return Ok(self
                .out
                .print_json(&json::json_envelope("finding", &object))?);
        }
        let creator = semaphore
            .creator
            .image()
            .and_then(|image| view.ledger.process(image));
        let who = match (&verdict.culprit, creator) {
            (Some(culprit), _) => format!("{}[{}]", culprit.who.name, culprit.who.image.id.tgid),
            (None, Some(process)) => format!("{}[{}]", process.name, process.image_id.id.tgid),
            (None, None) => "-".to_owned(),
        };
        let text = verdict.class.to_string();
        let label = verdict.class.label();
        let device = devices(semaphore).last();
        let said = text
            .strip_prefix(label)
            .unwrap_or(&text)
            .trim_start_matches([':', ' ']);
        // What is no more than its label is told by what shows it.
        let reason = match (said, verdict.evidence.first()) {
            ("", Some(fact)) => fact.to_string(),
            _ => said.to_owned(),
        };
        let line = EventLine {
            at,
            event: label,
            key: semaphore.key.to_string(),
            sem: semaphore.id,
            value: judged
                .set
                .and_then(|set| set.first)
                .map(|first| first.value),
            who,
            detail: format!(
                "{}{reason} ({})",
                device
                    .map(|device| format!("{}: ", device.full_label()))
                    .unwrap_or_default(),
                confidence_word(verdict)
            ),
        };
        self.print_line(&line)?;
        if let Some(site) = site {
            let text = format!("{:14}call site  {}", "", site.chain_line());
            self.out.print_hanging(&text, 25)?;
        }
        Ok(())
    }

    fn on_cleared(&mut self, sem: SemId, label: &'static str, view: &BooksView<'_>) -> Result<()> {
        self.reported.clear(sem, label, view.ledger);
        Ok(())
    }

    fn on_device_mapper(&mut self, report: &DmReport) -> Result<()> {
        if self.style.json {
            return Ok(self
                .out
                .print_json(&json::json_envelope("device_mapper", report))?);
        }
        print_remark(false, &dm_loaded(report));
        Ok(())
    }

    fn on_idle(&mut self) -> Result<()> {
        if let Some(recorder) = &self.recorder {
            recorder.flush();
        }
        Ok(self.out.flush()?)
    }

    fn should_stop(&self) -> bool {
        self.left == Some(0)
    }
}

fn image_of(ledger: &Ledger, id: ImageId) -> Option<&ProcessImage> {
    ledger.process(id)?.image.as_deref()
}

/// A line on standard error, for people only.
pub(crate) fn print_remark(json: bool, text: &str) {
    if !json {
        output::print_remark(text);
    }
}

/// Namespaces in which a creation failed because the limits were reached.
pub(crate) fn full_tables(changes: &[Change]) -> impl Iterator<Item = IpcNs> {
    let full = |kind: &ChangeKind| matches!(kind, ChangeKind::CreateFailed { errno } if *errno == libc::ENOSPC);
    let failed = changes.iter().filter(move |change| full(&change.kind));
    failed.map(|change| change.sem.ns)
}

#[cfg(test)]
mod tests {
    use dmtrace_core::{
        event::{Actor, Event, EventKind, Quality},
        facts::HostFacts,
        ids::{BootTime, Key},
        verdict::{Completeness, Context, Thresholds, survey_closed, survey_cookies},
    };

    use super::*;
    use crate::output::testing::capture_output;

    /// So many lines are printed of two events and two findings when this many are wanted.
    fn count_printed(wanted: Option<u64>, json: bool) -> usize {
        let mut ledger = Ledger::new();
        let mut changes = Vec::new();
        for number in 1..=2 {
            let created = Event {
                at: BootTime(u64::from(number)),
                began: None,
                actor: Actor::default(),
                quality: Quality::default(),
                what: EventKind::Created {
                    sem: SemId {
                        ns: IpcNs::HOST,
                        semid: number as i32,
                    },
                    key: Key(0x0d4d_0000 + number),
                    nsems: 1,
                    semflg: 0o600,
                },
            };
            ledger.apply_into(&created, &mut changes);
        }
        let context = Context {
            facts: &HostFacts::default(),
            completeness: &Completeness::default(),
            thresholds: &Thresholds::default(),
        };
        let found = survey_cookies(&ledger, None, &context);
        let (filters, style) = (Filters::default(), PrintStyle { json, all: false });
        let printed = capture_output(None, |out| {
            let mut printer = Printer::new(out, style, &filters, wanted, None);
            let view = BooksView {
                ledger: &ledger,
                context: None,
            };
            printer.on_changes(&changes, &view)?;
            found
                .iter()
                .try_for_each(|it| printer.on_finding(it, &view))?;
            assert_eq!(printer.should_stop(), wanted.is_some());
            Ok(())
        });
        printed.lines().count()
    }

    #[test]
    fn a_finding_is_one_of_the_lines_that_are_wanted() {
        for json in [false, true] {
            assert_eq!(count_printed(None, json), 4, "JSON: {json}");
            for wanted in 1..=4 {
                let printed = count_printed(Some(wanted), json);
                assert_eq!(printed as u64, wanted, "JSON: {json}");
            }
        }
    }

    /// Of each kind of finding, on cookies that are there and on those that are gone.
    #[test]
    fn each_finding_says_more_than_its_kind() {
        let scene = crate::render::tests::scene::Scene::new();
        let context = scene.context();
        let mut found = survey_cookies(&scene.ledger, Some(&scene.snapshot), &context);
        found.extend(survey_closed(&scene.ledger, &context));
        found.retain(|judged| judged.verdict.class.is_finding());
        let kinds: BTreeSet<&str> = found.iter().map(|it| it.verdict.class.label()).collect();
        let all = ["accident", "leaked", "over-completed", "stuck"];
        assert_eq!(kinds, BTreeSet::from(all));
        let view = BooksView {
            ledger: &scene.ledger,
            context: Some(&context),
        };
        let style = PrintStyle {
            json: false,
            all: false,
        };
        for judged in &found {
            let text = capture_output(None, |out| {
                let filters = Filters::default();
                let mut printer = Printer::new(out, style, &filters, None, None);
                printer.on_finding(judged, &view)
            });
            let line = text.lines().next().unwrap();
            let (before, _) = line.split_once(" (").unwrap();
            let label = judged.verdict.class.label();
            // After time, event, cookie, semid, value and process.
            let after: Vec<&str> = before.split_whitespace().skip(6).collect();
            assert!(
                !after.is_empty() && line.contains(label),
                "{label}: {line:?}"
            );
        }
    }
}
