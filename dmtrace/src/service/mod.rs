//! Continuous tracing: a small daemon that an administrator leaves running for months.

pub(crate) mod chronicle;
mod client;
pub(crate) mod ended;
mod export;
pub(crate) mod hook;
mod janitor;
mod known_findings;
mod log;
mod memory;
mod reporter;
mod request;
mod socket;
mod systemd;

use std::{
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::Duration,
};

use anyhow::{Context as _, Result};
use dmtrace_core::verdict::Thresholds;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    history,
    host::clock::boot_now,
    metrics::{self, ScrapeRequest},
    output::time::Clock,
    probe::{self, Continuity, DmState, PinnedPast, environment::kernel_release, remove_pins},
    trace::{
        run::{Readiness, Tracing},
        session::Session,
    },
    wording::count_noun,
};
use chronicle::Chronicle;
pub(crate) use client::ask_status;
use export::Exports;
pub(crate) use export::Options as ExportOptions;
use janitor::{CleanUp, Janitor};
use log::{Level, Log};
use reporter::Reporter;
pub(crate) use socket::{Access, SOCKET};
use socket::{Control, Reply, lock_of};
use systemd::Watchdog;

/// A leak is told within a second of the end of its owner, a moment of grace included.
const YOUNG: Duration = Duration::from_millis(500);

/// Time for the history to reach the disk at the end.
const LAST_WORDS: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub tracing: probe::Options,
    pub access: Access,
    /// Every step of every cookie.
    pub verbose: bool,
    /// Where the kernel side outlives the service.
    pub pins: PathBuf,
    /// Whether it does so after an orderly end.
    pub keep: bool,
    /// Metrics and the hook.
    pub export: ExportOptions,
    /// Leaks that have been left alone for so long are removed.
    pub auto_clean: Option<Duration>,
    /// Where each removal is written down, unless as usual.
    pub audit: Option<PathBuf>,
    /// Where findings are kept, if they are.
    pub history: Option<history::Options>,
}

/// Traces until SIGTERM or SIGINT.
///
/// # Errors
/// Tracing cannot start, another service runs, or polling fails.
pub(crate) async fn serve(options: &Options) -> Result<()> {
    memory::keep_small();
    let mut control = Control::open(Path::new(SOCKET), options.access)?;
    let exports = Exports::open(&options.export, options.access.group)?;
    let chronicle = options.history.clone().map(|options| {
        Chronicle::open(options, |warning: &str| {
            Log::to_stderr(false).say(Level::Warning, warning);
        })
    });
    let mut reporter = Reporter::new(Log::to_stderr(options.verbose), exports, chronicle);
    let thresholds = Thresholds {
        young: YOUNG,
        ..Thresholds::default()
    };
    let mut tracing =
        Tracing::start_kept(options.tracing, &options.pins)?.with_service_pacing(thresholds);
    greet(reporter.log(), tracing.session(), options.keep);
    reporter.recall();
    if let Some(chronicle) = reporter.chronicle() {
        let past = tracing.session().tracing_continuity().map(|it| &it.past);
        let backend = tracing.session().tracer().backend().name();
        let continuous = matches!(past, Some(PinnedPast::Unbroken));
        chronicle.began(backend, &kernel_release(), continuous);
    }
    // What an earlier service has lost, it has told.
    reporter.lost_before(tracing.session().lost_count());
    control.publish(status(&tracing, &reporter, &control));
    control.listen(reporter.chronicle().map(Chronicle::asker))?;
    tracing.report_backlog(&mut reporter)?;
    let mut watchdog = Watchdog::of_unit();
    let mut janitor = Janitor::new(options.auto_clean, options.audit.clone());
    let mut told = usize::MAX;
    systemd::ready("tracing");
    loop {
        let next = tokio::select! {
            biased;
            ready = tracing.next_readiness() => match ready? {
                Some(ready) => Next::Trace(ready),
                None => break,
            },
            question = control.questions.recv() => match question {
                Some(question) => Next::Answer(question),
                None => break,
            },
            scrape = reporter.exports.asked() => Next::Scrape(scrape),
            said = janitor.due() => Next::CleanUp(said),
            () = watchdog.due() => Next::SignOfLife,
        };
        match next {
            Next::Trace(ready) => {
                tracing.handle_readiness(ready, &mut reporter)?;
                if ready == Readiness::SurveyDue {
                    looked(&tracing, &mut reporter);
                    control.publish(status(&tracing, &reporter, &control));
                    let leaks = tracing
                        .reported_findings()
                        .values()
                        .filter(|it| **it == "leaked");
                    janitor.looked(leaks.count(), Instant::now());
                    // The start has read the types of the whole kernel, and each look all
                    // processes.
                    memory::give_back();
                }
            }
            Next::Scrape(ScrapeRequest { format, answer }) => {
                if reporter.exports.is_stale() {
                    tracing.handle_readiness(Readiness::SurveyDue, &mut reporter)?;
                    looked(&tracing, &mut reporter);
                }
                let text = reporter.exports.text(health(&tracing, &reporter), format);
                let _unheard = answer.send(text);
            }
            Next::Answer(reply) => {
                let list = reporter.list();
                let mut status = status(&tracing, &reporter, &control);
                status["findings"]["list"] = list;
                // Whoever asked may have gone.
                let _unheard = reply.send(status);
            }
            Next::CleanUp(None) => janitor.clean(Instant::now()),
            Next::CleanUp(Some(clean_up)) => {
                reporter.exports.count_cleaned(&clean_up);
                say_clean_up(reporter.log(), &clean_up);
            }
            Next::SignOfLife => watchdog.alive(),
        }
        if told != tracing.reported_findings().len() {
            told = tracing.reported_findings().len();
            systemd::status(&match told {
                0 => "tracing; no active findings".to_owned(),
                told => format!(
                    "tracing; {}: dmtrace report",
                    count_noun(told, "active finding", "active findings")
                ),
            });
        }
    }
    systemd::stopping();
    let restarts = if options.keep {
        Some(true)
    } else {
        systemd::restarts().await
    };
    if restarts.is_none() {
        reporter.log().say(
            Level::Warning,
            "systemd does not say whether this is a restart: tracing pauses until the next start",
        );
    }
    let keep = restarts == Some(true);
    let stays = keep && tracing.hand_over(&mut reporter)?;
    let accounting = if stays {
        None
    } else {
        Some(tracing.finish(&mut reporter)?.accounting)
    };
    let (mut log, exports, chronicle) = reporter.into_parts();
    exports.finish().await;
    if let Some(chronicle) = chronicle
        && !chronicle.close(LAST_WORDS)
    {
        log.say(
            Level::Warning,
            "the disk is too slow: the history may lack the last moments",
        );
    }
    let Some(accounting) = accounting else {
        log.say(
            Level::Info,
            "stopped; tracing continues in the kernel until the next start; to end it: dmtrace serve \
             --remove",
        );
        return Ok(());
    };
    if options.keep {
        log.say(
            Level::Warning,
            "tracing has ended with the service, in spite of --keep: the start said why",
        );
    }
    let line = accounting.summary_line();
    log.say(Level::Info, format_args!("stopped; accounting: {line}"));
    for deficit in &accounting.deficits {
        log.say(Level::Warning, format_args!("not exact: {deficit}"));
    }
    Ok(())
}

/// Removes what a service that has ended left to go on. Tells whether there was anything.
///
/// # Errors
/// A service runs, or this process may not.
pub(crate) fn remove(pins: &Path) -> Result<bool> {
    let _lock = lock_of(Path::new(SOCKET))?;
    remove_pins(pins).with_context(|| pins.display().to_string())
}

enum Next {
    Trace(Readiness),
    Answer(Reply),
    Scrape(ScrapeRequest),
    /// It is due, or this is what came of it.
    CleanUp(Option<CleanUp>),
    SignOfLife,
}

fn say_clean_up(log: &mut Log, clean_up: &CleanUp) {
    let (done, failed) = clean_up.lines();
    for (level, lines) in [(Level::Notice, done), (Level::Warning, failed)] {
        for line in lines {
            log.say_often(level, format_args!("clean-up: {line}"));
        }
    }
}

/// After a look there are new numbers.
fn looked(tracing: &Tracing, reporter: &mut Reporter) {
    reporter.lost(tracing.session().lost_count());
    reporter.exports.looked();
    if reporter.exports.writes() {
        let health = health(tracing, reporter);
        if let Some(failure) = reporter.exports.write(health) {
            reporter.log().say(Level::Warning, failure);
        }
    }
}

/// How everything is, for metrics.
fn health(tracing: &Tracing, reporter: &Reporter) -> metrics::TraceHealth {
    let history = reporter.chronicle().map(Chronicle::status);
    metrics::TraceHealth {
        history_dropped: history.as_ref().map_or(0, |status| status.lost),
        history_on_disk: history.map(|status| status.on_disk),
        ..tracing.session().read_meters()
    }
}

fn greet(log: &mut Log, session: &Session, keep: bool) {
    let tracer = session.tracer();
    log.say(
        Level::Info,
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
        log.say(
            Level::Notice,
            format_args!("this backend does not see: {spot}"),
        );
    }
    for what in tracer.missing_detail() {
        log.say(
            Level::Notice,
            format_args!("this kernel does not show: {what}"),
        );
    }
    if let Some(continuity) = session.tracing_continuity() {
        say_past(log, continuity, keep);
        let attached = matches!(tracer.dm_state(), DmState::Attached { .. });
        if matches!(continuity.past, PinnedPast::Unbroken) && attached && !tracer.dm_was_adopted() {
            log.say(
                Level::Notice,
                "device-mapper was not traced meanwhile, because its probes cannot stay: the \
                 devices of cookies made then are unknown",
            );
        }
    }
    match tracer.dm_state() {
        DmState::Attached { .. } => {}
        DmState::NotLoaded => log.say(
            Level::Info,
            "device-mapper is not loaded: it will be traced as soon as it is",
        ),
        DmState::Impossible { reason } => log.say(
            Level::Notice,
            format_args!("device-mapper cannot be traced, devices stay unknown: {reason}"),
        ),
    }
}

/// Whether anything may have gone unseen.
fn say_past(log: &mut Log, continuity: &Continuity, keep: bool) {
    match &continuity.past {
        PinnedPast::New => {}
        PinnedPast::Unbroken => log.say(
            Level::Info,
            "tracing continued while no service ran: no semaphore was missed",
        ),
        PinnedPast::Gap(gap) => {
            let clock = Clock::now();
            let from = match gap.from {
                Some(from) => format!("from {} ", clock.moment_at(from)),
                None => String::new(),
            };
            log.say(
                Level::Warning,
                format_args!(
                    "gap: nothing was seen {from}until {}, {}; sets created unseen: {}; removed: \
                     {}; used: {}",
                    clock.moment_at(gap.to),
                    gap.why.text(),
                    gap.came,
                    gap.went,
                    gap.used
                ),
            );
        }
    }
    if let Some(reason) = &continuity.unpinned {
        let (level, asked) = if keep {
            (Level::Warning, ", in spite of --keep")
        } else {
            (Level::Notice, "")
        };
        log.say(
            level,
            format_args!("tracing will pause whenever the service is down{asked}: {reason}"),
        );
    }
}

/// How the service is, without the list of what it has found.
fn status(tracing: &Tracing, reporter: &Reporter, control: &Control) -> Value {
    let session = tracing.session();
    let count = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "kernel": kernel_release(),
        "seconds": boot_now().duration_since(session.trace_start()).as_secs(),
        "health": session.health(),
        "totals": session.ledger().totals(),
        "findings": reporter.findings(tracing.reported_findings().len()),
        "history": reporter.chronicle().map(Chronicle::status),
        "requests": {
            "answered": count(&control.tally.answered),
            "refused": count(&control.tally.refused),
        },
    })
}
