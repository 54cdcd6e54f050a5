//! One set, one word: what `watch` has found of a cookie, `list` finds at the same moment.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use dmtrace_tests::harness::{Trial, in_private_ns, new_trial, ns_of, start_actor};
use serde_json::Value;

use super::tracer::{WatchProcess, dmtrace_json};
use crate::NEEDS;

pub(crate) fn tests() -> Vec<Trial> {
    vec![new_trial(
        "watch_and_list_call_a_set_by_one_word",
        NEEDS,
        one_word,
    )]
}

/// Every way to leave a cookie that needs no device, and some that leave none.
const ACTORS: [&[&str]; 13] = [
    &["eintr", "--then-cycle", "--hold"],
    &["eintr", "--hold"],
    &["eintr"],
    &["moby", "--count", "2", "--every-ms", "50", "--hold"],
    &["moby", "--may-sleep", "--count", "2", "--hold"],
    &["cycle", "--stop-at", "after-inc", "--how", "kill"],
    &["cycle", "--stop-at", "after-complete", "--how", "exit"],
    &["cycle", "--stop-at", "after-wait", "--how", "kill"],
    &["cycle", "--stop-at", "in-wait", "--how", "hold"],
    &["cycle", "--stop-at", "in-wait", "--how", "kill"],
    &["thread"],
    &["create"],
    &["foreign", "--nsems", "3"],
];

/// Last verdict of each set, by semid, and how it came to that: a finding, or not one.
fn verdict_words<'a>(found: impl Iterator<Item = &'a Value>) -> BTreeMap<i64, String> {
    let found = found.filter_map(|object| {
        let verdict = &object["verdict"];
        // In a row of `list` what is below the class is an object of its own.
        let verdict = match &verdict["class"] {
            class @ Value::Object(_) => class,
            _ => verdict,
        };
        let word = verdict["class"]
            .as_str()
            .filter(|word| matches!(*word, "leaked" | "stuck"));
        let how = verdict["detail"]["how"].as_str().unwrap_or_default();
        Some((object["semid"].as_i64()?, format!("{} {how}", word?)))
    });
    found.collect()
}

fn one_word() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?;
        let mut tracer = WatchProcess::start(&["--ipc-ns", &ns.to_string()])?;
        let mut actors = Vec::new();
        for args in ACTORS {
            actors.push(start_actor(args)?);
        }
        // The last one that is found: it needs its thread to have been quiet for a while.
        let abandoned = |object: &Value| object["verdict"]["detail"]["how"] == "never_waited";
        tracer.wait_object(abandoned, Duration::from_secs(60))?;
        let interrupted = tracer
            .seen_objects()
            .any(|it| it["verdict"]["detail"]["how"] == "abandoned_on_eintr");
        ensure!(interrupted, "no wait that was given up was found");
        let began = Instant::now();
        loop {
            let (list, _) = dmtrace_json(&["list", "--ipc-ns", &ns.to_string()])?;
            let _more = tracer.wait_object(|_| false, Duration::from_millis(1500));
            let rows = list["semaphores"].as_array().context("no list")?;
            let listed = verdict_words(rows.iter());
            let watched = verdict_words(tracer.seen_objects().filter(|it| it["type"] == "finding"));
            if listed == watched {
                ensure!(listed.len() >= 8, "{listed:?}");
                return Ok(());
            }
            ensure!(
                began.elapsed() < Duration::from_secs(20),
                "list: {listed:?}\nwatch: {watched:?}"
            );
        }
    })?
}
