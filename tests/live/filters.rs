//! Filters and values of options, with the binary: what a typo does, and that no answer is of
//! another namespace.

use anyhow::{Context as _, Result, ensure};
use dmtrace_tests::harness::{RunningActor, in_private_ns, new_trial, ns_of, start_actor};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    NEEDS,
    tracer::{dmtrace_json, run_dmtrace},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial(
            "filters::a_typo_is_no_empty_answer",
            NEEDS,
            a_typo_is_no_empty_answer,
        ),
        new_trial(
            "filters::one_number_in_two_namespaces",
            NEEDS,
            one_number_in_two_namespaces,
        ),
        new_trial(
            "filters::a_set_without_a_verdict_is_in_no_state",
            NEEDS,
            a_set_without_a_verdict_is_in_no_state,
        ),
    ]
}

fn a_typo_is_no_empty_answer() -> Result<()> {
    for (words, meant) in [
        (&["list", "--state", "leakd"][..], "leaked"),
        (&["clean", "--state", "leakt"], "leaked"),
        (&["list", "--json", "-o", "smeid"], "semid"),
        (&["list", "--json", "--sort", "ages"], "age"),
        (&["report", "--by", "stak"], "stack"),
        (&["watch", "--backend", "fentri"], "fentry"),
        (&["list", "--color", "nevr"], "never"),
    ] {
        let output = run_dmtrace(words)?;
        let text = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(2), "{words:?}: {text}");
        ensure!(output.stdout.is_empty(), "{words:?} prints an answer");
        ensure!(text.contains(meant), "{words:?}: {text}");
    }
    // The words of before are no words any more.
    let output = run_dmtrace(&["list", "--state", "orphan"])?;
    ensure!(output.status.code() == Some(2), "{output:?}");
    Ok(())
}

/// semids begin at 0 in each new namespace: an actor there has the number of the one here.
fn start_holder(args: &[&str]) -> Result<(RunningActor, String, i32)> {
    let mut actor = start_actor(args)?;
    let ns = actor.read_until("namespace")?.number("ns")?.to_string();
    let semid = actor.read_until("created")?.semid()?;
    Ok((actor, ns, semid))
}

fn namespaces_in(object: &Value) -> Vec<String> {
    let list = object["explanations"].as_array();
    list.into_iter()
        .flatten()
        .map(|it| it["cookie"]["ipc_ns"].to_string())
        .collect()
}

fn one_number_in_two_namespaces() -> Result<()> {
    in_private_ns(|| {
        let here = ns_of("thread-self")?.to_string();
        let mut own = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "hold"])?;
        let semid = own.read_until("created")?.semid()?;
        own.read_until("armed")?;
        let hold = [
            "cycle",
            "--new-ipc-ns",
            "--stop-at",
            "after-inc",
            "--how",
            "hold",
        ];
        let (_cookie, other, same) = start_holder(&hold)?;
        let general = ["foreign", "--new-ipc-ns", "--key", "0x51e0", "--hold"];
        let (_general, third, also) = start_holder(&general)?;
        ensure!(same == semid && also == semid, "{semid}, {same}, {also}");
        let number = semid.to_string();
        for (ns, told) in [
            (&here, &here),
            (&other, &other),
            (&"self".to_owned(), &here),
        ] {
            let (object, _) = dmtrace_json(&["explain", &number, "--ipc-ns", ns])?;
            ensure!(namespaces_in(&object) == [told.clone()], "{ns}: {object}");
            let (list, _) = dmtrace_json(&["list", "--all", "--semid", &number, "--ipc-ns", ns])?;
            let rows = list["semaphores"].as_array().context("no list")?;
            ensure!(rows.len() == 1, "{ns}: {list}");
            ensure!(
                told.parse() == Ok(rows[0]["ipc_ns"].as_u64().unwrap_or_default()),
                "{ns}: {list}"
            );
            let read = list["namespaces"].as_array().context("no namespaces")?;
            ensure!(read.len() == 1, "{ns}: {list}");
        }
        // A set that is no cookie: it is told of, and not the cookie elsewhere.
        let output = run_dmtrace(&["explain", &number, "--ipc-ns", &third])?;
        let text = String::from_utf8(output.stdout)?;
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let wanted = format!("semid {number} in IPC namespace {third} is no cookie");
        ensure!(words.contains(&wanted), "{text}");
        ensure!(words.contains("0x000051e0"), "{text}");
        // Nobody is to guess which of them is to be removed.
        let output = run_dmtrace(&["clean", &number])?;
        let text = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(2), "{text}");
        ensure!(text.contains("--ipc-ns") && text.contains(&other), "{text}");
        let (plan, _) = dmtrace_json(&["clean", &number, "--ipc-ns", "self"])?;
        let entries = plan["plan"]["entries"].as_array().context("no plan")?;
        ensure!(entries.len() == 1, "{plan}");
        ensure!(
            here.parse() == Ok(entries[0]["ns"].as_u64().unwrap_or_default()),
            "{plan}"
        );
        Ok(())
    })?
}

fn a_set_without_a_verdict_is_in_no_state() -> Result<()> {
    in_private_ns(|| {
        let _general = {
            let mut actor = start_actor(&["foreign", "--nsems", "3", "--key", "0x51e1", "--hold"])?;
            actor.read_until("created")?;
            actor
        };
        let all = ["list", "--all", "--ipc-ns", "self"];
        let rows = |more: &[&str]| -> Result<usize> {
            let (list, _) = dmtrace_json(&[&all, more].concat())?;
            Ok(list["semaphores"].as_array().context("no list")?.len())
        };
        ensure!(rows(&[])? == 1, "it is not shown at all");
        for state in ["leaked", "unknown", "open,leaked,stuck"] {
            ensure!(rows(&["--state", state])? == 0, "{state}");
        }
        Ok(())
    })?
}
