//! A package of the distribution.

use serde::{Deserialize, Serialize};

/// A package.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version, as its manager writes it.
    pub version: String,
    /// `dpkg`, `rpm` or `apk`.
    pub manager: String,
}
