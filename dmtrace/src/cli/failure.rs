//! Exit codes, and errors of one line.

use std::{io, process::ExitCode};

use crate::{output::print_remark, wording::chain_text};

/// The exit codes that `--help` lists.
pub mod exit {
    use std::process::ExitCode;

    /// Nothing found, or everything done.
    pub const CLEAN: ExitCode = ExitCode::SUCCESS;

    /// Findings: leaked or stuck cookies.
    pub fn findings_code() -> ExitCode {
        ExitCode::from(1)
    }

    /// The command line asks for something that makes no sense.
    pub const USAGE: u8 = 2;
    /// Privilege or environment.
    pub const ENVIRONMENT: u8 = 3;

    /// The material is incomplete: the answer is not certain.
    pub fn incomplete_code() -> ExitCode {
        ExitCode::from(4)
    }

    /// Not everything that was planned was done.
    pub const PARTIAL: u8 = 5;

    /// As [`PARTIAL`].
    pub fn partial_code() -> ExitCode {
        ExitCode::from(PARTIAL)
    }
}

/// An error that knows its exit code.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Nothing was done of what was asked for.
    #[error("{0}")]
    Partial(String),
    /// The machine does not allow it.
    #[error("{0}")]
    Environment(String),
}

/// Prints an error as one line and chooses the exit code.
///
/// A reader that has gone (`dmtrace list | head -1`) is no error.
pub(super) fn report_result(result: anyhow::Result<ExitCode>) -> ExitCode {
    let error = match result {
        Ok(code) => return code,
        Err(error) => error,
    };
    let gone = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(gone) {
        return exit::CLEAN;
    }
    print_remark(&chain_text(&error));
    ExitCode::from(match error.downcast_ref::<Failure>() {
        Some(Failure::Usage(_)) => exit::USAGE,
        Some(Failure::Partial(_)) => exit::PARTIAL,
        _ => exit::ENVIRONMENT,
    })
}
