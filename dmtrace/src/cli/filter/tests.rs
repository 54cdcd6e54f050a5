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
    assert!(Filters::default().pass(&it));
    assert!(
        Filters {
            pid: Some(7),
            comm: Some("lvm".into()),
            semid: Some(3),
            state: vec![State::Open, State::Leaked],
            ..Filters::default()
        }
        .pass(&it)
    );
}
