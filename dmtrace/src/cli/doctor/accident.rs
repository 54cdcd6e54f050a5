//! Is it safe to run `dmsetup udevcomplete_all` now? It removes every set with a cookie's key in the
//! namespace that it runs in, whatever it is.

use dmtrace_core::{
    ledger::Device,
    verdict::{Class, Confidence, Doubt, Healthy, Verdict, is_worth_a_search},
};
use serde::Serialize;
use serde_json::json;

use super::DoctorReport;
use crate::{
    case::Case,
    host::namespaces::own_ns,
    render::{
        row::{Row, confidence_word},
        searched::SearchLeft,
    },
    wording::count_noun,
};

/// So many are named in the text; JSON has all.
const NAMED: usize = 8;

/// What it would do to one set.
#[derive(Serialize)]
struct SetHarm {
    key: String,
    semid: i32,
    state: &'static str,
    confidence: &'static str,
    /// Who made it, or is taken to own it.
    owner: Option<String>,
    /// Who waits on it.
    waiters: Vec<String>,
    devices: Vec<String>,
    harm: String,
}

/// How many of the cookies that no trace saw being made nobody can need any more.
pub(super) fn check_older_cookies(case: &Case, report: &mut DoctorReport) {
    let (mut orphaned, mut proven, mut undecided) = (0_usize, 0_usize, 0_usize);
    for judged in case.judge_all() {
        match judged.verdict.class {
            Class::Orphaned(_) => {
                orphaned += 1;
                proven += usize::from(is_proven_orphan(&judged.verdict));
            }
            class if is_worth_a_search(class) => undecided += 1,
            _ if judged.doubt() == Some(Doubt::OlderThanTrace) => undecided += 1,
            _ => {}
        }
    }
    let all = orphaned + undecided;
    if all == 0 {
        return;
    }
    report.more.push((
        "older_cookies",
        json!({ "orphaned": orphaned, "proven": proven, "undecided": undecided }),
    ));
    report.add_warning(
        "older_cookies",
        format!(
            "safe to remove {orphaned} of {} that no trace saw being made{}: no process holds {}",
            count_noun(all, "cookie", "cookies"),
            if proven < orphaned {
                ", as far as one search tells"
            } else {
                ""
            },
            if orphaned == 1 { "it" } else { "them" },
        ),
        match orphaned {
            0 => "dmtrace report says who holds them, or what is not known",
            _ => {
                "dmtrace clean, which searches once more, and in files, before it removes anything"
            }
        },
    );
}

pub(super) fn check_accident(case: &Case, report: &mut DoctorReport) {
    let own = own_ns();
    let judged = case.judge_all().into_iter();
    let rows: Vec<Row<'_>> = judged
        .filter(|judged| Some(judged.semaphore.id.ns) == own)
        .map(|judged| case.row_of(judged))
        .collect();
    let (mut live, mut leaked, mut foreign, mut unknown) = (0, 0, 0, 0);
    let mut harms = Vec::new();
    for row in &rows {
        let Some(verdict) = &row.verdict else {
            continue;
        };
        match verdict.class {
            Class::Orphaned(_) if is_proven_orphan(verdict) => {
                leaked += 1;
                continue;
            }
            Class::Leaked(_) if verdict.confidence == Confidence::Observed => {
                leaked += 1;
                continue;
            }
            Class::Foreign(_) => foreign += 1,
            Class::Leaked(_) | Class::Orphaned(_) | Class::Unknown(_) => unknown += 1,
            _ => live += 1,
        }
        harms.push(harm_of(case, row, verdict.class));
    }
    harms.sort_by_key(|it| it.waiters.is_empty());
    // Its own namespace is the one that dmsetup would work in.
    let read = &case.snapshot.namespaces;
    let unread = !read.iter().any(|read| Some(read.ns) == own);
    let safe = harms.is_empty() && !unread;
    report.more.push((
        "udevcomplete_all",
        json!({
            "safe": safe,
            "live": live,
            "leaked": leaked,
            "foreign": foreign,
            "unknown": unknown,
            "harms": harms,
        }),
    ));
    if safe {
        report.add_pass(
            "udevcomplete_all",
            format!(
                "dmsetup udevcomplete_all is safe now in this IPC namespace: nothing live ({leaked} \
                 leaked); it does not touch others"
            ),
        );
        return;
    }
    let parts: Vec<String> = [
        (live, "live cookie", "live cookies"),
        (foreign, "set that is no cookie", "sets that are no cookies"),
        (unknown, "undecided", "undecided"),
    ]
    .into_iter()
    .filter(|&(number, ..)| number > 0)
    .map(|(number, one, many)| count_noun(number, one, many))
    .collect();
    report.add_warning(
        "udevcomplete_all",
        format!(
            "dmsetup udevcomplete_all is NOT safe now: it removes all it finds: {}",
            if parts.is_empty() {
                "sets that cannot be read".to_owned()
            } else {
                parts.join(", ")
            }
        ),
        if parts.is_empty() {
            "run as root, with /proc mounted"
        } else {
            "dmtrace clean removes what has leaked, and nothing else"
        },
    );
    for it in harms.iter().take(NAMED) {
        report.add_warning("udevcomplete_all_harm", it.to_text(), "");
    }
    if harms.len() > NAMED {
        let more = harms.len() - NAMED;
        report.add_warning("udevcomplete_all_harm", format!("and {more} more"), "");
    }
}

/// Whether nothing is left to search for: a file may have the number of one that no process holds.
fn is_proven_orphan(verdict: &Verdict) -> bool {
    SearchLeft::of_verdict(verdict) == Some(SearchLeft::Nothing)
}

fn harm_of(case: &Case, row: &Row<'_>, class: Class) -> SetHarm {
    let waiters = case.facts.waiters.get(&row.semaphore.id);
    let waiters: Vec<String> = waiters
        .into_iter()
        .flatten()
        .map(|waiter| {
            let live = case.facts.processes.get(&waiter.tgid);
            let name = live.map_or("?", |live| &live.comm);
            format!("{name}[{}]", waiter.tgid)
        })
        .collect();
    let waits = !waiters.is_empty() || row.waiting_threads().is_some_and(|count| count > 0);
    let what = match class {
        Class::Foreign(_) => "it is another program's semaphore, and would be gone",
        _ if waits => "its waiter would go on as if udev were done",
        Class::Stuck(_) | Class::Healthy(Healthy::Waiting | Healthy::SlowUdev) => {
            "its waiter would go on as if udev were done"
        }
        Class::Healthy(_) | Class::OverCompleted if row.creator_ended() == Some(true) => {
            "its owner has ended; whoever else uses it would fail, and a device may stay suspended"
        }
        Class::Healthy(_) | Class::OverCompleted => {
            "its owner's next operation would fail; a device may stay suspended"
        }
        Class::Leaked(_) => {
            "that it is leaked is inferred, not seen; if it is used after all, its user would fail"
        }
        _ => "it may be in use: nobody knows",
    };
    SetHarm {
        key: row.semaphore.key.to_string(),
        semid: row.semaphore.id.semid,
        state: row.state(),
        confidence: row.verdict.as_ref().map_or("unknown", confidence_word),
        owner: row.pid().map(|_| row.owner_text()),
        waiters,
        devices: row.devices().iter().map(Device::full_label).collect(),
        harm: what.to_owned(),
    }
}

impl SetHarm {
    fn to_text(&self) -> String {
        let who = match (&self.owner, self.waiters.as_slice()) {
            (_, [_, ..]) => format!(", waited for by {}", self.waiters.join(", ")),
            (Some(owner), []) => format!(", of {owner}"),
            (None, []) => ", of an unknown owner".to_owned(),
        };
        let devices = match self.devices.as_slice() {
            [] => String::new(),
            devices => format!(", device {}", devices.join(", ")),
        };
        format!(
            "{} semid {} ({}){who}{devices}: {}",
            self.key, self.semid, self.state, self.harm
        )
    }
}

#[cfg(test)]
mod tests {
    use dmtrace_core::facts::NsSnapshot;

    use super::*;

    #[test]
    fn what_is_safe_is_so_in_this_namespace_only() {
        let mut case = Case::empty();
        let mut report = DoctorReport::default();
        case.snapshot.namespaces.push(NsSnapshot {
            ns: own_ns().unwrap(),
            ..NsSnapshot::default()
        });
        check_accident(&case, &mut report);
        assert_eq!(
            report.checks[0].text,
            "dmsetup udevcomplete_all is safe now in this IPC namespace: nothing live (0 leaked); \
             it does not touch others"
        );
    }
}
