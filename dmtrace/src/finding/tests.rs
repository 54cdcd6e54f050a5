//! What others have written is read as far as it goes.

use serde_json::{Value, json};

use super::{SetReport, Story};
use crate::{
    history::{Stamp, StoredFinding},
    render::{candidate::Candidate, stored, tests::scene::Scene},
};

/// A story of each kind, as it is stored.
fn sample_stories() -> Vec<Value> {
    let scene = Scene::new();
    let rows = scene.rows();
    let cookies = rows.iter().filter(|row| row.semaphore.is_cookie());
    cookies
        .map(|row| {
            let mut story = scene.telling().build_story(row);
            story.cookie.call_site = None;
            serde_json::to_value(story).unwrap()
        })
        .collect()
}

/// Everywhere that a value can be replaced.
fn json_places(value: &Value, here: &str, found: &mut Vec<String>) {
    if !here.is_empty() {
        found.push(here.to_owned());
    }
    match value {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(name, value)| json_places(value, &format!("{here}/{name}"), found)),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .for_each(|(number, value)| json_places(value, &format!("{here}/{number}"), found)),
        _ => {}
    }
}

/// Takes away what is at this place.
fn remove_place(story: &mut Value, place: &str) {
    let (parent, name) = place.rsplit_once('/').unwrap();
    match story.pointer_mut(parent).unwrap() {
        Value::Object(fields) => drop(fields.remove(name)),
        Value::Array(items) => drop(items.remove(name.parse().unwrap())),
        _ => unreachable!(),
    }
}

/// Everything that reads a stored finding.
fn use_it(story: Story) {
    let finding = StoredFinding {
        version: StoredFinding::VERSION,
        sem: dmtrace_core::ids::SemId::default(),
        key: dmtrace_core::ids::Key(7),
        state: "leaked".to_owned(),
        program: String::new(),
        found: Stamp::default(),
        gone: None,
        calls: None,
        story,
    };
    assert!(stored::story_json(&finding, false).is_object());
    assert!(stored::cookie_json(&finding).is_object());
    let _owner = stored::leak_of(&finding).owner;
    let _culprit = stored::culprit_text(&finding.story.cookie);
    let _told = stored::story_from_stored(&finding, false);
    let _candidate = Candidate::from_stored(&finding);
}

#[test]
fn a_story_is_read_back_as_it_was_written() {
    for written in sample_stories() {
        let story: Story = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(serde_json::to_value(&story).unwrap(), written);
        let cookie: SetReport = serde_json::from_value(written["cookie"].clone()).unwrap();
        assert_eq!(cookie, story.cookie);
    }
}

#[test]
fn what_a_newer_program_has_added_is_ignored() {
    for written in sample_stories() {
        let mut more = written.clone();
        for place in ["", "/cookie", "/cookie/verdict", "/life/0"] {
            if let Some(Value::Object(fields)) = more.pointer_mut(place) {
                fields.insert("of_tomorrow".to_owned(), json!({"a": [1, 2]}));
            }
        }
        let story: Story = serde_json::from_value(more).unwrap();
        assert_eq!(serde_json::to_value(&story).unwrap(), written);
    }
}

/// A value that is wrong, or is not there, is as one that is not known; what is beside it stays.
#[test]
fn one_bad_value_spoils_nothing_beside_it() {
    let wrong = [
        Value::Null,
        json!(-1),
        json!(u64::MAX),
        json!(1e300),
        json!("\u{0}\u{1b}[2J"),
        json!([[[]]]),
        json!({"pid": {}, "step": 7}),
    ];
    for written in sample_stories() {
        let mut all = Vec::new();
        json_places(&written, "", &mut all);
        assert!(all.len() > 50, "{all:?}");
        for place in &all {
            let changes = wrong.iter().map(Some).chain([None]);
            for change in changes {
                let mut story = written.clone();
                match change {
                    Some(value) => *story.pointer_mut(place).unwrap() = value.clone(),
                    None => remove_place(&mut story, place),
                }
                let read: Story = serde_json::from_value(story)
                    .unwrap_or_else(|error| panic!("{place}: {change:?}: {error}"));
                let again = serde_json::to_value(&read).unwrap();
                let first = place.split('/').nth(1).unwrap();
                for (name, value) in written.as_object().unwrap() {
                    if name != first {
                        assert_eq!(&again[name], value, "{place}: {change:?}");
                    }
                }
                // In the cookie what stands beside it, too.
                if let Some(inside) = place.strip_prefix("/cookie/") {
                    let second = inside.split('/').next().unwrap();
                    for name in ["semid", "key", "state", "owner", "verdict"] {
                        if name != second {
                            let (read, was) = (&again["cookie"][name], &written["cookie"][name]);
                            assert_eq!(read, was, "{place}: {change:?}");
                        }
                    }
                }
                use_it(read);
            }
        }
    }
}

#[test]
fn a_value_that_the_words_say_is_not_said_twice() {
    use super::StoryMoment;
    let text = |what: &str, value| {
        StoryMoment {
            what: what.to_owned(),
            value,
            ..StoryMoment::default()
        }
        .text()
    };
    assert_eq!(
        text("wakes up: the value is 0", Some(0)),
        "wakes up: the value is 0"
    );
    assert_eq!(
        text("-1: completes one", Some(0)),
        "-1: completes one (value 0)"
    );
    assert_eq!(text("makes it", None), "makes it");
}
