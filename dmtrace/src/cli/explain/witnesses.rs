//! What witnesses on this host say of a cookie that is older than any trace: who made it, and the
//! lines of that second.

use dmtrace_core::{
    ids::SemId,
    witness::{Answer, ContextLine, Inquiry, Suspect},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::text::StorySection;
use crate::{
    case::HeardWitnesses,
    output::time::{Clock, Moment},
    wording::count_noun,
};

/// What they say of one cookie.
pub(super) struct Hearsay {
    answer: Answer,
    lines: Vec<LoggedLine>,
    left_out: usize,
    unread: Vec<String>,
}

/// A line of a log of that second.
#[derive(Serialize)]
struct LoggedLine {
    /// RFC 3339.
    time: String,
    /// Time of day, for people.
    #[serde(skip)]
    shown: String,
    #[serde(skip)]
    moment: Moment,
    #[serde(flatten)]
    line: ContextLine,
}

impl Hearsay {
    /// Of each cookie; `None` if a trace saw it being made.
    pub(super) fn find_all(
        heard: Option<&HeardWitnesses<'_>>,
        clock: &Clock,
        sems: impl Iterator<Item = SemId>,
    ) -> Vec<Option<Self>> {
        let Some(heard) = heard else {
            return sems.map(|_| None).collect();
        };
        let inquiry = heard.inquire();
        // All are weighed together, and once.
        let mut answers = heard.weigh_all(&inquiry);
        sems.map(|sem| Self::with_lines(answers.remove(&sem)?, heard, &inquiry, clock, sem))
            .collect()
    }

    fn with_lines(
        answer: Answer,
        heard: &HeardWitnesses<'_>,
        inquiry: &Inquiry<'_>,
        clock: &Clock,
        sem: SemId,
    ) -> Option<Self> {
        let moment = heard.moment(sem)?;
        let (lines, left_out) = inquiry.find_context(moment, &answer);
        let lines = lines.into_iter().map(|line| {
            let stamp = line.stamp.and_then(Moment::of_unix);
            let moment = stamp.unwrap_or_else(|| clock.moment_at(line.since_boot));
            LoggedLine {
                time: moment.to_rfc3339(0),
                shown: moment.time_of_day(),
                moment,
                line,
            }
        });
        Some(Self {
            answer,
            lines: lines.collect(),
            left_out,
            unread: heard.unread_texts(),
        })
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "who": self.answer,
            "lines": self.lines,
            "lines_left_out": self.left_out,
            "unread": self.unread,
        })
    }

    /// For people.
    pub(super) fn to_sections(&self) -> Vec<StorySection> {
        let mut items = match &self.answer {
            Answer::Named { suspect } => named_items(suspect),
            Answer::Unknown { reason, possible } => {
                let unknown = format!("unknown: {reason}");
                let possible = possible.iter().map(possible_item);
                std::iter::once(unknown).chain(possible).collect()
            }
        };
        if !self.unread.is_empty() {
            items.push(format!("not heard: {}", self.unread.join("; ")));
        }
        let mut sections = vec![StorySection {
            title: "WHO IT WAS, by witnesses on this host (nobody saw it)".to_owned(),
            items,
        }];
        if let Some(first) = self.lines.first() {
            let date = format!("{}, {}", first.moment.date_text(), first.moment.zone_text());
            let mut items: Vec<String> = self.lines.iter().map(LoggedLine::text).collect();
            if self.left_out > 0 {
                let more = count_noun(self.left_out, "line more", "lines more");
                items.push(format!("and {more}"));
            }
            sections.push(StorySection {
                title: format!("WHAT WAS LOGGED THEN ({date})"),
                items,
            });
        }
        sections
    }
}

impl LoggedLine {
    fn text(&self) -> String {
        let Self { shown, line, .. } = self;
        format!("{shown}  {}: {}", line.source, line.line)
    }
}

fn named_items(suspect: &Suspect) -> Vec<String> {
    let lives = if suspect.who.alive { "" } else { "+" };
    let mut items = vec![format!("{}{lives}, inferred", suspect.who)];
    let command = suspect.who.command.as_ref();
    items.extend(command.map(|command| format!("command {command}")));
    let grounds = suspect.grounds.iter().filter(|it| !it.is_line());
    items.extend(grounds.map(ToString::to_string));
    items.extend(suspect.doubts.iter().map(|it| format!("but {it}")));
    items
}

fn possible_item(suspect: &Suspect) -> String {
    let doubts: Vec<String> = suspect.doubts.iter().map(ToString::to_string).collect();
    match doubts.as_slice() {
        [] => format!("possible: {}", suspect.who),
        doubts => format!("possible: {}, but {}", suspect.who, doubts.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use dmtrace_core::{
        ids::{BootTime, UnixTime},
        witness::{Grade, Ground, Role, UnknownReason, Who, Witness},
    };

    use super::super::text::print_story;
    use super::*;
    use crate::{finding::Story, output::testing::capture_output};

    fn suspect(name: &str) -> Suspect {
        Suspect {
            who: Who {
                pid: Some(812),
                name: Some(name.to_owned()),
                ..Who::default()
            },
            role: Role::Owner,
            grade: Grade::Inferred,
            grounds: vec![Ground::LastOperator],
            doubts: Vec::new(),
        }
    }

    fn hearsay(answer: Answer, line: &str) -> Hearsay {
        let moment = Moment::of_unix(UnixTime(1_795_132_800)).unwrap();
        Hearsay {
            answer,
            lines: vec![LoggedLine {
                time: moment.to_rfc3339(0),
                shown: moment.time_of_day(),
                moment,
                line: ContextLine {
                    stamp: None,
                    since_boot: BootTime(7),
                    witness: Witness::Journal,
                    source: "journal".to_owned(),
                    line: line.to_owned(),
                },
            }],
            left_out: 3,
            unread: vec!["process accounting: not kept".to_owned()],
        }
    }

    fn shown(hearsay: &Hearsay) -> String {
        capture_output(Some(100), |out| {
            print_story(&Story::default(), &[], &hearsay.to_sections(), out)
        })
    }

    #[test]
    fn who_and_the_lines_of_that_second() {
        let named = Answer::Named {
            suspect: Box::new(suspect("lvcreate")),
        };
        let named = hearsay(named, "lvcreate[812]: \u{1b}]0;x\u{7}here");
        let text = shown(&named);
        for part in [
            "WHO IT WAS",
            "lvcreate[812]+, inferred",
            "last operator",
            "not heard: process accounting",
            "WHAT WAS LOGGED THEN (2026-11-20",
            "journal: lvcreate[812]:",
            "and 3 lines more",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        // Whatever a log has, it steers no terminal.
        assert!(!text.contains(['\u{1b}', '\u{7}']), "{text:?}");
        assert_eq!(named.to_json()["who"]["suspect"]["who"]["pid"], 812);
        assert_eq!(named.to_json()["lines"][0]["source"], "journal");
    }

    #[test]
    fn nobody_is_named_who_is_only_possible() {
        let unknown = Answer::Unknown {
            reason: UnknownReason::Ambiguous,
            possible: vec![suspect("lvcreate"), suspect("dmsetup")],
        };
        let text = shown(&hearsay(unknown, "x"));
        assert!(text.contains("unknown: several fit equally"), "{text}");
        assert!(text.contains("possible: dmsetup[812]"), "{text}");
        assert!(!text.contains("inferred"), "{text}");
    }
}
