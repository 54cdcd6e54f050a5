//! A case as rows.

use dmtrace_core::verdict::{Judged, Pending};

use super::Case;
use crate::render::row::Row;

impl Case {
    /// A cookie of this case with its judgement, as it is shown.
    pub(crate) fn row_of<'a>(&'a self, judged: Judged<'a>) -> Row<'a> {
        let mut row = Row::from_books(&self.ledger, judged.semaphore, judged.set, self.facts.now)
            .with_names(&self.names);
        row.age = row.age.or_else(|| row.stamp_age(&self.facts));
        row.pending = Pending::of_judged(&judged, &self.context());
        row.set_judged(judged);
        row
    }
}
