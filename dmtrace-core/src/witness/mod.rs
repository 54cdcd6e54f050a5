//! Who it was, after the fact: cookies that are older than any trace, and what remains on a host of
//! those who made them.
//!
//! The kernel keeps no creator, only the last operator, and that one misleads: of a cookie that udev
//! has completed it is udev's own `dmsetup`. So others are heard: the kernel's process accounting and its
//! audit, the journal, syslog, the kernel's log. Each says something of a process or of a second ([`Testimony`]);
//! an [`Inquiry`] puts together what is said of one process, and weighs it against what the kernel
//! keeps of a cookie ([`CookieMoment`]). It names a [`Suspect`] only if nobody else fits as well;
//! everything else is *unknown*, with the reason. A suspect is inferred at most.
//!
//! What is here has no clock and reads nothing:
//!
//! * [`read_accounting_record`], [`AuditReader`], [`read_message`] turn what a witness has written into testimony;
//! * [`TimePattern`] groups the moments at which cookies were made, and [`Schedule`] says which
//!   entries of cron and which timers start just then.

mod accounting;
mod audit;
mod calendar;
mod clock;
mod context;
mod dossier;
mod inquiry;
mod maker;
mod message;
mod operator;
mod pattern;
mod programs;
mod schedule;
mod suspect;
mod testimony;
#[cfg(test)]
mod tests;

pub use accounting::{ACCOUNTING_RECORD, AccountingRecord, read_accounting_record};
pub use audit::{AuditReader, AuditRecord};
pub use calendar::{CivilDay, LocalMoment};
pub use context::{ContextLine, MAX_CONTEXT_LINES};
pub use inquiry::{Inquiry, weigh};
pub use message::{Message, Told, is_device_mapper_line, read_message};
pub use pattern::{Burst, Rhythm, TimePattern};
pub(crate) use programs::LVM_PREFIXES;
pub use programs::{is_cookie_program, mentions_cookie_program};
pub use schedule::{Schedule, ScheduleKind, fitting_schedules};
pub use suspect::{Answer, Doubt, Grade, Ground, Role, Suspect, UnknownReason, Who};
pub use testimony::{
    Author, CookieMoment, Ending, MAX_LINE, MadeSet, Testimony, When, Witness, bounded_text,
};
