//! What dmtrace's JSON says, by the keys of expectations.

use serde_json::Value;

/// A field of a row of `list` or `report`, or of a finding or a change of `watch`, as text;
/// `None` if it is not there or null.
pub(super) fn field_of(object: &Value, key: &str) -> Option<String> {
    match key {
        "command" => object.pointer("/process/cmdline").and_then(value_words),
        "device" => device_names(object),
        "site" => site_state(object),
        "named" | "through" => named_functions(object),
        "evidence" => evidence_lines(object),
        _ => places_of(key).iter().find_map(|place| {
            let found = if place.starts_with('/') {
                object.pointer(place)
            } else {
                object.get(*place)
            };
            found.and_then(value_text)
        }),
    }
}

/// Where a key may be: in rows, in findings, in changes.
fn places_of(key: &str) -> &[&str] {
    match key {
        "state" => &["state", "/verdict/class"],
        "how" => &["/verdict/class/detail/how", "/verdict/detail/how"],
        "cause" => &["/verdict/class/detail/cause", "/verdict/detail/cause"],
        "step" => &["/verdict/class/detail/step", "/verdict/detail/step"],
        "signal" => &[
            "/verdict/class/detail/signal",
            "/verdict/detail/signal",
            "/status/signal",
        ],
        "status" => &[
            "/verdict/class/detail/status",
            "/verdict/detail/status",
            "/status/code",
        ],
        "fields" => &["/verdict/class/detail/fields", "/verdict/detail/fields"],
        "because" => &["/verdict/class/detail/because"],
        "looked_in" => &["/verdict/class/detail/looked_in"],
        "reason" => &["/verdict/class/detail"],
        "confidence" => &["confidence", "/verdict/confidence"],
        "culprit" => &["/culprit/id/tgid", "/verdict/culprit/id/tgid"],
        "missing" => &["/verdict/missing_step/step"],
        "lost" => &["/verdict/missing_step/count"],
        "creator" => &["/owner/pid"],
        "ns" => &["ipc_ns", "/sem/ns"],
        "by" => &["/who/id/tgid"],
        "known" => &["owner_known"],
        "also_culprit" => &["also_culprit"],
        "ending" => &["ending"],
        "meaning" => &["meaning"],
        "errno" => &["errno"],
        "stage" => &["stage"],
        "value" => &["value"],
        "waiting" => &["waiting"],
        "pid" => &["pid"],
        "failed" => &["failed"],
        "key" => &["key"],
        "semid" => &["semid", "/sem/semid"],
        "change" => &["change"],
        "name" => &["name"],
        "container" => &["/workload/container"],
        _ => &[],
    }
}

/// Whether a key of an expectation exists: a wrong one would never match, or always.
pub(super) fn is_known(key: &str) -> bool {
    matches!(
        key,
        "command" | "device" | "site" | "named" | "through" | "evidence" | "count"
    ) || !places_of(key).is_empty()
}

/// What an explanation says, by the keys of `expect explain`; there may be several texts.
pub(super) fn of_explanation(story: &Value, key: &str) -> Vec<String> {
    let texts = |field: &str, part: &str| -> Vec<String> {
        let items = story[field].as_array().into_iter().flatten();
        items
            .map(|item| if part.is_empty() { item } else { &item[part] })
            .map(|item| match item {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            })
            .collect()
    };
    let one = |value: &Value| match value {
        Value::Null => Vec::new(),
        Value::String(text) => vec![text.clone()],
        other => vec![other.to_string()],
    };
    match key {
        "missing" => one(&story["missing"]["step"]),
        "count" => one(&story["missing"]["count"]),
        "life" => texts("life", "what"),
        "evidence" => texts("evidence", ""),
        "remedy" => texts("remedy_codes", ""),
        "avoid" => texts("avoid_codes", ""),
        "victim" => texts("victims", "pid"),
        _ => field_of(&story["cookie"], key).into_iter().collect(),
    }
}

/// Whether a key of `expect explain` exists.
pub(super) fn is_known_of_explain(key: &str) -> bool {
    matches!(
        key,
        "missing" | "count" | "life" | "evidence" | "remedy" | "avoid" | "victim"
    ) || is_known(key)
}

fn value_text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

fn value_words(value: &Value) -> Option<String> {
    let words: Vec<&str> = value.as_array()?.iter().filter_map(Value::as_str).collect();
    Some(words.join(" "))
}

/// `complete`, or why the call site is not.
fn site_state(object: &Value) -> Option<String> {
    let site = object.get("call_site")?;
    match site.get("complete")?.as_bool()? {
        true => Some("complete".to_owned()),
        false => site.get("truncated").and_then(value_text),
    }
}

/// Functions of the call site that have a name, innermost first.
fn named_functions(object: &Value) -> Option<String> {
    let frames = object.pointer("/call_site/frames")?.as_array()?;
    let functions = frames
        .iter()
        .filter_map(|frame| frame.get("functions")?.as_array());
    let names = functions
        .flatten()
        .filter_map(|function| function.get("function")?.as_str());
    Some(names.collect::<Vec<_>>().join(","))
}

/// The lines of evidence.
fn evidence_lines(object: &Value) -> Option<String> {
    let lines = object.pointer("/verdict/evidence")?.as_array()?;
    let lines: Vec<&str> = lines.iter().filter_map(Value::as_str).collect();
    (!lines.is_empty()).then(|| lines.join("; "))
}

/// Names of the devices, sorted.
fn device_names(object: &Value) -> Option<String> {
    let devices = object.get("devices")?.as_array()?;
    let name = |device: &Value| match device {
        Value::String(name) => Some(name.clone()),
        other => other.get("name").and_then(value_text),
    };
    let mut names: Vec<String> = devices.iter().filter_map(name).collect();
    names.sort();
    names.dedup();
    (!names.is_empty()).then(|| names.join(","))
}

/// Whether the field of this key is what an expectation wants: evidence must have all parts of
/// `a + b`, `through` the names it gives in this order, with others between them; other fields
/// must be it.
pub(super) fn field_fits(key: &str, actual: Option<&str>, wanted: &str) -> bool {
    match (key, actual) {
        ("evidence", Some(actual)) => wanted.split(" + ").all(|part| actual.contains(part)),
        ("through", Some(actual)) => {
            let mut names = actual.split(',');
            wanted
                .split(',')
                .all(|one| names.any(|name| is_like(name, one)))
        }
        _ => value_is(actual, wanted),
    }
}

/// Whether a name is the wanted one, in which one `*` stands for anything.
fn is_like(name: &str, wanted: &str) -> bool {
    match wanted.split_once('*') {
        Some((begin, end)) => {
            name.len() >= begin.len() + end.len() && name.starts_with(begin) && name.ends_with(end)
        }
        None => name == wanted,
    }
}

/// Whether a field is what an expectation wants: `-` for nothing, `a|b` for one of several, `3+`
/// for at least 3.
pub(super) fn value_is(actual: Option<&str>, wanted: &str) -> bool {
    let Some(actual) = actual else {
        return wanted == "-";
    };
    if actual == wanted {
        return true;
    }
    if let Some(least) = wanted
        .strip_suffix('+')
        .and_then(|text| text.parse::<u64>().ok())
    {
        return actual.parse::<u64>().is_ok_and(|number| number >= least);
    }
    wanted.split('|').any(|one| one == actual)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_and_findings_alike() {
        let row = json!({"verdict": {"class": {"class": "leaked", "detail": {"how": "x"}},
            "confidence": "observed"}, "process": {"cmdline": ["a", "b c"]}, "waiting": 0,
            "devices": [{"name": "z"}, "y"], "owner": null, "state": "leaked",
            "call_site": {"complete": false, "truncated": "why", "frames": [
                {"functions": [{"function": "a"}, {"function": "b"}]}, {"functions": []}]}});
        assert_eq!(field_of(&row, "site").as_deref(), Some("why"));
        assert_eq!(field_of(&row, "named").as_deref(), Some("a,b"));
        assert_eq!(field_of(&row, "how").as_deref(), Some("x"));
        assert_eq!(field_of(&row, "command").as_deref(), Some("a b c"));
        assert_eq!(field_of(&row, "waiting").as_deref(), Some("0"));
        assert_eq!(field_of(&row, "device").as_deref(), Some("y,z"));
        assert_eq!(field_of(&row, "creator"), None);
        let finding = json!({"verdict": {"class": "stuck"}, "culprit": {"id": {"tgid": 7}}});
        assert_eq!(field_of(&finding, "state").as_deref(), Some("stuck"));
        assert_eq!(field_of(&finding, "culprit").as_deref(), Some("7"));
        assert!(is_known("count") && !is_known("cuplrit"));
    }

    #[test]
    fn a_chain_goes_through_functions_in_order() {
        let chain = Some("semget,set_cookie,_cgo_1f_Cfunc_set,main");
        let through = |wanted| field_fits("through", chain, wanted);
        assert!(through("semget,main") && through("set_cookie,_cgo_*_Cfunc_set"));
        assert!(!through("main,semget") && !through("semget,semget") && !through("set"));
        assert!(!through("_cgo_*_Cfunc_get") && !field_fits("through", None, "main"));
        assert!(
            field_fits("named", chain, "semget,set_cookie,_cgo_1f_Cfunc_set,main")
                && !field_fits("named", chain, "semget,main")
        );
    }

    #[test]
    fn evidence_has_all_parts() {
        let row = json!({"verdict": {"evidence": ["value 1", "no udevd runs"],
            "missing_step": {"step": "completion", "count": 2}}});
        let said = field_of(&row, "evidence");
        assert!(field_fits(
            "evidence",
            said.as_deref(),
            "no udevd + value 1"
        ));
        assert!(!field_fits(
            "evidence",
            said.as_deref(),
            "no udevd + value 2"
        ));
        assert!(!field_fits("evidence", None, "value"));
        assert!(field_fits("lost", field_of(&row, "lost").as_deref(), "2"));
    }

    #[test]
    fn comparisons() {
        assert!(value_is(None, "-") && !value_is(None, "1") && !value_is(Some("1"), "-"));
        assert!(value_is(Some("b"), "a|b") && !value_is(Some("c"), "a|b"));
        assert!(
            value_is(Some("4"), "3+") && !value_is(Some("2"), "3+") && value_is(Some("3"), "3")
        );
    }
}
