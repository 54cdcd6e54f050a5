//! Obstacles in words.

use std::fmt;

use super::{OrphanObstacle, TouchedField};
use crate::{
    search::{Form, UnsearchedReason},
    wording::count_noun,
};

impl fmt::Display for OrphanObstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotACookieForm => f.write_str("it has not the form of a cookie"),
            Self::Gone => f.write_str("it is gone"),
            Self::Unreadable => f.write_str("its state may not be read: run as root"),
            Self::WaitedOn { count } => {
                write!(
                    f,
                    "{} on it",
                    count_noun(*count, "thread waits", "threads wait")
                )
            }
            Self::NotLookedFor => f.write_str("no search has looked for it yet"),
            Self::NotCovered => f.write_str("pipes and unlinked files were not searched"),
            Self::Cancelled => f.write_str("the search was stopped before its end"),
            Self::Hidden { why } => write!(f, "processes may have been out of sight: {why}"),
            Self::NotSearched { pid, comm, reason } => {
                write!(f, "{comm}[{pid}] could not be searched: {reason}")
            }
            Self::Unstable { .. } => {
                f.write_str("processes came and went faster than they could be searched")
            }
            Self::Touched { field } => write!(f, "{field} changed since it was searched for"),
            Self::OperatorAlive { pid, comm } => {
                write!(f, "{comm}[{pid}], which used it last, is alive")
            }
            Self::SecondMarkDue { .. } => f.write_str("a second search is due"),
            Self::SecondMarkOld { .. } => f.write_str("the last search is too long ago"),
            Self::HeldBy { holder } => {
                write!(
                    f,
                    "{}[{}] holds its number",
                    holder.process.comm, holder.process.id.tgid
                )?;
                match holder.spots.first() {
                    Some(spot) => write!(f, " ({}, {})", spot.place, spot.form),
                    None => Ok(()),
                }
            }
            Self::UdevBusy => f.write_str("udev was at work during the search"),
            Self::DeviceSuspended { name } => write!(f, "device {name} is suspended"),
            Self::TooYoung { .. } => f.write_str("it was touched too recently"),
            Self::WrittenIn { path } => write!(f, "the file {path} has its number"),
            Self::FilesNotSearched { why: None, .. } => {
                f.write_str("files were not searched for it yet")
            }
            Self::FilesNotSearched { why: Some(why), .. } => {
                write!(f, "files could not be searched for it: {why}")
            }
        }
    }
}

impl fmt::Display for TouchedField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Set => "the set has",
            Self::Value => "its value has",
            Self::Operator => "its last operator has",
            Self::Otime => "the time of its last operation has",
            Self::Ctime => "the time of its creation has",
            Self::Form => "its owner or mode has",
        })
    }
}

impl fmt::Display for UnsearchedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied => f.write_str("the kernel does not allow it"),
            Self::Opaque { .. } => f.write_str("it has memory that nobody else can read"),
            Self::TimedOut => f.write_str("reading it took too long"),
            Self::Swapped { .. } => f.write_str("too much of it is swapped out"),
            Self::Changing => f.write_str("it starts one program after another"),
            Self::Failed { cause } => f.write_str(cause),
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aligned4 | Self::Aligned2 | Self::Unaligned => "binary",
            Self::Tagged => "tagged number",
            Self::Double => "floating point",
            Self::Hex => "hexadecimal text",
            Self::Decimal => "decimal text",
            Self::CookieVariable => "DM_UDEV_COOKIE",
            Self::UeventVariable => "DM_COOKIE",
        })
    }
}
