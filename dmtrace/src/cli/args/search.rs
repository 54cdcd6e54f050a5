//! How cookies that are older than any trace are searched for.

use clap::{Args, ValueEnum};

use crate::{
    case::{SearchDepth, SearchWish, Vouched},
    cli::value,
};

/// What of cookies that are older than any trace.
#[derive(Args, Debug, Default)]
pub struct SearchArgs {
    /// Search the memory of all processes for cookies that no trace saw being made: no, fast
    /// (once), full (twice, and files) [default: fast; list: what was found before; clean:
    /// full].
    #[arg(long, value_name = "HOW", value_enum, ignore_case = true)]
    pub search: Option<SearchHow>,
    /// Vouch for a process or a file that has the number of a cookie: it will not use it.
    #[arg(long, value_name = "PID|FILE", value_parser = value::vouched_arg)]
    pub vouch_for: Vec<Vouched>,
}

/// How the memory of all processes is searched.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum SearchHow {
    /// Not at all.
    No,
    /// Once, without files.
    Fast,
    /// Twice, and the files that were changed since.
    Full,
}

impl SearchArgs {
    /// What was asked for. `usual`: if nothing was.
    pub(in crate::cli) fn to_wish(&self, usual: SearchDepth) -> SearchWish {
        SearchWish {
            depth: match self.search {
                Some(SearchHow::No) => SearchDepth::No,
                Some(SearchHow::Fast) => SearchDepth::Fast,
                Some(SearchHow::Full) => SearchDepth::Full,
                None => usual,
            },
            vouched: self.vouch_for.clone(),
            own_files: Vec::new(),
        }
    }
}
