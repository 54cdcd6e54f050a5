//! What a search adds to a verdict that rests on the fields of a set.

use std::collections::BTreeSet;

use super::{
    old::found_cookie,
    scene::{KEY, Scene, leaked},
};
use crate::{
    ids::{BootTime, ProcId, UnixTime},
    search::{
        Coverage, Form, HolderClass, HolderProcess, NotSearched, Place, Search, Spot,
        UnsearchedReason,
        orphan::{Mark, OrphanObstacle},
    },
    verdict::{Class, Confidence, Evidence, LeakKind, Undecided, Verdict},
};

/// Hours after the cookie was touched last, searched once, with this holder.
fn judge_searched(scene: Scene, holder: Option<HolderClass>) -> Verdict {
    judge_after_search(scene, |search| {
        let Some(class) = holder else { return };
        let process = HolderProcess {
            id: ProcId {
                tgid: 1843,
                start: BootTime(3),
            },
            comm: "tool".to_owned(),
            exe: "/usr/bin/tool".to_owned(),
            class,
            traits: BTreeSet::new(),
        };
        let spot = Spot {
            form: Form::Aligned4,
            place: Place::Heap,
            count: 1,
        };
        search.add(process, [(KEY, spot)]);
    })
}

fn judge_after_search(mut scene: Scene, change: impl Fn(&mut Search)) -> Verdict {
    leaked(&scene.verdict(7200));
    let began = BootTime(scene.world.now);
    let mut search = Search {
        began,
        ended: began,
        needles: [KEY].into(),
        coverage: Coverage {
            descriptors: true,
            files_since: Some(UnixTime(0)),
            files_failed: None,
        },
        rounds: 2,
        stable: true,
        searched: 100,
        ..Search::default()
    };
    change(&mut search);
    let sets = scene.world.snapshot().namespaces[0].sets.clone();
    let sems = scene.world.sems.keys().copied();
    scene.completeness.marks.first = Some(Mark {
        search,
        sets: sems.zip(sets).collect(),
        udev_idle: true,
        suspended: Vec::new(),
    });
    scene.verdict(1)
}

#[test]
fn what_a_living_process_holds_is_never_called_leaked_by_its_fields() {
    for (value, otime) in [(0, true), (1, true), (2, true), (1, false)] {
        let cookie = || found_cookie(value, 77, otime);
        for class in [HolderClass::Actor, HolderClass::Capable] {
            let verdict = judge_searched(cookie(), Some(class));
            assert_eq!(verdict.class, Class::Unknown(Undecided::PossibleOwners));
            let is_holder = |fact: &Evidence| {
                let Evidence::NotProvenBySearch { why } = fact else {
                    return false;
                };
                matches!(why, OrphanObstacle::HeldBy { holder } if holder.process.comm == "tool")
            };
            assert!(verdict.evidence.iter().any(is_holder), "{verdict:#?}");
        }
        // Whoever only mentions it keeps nothing.
        for holder in [None, Some(HolderClass::MentionOnly)] {
            let verdict = judge_searched(cookie(), holder);
            assert!(matches!(verdict.class, Class::Orphaned(_)), "{verdict:#?}");
            assert_eq!(verdict.confidence, Confidence::Searched);
        }
    }
}

#[test]
fn a_process_that_could_not_be_searched_may_hold_it() {
    let missed = |class| {
        judge_after_search(found_cookie(2, 77, true), |search| {
            search.not_searched.push(NotSearched {
                pid: 1843,
                comm: "tool".to_owned(),
                class,
                reason: UnsearchedReason::TimedOut,
            });
        })
    };
    for class in [None, Some(HolderClass::Actor), Some(HolderClass::Capable)] {
        let verdict = missed(class);
        assert_eq!(verdict.class, Class::Unknown(Undecided::PossibleOwners));
    }
    let harmless = missed(Some(HolderClass::MentionOnly));
    assert!(matches!(harmless.class, Class::Orphaned(_)));
}

/// A clean-up that cannot search files must not say for ever that it only has to be repeated.
#[test]
fn files_that_could_not_be_searched_are_no_formality() {
    let files = |failed: Option<&str>| {
        judge_after_search(found_cookie(1, 77, true), |search| {
            search.coverage.files_since = None;
            search.coverage.files_failed = failed.map(str::to_owned);
        })
    };
    assert!(matches!(files(None).class, Class::Orphaned(_)));
    let verdict = files(Some("it took longer than 2m00s"));
    assert!(!matches!(verdict.class, Class::Orphaned(_)), "{verdict:#?}");
    let is_why = |fact: &Evidence| {
        let text = fact.to_string();
        text == "search: files could not be searched for it: it took longer than 2m00s"
    };
    assert!(verdict.evidence.iter().any(is_why), "{verdict:#?}");
}

#[test]
fn what_was_not_searched_leaves_the_verdict_of_the_fields() {
    let mut scene = found_cookie(2, 77, true);
    let kind = leaked(&scene.verdict(7200));
    assert!(matches!(kind, LeakKind::Signature { .. }));
    scene.completeness.marks.first = Some(Mark::default());
    assert_eq!(leaked(&scene.verdict(1)), kind);
}
