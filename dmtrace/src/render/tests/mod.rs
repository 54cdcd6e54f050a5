//! What programs read is a contract: sets and stories of every kind, byte for byte as they were.

pub(crate) mod golden;
pub(crate) mod scene;

use dmtrace_common::{SEM_COOKIE, SemRecord};
use dmtrace_core::{
    facts::SemState,
    ids::{IpcNs, SemId, UnixTime},
};
use golden::assert_golden;
use scene::Scene;

use crate::render::row::Row;

/// A line of JSON for each.
fn json_lines<T: std::fmt::Display>(values: impl IntoIterator<Item = T>) -> String {
    values.into_iter().map(|it| format!("{it}\n")).collect()
}

#[test]
fn rows_are_the_same_bytes() {
    let scene = Scene::new();
    assert_golden(
        "render/tests/golden/rows.jsonl",
        &json_lines(scene.rows().iter().map(Row::to_json)),
    );
}

#[test]
fn stories_are_the_same_bytes() {
    let scene = Scene::new();
    let rows = scene.rows();
    let stories = rows
        .iter()
        .filter(|row| row.semaphore.is_cookie())
        .map(|row| serde_json::to_value(scene.telling().build_story(row)).unwrap());
    assert_golden("render/tests/golden/stories.jsonl", &json_lines(stories));
}

#[cfg(feature = "live")]
#[test]
fn kept_findings_are_the_same_bytes() {
    use crate::render::stored;
    let scene = Scene::new();
    let kept: Vec<_> = scene.kept();
    assert!(kept.len() > 5, "{}", kept.len());
    assert_golden(
        "render/tests/golden/kept.jsonl",
        &json_lines(kept.iter().map(|it| stored::story_json(it, false))),
    );
    assert_golden(
        "render/tests/golden/kept-cookies.jsonl",
        &json_lines(kept.iter().map(stored::cookie_json)),
    );
}

/// The story of one cookie.
fn story_of(scene: &Scene, semid: i32) -> crate::finding::Story {
    let rows = scene.rows();
    let row = rows.iter().find(|row| row.semaphore.id.semid == semid);
    scene.telling().build_story(row.unwrap())
}

#[test]
fn what_to_do_is_what_a_clean_up_would_do() {
    let scene = Scene::new();
    // Seen to leak.
    assert_eq!(
        story_of(&scene, 1).remedies[0],
        "remove it: `dmtrace clean 0x0d4d1001` shows what it would do; --apply does it"
    );
    // Nobody has seen this one leak.
    assert_eq!(
        story_of(&scene, 3).remedies,
        [
            "`dmtrace clean` keeps it: nobody saw it leak; if you are sure: `dmtrace clean \
             --force-unknown 0x0d4d1003`"
        ]
    );
    // Left by a process that is alive.
    assert_eq!(
        story_of(&scene, 4).remedies[0],
        "remove it: `dmtrace clean --abandoned 0x0d4d1004` shows what it would do; --apply does it"
    );
    // Stuck without udevd, in a namespace.
    assert_eq!(
        story_of(&scene, 2).remedies[1],
        "once udevd runs it may still find the event, and complete by itself; if the thread waits all \
         the same: check the device nodes, `udevadm trigger` if one is missing, then complete what is \
         missing: `dmtrace clean --complete 0x0d4d1002 --ipc-ns 4026532999`, which keeps it for now"
    );
}

#[test]
fn a_cookie_that_is_gone_is_not_to_be_left() {
    let scene = Scene::new();
    let rows = scene.rows();
    let gone = rows.iter().filter(|row| !row.semaphore.is_live());
    let stories: Vec<_> = gone.map(|row| scene.telling().build_story(row)).collect();
    assert!(!stories.is_empty());
    let remedies: Vec<&String> = stories.iter().flat_map(|it| &it.remedies).collect();
    assert!(
        remedies.contains(&&"nothing: it is gone".to_owned()),
        "{remedies:?}"
    );
    assert!(
        !remedies.iter().any(|it| it.contains("leave it")),
        "{remedies:?}"
    );
}

#[test]
fn what_only_the_kernel_or_the_map_tells_is_in_the_life() {
    let steps = |scene: &Scene, semid| -> Vec<String> {
        let story = story_of(scene, semid);
        story
            .life
            .into_iter()
            .map(|it| it.text().to_owned())
            .collect()
    };
    let mut scene = Scene::new();
    let sets = scene.snapshot.namespaces.iter_mut();
    let set = sets
        .flat_map(|space| &mut space.sets)
        .find(|set| set.semid == 3);
    let set = set.unwrap();
    set.otime = UnixTime(0);
    set.first = Some(SemState::default());
    let life = steps(&scene, 3);
    assert!(
        life.iter().any(|it| it == "never set, never operated on"),
        "{life:?}"
    );
    let record = SemRecord {
        created: 9_000_000_000_000,
        key: 0x0d4d_1060,
        nsems: 1,
        state: SEM_COOKIE,
        owner_inc: 3,
        other_dec: 2,
        waits: 1,
        ..SemRecord::default()
    };
    let sem = SemId {
        ns: IpcNs::HOST,
        semid: 60,
    };
    scene.ledger.adopt_record(sem, &record);
    let life = steps(&scene, 60);
    let sum = "in total: 3 announced, 2 taken back or completed, 1 wait";
    assert!(life.iter().any(|it| it == sum), "{life:?}");
}
