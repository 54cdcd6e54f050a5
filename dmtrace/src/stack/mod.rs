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

pub(crate) use binary::Binary;
pub(crate) use find::{BinaryLocation, Finder};
pub(crate) use memory::Memory;
pub(crate) use sample::AddressSpace;
pub(crate) use symbols::Symbolizer;
pub(crate) use unwind::{Registers, unwind_stack};
#[cfg(feature = "live")]
pub(crate) use worker::{BINARY_CACHE_TTL, FoundSite, Worker};

#[cfg(test)]
mod tests;
