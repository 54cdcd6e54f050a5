//! From books and verdicts into the history, and out of it again.

#[cfg(feature = "live")]
mod kernel;
#[cfg(feature = "live")]
mod months;
#[cfg(feature = "live")]
mod releases;
#[cfg(feature = "live")]
mod told;
