//! What a service says when it starts.

use super::log::{Log, LogLevel};
use crate::{
    output::time::Clock,
    probe::{Continuity, DmState, PinnedPast},
    trace::session::Session,
    wording::count_noun,
};

pub(super) fn print_greeting(log: &mut Log, session: &Session, keep: bool) {
    let tracer = session.tracer();
    log.write_line(
        LogLevel::Info,
        format_args!(
            "dmtrace {} is tracing ({} backend); {} existed before",
            env!("CARGO_PKG_VERSION"),
            tracer.backend(),
            count_noun(
                session.preexisting_sets(),
                "semaphore set",
                "semaphore sets"
            )
        ),
    );
    for spot in tracer.backend().blind_spot_texts() {
        log.write_line(
            LogLevel::Notice,
            format_args!("this backend does not see: {spot}"),
        );
    }
    for what in tracer.missing_detail() {
        log.write_line(
            LogLevel::Notice,
            format_args!("this kernel does not show: {what}"),
        );
    }
    if let Some(continuity) = session.tracing_continuity() {
        say_past(log, continuity, keep);
        let attached = matches!(tracer.dm_state(), DmState::Attached { .. });
        if matches!(continuity.past, PinnedPast::Unbroken) && attached && !tracer.dm_was_adopted() {
            log.write_line(
                LogLevel::Notice,
                "device-mapper was not traced meanwhile, because its probes cannot stay: the \
                 devices of cookies made then are unknown",
            );
        }
    }
    match tracer.dm_state() {
        DmState::Attached { .. } => {}
        DmState::NotLoaded => log.write_line(
            LogLevel::Info,
            "device-mapper is not loaded: it will be traced as soon as it is",
        ),
        DmState::Impossible { reason } => log.write_line(
            LogLevel::Notice,
            format_args!("device-mapper cannot be traced, devices stay unknown: {reason}"),
        ),
    }
}

/// Whether anything may have gone unseen.
fn say_past(log: &mut Log, continuity: &Continuity, keep: bool) {
    match &continuity.past {
        PinnedPast::New => {}
        PinnedPast::Unbroken => log.write_line(
            LogLevel::Info,
            "tracing continued while no service ran: no semaphore was missed",
        ),
        PinnedPast::Gap(gap) => {
            let clock = Clock::now();
            let from = match gap.from {
                Some(from) => format!("from {} ", clock.moment_at(from)),
                None => String::new(),
            };
            log.write_line(
                LogLevel::Warning,
                format_args!(
                    "gap: nothing was seen {from}until {}, {}; sets created unseen: {}; removed: \
                     {}; used: {}",
                    clock.moment_at(gap.to),
                    gap.why.text(),
                    gap.created_unseen,
                    gap.ended_unseen,
                    gap.used
                ),
            );
        }
    }
    if let Some(reason) = &continuity.unpinned {
        let (level, asked) = if keep {
            (LogLevel::Warning, ", in spite of --keep")
        } else {
            (LogLevel::Notice, "")
        };
        log.write_line(
            level,
            format_args!("tracing will pause whenever the service is down{asked}: {reason}"),
        );
    }
}
