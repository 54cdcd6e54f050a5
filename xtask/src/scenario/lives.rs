//! Whether `watch` has shown every step of the lives of cookies that came to a good end.

use std::collections::BTreeMap;

use serde_json::Value;

/// Number of increments, and of decrements.
type Steps = (usize, usize);

/// Lives by the numbers of their steps, and what is wrong with them: made, set, incremented and
/// decremented, one wait begun and ended, removed; in this order, as far as one thing is the
/// consequence of another.
pub(super) fn count_lives(watch: &[Value]) -> (BTreeMap<Steps, usize>, Vec<String>) {
    let mut all: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for line in watch.iter().filter(|line| line["type"] == "change") {
        let set = format!(
            "{} {} {}",
            line["sem"]["ns"], line["sem"]["semid"], line["key"]
        );
        let steps = all.entry(set).or_default();
        steps.extend(line["change"].as_str());
    }
    let (mut lives, mut complaints) = (BTreeMap::new(), Vec::new());
    for (set, steps) in all {
        let good = ["created", "set", "released", "destroyed"];
        if !good.iter().all(|step| steps.contains(step)) {
            continue;
        }
        let count = |step: &str| steps.iter().filter(|it| **it == step).count();
        *lives.entry((count("up"), count("down"))).or_default() += 1;
        let once = good.iter().chain(&["waiting"]).all(|step| count(step) == 1);
        let first = |step: &str| steps.iter().position(|it| *it == step);
        let last = |step: &str| steps.iter().rposition(|it| *it == step);
        let order = [
            first("created"),
            first("set"),
            first("up"),
            first("down"),
            last("down"),
            last("released"),
            last("destroyed"),
        ];
        let ends = order[0] == Some(0) && order[6] == Some(steps.len() - 1);
        if !(once && ends && order.is_sorted() && first("waiting") < last("released")) {
            complaints.push(format!(
                "not a life in its order: {set}: {}",
                steps.join(" ")
            ));
        }
    }
    (lives, complaints)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_lives(steps: &str) -> (BTreeMap<Steps, usize>, usize) {
        let lines = steps.split_whitespace().map(|step| {
            serde_json::json!({
                "type": "change", "change": step, "key": "0x0d4d0001",
                "sem": { "ns": 1, "semid": 2 },
            })
        });
        let (lives, complaints) = count_lives(&lines.collect::<Vec<_>>());
        (lives, complaints.len())
    }

    #[test]
    fn a_step_that_is_missing_or_late_shows() {
        let life = "created set up up down waiting down down released destroyed";
        let good = BTreeMap::from([((2, 3), 1)]);
        assert_eq!(parse_lives(life), (good.clone(), 0));
        let missing = "created set up up down waiting down released destroyed";
        assert_eq!(parse_lives(missing), (BTreeMap::from([((2, 2), 1)]), 0));
        let late = "created set up up down waiting down released destroyed down";
        assert_eq!(parse_lives(late), (good.clone(), 1));
        let swapped = "created set up up down waiting down released down destroyed";
        assert_eq!(parse_lives(swapped), (good, 1));
        assert_eq!(parse_lives("created set up"), (BTreeMap::new(), 0));
    }
}
