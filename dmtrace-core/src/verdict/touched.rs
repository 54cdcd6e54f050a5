//! The devices of a cookie against what the host says of them now.

use serde::{Deserialize, Serialize};

use crate::{
    event::DmCommand,
    facts::DmFacts,
    ids::DevNum,
    ledger::{Cookie, Device},
};

/// The devices that the operations of one cookie worked on.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Touched {
    /// Each of them.
    pub devices: Vec<TouchedDevice>,
    /// Whether these are all.
    pub complete: bool,
}

/// One device.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct TouchedDevice {
    /// Name; empty where it is not known.
    pub name: String,
    /// Number, where it is known.
    pub number: Option<DevNum>,
    /// What is to become of its node.
    pub node: NodeGoal,
}

/// What udev has to do with the node of a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeGoal {
    /// It is to be there: the device was resumed or renamed.
    Present,
    /// It is to be gone: the device was removed.
    Absent,
    /// Nothing is known of it.
    Either,
}

/// A node that is not as it has to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unfinished<'a> {
    /// It is not there.
    Missing(&'a str),
    /// It is still there.
    Left(&'a str),
    /// Its device is suspended: udev leaves such a one as it is.
    Suspended(&'a str),
    /// It cannot be told.
    Unknown,
}

impl Touched {
    /// From the books.
    pub fn from_cookie(cookie: &Cookie) -> Self {
        let counts = &cookie.counts;
        let announced = counts.owner_inc > 0 || counts.other_inc > 0;
        // An announced operation without a device: killed before its ioctl, or not seen.
        let seen = !cookie.devices.is_empty() || !announced;
        Self {
            devices: cookie
                .devices
                .iter()
                .map(TouchedDevice::from_device)
                .collect(),
            complete: seen && cookie.devices_more == 0 && !cookie.gaps.devices,
        }
    }

    /// Names of those that are suspended now. While it is not known which devices an operation
    /// worked on, any suspended device may be one of them.
    pub fn suspended_names<'a>(&'a self, dm: &'a DmFacts) -> impl Iterator<Item = &'a str> {
        let suspended = dm.suspended.iter();
        suspended
            .filter(|suspended| {
                !self.complete
                    || self
                        .devices
                        .iter()
                        .any(|device| device.matches(&suspended.name, &suspended.node))
            })
            .map(|suspended| suspended.name.as_str())
    }

    /// The first node that udev has not made or removed.
    pub(crate) fn first_unfinished(&self, dm: &DmFacts) -> Option<Unfinished<'_>> {
        let Some(nodes) = dm.nodes.as_ref().filter(|_| self.complete) else {
            return Some(Unfinished::Unknown);
        };
        self.devices.iter().find_map(|device| {
            let name = device.name.as_str();
            match (device.node, nodes.contains(name)) {
                (NodeGoal::Either, _) => None,
                _ if name.is_empty() => Some(Unfinished::Unknown),
                (NodeGoal::Present, false) => Some(Unfinished::Missing(name)),
                (NodeGoal::Absent, true) => Some(Unfinished::Left(name)),
                (NodeGoal::Present, true) => dm
                    .suspended
                    .iter()
                    .any(|suspended| device.matches(&suspended.name, &suspended.node))
                    .then_some(Unfinished::Suspended(name)),
                (NodeGoal::Absent, false) => None,
            }
        })
    }
}

impl TouchedDevice {
    fn from_device(device: &Device) -> Self {
        let done = device.errno == Some(0) && device.uevent;
        Self {
            name: device.name.to_string(),
            number: device.number,
            node: match device.command {
                DmCommand::Resume | DmCommand::Rename if done => NodeGoal::Present,
                DmCommand::Remove if done => NodeGoal::Absent,
                _ => NodeGoal::Either,
            },
        }
    }

    fn matches(&self, name: &str, node: &str) -> bool {
        let by_number = |number: DevNum| format!("dm-{}", number.minor) == node;
        (!self.name.is_empty() && self.name == name) || self.number.is_some_and(by_number)
    }
}
