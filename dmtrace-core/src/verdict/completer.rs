//! Who completed too much: a completion that udev did not start, or a second udevd.

use super::{Culprit, CulpritRole, Evidence};
use crate::{
    event::{Ancestor, ProcessImage},
    ledger::{ActorRef, Cookie, Ledger},
};

/// What can be said of the completers of a cookie that was completed too often.
pub(super) fn blame_completer(
    cookie: &Cookie,
    ledger: &Ledger,
) -> (Option<Culprit>, Vec<Evidence>) {
    let mut strangers: Vec<&ActorRef> = Vec::new();
    let mut daemons: Vec<u32> = Vec::new();
    let mut all_known = cookie.completers.len() as u64 == u64::from(cookie.counts.completions);
    for who in &cookie.completers {
        let image = ledger
            .process(who.image)
            .and_then(|process| process.image.as_deref());
        match image
            .filter(|image| !image.parents.is_empty())
            .map(udevd_pid)
        {
            Some(Some(daemon)) if !daemons.contains(&daemon) => daemons.push(daemon),
            Some(Some(_)) => {}
            Some(None) => strangers.push(who),
            None => all_known = false,
        }
    }
    let mut evidence: Vec<Evidence> = Vec::new();
    for (number, &who) in strangers.iter().enumerate() {
        // Who did it twice is named once.
        if strangers[..number].iter().all(|it| it.image != who.image) {
            evidence.push(Evidence::Stranger { who: who.clone() });
        }
    }
    if daemons.len() > 1 {
        evidence.push(Evidence::SeveralUdevds { pids: daemons });
    }
    // Which of several completions was the one too many cannot be told, unless all the others
    // were udev's.
    let who = match (strangers.as_slice(), cookie.counts.completions) {
        (&[stranger], _) if all_known => Some(stranger.clone()),
        ([], 1) => cookie.completers.back().cloned(),
        // Nobody completed anything: its only user took back more than it had announced.
        ([], 0) => match cookie.users.as_slice() {
            [only] if !cookie.gaps.affects_verdicts() => Some(only.who.clone()),
            _ => None,
        },
        _ => None,
    };
    let culprit = who.map(|who| Culprit {
        role: CulpritRole::Completer,
        who,
        exit: None,
    });
    (culprit, evidence)
}

/// The udevd below which a process runs: the topmost ancestor with its name.
fn udevd_pid(image: &ProcessImage) -> Option<u32> {
    let named = |ancestor: &&Ancestor| {
        matches!(
            ancestor.comm.as_str(),
            "systemd-udevd" | "udevd" | "(udev-worker)"
        )
    };
    let top = image.parents.iter().rev().find(named)?;
    Some(top.id.tgid)
}
