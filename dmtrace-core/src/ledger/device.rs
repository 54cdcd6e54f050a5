//! A device in the life of a cookie.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use super::{ActorRef, Name};
use crate::{
    event::{DmCommand, UeventAction},
    ids::{BootTime, DevNum},
};

/// A device in the life of a cookie, with the last that was done to it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, BorshSerialize, BorshDeserialize)]
pub struct Device {
    /// Name; empty where it is not known. The new one after a rename.
    pub name: Name,
    /// UUID.
    pub uuid: Option<Name>,
    /// Number.
    pub number: Option<DevNum>,
    /// The last ioctl on it.
    pub command: DmCommand,
    /// When that returned, or when its uevent was sent.
    pub at: BootTime,
    /// Who made it.
    pub who: Option<ActorRef>,
    /// Its result: 0, or a positive errno; `None` as long as its return was not seen.
    pub errno: Option<i32>,
    /// Whether the kernel has sent a uevent for it.
    pub uevent: bool,
    /// Action of that uevent, if it was seen.
    pub action: Option<UeventAction>,
    /// A busy device was to be removed later: no uevent carries the cookie then.
    pub deferred: bool,
}

impl Device {
    /// The name, else the number, else `?`.
    pub fn label(&self) -> String {
        match (self.name.as_str(), self.number) {
            ("", Some(number)) => number.to_string(),
            ("", None) => "?".to_owned(),
            (name, _) => name.to_owned(),
        }
    }

    /// Whether somebody means this device: by name, UUID, number (253:3) or node (dm-3).
    pub fn matches(&self, wanted: &str) -> bool {
        let known = DeviceName {
            name: self.name.as_str(),
            uuid: self.uuid.as_ref().map(Name::as_str),
            number: self.number,
        };
        known.matches(wanted)
    }

    /// Name and number, as far as they are known: `vg-lv (253:3)`.
    pub fn full_label(&self) -> String {
        match (self.name.as_str(), self.number) {
            (name, Some(number)) if !name.is_empty() => format!("{name} ({number})"),
            _ => self.label(),
        }
    }
}

/// What a device is called.
#[derive(Clone, Copy, Debug)]
pub struct DeviceName<'a> {
    /// Name; empty where it is not known.
    pub name: &'a str,
    /// UUID.
    pub uuid: Option<&'a str>,
    /// Number.
    pub number: Option<DevNum>,
}

impl DeviceName<'_> {
    /// As [`Device::matches`].
    pub fn matches(&self, wanted: &str) -> bool {
        let wanted = wanted.strip_prefix("/dev/").unwrap_or(wanted);
        let wanted = wanted.strip_prefix("mapper/").unwrap_or(wanted);
        self.name == wanted
            || self.uuid == Some(wanted)
            || self.number.is_some_and(|number| {
                number.to_string() == wanted || format!("dm-{}", number.minor) == wanted
            })
    }
}
