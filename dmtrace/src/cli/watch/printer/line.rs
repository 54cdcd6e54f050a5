//! One line of `watch`: what matters stays on it at any width, the rest is wrapped below.

use std::io;

use dmtrace_core::ids::{BootTime, IpcNs, SemId};

use crate::output::{
    Out,
    time::{self, Clock},
};

/// Columns of what every line begins with: time, event, cookie.
const BEGIN: usize = 12 + 2 + 9 + 2 + 10;
/// Indentation of what has no room on the line: below the event.
const INDENT: usize = 14;
/// The same where there is hardly room.
const NARROW_INDENT: usize = 4;
/// Columns that a name with its number usually takes.
const PROCESS: usize = 16;

/// What there is to print.
pub(super) struct EventLine {
    pub(super) at: BootTime,
    pub(super) event: &'static str,
    pub(super) key: String,
    pub(super) sem: SemId,
    pub(super) value: Option<i32>,
    pub(super) who: String,
    pub(super) detail: String,
}

/// How lines are laid out; some of it follows from the lines before.
pub(super) struct LineColumns {
    /// The widest semid so far.
    semid: usize,
    /// Namespace of the last line.
    ns: IpcNs,
}

impl Default for LineColumns {
    fn default() -> Self {
        Self {
            semid: 7,
            ns: IpcNs::HOST,
        }
    }
}

impl LineColumns {
    /// Whether a line has room for all columns.
    fn has_room(&self, width: usize) -> bool {
        width >= BEGIN + 2 + self.semid + 2 + 3 + 2 + PROCESS
    }

    /// The header line.
    pub(super) fn print_header(&self, out: &mut Out) -> io::Result<()> {
        let time = format!("TIME {}", time::zone_now());
        let begin = format!("{time:12}  {:9}  {:10}", "EVENT", "COOKIE");
        if !self.has_room(out.width().unwrap_or(usize::MAX)) {
            return out.print_hanging(begin.trim_end(), NARROW_INDENT);
        }
        let semid = self.semid;
        out.whole_line(&format!("{begin}  {:>semid$}  VAL  PROCESS", "SEMID"))
    }

    /// Prints a line. An IPC namespace is named only where it is not that of the line before, or,
    /// without a limit of the width, where it is not the host's: such lines are for `grep`.
    pub(super) fn print_line(
        &mut self,
        line: &EventLine,
        clock: &Clock,
        out: &mut Out,
    ) -> io::Result<()> {
        let number = match line.sem.semid {
            ..0 => "-".to_owned(),
            semid => semid.to_string(),
        };
        self.semid = self.semid.max(number.len());
        // A completion can be told after the waiter that it has woken: the sum is below 0 meanwhile.
        let value = line
            .value
            .map_or_else(|| "-".to_owned(), |value| value.max(0).to_string());
        let ns = match out.width() {
            None if line.sem.ns == IpcNs::HOST => String::new(),
            None => format!("ns={}", line.sem.ns),
            Some(_) if line.sem.ns == self.ns => String::new(),
            Some(_) => format!("IPC namespace {}", line.sem.ns),
        };
        self.ns = line.sem.ns;
        let begin = format!(
            "{:12}  {:9}  {:10}",
            clock.time_of_day(line.at),
            line.event,
            line.key
        );
        let width = out.width().unwrap_or(usize::MAX);
        let semid = self.semid;
        let columns = format!("{begin}  {number:>semid$}  {value:>3}");
        // Of the parts that follow, as many as fit stay on the line.
        let mut shown;
        let mut rest: Vec<&str> = Vec::new();
        let labelled = format!("semid {number}, value {value}");
        let indent = if self.has_room(width) {
            shown = columns;
            INDENT
        } else {
            shown = begin;
            rest.push(&labelled);
            NARROW_INDENT
        };
        rest.push(&line.who);
        // Alone, a process name is enough for the line; what explains it follows whole.
        rest.extend([line.detail.as_str(), ns.as_str()]);
        rest.retain(|part| !part.is_empty());
        while let Some(part) = rest.first()
            && shown.chars().count() + 2 + unicode_width::UnicodeWidthStr::width(*part) <= width
        {
            shown.push_str("  ");
            shown.push_str(rest.remove(0));
        }
        out.print_hanging(
            &shown.replacen(line.event, &out.paint_state(line.event), 1),
            indent,
        )?;
        if !rest.is_empty() {
            let rest = format!("{:indent$}{}", "", rest.join("  "));
            out.print_hanging(&rest, indent)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use unicode_width::UnicodeWidthStr;

    use super::*;
    use crate::{output::testing::capture_output, render::change::change_word};
    use dmtrace_core::{
        event::{DmCommand, UeventAction},
        ids::Key,
        ledger::{Change, ChangeKind, DecrementMeaning, EndKind, Name, UserStage},
        verdict::{Class, LeakKind, StuckCause},
    };

    fn sample_line(event: &'static str, ns: IpcNs, detail: &str) -> EventLine {
        EventLine {
            at: BootTime(0),
            event,
            key: "0x0d4d50b2".to_owned(),
            sem: SemId { ns, semid: 524_344 },
            value: Some(2),
            who: "cookie-actor[32456]".to_owned(),
            detail: detail.to_owned(),
        }
    }

    const REASON: &str = "owner killed by SIGKILL after announcing an operation, before waiting \
                          (observed)";

    /// Lines at a width, without their times.
    fn printed_lines(width: Option<usize>, lines: &[EventLine]) -> Vec<String> {
        let text = capture_output(width, |out| {
            let mut columns = LineColumns::default();
            columns.print_header(out)?;
            for line in lines {
                columns.print_line(line, &Clock::now(), out)?;
            }
            Ok(())
        });
        text.lines()
            .map(|line| {
                let timed = line.get(2..3) == Some(":");
                if timed {
                    line.get(14..).unwrap_or_default()
                } else {
                    line
                }
                .to_owned()
            })
            .collect()
    }

    #[test]
    fn the_reason_is_whole_at_every_width() {
        for width in (20..200).map(Some).chain([None]) {
            let lines = printed_lines(width, &[sample_line("leaked", IpcNs::HOST, REASON)]);
            let most = width.unwrap_or(usize::MAX);
            assert!(lines.iter().all(|line| line.width() <= most), "{lines:?}");
            let words: Vec<&str> = lines.iter().flat_map(|line| line.split(' ')).collect();
            let joined = words.join("");
            for word in REASON.split(' ').chain(["32456", "524344", "leaked"]) {
                assert!(joined.contains(word), "{word} at {width:?}: {lines:?}");
            }
        }
    }

    #[test]
    fn at_eighty_columns_the_reason_is_below_and_at_more_beside() {
        let lines = printed_lines(Some(80), &[sample_line("leaked", IpcNs::HOST, REASON)]);
        assert_eq!(
            lines[1..],
            [
                "leaked     0x0d4d50b2   524344    2  cookie-actor[32456]",
                "              owner killed by SIGKILL after announcing an operation, before",
                "              waiting (observed)",
            ]
        );
        assert_eq!(
            printed_lines(Some(170), &[sample_line("leaked", IpcNs::HOST, REASON)]).len(),
            2
        );
        assert_eq!(
            printed_lines(None, &[sample_line("leaked", IpcNs::HOST, REASON)]).len(),
            2
        );
    }

    #[test]
    fn a_namespace_is_named_when_it_changes() {
        let other = IpcNs(4_026_532_301);
        let named = |width, spaces: &[IpcNs]| -> Vec<bool> {
            let lines: Vec<EventLine> = spaces
                .iter()
                .map(|&ns| sample_line("set", ns, ""))
                .collect();
            let text = printed_lines(width, &lines)[1..].join(" ");
            text.split("set ")
                .skip(1)
                .map(|row| row.contains("namespace") || row.contains("ns="))
                .collect()
        };
        let spaces = [IpcNs::HOST, IpcNs::HOST, other, other, IpcNs::HOST];
        assert_eq!(
            named(Some(80), &spaces),
            [false, false, true, false, true],
            "a person reads line after line"
        );
        assert_eq!(
            named(None, &spaces),
            [false, false, true, true, false],
            "grep does not"
        );
    }

    /// All kinds. Without a wildcard, so that a new one has to be added to the list, too.
    fn all_kinds() -> Vec<ChangeKind> {
        let (name, device) = (Name::default(), None);
        let kinds = vec![
            ChangeKind::Created { nsems: 1 },
            ChangeKind::Found,
            ChangeKind::Set { to: 1 },
            ChangeKind::Up { to: None },
            ChangeKind::Down {
                to: None,
                meaning: DecrementMeaning::Completion,
            },
            ChangeKind::DecrementFailed,
            ChangeKind::Waiting { value: None },
            ChangeKind::Released,
            ChangeKind::WaitFailed { errno: 4 },
            ChangeKind::Destroyed {
                ending: EndKind::ByWaiter,
            },
            ChangeKind::OwnerExited {
                status: None,
                stage: UserStage::Created,
            },
            ChangeKind::CreateFailed { errno: 28 },
            ChangeKind::LookupFailed {
                errno: 2,
                lives_in: None,
            },
            ChangeKind::Ioctl {
                command: DmCommand::Resume,
                errno: 0,
                unseen: false,
                uevent: true,
                deferred: false,
                name: name.clone(),
                new_name: None,
                uuid: None,
                device,
            },
            ChangeKind::Uevent {
                action: UeventAction::Change,
                name,
                uuid: None,
                device,
            },
        ];
        for kind in &kinds {
            match kind {
                ChangeKind::Created { .. }
                | ChangeKind::Found
                | ChangeKind::Set { .. }
                | ChangeKind::Up { .. }
                | ChangeKind::Down { .. }
                | ChangeKind::DecrementFailed
                | ChangeKind::Waiting { .. }
                | ChangeKind::Released
                | ChangeKind::WaitFailed { .. }
                | ChangeKind::Destroyed { .. }
                | ChangeKind::OwnerExited { .. }
                | ChangeKind::CreateFailed { .. }
                | ChangeKind::LookupFailed { .. }
                | ChangeKind::Ioctl { .. }
                | ChangeKind::Uevent { .. } => {}
            }
        }
        kinds
    }

    #[test]
    fn help_explains_every_word_of_the_column() {
        let help = crate::cli::Cli::command()
            .find_subcommand_mut("watch")
            .expect("it is one of the verbs")
            .render_long_help()
            .to_string();
        for kind in all_kinds() {
            let word = change_word(&Change {
                at: BootTime(0),
                sem: SemId::default(),
                key: Key(0x0d4d_1234),
                who: None,
                kind,
            });
            let explained = help.lines().any(|line| {
                let rest = line.trim_start().strip_prefix(word);
                rest.is_some_and(|rest| rest.starts_with("  "))
            });
            assert!(explained, "{word}");
        }
        for class in [
            Class::Leaked(LeakKind::NeverWaited),
            Class::Stuck(StuckCause::UdevdDown),
            Class::Accident,
            Class::OverCompleted,
        ] {
            assert!(
                class.is_finding() && help.contains(class.label()),
                "{class}"
            );
        }
        for line in crate::cli::legend::LEGEND.lines() {
            assert!(line.width() <= 80, "{line}");
        }
    }
}
