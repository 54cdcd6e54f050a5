//! A set, and what was found out about it.

use serde::Serialize;

/// How it is known who made a set.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Known {
    /// Its creation was seen.
    Observed,
    /// From its fields.
    Inferred,
    /// Not known.
    Unknown,
}
