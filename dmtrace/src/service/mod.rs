//! Continuous tracing: a small daemon that an administrator leaves running for months.

pub(crate) mod chronicle;
mod client;
mod export;
mod greeting;
pub(crate) mod hook;
mod janitor;
mod known_findings;
mod log;
mod memory;
mod reporter;
mod request;
mod searcher;
mod socket;
mod status;
mod systemd;

use std::{
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::Duration,
};

use anyhow::{Context as _, Result};
use dmtrace_core::verdict::{Class, Thresholds};
use tokio::time::Instant;

use crate::{
    history,
    host::clock::boot_now,
    metrics::{self, ScrapeRequest},
    probe::{
        self, PinnedPast,
        environment::kernel_release,
        registry::{remove_unpinned, running_tracers},
        remove_pins,
    },
    trace::run::{Readiness, Tracing},
    wording::{count_noun, of_number},
};
use chronicle::Chronicle;
pub(crate) use client::{ask_search, ask_status};
pub(crate) use export::ExportOptions;
use export::Exports;
use greeting::print_greeting;
use janitor::{CleanUp, Janitor};
use log::{Log, LogLevel};
use reporter::Reporter;
use searcher::SearchWorker;
pub(crate) use searcher::{OrphanMark, SearchResult};
use socket::{ControlSocket, ServiceQuestion, lock_of};
pub(crate) use socket::{SOCKET, SocketAccess};
pub(crate) use status::ServiceReport;
use status::{RequestTotals, ServiceStatus};
use systemd::Watchdog;

/// A leak is told within a second of the end of its owner, a moment of grace included.
const YOUNG: Duration = Duration::from_millis(500);

/// Time for the history to reach the disk at the end.
const LAST_WORDS: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub(crate) struct ServiceOptions {
    pub tracing: probe::Options,
    pub access: SocketAccess,
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
    pub history: Option<history::HistoryOptions>,
}

/// Traces until SIGTERM or SIGINT.
///
/// # Errors
/// Tracing cannot start, another service runs, or polling fails.
pub(crate) async fn run_service(options: &ServiceOptions) -> Result<()> {
    memory::keep_small();
    let mut control = ControlSocket::open(Path::new(SOCKET), options.access)?;
    let exports = Exports::open(&options.export, options.access.group)?;
    let thresholds = Thresholds {
        young: YOUNG,
        ..Thresholds::default()
    };
    let mut tracing =
        Tracing::start_kept(options.tracing, &options.pins)?.with_service_pacing(thresholds);
    // Not before: a start that fails leaves no file.
    let chronicle = options.history.clone().map(|options| {
        Chronicle::open(options, |warning: &str| {
            Log::to_stderr(false).write_line(LogLevel::Warning, warning);
        })
    });
    let mut reporter = Reporter::new(Log::to_stderr(options.verbose), exports, chronicle);
    print_greeting(reporter.log_mut(), tracing.session(), options.keep);
    tracing.recall_findings(reporter.recall_findings());
    if let Some(chronicle) = reporter.chronicle() {
        let past = tracing.session().tracing_continuity().map(|it| &it.past);
        let backend = tracing.session().tracer().backend().name();
        let continuous = matches!(past, Some(PinnedPast::Unbroken));
        chronicle.trace_started(backend, &kernel_release(), continuous);
    }
    // What an earlier service has lost, it has told.
    reporter.lost_before(tracing.session().lost_count());
    control.publish_status(read_status(&tracing, &reporter, &control));
    control.start_listening(reporter.chronicle().map(Chronicle::new_asker))?;
    tracing.report_backlog(&mut reporter)?;
    let mut watchdog = Watchdog::of_unit();
    let mut janitor = Janitor::new(options.auto_clean, options.audit.clone());
    let mut told = usize::MAX;
    systemd::notify_ready("tracing");
    let mut searches = SearchWorker::new();
    if reporter.exports.begin_first_search() {
        searches.start();
    }
    loop {
        let next = tokio::select! {
            biased;
            ready = tracing.next_readiness() => match ready? {
                Some(ready) => NextWork::Trace(ready),
                None => break,
            },
            question = control.questions.recv() => match question {
                Some(question) => NextWork::Answer(question),
                None => break,
            },
            scrape = reporter.exports.next_scrape() => NextWork::Scrape(scrape),
            said = janitor.next_event() => NextWork::CleanUp(said),
            found = searches.next_result() => NextWork::Found(found),
            () = watchdog.wait_due() => NextWork::SignOfLife,
        };
        match next {
            NextWork::Trace(ready) => {
                let surveyed = ready.needs_survey();
                tracing.handle_readiness(ready, &mut reporter)?;
                if surveyed {
                    survey_done(&tracing, &mut reporter);
                    if reporter.exports.begin_first_search() {
                        searches.start();
                    }
                    control.publish_status(read_status(&tracing, &reporter, &control));
                    let leaks = tracing
                        .reported_findings()
                        .values()
                        .filter(|(class, _)| matches!(class, Class::Leaked(_)));
                    janitor.survey_done(leaks.count(), Instant::now());
                    // The start has read the types of the whole kernel, and each look all
                    // processes.
                    memory::give_back();
                }
            }
            NextWork::Scrape(ScrapeRequest { format, answer }) => {
                survey_if_stale(&mut tracing, &mut reporter)?;
                let text = reporter
                    .exports
                    .metrics_text(read_health(&tracing, &reporter), format);
                memory::give_back();
                let _unheard = answer.send(text);
            }
            NextWork::Answer(ServiceQuestion::Search(reply)) => {
                let begun = reporter.exports.search.begin();
                if begun {
                    searches.start();
                }
                // Whoever asked may have gone.
                let _unheard = reply.send(begun);
            }
            NextWork::Found(found) => {
                if let Some(why) = reporter.exports.search.take(found) {
                    let text = format!("search for who holds older cookies: {why}");
                    reporter.log_mut().say_often(LogLevel::Warning, text);
                }
                tracing.handle_readiness(Readiness::SurveyDue, &mut reporter)?;
                survey_done(&tracing, &mut reporter);
                say_search(&mut reporter);
                control.publish_status(read_status(&tracing, &reporter, &control));
                memory::give_back();
            }
            NextWork::Answer(ServiceQuestion::Status(reply)) => {
                survey_if_stale(&mut tracing, &mut reporter)?;
                let mut status = read_status(&tracing, &reporter, &control);
                status.findings.list = reporter.list_findings();
                memory::give_back();
                // Whoever asked may have gone.
                let _unheard = reply.send(status);
            }
            NextWork::CleanUp(None) => janitor.start_clean(Instant::now()),
            NextWork::CleanUp(Some(clean_up)) => {
                reporter.exports.count_cleaned(&clean_up);
                say_clean_up(reporter.log_mut(), &clean_up);
            }
            NextWork::SignOfLife => watchdog.notify_alive(),
        }
        if told != tracing.reported_findings().len() {
            told = tracing.reported_findings().len();
            systemd::notify_status(&match told {
                0 => "tracing; no active findings".to_owned(),
                told => format!(
                    "tracing; {}: dmtrace report",
                    count_noun(told, "active finding", "active findings")
                ),
            });
        }
    }
    systemd::notify_stopping();
    let restarts = if options.keep {
        Some(true)
    } else {
        systemd::will_restart().await
    };
    if restarts.is_none() {
        reporter.log_mut().write_line(
            LogLevel::Warning,
            "systemd does not say whether this is a restart: tracing pauses until the next start",
        );
    }
    let keep = restarts == Some(true);
    let stays = keep && tracing.hand_over(&mut reporter)?;
    let (accounting, unread) = if stays {
        (None, tracing.unread_summary().map(str::to_owned))
    } else {
        let ending = tracing.finish(&mut reporter)?;
        let unread = ending.unread_summary();
        (Some(ending.accounting), unread)
    };
    let (mut log, exports, chronicle) = reporter.into_parts();
    exports.finish_hook().await;
    if let Some(chronicle) = chronicle
        && !chronicle.finish(LAST_WORDS)
    {
        log.write_line(
            LogLevel::Warning,
            "the disk is too slow: the history may lack the last moments",
        );
    }
    if let Some(unread) = unread {
        log.write_line(LogLevel::Warning, unread);
    }
    let Some(accounting) = accounting else {
        log.write_line(
            LogLevel::Info,
            "stopped; tracing continues in the kernel until the next start; to end it: dmtrace serve \
             --remove",
        );
        return Ok(());
    };
    if options.keep {
        log.write_line(
            LogLevel::Warning,
            "tracing has ended with the service, in spite of --keep: the start said why",
        );
    }
    let line = accounting.summary_line();
    log.write_line(LogLevel::Info, format_args!("stopped; accounting: {line}"));
    for deficit in &accounting.deficits {
        log.write_line(LogLevel::Warning, format_args!("not exact: {deficit}"));
    }
    Ok(())
}

/// Removes what a service that has ended left to go on. Tells whether there was anything.
///
/// # Errors
/// A service runs, or this process may not.
pub(crate) fn remove_left_pins(pins: &Path) -> Result<bool> {
    let _lock = lock_of(Path::new(SOCKET))?;
    let removed = remove_pins(pins).with_context(|| pins.display().to_string())?;
    remove_unpinned(pins);
    Ok(removed)
}

/// Options for the traces that are left in the kernel in other places than was looked at, each after
/// a space.
pub(crate) fn left_elsewhere() -> Vec<String> {
    let left = running_tracers().into_iter();
    let left = left.filter(|tracer| !tracer.is_attended());
    left.map(|tracer| tracer.pins_option()).collect()
}

enum NextWork {
    Trace(Readiness),
    Answer(ServiceQuestion),
    /// A search is over.
    Found(SearchResult),
    Scrape(ScrapeRequest),
    /// It is due, or this is what came of it.
    CleanUp(Option<CleanUp>),
    SignOfLife,
}

fn say_clean_up(log: &mut Log, clean_up: &CleanUp) {
    let (done, failed) = clean_up.log_lines();
    for (level, lines) in [(LogLevel::Notice, done), (LogLevel::Warning, failed)] {
        for line in lines {
            log.say_often(level, format_args!("clean-up: {line}"));
        }
    }
}

/// What a search has found, in the log.
fn say_search(reporter: &mut Reporter) {
    let status = reporter.exports.search_status();
    let Some(orphaned) = status.orphaned.filter(|&count| count > 0) else {
        return;
    };
    let text = format!(
        "{} orphaned: older than the trace, and no process holds {}; dmtrace clean",
        count_noun(orphaned, "cookie is", "cookies are"),
        of_number(&orphaned, "its number", "their numbers"),
    );
    reporter.log_mut().say_often(LogLevel::Warning, text);
}

/// Whoever asks wants to know how it is now, and no more than one look a second.
fn survey_if_stale(tracing: &mut Tracing, reporter: &mut Reporter) -> Result<()> {
    if reporter.exports.is_stale() {
        tracing.handle_readiness(Readiness::SurveyDue, reporter)?;
        survey_done(tracing, reporter);
    }
    Ok(())
}

/// After a look there are new numbers.
fn survey_done(tracing: &Tracing, reporter: &mut Reporter) {
    reporter.report_lost(tracing.session().lost_count());
    reporter.report_unread(tracing.unread_summary());
    reporter.exports.mark_survey_done();
    if reporter.exports.has_textfile() {
        let health = read_health(tracing, reporter);
        if let Some(failure) = reporter.exports.write_textfile(health) {
            reporter.log_mut().write_line(LogLevel::Warning, failure);
        }
    }
}

/// How everything is, for metrics.
fn read_health(tracing: &Tracing, reporter: &Reporter) -> metrics::TraceHealth {
    let history = reporter.chronicle().map(Chronicle::status);
    metrics::TraceHealth {
        history_dropped: history.as_ref().map_or(0, |status| status.lost),
        history_on_disk: history.map(|status| status.on_disk),
        ..tracing.session().read_meters()
    }
}

/// How the service is, without the list of what it has found.
fn read_status(tracing: &Tracing, reporter: &Reporter, control: &ControlSocket) -> ServiceStatus {
    let session = tracing.session();
    let unread = tracing.unread_summary();
    ServiceStatus {
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        kernel: kernel_release(),
        seconds: boot_now().duration_since(session.trace_start()).as_secs(),
        health: session.health(),
        totals: *session.ledger().totals(),
        foreign_sets: reporter.exports.foreign_count(),
        findings: reporter.count_findings(tracing.reported_findings().len()),
        doubts: reporter.exports.doubts(),
        search: reporter.exports.search_status(),
        history: reporter.chronicle().map(Chronicle::status),
        complete: unread.is_none(),
        unread: unread.map(str::to_owned),
        requests: RequestTotals {
            answered: control.tally.answered.load(Ordering::Relaxed),
            refused: control.tally.refused.load(Ordering::Relaxed),
        },
        as_of_seconds_ago: None,
    }
}
