//! One truth: every verb says the same of a cookie at the same moment, and what `explain` advises
//! works when it is typed.
//!
//! `finish` (tests/vm/lib.sh) asks each verb while the trace runs, and `list` once more at the end:
//! what time has changed meanwhile is no contradiction. It types the advice of the explanation of the
//! recording, and lists what is left.

use serde_json::Value;

use super::answers::{ScenarioOutput, ServiceAnswers, json_rows};

/// Everything that contradicts something else.
pub(super) fn find_contradictions(said: &ScenarioOutput) -> Vec<String> {
    let mut complaints = Vec::new();
    let again = json_rows(&said.list_again, "semaphores");
    let lasting: Vec<&Value> = json_rows(&said.list, "semaphores")
        .into_iter()
        .filter(|row| row["cookie"] == true && same_verdict(row, find_row(&again, row)))
        .collect();
    for row in &lasting {
        check_plan(row, &said.plan, &mut complaints);
        check_report(row, &said.report_live, &mut complaints);
        check_watch(row, &said.watch, &mut complaints);
    }
    let story = &said.explain_live["explanations"][0]["cookie"];
    if let Some(row) = find_row(&lasting, story).filter(|row| !same_verdict(row, Some(story))) {
        complaints.push(format!(
            "list: {}; explain: {}",
            brief(row),
            story["verdict"]["text"]
        ));
    }
    check_doctor(said, &lasting, &mut complaints);
    if let Some(service) = &said.service {
        check_service(service, &lasting, &mut complaints);
        // Counts can be compared if nothing has changed.
        if lasting.len() == count_cookies(&said.list)
            && lasting.len() == count_cookies(&said.list_again)
        {
            check_metrics(&service.metrics, &lasting, &mut complaints);
        }
    }
    complaints.extend(check_advice(said));
    complaints
}

fn count_cookies(list: &Value) -> usize {
    let rows = json_rows(list, "semaphores").into_iter();
    rows.filter(|row| row["cookie"] == true).count()
}

/// So many findings wait for the command; what comes at once beyond that is dropped and counted.
const HOOK_QUEUE: usize = 64;

/// Whether a verdict is one that is told by itself.
fn is_finding(row: &Value) -> bool {
    matches!(
        row["state"].as_str(),
        Some("leaked" | "stuck" | "over-completed")
    )
}

/// What it says of each set that is in the way of `dmsetup udevcomplete_all`.
fn check_doctor(said: &ScenarioOutput, lasting: &[&Value], complaints: &mut Vec<String>) {
    for harm in json_rows(&said.doctor["udevcomplete_all"], "harms") {
        let same_set = |row: &&&Value| row["key"] == harm["key"] && row["semid"] == harm["semid"];
        let Some(row) = lasting.iter().find(same_set) else {
            continue;
        };
        if harm["state"] != row["state"] || harm["confidence"] != row["verdict"]["confidence"] {
            complaints.push(format!(
                "list: {}; doctor: {} ({})",
                brief(row),
                harm["state"],
                harm["confidence"]
            ));
        }
    }
}

/// Its status, and what its command was told.
fn check_service(service: &ServiceAnswers, lasting: &[&Value], complaints: &mut Vec<String>) {
    let standing = json_rows(&service.status["findings"], "list");
    for row in lasting {
        let found = find_row(&standing, row);
        let agrees = match found {
            Some(found) => is_finding(row) && same_verdict(row, Some(found)),
            None => !is_finding(row),
        };
        if !agrees {
            let told = found.map_or_else(|| "no finding".to_owned(), brief);
            complaints.push(format!("list: {}; serve --status: {told}", brief(row)));
        }
        let last = service
            .told
            .iter()
            .rfind(|finding| find_row(&[finding], row).is_some());
        let class = last.map_or(&Value::Null, |last| &last["verdict"]["class"]["class"]);
        let dropped = last.is_none() && standing.len() > HOOK_QUEUE;
        if is_finding(row) && !dropped && class.as_str() != row["state"].as_str() {
            complaints.push(format!("list: {}; --on-leak: {class}", brief(row)));
        }
    }
}

/// How many cookies there are, by state.
fn check_metrics(metrics: &str, lasting: &[&Value], complaints: &mut Vec<String>) {
    let counts = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix("dmtrace_cookies{state=\"")?;
        let (state, count) = rest.split_once("\"} ")?;
        Some((state, count.parse::<usize>().ok()?))
    });
    let mut any = false;
    for (state, count) in counts {
        any = true;
        let listed = lasting.iter().filter(|row| row["state"] == state).count();
        if listed != count {
            complaints.push(format!("list: {listed} {state}; metrics: {count}"));
        }
    }
    if !any {
        complaints.push("the metrics have no cookies".to_owned());
    }
}

fn find_row<'a>(among: &[&'a Value], wanted: &Value) -> Option<&'a Value> {
    let keys = ["ipc_ns", "semid", "key"];
    let same = |it: &&&Value| keys.iter().all(|key| it[*key] == wanted[*key]);
    among.iter().find(same).copied()
}

fn same_verdict(row: &Value, other: Option<&Value>) -> bool {
    other.is_some_and(|other| {
        ["text", "confidence"]
            .iter()
            .all(|key| row["verdict"][*key] == other["verdict"][*key])
    })
}

fn brief(row: &Value) -> String {
    let verdict = &row["verdict"];
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    format!(
        "{} {} ({})",
        word(&row["key"]),
        word(&verdict["text"]),
        word(&verdict["confidence"])
    )
}

fn check_plan(row: &Value, plan: &Value, complaints: &mut Vec<String>) {
    let entries = json_rows(&plan["plan"], "entries");
    let same_set = |it: &&Value| it["ns"] == row["ipc_ns"] && it["semid"] == row["semid"];
    let Some(entry) = entries.into_iter().find(same_set) else {
        complaints.push(format!("list: {}; clean does not know it", brief(row)));
        return;
    };
    let verdict = &entry["verdict"];
    let observed = row["verdict"]["confidence"] == "observed";
    if verdict["text"] != row["verdict"]["text"] || verdict["observed"] != observed {
        complaints.push(format!("list: {}; clean: {verdict}", brief(row)));
    }
}

fn check_report(row: &Value, report: &Value, complaints: &mut Vec<String>) {
    let places = [
        ("leaked", "leaked"),
        ("stuck", "stuck"),
        ("over-completed", "over_completed"),
    ];
    for (state, name) in places {
        let found = find_row(&json_rows(report, name), row);
        let expected = row["state"] == state;
        let agrees = match found {
            Some(found) => expected && same_verdict(row, Some(found)),
            None => !expected,
        };
        if !agrees {
            let told = found.map_or_else(|| format!("not {state}"), brief);
            complaints.push(format!("list: {}; report: {told}", brief(row)));
        }
    }
}

/// What `watch` has told last of it.
fn check_watch(row: &Value, watch: &[Value], complaints: &mut Vec<String>) {
    if !is_finding(row) {
        return;
    }
    let findings = watch.iter().filter(|line| line["type"] == "finding");
    let mut told = findings.filter(|line| find_row(&[line], row).is_some());
    match told.next_back() {
        None => complaints.push(format!("list: {}; watch did not tell it", brief(row))),
        // The state: what a finding rests on may become clearer later.
        Some(last) if last["verdict"]["class"] != row["state"] => {
            complaints.push(format!("list: {}; watch: {}", brief(row), last["text"]));
        }
        Some(_) => {}
    }
}

/// The command has removed or completed the cookie, or has said why not yet.
fn check_advice(said: &ScenarioOutput) -> Option<String> {
    let story = &said.explain["explanations"][0];
    let cookie = &story["cookie"];
    if said.advice.is_empty() {
        return None;
    }
    let left = find_row(&json_rows(&said.list_after, "semaphores"), cookie)?;
    let waits = story["remedies"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .any(|text| {
            let later = text.contains(", once ") || text.contains("keeps it for now");
            text.contains(&said.advice) && later
        });
    let refused = said
        .advice_output
        .lines()
        .any(|line| line.starts_with("kept"));
    let completed = said.advice.contains("--complete") && left["state"] != "stuck";
    (!completed && !(waits && refused)).then(|| {
        format!(
            "explain advises {:?} for {}: it is still there: {}",
            said.advice,
            brief(cookie),
            said.advice_output.replace('\n', " | ")
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(state: &str, text: &str) -> Value {
        json!({
            "ipc_ns": 7, "semid": 3, "key": "0x0d4d0001", "cookie": true, "state": state,
            "verdict": {"text": text, "confidence": "observed"},
        })
    }

    fn same_everywhere() -> ScenarioOutput {
        let leaked = row("leaked", "leaked: owner killed");
        let verdict = json!({"text": "leaked: owner killed", "observed": true});
        ScenarioOutput {
            list: json!({"semaphores": [leaked]}),
            list_again: json!({"semaphores": [leaked]}),
            report_live: json!({"leaked": [leaked]}),
            explain_live: json!({"explanations": [{"cookie": leaked}]}),
            plan: json!({"plan": {"entries": [{"ns": 7, "semid": 3, "verdict": verdict}]}}),
            watch: vec![json!({
                "type": "finding", "ipc_ns": 7, "semid": 3, "key": "0x0d4d0001",
                "verdict": {"class": "leaked"},
            })],
            advice: "dmtrace clean 0x0d4d0001".to_owned(),
            advice_output: "removed".to_owned(),
            explain: json!({"explanations": [{
                "cookie": leaked,
                "remedies": ["remove it: `dmtrace clean 0x0d4d0001` shows what it would do"],
            }]}),
            list_after: json!({"semaphores": []}),
            doctor: json!({"udevcomplete_all": {"harms": [harm("leaked")]}}),
            service: Some(ServiceAnswers {
                status: json!({"findings": {"list": [leaked]}}),
                told: vec![json!({
                    "ipc_ns": 7, "semid": 3, "key": "0x0d4d0001",
                    "verdict": {"class": {"class": "leaked"}},
                })],
                metrics: METRICS.to_owned(),
            }),
            ..ScenarioOutput::default()
        }
    }

    const METRICS: &str = "# TYPE dmtrace_cookies gauge\n\
                           dmtrace_cookies{state=\"leaked\"} 1\n\
                           dmtrace_cookies{state=\"unknown\"} 0\n";

    fn harm(state: &str) -> Value {
        json!({"key": "0x0d4d0001", "semid": 3, "state": state, "confidence": "observed"})
    }

    fn service_of(said: &mut ScenarioOutput) -> &mut ServiceAnswers {
        said.service.as_mut().unwrap()
    }

    #[test]
    fn the_same_everywhere_is_no_contradiction() {
        assert_eq!(find_contradictions(&same_everywhere()), [""; 0]);
    }

    #[test]
    fn each_verb_that_differs_is_told() {
        let other = row("unknown", "unknown: too young");
        let changes: [fn(&mut ScenarioOutput, Value); 11] = [
            |said, other| said.report_live = json!({"leaked": [], "undecided": [other]}),
            |said, other| said.explain_live = json!({"explanations": [{"cookie": other}]}),
            |said, _| said.plan["plan"]["entries"][0]["verdict"]["observed"] = json!(false),
            |said, _| said.plan = json!({"plan": {"entries": []}}),
            |said, _| said.watch.clear(),
            |said, _| said.list_after = said.list.clone(),
            |said, _| said.doctor["udevcomplete_all"]["harms"] = json!([harm("unknown")]),
            |said, _| service_of(said).status = json!({"findings": {"list": []}}),
            |said, _| service_of(said).told.clear(),
            |said, _| service_of(said).metrics.clear(),
            |said, _| service_of(said).metrics = METRICS.replace("\"} 1", "\"} 2"),
        ];
        for change in changes {
            let mut said = same_everywhere();
            change(&mut said, other.clone());
            assert_eq!(find_contradictions(&said).len(), 1, "{:?}", said.plan);
        }
    }

    #[test]
    fn what_time_has_changed_is_no_contradiction() {
        let mut said = same_everywhere();
        said.list = json!({"semaphores": [row("unknown", "unknown: too young")]});
        assert_eq!(find_contradictions(&said), [""; 0]);
    }

    #[test]
    fn advice_that_says_when_may_be_refused_until_then() {
        let mut said = same_everywhere();
        said.list_after = said.list.clone();
        said.advice_output = "kept          0x0d4d0001 semid 3: udev may still complete".to_owned();
        assert_eq!(find_contradictions(&said).len(), 1);
        said.explain["explanations"][0]["remedies"][0] =
            json!("remove it: `dmtrace clean 0x0d4d0001`, once udev has had its time");
        assert_eq!(find_contradictions(&said), [""; 0]);
    }
}
