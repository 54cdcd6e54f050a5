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
