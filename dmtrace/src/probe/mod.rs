//! Kernel probes: which there are, which of them this kernel takes, and what they have counted.

pub(crate) mod btf;
#[cfg(feature = "live")]
mod catalog;
pub(crate) mod environment;
pub(crate) mod offsets;
mod options;
mod preemption;
#[cfg(feature = "live")]
pub(crate) mod registry;
pub(crate) mod spec;

#[cfg(feature = "live")]
mod attach;
#[cfg(feature = "live")]
mod bpf;
#[cfg(feature = "live")]
mod choose;
#[cfg(feature = "live")]
mod continuity;
#[cfg(feature = "live")]
mod counters;
#[cfg(feature = "live")]
mod dm;
#[cfg(feature = "live")]
mod error;
#[cfg(feature = "live")]
mod kernel_log;
#[cfg(feature = "live")]
mod link;
#[cfg(feature = "live")]
mod load;
#[cfg(feature = "live")]
mod maps;
#[cfg(feature = "live")]
mod module;
#[cfg(feature = "live")]
mod order;
#[cfg(feature = "live")]
mod pins;
#[cfg(feature = "live")]
mod shared;
#[cfg(feature = "live")]
mod skipped;
#[cfg(all(test, feature = "live"))]
mod stack_depth;
#[cfg(feature = "live")]
mod table;
#[cfg(feature = "live")]
mod tracepoint;
#[cfg(feature = "live")]
mod tracer;
mod undisturbed;
#[cfg(feature = "live")]
mod upkeep;
#[cfg(feature = "live")]
mod walk;

pub(crate) use environment::{Environment, Lockdown};
pub(crate) use options::{DEFAULT_PINS, Options};
pub(crate) use preemption::Preemption;
pub(crate) use spec::ProgramPlan;

#[cfg(feature = "live")]
pub(crate) use attach::{AttachOutcome, Attempt};
#[cfg(feature = "live")]
pub(crate) use continuity::{Continuity, PinnedPast};
#[cfg(feature = "live")]
pub(crate) use counters::{KernelCounts, KindCounts};
#[cfg(feature = "live")]
pub(crate) use dm::DmState;
#[cfg(feature = "live")]
pub(crate) use error::StartError;
#[cfg(feature = "live")]
pub(crate) use maps::{MapIds, Maps, ProcEntry, SemEntry};
#[cfg(feature = "live")]
pub(crate) use pins::remove_all as remove_pins;
#[cfg(feature = "live")]
pub(crate) use skipped::SkippedRuns;
#[cfg(feature = "live")]
pub(crate) use tracer::Tracer;
#[cfg(feature = "live")]
pub(crate) use upkeep::SeedReason;
