//! A kept finding as `report` and `explain` show it: the same as one of now.

use dmtrace_core::{event::ProcessImage, ids::DevNum, ledger::Named};
use serde_json::{Value, json};

use crate::{
    finding::Story,
    history::{Finding, Gone, HowGone},
    output::time::Moment,
    render::culprits::{Leak, how},
};

/// The calls are kept apart, as they can be shown in more than one way.
#[cfg(feature = "live")]
pub(crate) fn leave_out_calls(story: &mut Value) {
    if let Some(cookie) = story["cookie"].as_object_mut() {
        cookie.remove("call_site");
    }
}

/// The story as JSON, with the calls, and with when it was found and gone.
pub(crate) fn value(finding: &Finding) -> Value {
    let mut story = finding.story.clone();
    if let (Some(calls), Some(cookie)) = (&finding.calls, story["cookie"].as_object_mut()) {
        cookie.insert("call_site".to_owned(), calls.json());
    }
    if let Some(story) = story.as_object_mut() {
        story.insert("found".to_owned(), json!(finding.found));
        story.insert("gone".to_owned(), json!(finding.gone));
    }
    story
}

/// The cookie as JSON, likewise.
pub(crate) fn cookie(finding: &Finding) -> Value {
    let mut story = value(finding);
    let mut cookie = story["cookie"].take();
    if let Some(cookie) = cookie.as_object_mut() {
        cookie.insert("found".to_owned(), json!(finding.found));
        cookie.insert("gone".to_owned(), json!(finding.gone));
    }
    cookie
}

/// The story for people; `None` for one that this dmtrace cannot read.
pub(crate) fn told(finding: &Finding) -> Option<Story> {
    let mut story: Story = serde_json::from_value(value(finding)).ok()?;
    for moment in &mut story.life {
        let time = moment.time.as_deref().and_then(Moment::parse);
        moment.shown = time.map(Moment::time_of_day).unwrap_or_default();
    }
    Some(story)
}

/// What a report counts.
pub(crate) fn leak(finding: &Finding) -> Leak {
    let cookie = &finding.story["cookie"];
    let owner = &cookie["owner"];
    let comm = owner["comm"].as_str().unwrap_or_default();
    let mark = match (cookie["owner_known"].as_str(), owner["ended"].as_bool()) {
        (Some("inferred"), _) => "?",
        (_, Some(true)) => "+",
        _ => "",
    };
    let name = if comm.is_empty() { "?" } else { comm };
    let verdict = &cookie["verdict"];
    let devices = cookie["devices"].as_array();
    let image = cookie.get("process").cloned();
    Leak {
        owner: owner["pid"]
            .as_u64()
            .map(|pid| format!("{name}[{pid}]{mark}")),
        pid: owner["pid"]
            .as_u64()
            .and_then(|pid| u32::try_from(pid).ok()),
        comm: comm.to_owned(),
        how: verdict["text"].as_str().map(how).unwrap_or_default(),
        observed: verdict["confidence"] == "observed",
        age_seconds: None,
        key: finding.key.to_string(),
        devices: devices.into_iter().flatten().map(device).collect(),
        image: image.and_then(|image| serde_json::from_value::<ProcessImage>(image).ok()),
        site: finding.calls.clone(),
    }
}

/// Name and number, as far as they are known: `vg-lv (253:3)`.
pub(crate) fn device(device: &Value) -> String {
    let name = device["name"].as_str().unwrap_or_default();
    let part = |part: &str| device["number"][part].as_u64();
    match (name, part("major"), part("minor")) {
        ("", Some(major), Some(minor)) => format!("{major}:{minor}"),
        (name, Some(major), Some(minor)) => format!("{name} ({major}:{minor})"),
        ("", ..) => "?".to_owned(),
        (name, ..) => name.to_owned(),
    }
}

/// How it ended, in words.
pub(crate) fn end(gone: Option<&Gone>) -> String {
    let Some(gone) = gone else {
        return "still there".to_owned();
    };
    let by = match &gone.by {
        Some(by) => format!(" by {by}"),
        None => String::new(),
    };
    match gone.how {
        HowGone::Removed => format!("removed{by}"),
        HowGone::WithNamespace => "gone with its IPC namespace".to_owned(),
        HowGone::AlreadyGone => format!(
            "gone when it was found{}",
            by.replace(" by", ", removed by")
        ),
        HowGone::OtherVerdict => "judged differently later".to_owned(),
        HowGone::Rebooted => "gone with a reboot".to_owned(),
        HowGone::Unseen => "gone, its removal was not seen".to_owned(),
    }
}

/// Whether somebody means this device: by name, UUID, number (253:3) or node (dm-3).
pub(crate) fn is_device(device: &Value, wanted: &str) -> bool {
    let part = |part: &str| {
        device["number"][part]
            .as_u64()
            .and_then(|it| u32::try_from(it).ok())
    };
    let known = Named {
        name: device["name"].as_str().unwrap_or_default(),
        uuid: device["uuid"].as_str(),
        number: part("major")
            .zip(part("minor"))
            .map(|(major, minor)| DevNum { major, minor }),
    };
    known.is(wanted)
}

/// How some went, in words that follow a number.
pub(crate) const fn went(how: HowGone) -> &'static str {
    match how {
        HowGone::Removed => "removed",
        HowGone::WithNamespace => "gone with their IPC namespace",
        HowGone::AlreadyGone => "gone when they were found",
        HowGone::OtherVerdict => "judged differently later",
        HowGone::Rebooted => "gone with a reboot",
        HowGone::Unseen => "gone, removal not seen",
    }
}

/// The verdict in words.
pub(crate) fn headline(finding: &Finding) -> String {
    finding.story["headline"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Who is to blame: `name[pid]`.
pub(crate) fn culprit(cookie: &Value) -> Option<String> {
    let culprit = cookie["verdict"].get("culprit")?;
    let pid = culprit["id"]["tgid"].as_u64()?;
    Some(format!("{}[{pid}]", culprit["name"].as_str()?))
}
