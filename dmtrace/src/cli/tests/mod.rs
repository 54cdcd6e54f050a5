//! What holds for all verbs.

mod values;

use clap::{CommandFactory as _, Parser as _};

use super::Cli;

/// What a verb cannot do without.
fn least(verb: &str) -> &'static [&'static str] {
    match verb {
        "record" => &["file"],
        "exec" => &["true"],
        _ => &[],
    }
}

/// The error of a command line.
fn refused(words: &[&str]) -> clap::Error {
    match Cli::try_parse_from([&["dmtrace"], words].concat()) {
        Ok(cli) => panic!("{words:?} was taken: {cli:?}"),
        Err(error) => error,
    }
}

fn taken(words: &[&str]) -> Cli {
    match Cli::try_parse_from([&["dmtrace"], words].concat()) {
        Ok(cli) => cli,
        Err(error) => panic!("{words:?} was refused: {error}"),
    }
}

/// The verbs, from the command line itself.
fn verbs() -> Vec<clap::Command> {
    let mut whole = Cli::command();
    whole.build();
    let verbs = whole.get_subcommands().cloned();
    verbs.filter(|verb| verb.get_name() != "help").collect()
}
