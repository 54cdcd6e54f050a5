//! Who is named after the fact: right or nobody, whichever witnesses there are.
//!
//! `expect suspect semid=N pid=N|N name=NAME alive=yes|no unit=UNIT named=WITNESSES|WITNESSES` says who
//! made a cookie, and which witnesses suffice to name him: `journal|accounting` either, `journal+text`
//! both together, `none` none at all, `-` nobody knows. A scenario leaves
//! `$OUT/suspects-WITNESSES.json`, reports made while only these witnesses were there; `doubt` among
//! their words demands nothing but that nobody else is named.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{answers::json_rows, expectation::Expectation, fields::value_is};

/// Whether a key of `expect suspect` exists.
pub(super) fn is_known(key: &str) -> bool {
    matches!(key, "semid" | "pid" | "name" | "alive" | "unit" | "named")
}

/// Who is named and has not done it, and who is not named where he could be.
pub(super) fn find_complaints<'a>(
    reports: &[(String, Value)],
    wanted: impl Iterator<Item = &'a Expectation>,
    schedules: impl Iterator<Item = &'a Expectation>,
) -> Vec<String> {
    let wanted: Vec<&Expectation> = wanted.collect();
    let mut complaints = Vec::new();
    for (witnesses, said) in reports {
        let mut known = BTreeSet::new();
        for suspect in json_rows(said, "named") {
            for semid in semids(suspect) {
                known.insert(semid.clone());
                let Some(truth) = find_truth(&wanted, &semid) else {
                    complaints.push(format!("{witnesses}: semid {semid} is not expected"));
                    continue;
                };
                let wrong = differences(truth, &suspect["who"]);
                if !wrong.is_empty() {
                    complaints.push(format!(
                        "{witnesses}: {} is named of {}: {wrong}",
                        suspect["who"],
                        truth.text()
                    ));
                }
            }
        }
        for unknown in json_rows(said, "unknown") {
            for semid in semids(unknown) {
                known.insert(semid.clone());
                let truth = find_truth(&wanted, &semid);
                if truth.is_some_and(|truth| must_be_named(truth, witnesses)) {
                    complaints.push(format!(
                        "{witnesses}: nobody is named ({}): semid {semid}",
                        unknown["reason"]
                    ));
                }
            }
        }
        // The first question may come before the later accidents.
        let missing = wanted
            .iter()
            .filter_map(|it| it.get("semid"))
            .filter(|semid| witnesses != "timer" && !known.contains(*semid));
        complaints.extend(missing.map(|semid| format!("{witnesses}: semid {semid} is left out")));
    }
    for it in schedules {
        let unit = it.get("unit").unwrap_or_default();
        let named = reports
            .iter()
            .filter(|(witnesses, _)| witnesses == "timer")
            .flat_map(|(_, said)| json_rows(said, "schedules"))
            .any(|suspect| suspect["who"].to_string().contains(unit));
        if !named {
            complaints.push(format!("missing: {}", it.text()));
        }
    }
    complaints
}

fn semids(entry: &Value) -> Vec<String> {
    let sets = json_rows(entry, "sets").into_iter();
    sets.map(|set| set["semid"].to_string()).collect()
}

fn find_truth<'a>(wanted: &[&'a Expectation], semid: &str) -> Option<&'a Expectation> {
    wanted
        .iter()
        .copied()
        .find(|it| it.get("semid") == Some(semid))
}

/// What of a suspect is not true: its number and name, or where there is none its unit.
fn differences(truth: &Expectation, who: &Value) -> String {
    let text = |key: &str| match &who[key] {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let mut wrong = Vec::new();
    let mut compare = |key: &str| {
        let (said, wanted) = (text(key), truth.get(key));
        if said.is_some() && !wanted.is_some_and(|it| value_is(said.as_deref(), it)) {
            wrong.push(key.to_owned());
        }
    };
    compare("pid");
    compare("name");
    // With a number the unit is a detail: of a shell in a session it is the session's.
    if text("pid").is_none() {
        compare("unit");
        if text("unit").is_none() && text("name").is_none() {
            wrong.push("nothing is said of it".to_owned());
        }
    }
    let alive = if who["alive"] == true { "yes" } else { "no" };
    if !truth
        .get("alive")
        .is_some_and(|it| value_is(Some(alive), it))
    {
        wrong.push("alive".to_owned());
    }
    wrong.join(", ")
}

/// Whether these witnesses suffice.
fn must_be_named(truth: &Expectation, witnesses: &str) -> bool {
    let there: BTreeSet<&str> = witnesses.split('+').collect();
    let suffice = |set: &str| set == "none" || set.split('+').all(|one| there.contains(one));
    let named = truth.get("named").unwrap_or("-");
    named != "-" && !there.contains("doubt") && named.split('|').any(suffice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn complaints_of(line: &str, witnesses: &str, said: &Value) -> Vec<String> {
        let wanted = Expectation::parse(&line.replace(' ', "\t")).unwrap();
        let reports = [(witnesses.to_owned(), said.clone())];
        let schedules = [Expectation::parse("schedule\tunit=x.service").unwrap()];
        let schedules = schedules.iter().filter(|_| witnesses == "timer");
        find_complaints(&reports, [&wanted].into_iter(), schedules)
    }

    const LINE: &str = "suspect semid=3 pid=7|8 name=sh alive=no named=accounting|journal+text";

    fn named(who: &Value) -> Value {
        json!({"named": [{"who": who, "sets": [{"semid": 3}]}], "unknown": []})
    }

    #[test]
    fn right_or_nobody() {
        let right = json!({"pid": 8, "name": "sh", "alive": false});
        assert!(complaints_of(LINE, "journal", &named(&right)).is_empty());
        for wrong in [
            json!({"pid": 9, "name": "sh", "alive": false}),
            json!({"pid": 8, "name": "nginx", "alive": false}),
            json!({"pid": 8, "name": "sh", "alive": true}),
            json!({"unit": "x.service", "alive": false}),
            json!({"alive": false}),
        ] {
            let complaints = complaints_of(LINE, "doubt", &named(&wrong));
            assert_eq!(complaints.len(), 1, "{wrong}");
        }
        let nobody = json!({"unknown": [{"reason": "no_witness", "sets": [{"semid": 3}]}]});
        for (witnesses, count) in [
            ("accounting", 1),
            ("journal+text", 1),
            ("journal", 0),
            ("accounting+doubt", 0),
            ("none", 0),
        ] {
            let complaints = complaints_of(LINE, witnesses, &nobody);
            assert_eq!(complaints.len(), count, "{witnesses}: {complaints:?}");
        }
    }

    #[test]
    fn every_cookie_is_answered_for() {
        assert_eq!(complaints_of(LINE, "none", &json!({})).len(), 1);
        let other = json!({"named": [{"who": {}, "sets": [{"semid": 4}]}]});
        assert_eq!(complaints_of(LINE, "none", &other).len(), 2);
        assert_eq!(complaints_of(LINE, "timer", &json!({})).len(), 1);
        let fits = json!({"schedules": [{"who": {"unit": "x.service"}}]});
        assert!(complaints_of(LINE, "timer", &fits).is_empty());
    }
}
