//! What to do about a cookie, exact for this one: what a clean-up would do is asked of its plan.

use std::fmt;

use dmtrace_core::{
    cleanup::prospect::{CleanFlags, Prospect},
    duration::Span,
    ids::{IpcNs, Key},
    verdict::{Obstacle, Remedy},
};

use super::{
    removal,
    row::Row,
    searched::{SearchLeft, vouching_text},
    timeline::StoryContext,
};

impl StoryContext<'_> {
    /// What to do, in this order.
    pub(super) fn remedy_lines(&self, row: &Row<'_>, remedies: &[Remedy]) -> Vec<String> {
        // Asking the plan takes time, and only this advice depends on it.
        let asks = |it: &Remedy| matches!(it, Remedy::Destroy | Remedy::RepairThenComplete);
        let prospect = (row.semaphore.is_live() && remedies.iter().any(asks))
            .then(|| row.clean_prospect(self.ledger, self.facts, self.completeness))
            .flatten();
        let key = row.semaphore.key.to_string();
        let text = |remedy: Remedy| match (&prospect, remedy) {
            (Some(prospect), Remedy::Destroy) => self.removal_text(row, prospect),
            (Some(prospect), Remedy::RepairThenComplete) => self.completion_text(row, prospect),
            (_, Remedy::Leave) if !row.semaphore.is_live() => {
                self.nothing_text(row, remedies.len() > 1)
            }
            _ => remedy.to_string().replace("COOKIE", &key),
        };
        remedies.iter().copied().map(text).collect()
    }

    /// Nothing is to be done with a cookie that is gone. `more`: there is other advice.
    fn nothing_text(&self, row: &Row<'_>, more: bool) -> String {
        let nothing = if more {
            "nothing with the cookie"
        } else {
            "nothing"
        };
        match row.semaphore.ending.as_ref() {
            Some(ending) if removal::is_removed_leak(row) => {
                let at = self.clock.moment_at(ending.at);
                let by = ending.by.as_ref();
                let by = by.map_or_else(String::new, |who| format!(" by {who}"));
                format!("{nothing}: it was removed{by}, {at}")
            }
            _ => format!("{nothing}: it is gone"),
        }
    }

    /// The command that acts on this cookie alone.
    fn clean_command(&self, row: &Row<'_>, flags: CleanFlags) -> CleanCommand<'_> {
        let (key, ns) = (row.semaphore.key, row.semaphore.id.ns);
        let mut sets = self.ledger.live_sets();
        CleanCommand {
            flags,
            key,
            ns,
            name_ns: sets.any(|it| it.key == key && it.id.ns != ns),
            options: &self.source,
        }
    }

    fn place_text(&self) -> &'static str {
        if self.here { "" } else { " on that machine" }
    }

    fn removal_text(&self, row: &Row<'_>, prospect: &Prospect) -> String {
        let place = self.place_text();
        let once = waits_text(prospect);
        match prospect.flags {
            Some(flags) if flags.force_unknown => format!(
                "`dmtrace clean`{place} keeps it: {}; if you are sure: `{}`{once}",
                kept_because(&prospect.obstacles, prospect),
                self.clean_command(row, flags)
            ),
            Some(flags) => {
                let verdict = row.verdict.as_ref();
                let left = verdict.and_then(SearchLeft::of_verdict);
                format!(
                    "remove it: `{}`{place} shows what it would do; --apply does it{once}{}",
                    self.clean_command(row, flags),
                    left.map_or("", SearchLeft::advice_text)
                )
            }
            None => format!(
                "`dmtrace clean`{place} keeps it: {}",
                kept_because(&prospect.obstacles, prospect)
            ),
        }
    }

    fn completion_text(&self, row: &Row<'_>, prospect: &Prospect) -> String {
        const NODES: &str = "check the device nodes, `udevadm trigger` if one is missing";
        let place = self.place_text();
        let once = waits_text(prospect);
        let plain = CleanFlags::COMPLETE;
        let command = |flags| self.clean_command(row, flags);
        match prospect.flags {
            Some(flags) if flags == plain => format!(
                "{NODES}, then complete exactly what is missing: `{}`{place}{once}",
                command(flags)
            ),
            Some(flags) if flags.complete => format!(
                "{NODES}; if you are sure that the work is done, complete what is missing: \
                 `{}`{place}{once}",
                command(flags)
            ),
            // Without udevd no node is made, and nothing is lost yet.
            _ if prospect.completion_obstacles.contains(&Obstacle::UdevdDown) => format!(
                "once udevd runs it may still find the event, and complete by itself; if the thread waits \
                 all the same: {NODES}, then complete what is missing: `{}`{place}, which keeps it \
                 for now",
                command(plain)
            ),
            _ => format!(
                "{NODES}; if it still waits then, complete what is missing: `{}`{place}, which \
                 keeps it for now: {}",
                command(plain),
                kept_because(&prospect.completion_obstacles, prospect)
            ),
        }
    }
}

/// `dmtrace clean`, for one cookie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CleanCommand<'a> {
    /// What it takes to act.
    pub(crate) flags: CleanFlags,
    pub(crate) key: Key,
    pub(crate) ns: IpcNs,
    /// Another IPC namespace has this key, too.
    pub(crate) name_ns: bool,
    /// What the advice rests on, such as a recording: each option after a space.
    pub(crate) options: &'a str,
}

impl fmt::Display for CleanCommand<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("dmtrace clean")?;
        let CleanFlags {
            abandoned,
            complete,
            force_unknown,
        } = self.flags;
        for (given, option) in [
            (abandoned, " --abandoned"),
            (complete, " --complete"),
            (force_unknown, " --force-unknown"),
        ] {
            if given {
                f.write_str(option)?;
            }
        }
        write!(f, " {}", self.key)?;
        match self.ns {
            IpcNs::HOST if self.name_ns => f.write_str(" --ipc-ns host")?,
            IpcNs::HOST => {}
            ns => write!(f, " --ipc-ns {ns}")?,
        }
        f.write_str(self.options)
    }
}

/// When it acts, if not at once.
pub(crate) fn waits_text(prospect: &Prospect) -> String {
    let conditions = prospect.waits.iter().map(|obstacle| match obstacle {
        Obstacle::TooYoung { needed, .. } => {
            format!("nobody has touched it for {}", Span::from_secs(*needed))
        }
        _ => "udev has had its time".to_owned(),
    });
    match conditions.collect::<Vec<_>>().join(" and ") {
        none if none.is_empty() => none,
        conditions => format!(", once {conditions}"),
    }
}

/// Why it is kept, in words for a person who asks what to do; what the prospect waits for is said
/// apart.
fn kept_because(obstacles: &[Obstacle], prospect: &Prospect) -> String {
    let said_apart = |it: &&Obstacle| prospect.waits.contains(it);
    let texts = obstacles.iter().filter(|it| !said_apart(it));
    let texts: Vec<String> = texts
        .map(|obstacle| match obstacle {
            Obstacle::Inferred => "nobody saw it leak".to_owned(),
            Obstacle::NotProvenBySearch { why } => match vouching_text(why) {
                Some(lift) => format!("{obstacle} ({lift})"),
                None => obstacle.to_string(),
            },
            other => other.to_string(),
        })
        .collect();
    texts.join("; ")
}
