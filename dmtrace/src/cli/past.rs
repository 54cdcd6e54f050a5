//! What a service has found before: how it gets into the history, and how it is told again.

#[cfg(feature = "live")]
mod chronicle;
mod explain;
mod report;
mod source;
mod story;
#[cfg(test)]
mod tests;
mod text;
mod when;

#[cfg(feature = "live")]
pub use chronicle::Chronicle;
pub(super) use explain::explain;
pub(super) use report::run as report;
pub use when::When;
