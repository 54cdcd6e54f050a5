//! What to do about a cookie, exact for this one: what a clean-up would do is asked of its plan.

use dmtrace_core::{
    cleanup::prospect::{CleanFlags, Prospect},
    duration::Span,
    ids::IpcNs,
    verdict::{Obstacle, Remedy},
};

use super::{row::Row, timeline::StoryContext};

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
            (_, Remedy::Leave) if !row.semaphore.is_live() => "nothing: it is gone".to_owned(),
            _ => remedy.to_string().replace("COOKIE", &key),
        };
        remedies.iter().copied().map(text).collect()
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
                force_command(row, flags)
            ),
            Some(flags) => {
                let id = row.semaphore.id;
                let command = clean_command(flags, &format!("--semid {}", id.semid), id.ns);
                format!(
                    "remove it: `{command}`{place} shows what it would do; --apply does it{once}"
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
        let command = |flags| force_command(row, flags);
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
            _ => format!(
                "{NODES}; if it still waits then, complete what is missing: `{}`{place}, which \
                 keeps it for now: {}",
                command(plain),
                kept_because(&prospect.completion_obstacles, prospect)
            ),
        }
    }
}

/// The command that acts on this cookie alone.
fn force_command(row: &Row<'_>, flags: CleanFlags) -> String {
    clean_command(flags, &row.semaphore.key.to_string(), row.semaphore.id.ns)
}

/// `dmtrace clean` with these options, for one cookie.
pub(crate) fn clean_command(flags: CleanFlags, cookie: &str, ns: IpcNs) -> String {
    let mut words = "dmtrace clean".to_owned();
    for (given, option) in [
        (flags.abandoned, " --abandoned"),
        (flags.complete, " --complete"),
        (flags.force_unknown, " --force-unknown"),
    ] {
        if given {
            words.push_str(option);
        }
    }
    format!("{words} {cookie}{}", namespace_option(ns))
}

fn namespace_option(ns: IpcNs) -> String {
    match ns {
        IpcNs::HOST => String::new(),
        ns => format!(" --ipc-ns {ns}"),
    }
}

/// When it acts, if not at once.
fn waits_text(prospect: &Prospect) -> String {
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
            other => other.to_string(),
        })
        .collect();
    texts.join("; ")
}
