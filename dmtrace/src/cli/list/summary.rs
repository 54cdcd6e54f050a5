//! The line below the rows of `list`: what was counted, and how full the tables are.

use dmtrace_core::{facts::NsSnapshot, ids::IpcNs, verdict::State};

use crate::{
    cli::filter::Filters,
    wording::{count_noun, of_number},
};

/// Behind the number of cookies, those that somebody should look at first.
const ORDER: [State; 11] = [
    State::Leaked,
    State::Orphaned,
    State::Stuck,
    State::OverCompleted,
    State::Accident,
    State::Unknown,
    State::SlowUdev,
    State::Waiting,
    State::Open,
    State::CleanedUp,
    State::Finished,
];

/// What the rows are, each once: whether it has a cookie's key, and its state; `scope` is the words
/// on the filters. `more`: there may be others that could not be read.
pub(super) fn counts_text(rows: &[(bool, &str)], scope: &str, more: bool) -> String {
    let count = |wanted: &dyn Fn(bool, &str) -> bool| {
        let rows = rows.iter();
        rows.filter(|&&(cookie, state)| wanted(cookie, state))
            .count()
    };
    let foreign = State::Foreign.name();
    let cookies = count(&|cookie, state| cookie && state != foreign);
    let parts: Vec<String> = ORDER
        .iter()
        .map(|it| it.name())
        .map(|name| (name, count(&|cookie, state| cookie && state == name)))
        .filter(|&(_, number)| number > 0)
        .map(|(name, number)| format!("{number} {name}"))
        .collect();
    let mut text = count_noun(cookies, "cookie", "cookies");
    if !parts.is_empty() {
        text.push_str(&format!(" ({})", parts.join(", ")));
    }
    let foreign = count(&|cookie, state| cookie && state == foreign);
    let others = count(&|cookie, _| !cookie);
    for (number, kind) in [(foreign, "foreign"), (others, "other")] {
        if number > 0 {
            let noun = of_number(&number, "set", "sets");
            text.push_str(&format!(", {number} {kind} {noun}"));
        }
    }
    text.push_str(scope);
    if more {
        text.push_str("; there may be more");
    }
    text
}

/// How full the table is of the namespace that is asked for, else of `own`, the caller's. `None`
/// where it was not read.
pub(super) fn use_text(
    spaces: &[NsSnapshot],
    own: Option<IpcNs>,
    filters: &Filters,
) -> Option<String> {
    let wanted = filters.ipc_ns.or(own).unwrap_or(IpcNs::HOST);
    let shown = spaces.iter().find(|space| space.ns == wanted)?;
    let here = if filters.ipc_ns.is_none() && wanted != IpcNs::HOST {
        " (this one)"
    } else {
        ""
    };
    let mut text = format!(
        "IPC namespace {wanted}{here}: {} of {} sets in use",
        shown.sets.len(),
        shown.limits.semmni
    );
    if filters.ipc_ns.is_none() && spaces.len() > 1 {
        let all: usize = spaces.iter().map(|space| space.sets.len()).sum();
        let sets = count_noun(all, "set", "sets");
        text.push_str(&format!("; all {} namespaces: {sets}", spaces.len()));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use dmtrace_core::facts::{SemLimits, SetSnapshot};

    use super::*;

    #[test]
    fn every_state_is_counted_and_a_foreign_set_is_no_cookie() {
        let row = |state| (true, state);
        let rows = [
            row("leaked"),
            row("foreign"),
            row("over-completed"),
            row("leaked"),
        ];
        assert_eq!(
            counts_text(&rows, "", false),
            "3 cookies (2 leaked, 1 over-completed), 1 foreign set"
        );
        assert_eq!(
            counts_text(
                &[row("open"), (false, "-"), (false, "-")],
                " matching the filters",
                true
            ),
            "1 cookie (1 open), 2 other sets matching the filters; there may be more"
        );
        assert_eq!(counts_text(&[], "", false), "0 cookies");
        // A new state must not be forgotten.
        for state in State::ALL {
            let counted = counts_text(&[row(state.name())], "", false);
            let known = counted.contains(state.name()) || state == State::Ordinary;
            assert!(known, "{state}: {counted}");
        }
    }

    #[test]
    fn the_numbers_are_of_a_namespace_that_is_named() {
        let space = |ns, sets| NsSnapshot {
            ns,
            limits: SemLimits {
                semmni: 32_000,
                ..SemLimits::default()
            },
            sets: vec![SetSnapshot::default(); sets],
            ..NsSnapshot::default()
        };
        let spaces = [
            space(IpcNs(7), 4),
            space(IpcNs::HOST, 0),
            space(IpcNs(9), 9),
        ];
        let all = Filters::default();
        let told = |own, filters: &Filters| use_text(&spaces, own, filters);
        let host = "IPC namespace host: 0 of 32000 sets in use; all 3 namespaces: 13 sets";
        assert_eq!(told(Some(IpcNs::HOST), &all).as_deref(), Some(host));
        assert_eq!(told(None, &all).as_deref(), Some(host));
        assert_eq!(
            told(Some(IpcNs(7)), &all).as_deref(),
            Some("IPC namespace 7 (this one): 4 of 32000 sets in use; all 3 namespaces: 13 sets")
        );
        let one = |ns| Filters {
            ipc_ns: Some(IpcNs(ns)),
            ..Filters::default()
        };
        assert_eq!(
            told(Some(IpcNs::HOST), &one(9)).as_deref(),
            Some("IPC namespace 9: 9 of 32000 sets in use")
        );
        // It is not there: nothing is said of it.
        assert_eq!(told(Some(IpcNs::HOST), &one(12)), None);
    }
}
