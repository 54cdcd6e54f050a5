//! What a report on a time is made of.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    cli::{Failure, args::Report, filter::Filters},
    history::{Entry, Finding, Gap, Head, Lives, Loss, Query, Record, Run, Stamp, Starved, query},
    output::json,
    render::{
        candidate::Candidate,
        culprits::{By, Group},
        stored,
    },
};

/// Without a trace for so long in all is as good as never.
const MOMENT: Duration = Duration::from_secs(60);

/// Everything that is reported.
pub(super) struct Past {
    pub(super) head: Head,
    /// The time that was asked for, milliseconds since 1970.
    pub(super) since: i64,
    pub(super) until: i64,
    pub(super) leaked: Vec<Finding>,
    pub(super) stuck: Vec<Finding>,
    pub(super) accidents: Vec<Finding>,
    pub(super) over_completed: Vec<Finding>,
    pub(super) starved: Vec<Starved>,
    pub(super) gaps: Vec<Gap>,
    pub(super) losses: Vec<Loss>,
    pub(super) runs: Vec<Run>,
    pub(super) programs: BTreeMap<String, Lives>,
    /// Tracing went on for so long in that time.
    pub(super) traced: Duration,
    /// What a sentence on what is not there is limited to.
    pub(super) scope: &'static str,
    /// What the history does not keep by process or set, so that the filters cannot choose.
    pub(super) left_out: Vec<&'static str>,
}

/// A program, for JSON.
#[derive(Serialize)]
struct Program<'a> {
    program: &'a str,
    #[serde(flatten)]
    lives: Lives,
    leaks_per_day: Option<f64>,
}

pub(super) fn gather(args: &Report, since: i64, until: i64) -> Result<Past> {
    let query = Query {
        since_ms: Some(since),
        until_ms: Some(until),
        ..Query::default()
    };
    let named: Option<&Path> = args.history.as_deref();
    let Some((head, entries)) = query::find(named, &query)? else {
        let text = format!(
            "{}: there is no history; dmtrace serve keeps one",
            crate::history::PATH
        );
        return Err(Failure::Environment(text).into());
    };
    let mut past = Past {
        head,
        since,
        until,
        leaked: Vec::new(),
        stuck: Vec::new(),
        accidents: Vec::new(),
        over_completed: Vec::new(),
        starved: Vec::new(),
        gaps: Vec::new(),
        losses: Vec::new(),
        runs: Vec::new(),
        programs: BTreeMap::new(),
        traced: Duration::ZERO,
        scope: args.filters.scope(),
        left_out: Vec::new(),
    };
    let filters = &args.filters;
    let of_one = Filters {
        ipc_ns: None,
        ..filters.clone()
    };
    let (whole, spaces) = (filters.is_empty(), of_one.is_empty());
    if !spaces {
        past.left_out.push("failed creations");
    }
    if !whole {
        past.left_out.push("cookies by program");
    }
    let (mut newer, mut unreadable) = (0, 0);
    for Entry { record, .. } in entries {
        match record {
            Record::Finding(finding) => past.finding(*finding, args),
            Record::Unread(it) if it.is_newer() => newer += 1,
            Record::Unread(_) => unreadable += 1,
            Record::Starved(it) if spaces && filters.wants_ns(it.ipc_ns) => past.starved.push(it),
            Record::Starved(_) => {}
            Record::Gap(it) => past.gaps.push(it),
            Record::Loss(it) => past.losses.push(it),
            Record::Run(it) => past.runs.push(it),
            Record::Rates(it) if whole => {
                for (program, lives) in &it.programs {
                    past.programs.entry(program.clone()).or_default().add(lives);
                }
            }
            Record::Rates(_) => {}
        }
    }
    past.head
        .notes
        .extend(stored::unread_notes(newer, unreadable));
    past.traced = past.traced_time();
    Ok(past)
}

impl Past {
    fn finding(&mut self, finding: Finding, args: &Report) {
        if !args.filters.pass(&Candidate::stored(&finding)) {
            return;
        }
        match finding.state.as_str() {
            "leaked" => self.leaked.push(finding),
            "stuck" => self.stuck.push(finding),
            "accident" => self.accidents.push(finding),
            "over-completed" => self.over_completed.push(finding),
            _ => {}
        }
    }

    /// For how long of it tracing went on.
    fn traced_time(&self) -> Duration {
        let traced = self.runs.iter().map(|run| {
            let ended = run.ended.map_or(self.head.alive_ms, |at| at.wall_ms);
            let overlap = ended.min(self.until) - run.began.wall_ms.max(self.since);
            u64::try_from(overlap).unwrap_or_default()
        });
        Duration::from_millis(traced.sum())
    }

    pub(super) fn whole(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.until - self.since).unwrap_or_default())
    }

    pub(super) fn any(&self) -> bool {
        let findings = [
            &self.leaked,
            &self.stuck,
            &self.accidents,
            &self.over_completed,
        ];
        findings.iter().any(|list| !list.is_empty()) || !self.starved.is_empty()
    }

    /// Whether everything that happened in that time is known.
    pub(super) fn is_complete(&self) -> bool {
        self.whole().saturating_sub(self.traced) < MOMENT
            && self.losses.is_empty()
            && self.head.notes.is_empty()
            && self.head.complete_since_ms.is_none_or(|at| at < self.since)
    }

    /// Leaks of a program in a day, where the time is long enough to tell.
    pub(super) fn a_day(&self, leaked: u64) -> Option<f64> {
        let days = self.traced.as_secs_f64() / 86_400.0;
        (days > 1.0 / 24.0).then(|| leaked as f64 / days)
    }

    pub(super) fn object(&self, groups: &[(By, Vec<Group>)]) -> Value {
        let by = |wanted: By| {
            let found = groups.iter().find(|(by, _)| *by == wanted);
            found.map(|(_, groups)| groups)
        };
        let rows = |list: &[Finding]| list.iter().map(stored::cookie).collect::<Vec<_>>();
        let moment = |wall_ms| {
            let stamp = Stamp {
                wall_ms,
                ..Stamp::default()
            };
            stamp.rfc3339()
        };
        let programs = self.programs.iter().map(|(program, lives)| Program {
            program,
            lives: *lives,
            leaks_per_day: self.a_day(lives.leaked),
        });
        json::json_envelope(
            "history_report",
            &json!({
                "since": moment(self.since),
                "until": moment(self.until),
                "traced_seconds": self.traced.as_secs(),
                "complete": self.is_complete(),
                "notes": self.head.notes,
                "leaked": rows(&self.leaked),
                "stuck": rows(&self.stuck),
                "accidents": rows(&self.accidents),
                "over_completed": rows(&self.over_completed),
                "by_process": by(By::Process),
                "by_executable": by(By::Executable),
                "by_container": by(By::Container),
                "by_stack": by(By::Stack),
                "programs": programs.collect::<Vec<_>>(),
                "failed_creations": self.starved,
                "left_out_by_filters": self.left_out,
                "gaps": self.gaps,
                "losses": self.losses,
                "runs": self.runs,
                "dropped_for_space": self.head.dropped_for_space,
                "dropped_for_age": self.head.dropped_for_age,
                "complete_since": self.head.complete_since_ms.map(moment),
            }),
        )
    }
}
