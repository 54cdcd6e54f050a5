//! Call sites: the chain of calls that led to a cookie.
//!
//! The kernel side copies registers, stack and the list of libraries; [`unwind`] makes frames of
//! them by the binaries' own unwind information, [`symbols`] makes names of the frames when they
//! are shown. What cannot be followed to its end says why.

mod binary;
mod find;
mod go;
mod goroutine;
mod memory;
mod sample;
mod symbols;
mod unwind;
#[cfg(feature = "live")]
mod worker;

pub use binary::Binary;
pub use find::{Finder, Place};
pub use memory::Memory;
pub use sample::AddressSpace;
pub use symbols::Symbolizer;
pub use unwind::{Registers, unwind};
#[cfg(feature = "live")]
pub use worker::{Found, KEPT, Worker};

#[cfg(test)]
mod tests;
