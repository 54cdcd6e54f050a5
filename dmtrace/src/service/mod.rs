//! Continuous tracing: a small daemon that an administrator leaves running for months.

mod client;
mod export;
pub mod hook;
mod log;
mod memory;
mod reporter;
mod request;
mod socket;
mod systemd;

use std::{path::Path, sync::atomic::Ordering, time::Duration};

use anyhow::Result;
use serde_json::{Value, json};

use crate::{
    cli::{
        args::Tuning,
        trace::{Ready, Tracing},
    },
    host::clock::boot_now,
    metrics::Scrape,
    output::json::envelope,
    probe::{DmState, Environment},
    session::Session,
    verdict::Thresholds,
};
pub use client::ask_status;
use export::Exports;
pub use export::Options as ExportOptions;
use log::{Level, Log};
use reporter::Reporter;
use request::Request;
pub use socket::{Access, SOCKET};
use socket::{Control, Question};
use systemd::Watchdog;

/// A leak is told within a second of the end of its owner, a moment of grace included.
const YOUNG: Duration = Duration::from_millis(500);

/// How to serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// How to trace.
    pub tuning: Tuning,
    /// Who may ask.
    pub access: Access,
    /// Every step of every cookie.
    pub verbose: bool,
    /// Metrics and the hook.
    pub export: ExportOptions,
}

/// Traces until SIGTERM or SIGINT.
///
/// # Errors
/// Tracing cannot start, another service runs, or polling fails.
pub async fn serve(options: &Options) -> Result<()> {
    let mut control = Control::open(Path::new(SOCKET), options.access)?;
    let exports = Exports::open(&options.export, options.access.group)?;
    let mut reporter = Reporter::new(Log::to_stderr(options.verbose), exports);
    let thresholds = Thresholds {
        young: YOUNG,
        ..Thresholds::default()
    };
    let mut tracing = Tracing::start(&options.tuning, |_, _| Ok(None))?.patient(thresholds);
    greet(reporter.log(), tracing.session());
    tracing.begin(&mut reporter)?;
    let mut watchdog = Watchdog::of_unit();
    let mut told = usize::MAX;
    // The start has read the types of the whole kernel.
    memory::give_back();
    systemd::ready("tracing");
    loop {
        let next = tokio::select! {
            biased;
            ready = tracing.ready() => match ready? {
                Some(ready) => Next::Trace(ready),
                None => break,
            },
            question = control.questions.recv() => match question {
                Some(question) => Next::Answer(question),
                None => break,
            },
            scrape = reporter.exports.asked() => Next::Scrape(scrape),
            () = watchdog.due() => Next::SignOfLife,
        };
        match next {
            Next::Trace(ready) => {
                tracing.act(ready, &mut reporter)?;
                if ready == Ready::Look {
                    looked(&tracing, &mut reporter);
                }
            }
            Next::Scrape(Scrape { format, answer }) => {
                if reporter.exports.is_stale() {
                    tracing.act(Ready::Look, &mut reporter)?;
                    looked(&tracing, &mut reporter);
                }
                let text = reporter.exports.text(tracing.session().meters(), format);
                let _unheard = answer.send(text);
            }
            Next::Answer(Question {
                request: Request::Status,
                answer,
            }) => {
                let status = status(&tracing, &reporter, &control);
                // Whoever asked may have gone.
                let _unheard = answer.send(envelope("status", &status).to_string());
            }
            Next::SignOfLife => watchdog.alive(),
        }
        if told != tracing.told().len() {
            told = tracing.told().len();
            systemd::status(&match told {
                0 => "tracing; no finding stands".to_owned(),
                told => format!("tracing; {told} findings stand: dmtrace report"),
            });
        }
    }
    systemd::stopping();
    let ending = tracing.finish(&mut reporter)?;
    let line = ending.accounting.line();
    let (mut log, exports) = reporter.into_parts();
    exports.finish().await;
    log.say(Level::Info, format_args!("stopped; accounting: {line}"));
    for deficit in &ending.accounting.deficits {
        log.say(Level::Warning, format_args!("not exact: {deficit}"));
    }
    Ok(())
}

enum Next {
    Trace(Ready),
    Answer(Question),
    Scrape(Scrape),
    SignOfLife,
}

/// After a look there are new numbers.
fn looked(tracing: &Tracing, reporter: &mut Reporter) {
    reporter.exports.looked();
    if let Some(failure) = reporter.exports.write(|| tracing.session().meters()) {
        reporter.log().say(Level::Warning, failure);
    }
}

fn greet(log: &mut Log, session: &Session) {
    let tracer = session.tracer();
    log.say(
        Level::Info,
        format_args!(
            "dmtrace {} traces ({} backend); {} sets were there before",
            env!("CARGO_PKG_VERSION"),
            tracer.backend(),
            session.preexisting()
        ),
    );
    for spot in tracer.backend().blind_spots() {
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
    match tracer.dm() {
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

fn status(tracing: &Tracing, reporter: &Reporter, control: &Control) -> Value {
    let session = tracing.session();
    let count = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "kernel": Environment::read().kernel,
        "seconds": boot_now().since(session.began()).as_secs(),
        "health": session.health(),
        "totals": session.ledger().totals(),
        "findings": reporter.findings(tracing.told().len()),
        "requests": {
            "answered": count(&control.tally.answered),
            "refused": count(&control.tally.refused),
        },
    })
}
