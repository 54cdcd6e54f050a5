//! How far a search has gone, in words: a fast one looks into memory once, and a removal rests on more.

use dmtrace_core::{
    search::{ProgramKind, identify_program, orphan::OrphanObstacle},
    verdict::{Class, Evidence, Verdict},
};

use crate::{
    host::identity::own_ancestors,
    wording::{count_noun, of_number, shell_word},
};

/// What a clean-up still does before it removes an orphan.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum SearchLeft {
    /// Nothing: two searches, and files where they matter.
    Nothing,
    /// A second search of memory.
    SecondSearch,
    /// Files, that were modified since it was made.
    Files,
}

impl SearchLeft {
    /// Of one that is orphaned; `None` of any other.
    pub(crate) fn of_verdict(verdict: &Verdict) -> Option<Self> {
        if !matches!(verdict.class, Class::Orphaned(_)) {
            return None;
        }
        let left = verdict.evidence.iter().filter_map(|fact| match fact {
            Evidence::NotProvenBySearch { why } => Some(match why {
                OrphanObstacle::FilesNotSearched { .. } => Self::Files,
                _ => Self::SecondSearch,
            }),
            _ => None,
        });
        Some(left.max().unwrap_or(Self::Nothing))
    }

    /// How sure it is that nobody holds it.
    pub(crate) const fn confidence_text(self) -> &'static str {
        match self {
            Self::Nothing => "proven by search: no process that could act on it has its number",
            Self::SecondSearch => {
                "found by search: no process that could act on it has its number; dmtrace clean \
                 searches once more before it removes it"
            }
            Self::Files => {
                "found by search: no process that could act on it has its number; files were not \
                 searched: dmtrace clean does that, and keeps it if one has its number"
            }
        }
    }

    /// Behind the advice to remove it.
    pub(crate) const fn advice_text(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::SecondSearch => "; it searches once more first",
            Self::Files => {
                "; it searches once more first, and in files: one that has its number keeps it"
            }
        }
    }
}

/// That files were not searched for so many orphans; `None` where they were.
pub(crate) fn files_line<'a>(verdicts: impl Iterator<Item = &'a Verdict>) -> Option<String> {
    let left = verdicts.filter(|it| SearchLeft::of_verdict(it) == Some(SearchLeft::Files));
    let count = left.count();
    (count > 0).then(|| {
        format!(
            "Files were not searched for {}: dmtrace clean does that, and keeps {} that one has.",
            count_noun(count, "orphaned cookie", "orphaned cookies"),
            of_number(&count, "it if there is one", "those"),
        )
    })
}

/// The option by which a person lifts what was found to have the number, with the question to answer
/// first; `None` where there is none.
pub(crate) fn vouching_text(why: &OrphanObstacle) -> Option<String> {
    vouching_text_for(why, &own_ancestors())
}

/// `ancestors`: processes that this command was started from.
fn vouching_text_for(why: &OrphanObstacle, ancestors: &[u32]) -> Option<String> {
    match why {
        OrphanObstacle::HeldBy { holder } => {
            let pid = holder.process.id.tgid;
            let what = match identify_program(&holder.process.exe) {
                ProgramKind::Interpreter => "that is your own shell",
                // Such as sudo, which has the command line.
                _ => "it started this command",
            };
            Some(if ancestors.contains(&pid) {
                // It cannot be told from a shell that has it in a variable for its next command.
                format!(
                    "{what}, and typing the number is enough: --vouch-for {pid}, if no variable or \
                     command of it has the number"
                )
            } else {
                format!("if it is known not to use it: --vouch-for {pid}")
            })
        }
        OrphanObstacle::WrittenIn { path } => {
            let name = path.rsplit('/').next().unwrap_or(path);
            let what = if name.ends_with("history") {
                "a shell's history, by its name"
            } else if name.ends_with(".log") || path.starts_with("/var/log/") {
                "a log, by its name"
            } else {
                "if no script reads it there"
            };
            Some(format!("{what}: --vouch-for {}", shell_word(path)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use dmtrace_core::{
        ids::{BootTime, ProcId},
        search::{HolderClass, HolderProcess, orphan::Holder},
    };

    use super::*;

    fn held_by(pid: u32) -> OrphanObstacle {
        let process = HolderProcess {
            id: ProcId {
                tgid: pid,
                start: BootTime(1),
            },
            comm: "bash".to_owned(),
            exe: "/usr/bin/bash".to_owned(),
            class: HolderClass::Actor,
            traits: BTreeSet::new(),
        };
        let holder = Box::new(Holder {
            process,
            spots: Vec::new(),
        });
        OrphanObstacle::HeldBy { holder }
    }

    #[test]
    fn ones_own_shell_is_named_as_such_and_no_other() {
        let of = |pid| vouching_text_for(&held_by(pid), &[40, 30]).unwrap();
        assert!(of(30).contains("your own shell"), "{}", of(30));
        assert!(of(30).contains("--vouch-for 30,"), "{}", of(30));
        assert_eq!(of(7), "if it is known not to use it: --vouch-for 7");
    }

    #[test]
    fn a_file_is_named_with_the_option() {
        let of = |path: &str| {
            let path = path.to_owned();
            vouching_text_for(&OrphanObstacle::WrittenIn { path }, &[]).unwrap()
        };
        assert_eq!(
            of("/home/a/.bash_history"),
            "a shell's history, by its name: --vouch-for /home/a/.bash_history"
        );
        assert_eq!(
            of("/srv/a b"),
            "if no script reads it there: --vouch-for '/srv/a b'"
        );
        assert!(vouching_text_for(&OrphanObstacle::UdevBusy, &[]).is_none());
    }
}
