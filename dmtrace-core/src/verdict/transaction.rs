//! A cookie that may outlive its creator by design: `dmsetup udevcreatecookie`.

use super::{
    Class, Confidence, Context, Evidence, LeakKind, MissingStep, Subject, Undecided, Verdict,
    life::{self, Knowledge, ProcessState},
    outcomes::{open_verdict, over_completed, over_completed_verdict},
};
use crate::{
    event::{Ancestor, ExitStatus, ProcessImage},
    ids::BootTime,
    ledger::{ActorRef, Cookie, Process, User, UserStage},
};

/// Whether a cookie may outlive its creator by design: `dmsetup udevcreatecookie` exits at once,
/// and later dmsetup processes get the cookie by `DM_UDEV_COOKIE` or `--udevcookie`. Any other
/// program that ends well at this point may have done the same.
pub(super) fn may_be(owner: &User, process: Option<&Process>) -> bool {
    // It prints the cookie after SETVAL, and does nothing else with it.
    if owner.stage != UserStage::Ready || owner.incs > 0 || owner.decs > 0 {
        return false;
    }
    let status = owner.exit.and_then(|exit| exit.status);
    if status == Some(ExitStatus::Code(0)) {
        return true;
    }
    let image: Option<&ProcessImage> = process.and_then(|process| process.image.as_deref());
    let Some(image) = image else {
        return owner.who.name.as_str() == "dmsetup";
    };
    match &image.cmdline {
        Some(arguments) if arguments.iter().any(|arg| arg == "udevcreatecookie") => true,
        Some(_) if !image.cmdline_cut => false,
        _ => image.comm == "dmsetup",
    }
}

/// Programs that start sessions and services, and outlive them: they hold no transaction.
const SUPERVISORS: &[&str] = &[
    "(sd-pam)",
    "agetty",
    "atd",
    "conmon",
    "containerd",
    "containerd-shim",
    "cron",
    "crond",
    "dockerd",
    "dumb-init",
    "getty",
    "init",
    "kubelet",
    "login",
    "runsv",
    "s6-supervise",
    "sshd",
    "sshd-session",
    "supervisord",
    "systemd",
    "tini",
];

/// Whether an ancestor is only there to start others. The first process inherits orphans.
fn is_supervisor(ancestor: &Ancestor) -> bool {
    ancestor.id.tgid <= 1 || SUPERVISORS.contains(&ancestor.comm.as_str())
}

/// The creator of a transaction has ended, and no user of it is alive.
pub(super) fn judge_transaction(
    subject: &Subject<'_>,
    context: &Context<'_>,
    known: Knowledge,
    mut evidence: Vec<Evidence>,
    process: Option<&Process>,
) -> Verdict {
    let facts = context.facts;
    evidence.push(Evidence::Transaction);
    if let Some(cookie) = subject.semaphore.cookie.as_deref()
        && completed_too_often(subject, cookie, &known)
    {
        return over_completed_verdict(subject.ledger, cookie, known, evidence);
    }
    let ancestors = process
        .and_then(|process| process.image.as_deref())
        .map_or(&[][..], |image| &image.parents);
    // A subshell in between may have ended: any ancestor may be the script.
    let holder = ancestors.iter().find(|ancestor| {
        !is_supervisor(ancestor)
            && life::process_state(ancestor.id, BootTime(0), None, facts, facts.now)
                != ProcessState::Dead(None)
    });
    if let Some(holder) = holder {
        evidence.push(Evidence::ParentAlive {
            pid: holder.id.tgid,
            name: holder.comm.clone(),
        });
        return open_verdict(known, evidence);
    }
    if known.quiet < context.thresholds.old {
        return open_verdict(known, evidence);
    }
    let reason = if ancestors.is_empty() || known.unseen || known.contradiction {
        Some(Undecided::EventsLost)
    } else if !facts.processes_complete {
        Some(Undecided::ProcessesUnreadable)
    } else if !facts.carriers_complete {
        Some(Undecided::CarriersUnreadable)
    } else {
        None
    };
    if let Some(reason) = reason {
        return Verdict::unknown(reason)
            .with_evidence(evidence)
            .with_evidence(known.evidence);
    }
    evidence.push(Evidence::Quiet { time: known.quiet });
    Verdict::new(
        Class::Leaked(LeakKind::TransactionAbandoned),
        Confidence::Inferred,
    )
    .with_missing_step(Some(MissingStep::Release))
    .with_evidence(evidence)
    .with_evidence(known.evidence)
}

/// Whether more was completed than announced. Any process may release the cookie, and `dmsetup
/// udevreleasecookie` decrements it once before it waits: until then it looks like a completer.
fn completed_too_often(subject: &Subject<'_>, cookie: &Cookie, known: &Knowledge) -> bool {
    let completes = |who: &ActorRef| {
        subject
            .ledger
            .process(who.image)
            .and_then(|process| process.image.as_deref()?.cmdline.as_deref())
            .is_some_and(|words| words.iter().any(|word| word == "udevcomplete"))
    };
    over_completed(cookie, known) && cookie.completers.iter().all(completes)
}
