//! From books and verdicts into the history, and out of it again.

mod kernel;
mod months;
mod told;
