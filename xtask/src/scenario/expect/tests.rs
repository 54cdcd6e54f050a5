use serde_json::json;

use super::*;

fn leak_row(pid: u32, how: &str) -> Value {
    json!({"key": "0x0d4d0001", "semid": 1, "state": "leaked", "owner": {"pid": pid},
        "devices": [{"name": "d"}],
        "verdict": {"class": {"class": "leaked", "detail": {"how": how}},
            "confidence": "observed", "culprit": {"id": {"tgid": pid}},
            "missing_step": {"step": "wait"}, "evidence": ["it was killed by SIGKILL"]}})
}

fn sample_output(leaked: &[Value]) -> ScenarioOutput {
    let cookies = json!({"created": 2, "live": 0});
    ScenarioOutput {
        watch: vec![json!({"type": "summary", "exact": true, "totals": {"cookies": cookies}})],
        list: json!({ "semaphores": leaked }),
        report: json!({"leaked": leaked, "stuck": [], "victims": [], "undecided": 0,
            "complete": true}),
        explain: json!({"explanations": leaked.iter().take(1).map(row_story).collect::<Vec<_>>()}),
        ..ScenarioOutput::default()
    }
}

fn row_story(row: &Value) -> Value {
    let some = json!(["something"]);
    json!({"cookie": row, "life": some, "fault": some, "evidence": some, "remedies": some,
        "avoid": some})
}

/// What [`leak_row`] has, and an expectation must have.
const LEAK: &str = " how=owner_killed confidence=observed missing=wait evidence=SIGKILL";

fn parse_expectations(lines: &[&str]) -> Vec<Expectation> {
    let parse = |line: &&str| {
        let mut line = (*line).to_owned();
        if line.starts_with("leaked") {
            line += LEAK;
        }
        Expectation::parse(&line.replace(' ', "\t")).unwrap()
    };
    lines.iter().map(parse).collect()
}

#[test]
fn every_leak_must_be_expected_and_every_expectation_met() {
    let one = sample_output(&[leak_row(7, "owner_killed")]);
    let good = parse_expectations(&["leaked culprit=7 device=d", "cookies created=2 live=0"]);
    assert_eq!(find_complaints(&one, &good), Vec::<String>::new());
    assert_eq!(find_complaints(&one, &[]).len(), 1);
    let other = parse_expectations(&["leaked culprit=8 device=d"]);
    let text = find_complaints(&one, &other).join("\n");
    assert!(
        text.contains("missing: leaked culprit=8 device=d")
            && text.contains("(next: culprit is 7, not 8)"),
        "{text}"
    );
    assert!(text.contains("not expected: leaked"), "{text}");
    assert_eq!(find_complaints(&sample_output(&[]), &good).len(), 1);
    assert_eq!(
        find_complaints(
            &sample_output(&[]),
            &parse_expectations(&["cookies live=1+"])
        )
        .len(),
        1
    );
}

#[test]
fn a_wrong_step_or_evidence_is_a_complaint() {
    for (place, other) in [
        ("/verdict/missing_step/step", json!("removal")),
        ("/verdict/evidence/0", json!("it ended")),
        ("/verdict/confidence", json!("inferred")),
    ] {
        let mut row = leak_row(7, "owner_killed");
        *row.pointer_mut(place).unwrap() = other;
        let text = find_complaints(
            &sample_output(&[row]),
            &parse_expectations(&["leaked culprit=7 device=d"]),
        );
        assert_eq!(text.len(), 2, "{text:?}");
    }
}

#[test]
fn a_wrong_device_is_a_complaint() {
    let one = sample_output(&[leak_row(7, "owner_killed")]);
    for device in ["-", "e"] {
        let wanted = parse_expectations(&[&format!("leaked culprit=7 device={device}")]);
        let text = find_complaints(&one, &wanted).join("\n");
        assert!(
            text.contains(&format!("device is d, not {device}")),
            "{text}"
        );
    }
    // Nothing said is no device.
    let mut none = leak_row(7, "owner_killed");
    none.as_object_mut().unwrap().remove("devices");
    assert_eq!(
        find_complaints(
            &sample_output(&[none]),
            &parse_expectations(&["leaked culprit=7 device=d"])
        )
        .len(),
        2
    );
}

#[test]
fn findings_on_the_way_count() {
    let mut was = sample_output(&[]);
    was.watch.insert(
        0,
        json!({"type": "finding", "verdict": {"class": "leaked"}, "text": "x"}),
    );
    assert_eq!(find_complaints(&was, &[]).len(), 1);
    assert!(find_complaints(&was, &parse_expectations(&["was state=leaked device=-"])).is_empty());
    assert_eq!(
        find_complaints(
            &sample_output(&[]),
            &parse_expectations(&["was state=stuck device=-"])
        )
        .len(),
        1
    );
}

#[test]
fn list_and_report_must_agree() {
    let mut two = sample_output(&[leak_row(7, "owner_killed")]);
    two.list = json!({ "semaphores": [] });
    let text =
        find_complaints(&two, &parse_expectations(&["leaked culprit=7 device=d"])).join("\n");
    assert!(text.contains("list and report differ"), "{text}");
}

#[test]
fn inexact_accounts_are_a_failure() {
    let mut bad = sample_output(&[]);
    bad.watch[0]["exact"] = json!(false);
    assert_eq!(find_complaints(&bad, &[]).len(), 1);
    assert!(find_complaints(&bad, &parse_expectations(&["inexact"])).is_empty());
}

#[test]
fn expectations_are_checked() {
    for bad in [
        "leaked how=x confidence=observed missing=wait evidence=x device=d",
        "leaked culprit=1 how=x confidence=observed missing=wait evidence=x",
        "leaked culprit=1 how=x confidence=observed missing=wait device=d",
        "leaked culprit=1 how=x confidence=observed evidence=x device=d",
        "stuck cause=x confidence=observed missing=completion evidence=x device=d",
        "was state=leaked",
        "leaked culprit=1 device=d hwo=x",
        "laeked culprit=1",
        "stuck x",
    ] {
        assert!(
            Expectation::parse(&bad.replace(' ', "\t")).is_err(),
            "{bad}"
        );
    }
}
