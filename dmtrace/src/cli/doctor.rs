//! `dmtrace doctor`: can this machine be traced, what will not work, and how to mend it.

mod accident;
mod host;
mod kernel;
#[cfg(feature = "live")]
mod probes;
#[cfg(feature = "live")]
mod selftest;

use std::{fmt, process::ExitCode};

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

use super::{args::DoctorArgs, failure::exit};
use crate::{
    case::{Case, SearchDepth, TraceUse},
    output::{Out, json, wrap_text},
    probe::Environment,
};

/// How a check came out.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
enum CheckStatus {
    /// As it should be.
    Pass,
    /// Something is not seen, or will go wrong.
    Warn,
    /// Something does not work.
    Fail,
}

impl fmt::Display for CheckStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

/// One line of the report.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
struct DoctorCheck {
    /// What was looked at.
    check: &'static str,
    /// How it came out.
    status: CheckStatus,
    text: String,
    fix: Option<String>,
}

#[derive(Debug, Default)]
struct DoctorReport {
    checks: Vec<DoctorCheck>,
    /// Further fields of the JSON object.
    more: Vec<(&'static str, Value)>,
}

impl DoctorReport {
    fn add_pass(&mut self, check: &'static str, text: impl Into<String>) {
        self.add_check(check, CheckStatus::Pass, text.into(), None);
    }

    fn add_warning(
        &mut self,
        check: &'static str,
        text: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.add_check(check, CheckStatus::Warn, text.into(), Some(fix.into()));
    }

    fn add_failure(
        &mut self,
        check: &'static str,
        text: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.add_check(check, CheckStatus::Fail, text.into(), Some(fix.into()));
    }

    fn add_check(
        &mut self,
        check: &'static str,
        status: CheckStatus,
        text: String,
        fix: Option<String>,
    ) {
        self.checks.push(DoctorCheck {
            check,
            status,
            text,
            fix: fix.filter(|fix| !fix.is_empty()),
        });
    }
}

/// Whether the kernel can be traced from here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum TracingState {
    /// Probes are attached, or nothing speaks against it.
    Works,
    /// Not possible.
    Impossible,
}

pub(super) fn run(args: &DoctorArgs, as_json: bool, out: &mut Out) -> Result<ExitCode> {
    let mut report = DoctorReport::default();
    let environment = Environment::read();
    let mut tracing = kernel::check_kernel(&environment, &mut report);
    if tracing == TracingState::Works && !args.no_attach {
        tracing = attach(&environment, &mut report);
    }
    let wish = args.search.to_wish(SearchDepth::Fast);
    let case = Case::of_searched_host(None, TraceUse::Maps, &wish)?;
    host::check_host(&case, &environment, &mut report);
    if as_json {
        let mut body = json!({
            "tracing": tracing == TracingState::Works,
            "complete": !case.incomplete,
            "environment": environment,
            "checks": report.checks,
        });
        for (name, value) in report.more {
            body[name] = value;
        }
        out.print_json(&json::json_envelope("doctor", &body))?;
    } else {
        for check in &report.checks {
            print_check(check, out)?;
        }
    }
    Ok(match tracing {
        // What does not work may be among what could not be looked at.
        TracingState::Works if case.incomplete || has_doubts(&case) => exit::incomplete_code(),
        TracingState::Works => exit::CLEAN,
        TracingState::Impossible => ExitCode::from(exit::ENVIRONMENT),
    })
}

/// Whether cookies are there of which nobody can tell whether they are leaked.
fn has_doubts(case: &Case) -> bool {
    case.judge_all().iter().any(|it| it.doubt().is_some())
}

#[cfg(feature = "live")]
fn attach(environment: &Environment, report: &mut DoctorReport) -> TracingState {
    probes::check_probes(environment, report)
}

#[cfg(not(feature = "live"))]
fn attach(_environment: &Environment, report: &mut DoctorReport) -> TracingState {
    report.add_failure(
        "attach",
        "this dmtrace was built without tracing",
        "build it with the feature live; dmtrace list and report work",
    );
    TracingState::Impossible
}

/// Columns of the word in front.
const INDENT: usize = 6;

fn print_check(check: &DoctorCheck, out: &mut Out) -> Result<()> {
    let width = out.prose_width() - INDENT;
    for (number, line) in wrap_text(&check.text, width).iter().enumerate() {
        if number == 0 {
            out.print_line(&format!("{}  {line}", check.status))?;
        } else {
            out.print_line(&format!("{:INDENT$}{line}", ""))?;
        }
    }
    if let Some(fix) = &check.fix {
        for line in wrap_text(&format!("fix: {fix}"), width) {
            out.print_line(&format!("{:INDENT$}{line}", ""))?;
        }
    }
    Ok(())
}
