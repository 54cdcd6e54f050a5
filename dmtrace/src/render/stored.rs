//! A kept finding as `report` and `explain` show it: the same as one of now.

use dmtrace_core::{ledger::Device, verdict::Remedy};
use serde::Serialize;
use serde_json::Value;

use crate::{
    finding::{Known, SetReport, Story},
    history::{FindingEnd, HowGone, Stamp, StoredFinding},
    output::time::Moment,
    render::{
        culprits::{Leak, leak_text},
        explanation::HAS_WAITED,
        leak_end::LeakEnd,
        timeline::NOTHING_SINCE,
    },
    wording::{count_noun, of_number},
};

/// A story, and the time of what is stored.
#[derive(Serialize)]
struct DatedStory<'a, T> {
    #[serde(flatten)]
    what: T,
    found: Stamp,
    gone: Option<&'a FindingEnd>,
}

fn dated_json(finding: &StoredFinding, what: impl Serialize) -> Value {
    let dated = DatedStory {
        what,
        found: finding.found,
        gone: finding.gone.as_ref(),
    };
    // The types have no maps with keys that are no strings, the only cause.
    serde_json::to_value(dated).unwrap_or_default()
}

/// The cookie with its calls.
fn with_calls(finding: &StoredFinding) -> SetReport {
    SetReport {
        call_site: finding.calls.clone(),
        ..finding.story.cookie.clone()
    }
}

/// The story as JSON, with the calls, and with when it was found and gone.
///
/// `missing`: whoever asks has looked, and the cookie is not there any more.
pub(crate) fn story_json(finding: &StoredFinding, missing: bool) -> Value {
    let mut story = Story {
        cookie: with_calls(finding),
        ..finding.story.clone()
    };
    settle_advice(&mut story, how_gone(finding, missing));
    dated_json(finding, story)
}

/// The cookie as JSON, likewise.
pub(crate) fn cookie_json(finding: &StoredFinding) -> Value {
    dated_json(finding, with_calls(finding))
}

/// How it ended. An end that was seen here may not be written yet.
fn how_gone(finding: &StoredFinding, missing: bool) -> Option<HowGone> {
    let written = finding.gone.as_ref().map(|gone| gone.how);
    written.or(missing.then_some(HowGone::Unseen))
}

/// The story for people; `None` for one of which nothing can be read. `missing`: as
/// [`story_json`] has it.
pub(crate) fn story_from_stored(finding: &StoredFinding, missing: bool) -> Option<Story> {
    let mut story = finding.story.clone();
    if story.title.is_empty() {
        return None;
    }
    for moment in &mut story.life {
        let time = moment.time.as_deref().and_then(Moment::parse);
        moment.shown = time.map(Moment::time_of_day).unwrap_or_default();
        if let Some(quiet) = moment.what.strip_prefix(NOTHING_SINCE) {
            moment.what = format!("nothing more until it was found, {quiet} later");
        }
    }
    if story.title.ends_with(" old") {
        story.title.push_str(" when found");
    }
    let ending = how_gone(finding, missing);
    settle_advice(&mut story, ending);
    if ending.is_some() {
        for victim in &mut story.victims {
            victim.text = victim.text.replace(HAS_WAITED, "had been waiting for");
        }
    }
    Some(story)
}

/// Advice on a cookie that has gone since: nothing is to be done with the cookie, but what made it
/// leak may still be there.
fn settle_advice(story: &mut Story, ending: Option<HowGone>) {
    let Some(how) = ending.filter(|how| *how != HowGone::OtherVerdict) else {
        return;
    };
    let ended = match how {
        HowGone::Removed => "it has been removed",
        _ => "it is gone",
    };
    let with_cookie = |remedy: Remedy| {
        matches!(
            remedy,
            Remedy::Leave
                | Remedy::Settle
                | Remedy::CompleteOwn
                | Remedy::RepairThenComplete
                | Remedy::Destroy
                | Remedy::Investigate
                | Remedy::ReadAll
                | Remedy::Release
        )
    };
    // What happened to it while it was in use is still to be looked after.
    let harm = how == HowGone::AlreadyGone;
    let codes = story.remedy_codes.iter().copied();
    let (codes, texts): (Vec<Remedy>, Vec<String>) = codes
        .zip(story.remedies.drain(..))
        .filter(|(remedy, _)| !with_cookie(*remedy) || (harm && *remedy == Remedy::Settle))
        .unzip();
    let nothing = if texts.is_empty() {
        format!("nothing: {ended}")
    } else {
        format!("nothing with the cookie: {ended}")
    };
    story.remedies = [vec![nothing], texts].concat();
    story.remedy_codes = [vec![Remedy::Leave], codes].concat();
    story.avoid.clear();
    story.avoid_codes.clear();
}

/// What a report counts.
pub(crate) fn leak_of(finding: &StoredFinding) -> Leak {
    let cookie = &finding.story.cookie;
    let owner = cookie.owner.as_ref();
    let verdict = cookie.verdict.as_ref();
    Leak {
        owner: cookie.owner_label(),
        pid: owner.map(|owner| owner.pid),
        comm: owner.map(|owner| owner.comm.clone()).unwrap_or_default(),
        how: verdict
            .map(|verdict| leak_text(&verdict.text))
            .unwrap_or_default(),
        observed: verdict.is_some_and(|verdict| verdict.confidence == Known::Observed),
        age_seconds: None,
        key: finding.key.to_string(),
        devices: cookie.devices().iter().map(Device::full_label).collect(),
        image: cookie.image().cloned(),
        site: finding.calls.clone(),
        is_listed: true,
        end: finding.gone.as_ref().map(LeakEnd::from_stored),
    }
}

/// What is to be said of findings that cannot be shown: those that a newer dmtrace has kept, and
/// those that are damaged.
pub(crate) fn unread_notes(newer: usize, unreadable: usize) -> Vec<String> {
    let mut notes = Vec::new();
    if newer > 0 {
        notes.push(format!(
            "{} kept by a newer dmtrace, which alone can show {}",
            count_noun(newer, "finding was", "findings were"),
            of_number(&newer, "it", "them")
        ));
    }
    if unreadable > 0 {
        notes.push(format!(
            "{} in the history cannot be read, and {} left out",
            count_noun(unreadable, "finding", "findings"),
            of_number(&unreadable, "is", "are")
        ));
    }
    notes
}

/// How it ended, in words.
pub(crate) fn ending_text(gone: Option<&FindingEnd>) -> String {
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

/// How some went, in words that follow this number.
pub(crate) const fn ending_label(how: HowGone, count: usize) -> &'static str {
    match how {
        HowGone::Removed => "removed",
        HowGone::WithNamespace if count == 1 => "gone with its IPC namespace",
        HowGone::WithNamespace => "gone with their IPC namespace",
        HowGone::AlreadyGone if count == 1 => "gone when it was found",
        HowGone::AlreadyGone => "gone when they were found",
        HowGone::OtherVerdict => "whose end is not known",
        HowGone::Rebooted => "gone with a reboot",
        HowGone::Unseen => "gone, removal not seen",
    }
}

/// Who is to blame: `name[pid]`.
pub(crate) fn culprit_text(cookie: &SetReport) -> Option<String> {
    let culprit = cookie.verdict.as_ref()?.culprit.as_ref()?;
    Some(culprit.who.to_string())
}
