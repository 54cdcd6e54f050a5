//! What `dmtrace explain` says of a scenario's recording: `expect explain KEY=VALUE...`.
//!
//! It is about the worst cookie, the one that `explain` chooses without an argument. Keys are those
//! of rows, and: `missing` (the step; `-` for none), `count` of it, `life` (a part of a step's
//! text), `evidence` (a part of a fact), `remedy` and `avoid` (codes), `victim` (number of a
//! process; `-` for nobody).
//!
//! Every scenario whose rows in `report` are leaked or stuck is checked without being asked: the
//! explanation is about one of these rows, and agrees with it.

use serde_json::Value;

use super::{expectation::Expectation, fields};

/// Everything that is not as it should be.
pub(super) fn find_complaints<'a>(
    said: &Value,
    report: &Value,
    wanted: impl Iterator<Item = &'a Expectation>,
) -> Vec<String> {
    let story = &said["explanations"][0];
    let mut complaints = check_agreement(story, report);
    for it in wanted {
        if story.is_null() {
            complaints.push(format!("explain found nothing: {}", it.text()));
            continue;
        }
        for (key, value) in it.pairs() {
            let found = fields::of_explanation(story, key);
            let fine = match key {
                "life" | "evidence" | "remedy" | "avoid" | "victim" if value != "-" => {
                    found.iter().any(|text| text.contains(value))
                }
                _ => fields::value_is(found.first().map(String::as_str), value),
            };
            if !fine {
                let found = if found.is_empty() {
                    "-".to_owned()
                } else {
                    found.join("; ")
                };
                complaints.push(format!("explain: {key} is {found}, not {value}"));
            }
        }
    }
    complaints
}

/// The explanation is about a row of the report and tells the same.
fn check_agreement(story: &Value, report: &Value) -> Vec<String> {
    let rows = |kind: &str| report[kind].as_array().cloned().unwrap_or_default();
    let (stuck, leaked) = (rows("stuck"), rows("leaked"));
    let first = if stuck.is_empty() { &leaked } else { &stuck };
    if first.is_empty() {
        return Vec::new();
    }
    let same = |row: &&Value| {
        [
            "/semid",
            "/ipc_ns",
            "/key",
            "/verdict/class",
            "/verdict/missing_step",
        ]
        .iter()
        .all(|place| row.pointer(place) == story["cookie"].pointer(place))
    };
    let Some(row) = first.iter().find(same) else {
        return vec![format!(
            "explain is about none of the {} worst rows: {}",
            first.len(),
            story["headline"]
        )];
    };
    let mut complaints = Vec::new();
    let empty = |field: &str| story[field].as_array().is_none_or(Vec::is_empty);
    for field in ["life", "fault", "evidence", "remedies", "avoid"] {
        if empty(field) {
            complaints.push(format!("explain: {field} is empty"));
        }
    }
    if row["state"] == "stuck" && empty("victims") {
        complaints.push("explain: nobody suffers from what is stuck".to_owned());
    }
    complaints
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample_story() -> (Value, Value) {
        let row = json!({
            "semid": 5, "ipc_ns": 1, "key": "0x0d4d0001", "state": "stuck",
            "verdict": {
                "class": {"class": "stuck", "detail": {"cause": "udevd_down"}},
                "missing_step": {"step": "completion", "count": 1},
            },
        });
        let story = json!({
            "cookie": row, "headline": "stuck: no udevd runs",
            "missing": {"step": "completion", "count": 1},
            "life": [{"what": "makes it"}], "fault": ["udevd"], "evidence": ["no udevd runs"],
            "remedies": ["start it"], "avoid": ["no"], "victims": [{"pid": 7}],
            "avoid_codes": ["kill_waiter"], "remedy_codes": ["start_udevd"],
        });
        (
            json!({"explanations": [story]}),
            json!({"stuck": [row], "leaked": []}),
        )
    }

    fn check_line(line: &str, said: &Value, report: &Value) -> Vec<String> {
        let wanted = Expectation::parse(&line.replace(' ', "\t")).unwrap();
        find_complaints(said, report, std::iter::once(&wanted))
    }

    #[test]
    fn what_is_as_expected_passes() {
        let (said, report) = sample_story();
        for line in [
            "explain state=stuck cause=udevd_down missing=completion count=1 victim=7",
            "explain life=makes evidence=udevd remedy=start_udevd avoid=kill_waiter culprit=-",
        ] {
            assert_eq!(check_line(line, &said, &report), [""; 0], "{line}");
        }
    }

    #[test]
    fn what_is_not_is_told() {
        let (said, report) = sample_story();
        for line in [
            "explain missing=wait",
            "explain cause=event_lost",
            "explain victim=8",
            "explain victim=-",
            "explain life=removes",
            "explain avoid=destroy",
        ] {
            assert_eq!(check_line(line, &said, &report).len(), 1, "{line}");
        }
        assert!(Expectation::parse("explain\tnonsense=1").is_err());
    }

    #[test]
    fn it_must_agree_with_the_report() {
        let (mut said, report) = sample_story();
        said["explanations"][0]["victims"] = json!([]);
        assert_eq!(check_line("explain", &said, &report).len(), 1);
        said["explanations"][0]["cookie"]["verdict"]["missing_step"] = json!(null);
        assert_eq!(check_line("explain", &said, &report).len(), 1);
        assert_eq!(
            check_line("explain", &json!({"explanations": []}), &report).len(),
            2
        );
        // Nothing found, nothing to explain.
        let calm = json!({"stuck": [], "leaked": []});
        let none = find_complaints(&json!({"explanations": []}), &calm, std::iter::empty());
        assert_eq!(none, [""; 0]);
    }
}
