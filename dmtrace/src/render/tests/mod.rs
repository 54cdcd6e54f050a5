//! What programs read is a contract: sets and stories of every kind, byte for byte as they were.

pub(crate) mod golden;
pub(crate) mod scene;

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
        &json_lines(kept.iter().map(stored::story_json)),
    );
    assert_golden(
        "render/tests/golden/kept-cookies.jsonl",
        &json_lines(kept.iter().map(stored::cookie_json)),
    );
}
