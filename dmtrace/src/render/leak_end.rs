//! How a leaked cookie ended, in the words of a history.

use dmtrace_core::ledger::{EndKind, Ending};

use crate::history::{FindingEnd, HowGone};

/// How a leaked cookie ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct LeakEnd {
    pub(crate) how: HowGone,
    /// Who removed it: `name[pid]`.
    pub(crate) by: Option<String>,
}

impl LeakEnd {
    /// By the books.
    pub(crate) fn from_ending(ending: &Ending) -> Self {
        Self {
            how: how_gone(Some(ending.kind)),
            by: ending.by.as_ref().map(ToString::to_string),
        }
    }

    /// By a history.
    pub(crate) fn from_stored(gone: &FindingEnd) -> Self {
        Self {
            how: gone.how,
            by: gone.by.clone(),
        }
    }

    /// Whether somebody has removed it.
    pub(crate) const fn is_removal(&self) -> bool {
        is_removal(self.how)
    }
}

/// Whether somebody has removed it.
pub(crate) const fn is_removal(how: HowGone) -> bool {
    matches!(how, HowGone::Removed)
}

/// An end in the words of a history; `None`: it was forgotten.
pub(crate) const fn how_gone(kind: Option<EndKind>) -> HowGone {
    match kind {
        Some(EndKind::WithNamespace | EndKind::NamespaceGone) => HowGone::WithNamespace,
        Some(EndKind::Vanished) | None => HowGone::Unseen,
        Some(_) => HowGone::Removed,
    }
}
