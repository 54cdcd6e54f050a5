//! How much of a report is shown.

use anyhow::Result;

use crate::{cli::args::ReportArgs, output::Out};

/// So many of a kind are shown to people; JSON has all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ReportLimit(pub(crate) usize);

impl ReportLimit {
    pub(super) const NONE: Self = Self(usize::MAX);

    /// What was asked for: one screen, unless it is one list.
    pub(crate) fn from_args(args: &ReportArgs) -> Self {
        let one_list = args.by.is_some() || args.bug || args.since.is_some();
        match args.top {
            _ if args.all => Self::NONE,
            Some(top) => Self(top),
            None if one_list => Self(20),
            None => Self(5),
        }
    }

    /// The line for what is left out of so many.
    pub(crate) fn print_rest(self, all: usize, out: &mut Out) -> Result<()> {
        match all.saturating_sub(self.0) {
            0 => Ok(()),
            more => Ok(out.print_line(&format!("  and {more} more: --all"))?),
        }
    }
}
