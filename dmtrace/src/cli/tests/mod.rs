//! What holds for all verbs.

#[cfg(feature = "live")]
mod filters;
mod values;

use std::{
    cell::RefCell,
    io::{self, Write},
    rc::Rc,
};

use clap::{CommandFactory as _, Parser as _};

use super::Cli;
use crate::output::Out;

/// Standard output of a test.
#[derive(Clone, Default)]
pub(super) struct TestPage(Rc<RefCell<Vec<u8>>>);

impl Write for TestPage {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl TestPage {
    pub(super) fn out(&self) -> Out {
        Out::with_writer(Box::new(self.clone()), "")
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.borrow().clone()).unwrap()
    }
}

/// What a verb cannot do without.
fn least_args(verb: &str) -> &'static [&'static str] {
    match verb {
        "record" => &["file"],
        "exec" => &["true"],
        _ => &[],
    }
}

/// The error of a command line.
fn parse_error(words: &[&str]) -> clap::Error {
    match Cli::try_parse_from([&["dmtrace"], words].concat()) {
        Ok(cli) => panic!("{words:?} was taken: {cli:?}"),
        Err(error) => error,
    }
}

pub(super) fn parse_args(words: &[&str]) -> Cli {
    match Cli::try_parse_from([&["dmtrace"], words].concat()) {
        Ok(cli) => cli,
        Err(error) => panic!("{words:?} was refused: {error}"),
    }
}

/// The verbs, from the command line itself.
fn verb_commands() -> Vec<clap::Command> {
    let mut whole = Cli::command();
    whole.build();
    let verbs = whole.get_subcommands().cloned();
    verbs.filter(|verb| verb.get_name() != "help").collect()
}
