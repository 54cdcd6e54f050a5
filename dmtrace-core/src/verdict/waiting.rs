//! A cookie that somebody waits for: never leaked; healthy, slow or stuck.

use super::{
    Class, Confidence, Context, Evidence, Healthy, MissingStep, StuckCause, Subject, Verdict,
    life::Knowledge, stuck,
};
use crate::ledger::Cookie;

pub(super) fn judge_waiting(
    subject: &Subject<'_>,
    context: &Context<'_>,
    known: Knowledge,
) -> Verdict {
    let facts = context.facts;
    let limits = context.thresholds;
    let empty = Cookie::default();
    let cookie = subject.semaphore.cookie.as_deref().unwrap_or(&empty);
    let seen = known.since.map(|since| facts.now.duration_since(since));
    let waited = seen.unwrap_or(known.quiet);
    let mut evidence = vec![match seen {
        Some(time) => Evidence::WaitedFor { time },
        None => Evidence::WaitedAtLeast { time: waited },
    }];
    let outstanding = known.value.filter(|&value| value > 0);
    let completions = cookie.counts.completions;
    if let Some(value) = known.value {
        evidence.push(Evidence::Value { value });
    }
    if completions > 0 {
        evidence.push(Evidence::Completed { count: completions });
    }
    let observed = known.confidence();
    let found = if waited < limits.young {
        None
    } else {
        stuck::find_cause(subject, context, cookie, waited, &mut evidence)
    };
    let verdict = match found {
        Some((cause, certain)) => {
            let confidence = if certain {
                observed
            } else {
                Confidence::Inferred
            };
            Verdict::new(Class::Stuck(cause), confidence)
        }
        None if waited >= limits.slow => {
            evidence.extend(stuck::udev_progress(facts));
            Verdict::new(Class::Healthy(Healthy::SlowUdev), observed)
        }
        None => Verdict::new(Class::Healthy(Healthy::Waiting), observed),
    };
    let count = outstanding.map_or(0, i32::unsigned_abs);
    let missing = match verdict.class {
        Class::Stuck(StuckCause::NoUevent) => MissingStep::SelfCompletion { count },
        _ => MissingStep::Completion { count },
    };
    verdict
        .with_missing_step((count > 0).then_some(missing))
        .with_evidence(evidence)
        .with_evidence(known.evidence)
}
