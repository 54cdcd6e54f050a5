//! A finding as data.

mod set;
mod story;

pub(crate) use set::Known;
pub(crate) use story::{Missing, Moment, Story, Victim};
