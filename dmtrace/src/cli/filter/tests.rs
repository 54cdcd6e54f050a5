//! What each filter lets through.

use super::*;

#[test]
fn every_filter_restricts() {
    let it = Candidate {
        pid: Some(7),
        comm: "lvm",
        semid: Some(3),
        state: Some(State::Leaked),
        ..Candidate::default()
    };
    assert!(Filters::default().passes(&it));
    assert!(
        Filters {
            pid: Some(7),
            comm: Some("lvm".into()),
            semid: Some(3),
            state: vec![State::Open, State::Leaked],
            ..Filters::default()
        }
        .passes(&it)
    );
}

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    filters: Filters,
}

#[test]
fn what_lacks_the_property_does_not_pass() {
    use clap::Parser as _;
    for option in [
        "--pid=7",
        "--comm=lvm",
        "--uid=0",
        "--container=4f3a",
        "--device=vg-lv",
        "--ipc-ns=host",
        "--key=0",
        "--semid=0",
        "--state=unknown",
        "--min-age=0",
    ] {
        let filters = Line::try_parse_from(["x", option]).unwrap().filters;
        assert!(!filters.is_empty(), "{option}");
        assert!(!filters.passes(&Candidate::default()), "{option}");
        assert!(!filters.scope_text().is_empty(), "{option}");
    }
}

/// What a next command is told to be given means the same.
#[test]
fn filters_can_be_given_to_the_next_command() {
    use clap::Parser as _;
    let parse = |words: &[&str]| {
        let line = [&["x"], words].concat();
        Line::try_parse_from(line).unwrap().filters
    };
    assert_eq!(Filters::default().args_text(), "");
    for words in [
        &["--pid=7", "--comm=lvm", "--uid=0"][..],
        &["--container=4f3a", "--device=vg-lv", "--ipc-ns=host"],
        &["--key=0x0d4d1234", "--semid=0", "--min-age=90"],
        &["--state=leaked,slow-udev"],
    ] {
        let filters = parse(words);
        let text = filters.args_text();
        let again: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(parse(&again), filters, "{text}");
    }
    let odd = parse(&["--comm=it's two"]);
    assert_eq!(odd.args_text(), r" --comm 'it'\''s two'");
}

#[test]
fn a_namespace_that_was_not_read_is_told() {
    let read = [NsSnapshot::default()];
    let of = |ns| Filters {
        ipc_ns: Some(ns),
        ..Filters::default()
    };
    assert_eq!(Filters::default().missing_ns_text(&[]), None);
    assert_eq!(of(read[0].ns).missing_ns_text(&read), None);
    let missing = of(IpcNs(1)).missing_ns_text(&read);
    assert_eq!(
        missing.as_deref(),
        Some("--ipc-ns: no IPC namespace 1 was read; it may have ended")
    );
}

#[test]
fn what_is_no_number_is_told_so() {
    use clap::Parser as _;
    for option in ["--pid=x", "--semid=x"] {
        let error = Line::try_parse_from(["x", option]).unwrap_err().to_string();
        assert!(error.contains("give a number"), "{error}");
    }
}

#[test]
fn who_is_asked_for_by_name_is_told_of_cookies_of_unknown_makers() {
    let mut case = Case::empty();
    let space = |ns, semid| NsSnapshot {
        ns,
        sets: vec![SetSnapshot {
            semid,
            key: Key(0x0d4d_1000),
            mode: 0o600,
            nsems: 1,
            ..SetSnapshot::default()
        }],
        ..NsSnapshot::default()
    };
    case.snapshot.namespaces = vec![space(IpcNs::HOST, 1), space(IpcNs(7), 2)];
    case.ledger.reconcile(&case.snapshot);
    let text = |filters: Filters| filters.unknown_makers_text(&case);
    let by_name = Filters {
        comm: Some("lvm".to_owned()),
        state: vec![State::Leaked],
        ..Filters::default()
    };
    let told = text(by_name.clone()).unwrap();
    assert!(told.starts_with("not looked at: 2 cookies,"), "{told}");
    let there = Filters {
        ipc_ns: Some(IpcNs(7)),
        ..by_name.clone()
    };
    assert!(text(there).unwrap().contains(": 1 cookie,"));
    let elsewhere = Filters {
        ipc_ns: Some(IpcNs(8)),
        ..by_name
    };
    assert_eq!(text(elsewhere), None);
    // What the kernel tells of every set.
    let by_state = Filters {
        state: vec![State::Leaked],
        ..Filters::default()
    };
    assert_eq!(text(by_state), None);
}
