//! Who made what no trace saw: what witnesses on this host say of it, after the fact.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use dmtrace_core::{
    ids::{IpcNs, SemId},
    witness::{Answer, Grade, Suspect, UnknownReason},
};
use serde::Serialize;

use super::limit::ReportLimit;
use crate::{case::Case, output::Out, render::row::Row, wording::count_noun};

/// What the witnesses say.
#[derive(Default, Serialize)]
pub(crate) struct Suspects {
    /// Who is named, with how many cookies, the most first.
    named: Vec<NamedSuspect>,
    /// Of how many nobody is named, and why.
    unknown: Vec<UnknownCulprit>,
    /// Which cron jobs and timers start whenever such cookies appear.
    schedules: Vec<Suspect>,
    /// What could not be read.
    unread: Vec<String>,
}

#[derive(Serialize)]
struct NamedSuspect {
    #[serde(flatten)]
    suspect: Suspect,
    cookies: usize,
    /// Which.
    sets: Vec<SuspectedSet>,
}

#[derive(Serialize)]
struct UnknownCulprit {
    reason: UnknownReason,
    cookies: usize,
    /// Which.
    sets: Vec<SuspectedSet>,
}

/// A cookie.
#[derive(Serialize)]
struct SuspectedSet {
    ipc_ns: IpcNs,
    key: String,
    semid: i32,
}

impl Suspects {
    /// Hears the witnesses about these cookies.
    pub(super) fn hear_witnesses<'a>(case: &Case, rows: impl Iterator<Item = &'a Row<'a>>) -> Self {
        let wanted: BTreeSet<SemId> = rows.map(|row| row.semaphore.id).collect();
        if wanted.is_empty() {
            return Self::default();
        }
        let Some(heard) = case.hear_witnesses() else {
            return Self::default();
        };
        let witnesses = heard.witnesses();
        let mut found = Self {
            schedules: witnesses
                .schedules
                .iter()
                .map(|it| it.to_suspect(&witnesses.pattern, witnesses.schedules.len() == 1))
                .filter(|it| it.grade == Grade::Inferred)
                .collect(),
            unread: heard.unread_texts(),
            ..Self::default()
        };
        let mut named: BTreeMap<(Option<u32>, String), NamedSuspect> = BTreeMap::new();
        let mut unknown: BTreeMap<UnknownReason, Vec<SuspectedSet>> = BTreeMap::new();
        for (sem, answer) in heard.weigh_all(&heard.inquire()) {
            let Some(moment) = heard.moment(sem).filter(|_| wanted.contains(&sem)) else {
                continue;
            };
            let set = SuspectedSet {
                ipc_ns: sem.ns,
                key: moment.key.to_string(),
                semid: sem.semid,
            };
            match answer {
                Answer::Named { suspect } => {
                    let place = (suspect.who.pid, suspect.who.to_string());
                    let entry = named.entry(place).or_insert_with(|| NamedSuspect {
                        suspect: *suspect,
                        cookies: 0,
                        sets: Vec::new(),
                    });
                    entry.cookies += 1;
                    entry.sets.push(set);
                }
                Answer::Unknown { reason, .. } => unknown.entry(reason).or_default().push(set),
            }
        }
        found.named = named.into_values().collect();
        found.named.sort_by_key(|it| std::cmp::Reverse(it.cookies));
        let unknown = unknown.into_iter().map(|(reason, sets)| UnknownCulprit {
            reason,
            cookies: sets.len(),
            sets,
        });
        found.unknown = unknown.collect();
        found
            .unknown
            .sort_by_key(|it| std::cmp::Reverse(it.cookies));
        found
    }

    pub(super) fn print(&self, limit: ReportLimit, out: &mut Out) -> Result<()> {
        if self.named.is_empty() && self.unknown.is_empty() && self.schedules.is_empty() {
            return Ok(());
        }
        out.print_line("WHO IT WAS, by witnesses on this host (inferred; nobody saw it)")?;
        for it in self.named.iter().take(limit.0) {
            let who = &it.suspect.who;
            let lives = if who.alive { "" } else { "+" };
            out.print_hanging(&format!("  {:>6}  {who}{lives}", it.cookies), 10)?;
            if let Some(command) = &who.command {
                out.print_hanging(&format!("          command   {command}"), 20)?;
            }
            for ground in &it.suspect.grounds {
                out.print_hanging(&format!("          {ground}"), 12)?;
            }
            for doubt in &it.suspect.doubts {
                out.print_hanging(&format!("          but       {doubt}"), 20)?;
            }
        }
        limit.print_rest(self.named.len(), out)?;
        for it in &self.schedules {
            let grounds: Vec<String> = it.grounds.iter().map(ToString::to_string).collect();
            let text = format!("          {}: {}", it.who, grounds.join("; "));
            out.print_hanging(&text, 12)?;
        }
        for UnknownCulprit {
            reason, cookies, ..
        } in self.unknown.iter().take(limit.0)
        {
            out.print_hanging(&format!("  {cookies:>6}  unknown: {reason}"), 10)?;
        }
        if !self.unread.is_empty() && !self.unknown.is_empty() {
            let what = count_noun(self.unread.len(), "witness", "witnesses");
            let text = format!(
                "          {what} could not be heard: {}",
                self.unread.join("; ")
            );
            out.print_hanging(&text, 12)?;
        }
        Ok(out.print_line("")?)
    }
}
