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

use super::{args::Doctor, failure::exit};
use crate::{
    case::{Case, TraceUse},
    output::{Out, json, wrap_text},
    probe::Environment,
};

/// How a check came out.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    /// As it should be.
    Pass,
    /// Something is not seen, or will go wrong.
    Warn,
    /// Something does not work.
    Fail,
}

impl fmt::Display for Status {
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
struct Check {
    /// What was looked at.
    check: &'static str,
    /// How it came out.
    status: Status,
    text: String,
    fix: Option<String>,
}

#[derive(Debug, Default)]
struct Report {
    checks: Vec<Check>,
    /// Further fields of the JSON object.
    more: Vec<(&'static str, Value)>,
}

impl Report {
    fn pass(&mut self, check: &'static str, text: impl Into<String>) {
        self.add(check, Status::Pass, text.into(), None);
    }

    fn warn(&mut self, check: &'static str, text: impl Into<String>, fix: impl Into<String>) {
        self.add(check, Status::Warn, text.into(), Some(fix.into()));
    }

    fn fail(&mut self, check: &'static str, text: impl Into<String>, fix: impl Into<String>) {
        self.add(check, Status::Fail, text.into(), Some(fix.into()));
    }

    fn add(&mut self, check: &'static str, status: Status, text: String, fix: Option<String>) {
        self.checks.push(Check {
            check,
            status,
            text,
            fix: fix.filter(|fix| !fix.is_empty()),
        });
    }
}

/// Whether the kernel can be traced from here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Tracing {
    /// Probes are attached, or nothing speaks against it.
    Works,
    /// Not possible.
    Impossible,
}

pub(super) fn run(args: &Doctor, as_json: bool, out: &mut Out) -> Result<ExitCode> {
    let mut report = Report::default();
    let environment = Environment::read();
    let mut tracing = kernel::check(&environment, &mut report);
    if tracing == Tracing::Works && !args.no_attach {
        tracing = attach(&environment, &mut report);
    }
    let case = Case::of_host(None, TraceUse::Maps)?;
    host::check(&case, &environment, &mut report);
    if as_json {
        let mut body = json!({
            "tracing": tracing == Tracing::Works,
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
            print(check, out)?;
        }
    }
    Ok(match tracing {
        // What does not work may be among what could not be looked at.
        Tracing::Works if case.incomplete => exit::incomplete(),
        Tracing::Works => exit::CLEAN,
        Tracing::Impossible => ExitCode::from(exit::ENVIRONMENT),
    })
}

#[cfg(feature = "live")]
fn attach(environment: &Environment, report: &mut Report) -> Tracing {
    probes::check(environment, report)
}

#[cfg(not(feature = "live"))]
fn attach(_environment: &Environment, report: &mut Report) -> Tracing {
    report.fail(
        "attach",
        "this dmtrace was built without tracing",
        "build it with the feature live; dmtrace list and report work",
    );
    Tracing::Impossible
}

/// Columns of the word in front.
const INDENT: usize = 6;

fn print(check: &Check, out: &mut Out) -> Result<()> {
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
