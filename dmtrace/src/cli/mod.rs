//! The verbs, and what they share: parsing, exit codes, errors of one line.

pub(crate) mod args;
mod clean;
mod columns;
mod doctor;
mod examples;
#[cfg(feature = "live")]
mod exec;
pub(crate) mod explain;
pub(crate) mod failure;
mod filter;
mod legend;
mod list;
pub(crate) mod report;
#[cfg(feature = "live")]
mod serve;
#[cfg(test)]
mod tests;
mod value;
#[cfg(feature = "live")]
pub(crate) mod watch;
pub(crate) mod when;

use std::process::ExitCode;

use clap::Parser;

pub use args::{Cli, Verb};
pub use failure::{Failure, exit};

use crate::output::{Out, time};

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // clap prints its own errors, with exit code 2 for usage and 0 for --help.
    let cli = Cli::parse();
    take_own_name();
    failure::report_result(run_verb(&cli))
}

/// A service runs itself by `/proc/self/exe`, and would be `exe` to whoever reads who removed a cookie.
fn take_own_name() {
    let own = rustix::thread::name();
    if own.is_ok_and(|name| name.as_c_str() == c"exe") {
        let _best_effort = rustix::thread::set_name(c"dmtrace");
    }
}

fn run_verb(cli: &Cli) -> anyhow::Result<ExitCode> {
    let color = match cli.color {
        args::ColorChoice::Auto => None,
        args::ColorChoice::Always => Some(true),
        args::ColorChoice::Never => Some(false),
    };
    if cli.utc {
        time::show_utc();
    }
    let mut out = Out::new(color);
    let code = match &cli.verb {
        Verb::List(args) => list::run(args, cli.json, &mut out)?,
        Verb::Report(args) => report::run(args, cli.json, &mut out)?,
        #[cfg(feature = "live")]
        Verb::Watch(args) => watch::run(args, cli.json, &mut out)?,
        #[cfg(feature = "live")]
        Verb::Record(args) => watch::record(args, cli.json, &mut out)?,
        #[cfg(feature = "live")]
        Verb::Exec(args) => exec::run(args, cli.json)?,
        #[cfg(feature = "live")]
        Verb::Serve(args) => serve::run(args, cli.json, &mut out)?,
        Verb::Explain(args) => explain::run(args, cli.json, &mut out)?,
        Verb::Clean(args) => clean::run(args, cli.json, &mut out)?,
        Verb::Doctor(args) => doctor::run(args, cli.json, &mut out)?,
        #[cfg(not(feature = "live"))]
        Verb::Watch(_) | Verb::Record(_) | Verb::Exec(_) | Verb::Serve(_) => {
            return Err(Failure::Environment(
                "this dmtrace was built without tracing; build it with the feature live".to_owned(),
            )
            .into());
        }
    };
    out.flush()?;
    Ok(code)
}
