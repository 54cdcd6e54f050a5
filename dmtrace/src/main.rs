//! The `dmtrace` command: parse, dispatch, exit code.

fn main() -> std::process::ExitCode {
    dmtrace::cli::main()
}
