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
