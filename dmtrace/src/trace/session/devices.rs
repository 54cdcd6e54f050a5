//! Numbers of device-mapper's devices by their names, for ioctls that name a device and fail, or
//! remove it: the kernel does not tell the number then (where dm's types are not known). And what a
//! trace sees of device-mapper at all.

use std::{collections::HashMap, fs, path::Path, time::Instant};

use dmtrace_common::{DM_RENAME, DmEvent, EVENT_DEVICE_BY_NAME, Header, Kind};
use dmtrace_core::{
    backend::Backend,
    event::{read_plain, text::decode_c_string},
    ids::{BootTime, DevNum},
};
use serde::Serialize;

use super::Session;
use crate::{host, probe::DmState};

/// Looks into sysfs for a name that is not known are at least so far apart.
const MIN_LOOKUP_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
const MAX_NAMES: usize = 16_384;

/// What is seen of device-mapper.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct DmReport {
    pub how: DmState,
    /// Since when; `None` if it is not.
    pub since: Option<BootTime>,
    /// Cookies that were made while it was not: their devices are not known.
    pub cookies_before: u64,
    /// Ioctls with a cookie that were entered.
    pub entered: u64,
    /// Of these, seen to return. Others are still running, or their return was lost (kprobe).
    pub returned: u64,
}

impl Session {
    /// Attaches to device-mapper if it has come since. Cheap if not. Tells whether it did now.
    pub(crate) fn try_attach_dm(&mut self) -> bool {
        let now = self.tracer.try_attach_dm();
        if now {
            self.dm_since = Some(host::clock::boot_now());
            self.devices.read_devices();
        } else if !matches!(self.tracer.dm_state(), DmState::Attached { .. }) {
            self.dm_since = None;
        }
        now
    }

    /// Whether device-mapper is not traced because it is not there yet.
    pub(crate) fn dm_attach_pending(&self) -> bool {
        *self.tracer.dm_state() == DmState::NotLoaded
    }

    /// Whether device-mapper may go unnoticed: a trampoline holds the module, a kprobe does not.
    pub(crate) fn dm_may_unload(&self) -> bool {
        matches!(
            self.tracer.dm_state(),
            DmState::Attached {
                by: Backend::Kprobe,
                ..
            }
        )
    }

    /// What is seen of device-mapper.
    pub(crate) fn dm_report(&self) -> DmReport {
        let counts = self.tracer.counts();
        DmReport {
            how: self.tracer.dm_state().clone(),
            since: self.dm_since,
            cookies_before: self.dm_missed,
            entered: counts.dm_entered,
            returned: counts.counts_of(Kind::Ioctl).seen,
        }
    }
}

/// Devices by name.
#[derive(Default)]
pub(crate) struct DeviceDirectory {
    names: HashMap<String, DevNum>,
    read: Option<Instant>,
}

impl DeviceDirectory {
    /// Reads all devices that are there.
    pub(crate) fn read_devices(&mut self) {
        self.read = Some(Instant::now());
        if self.names.len() > MAX_NAMES {
            self.names.clear();
        }
        for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            if !entry.file_name().as_encoded_bytes().starts_with(b"dm-") {
                continue;
            }
            if let Some((name, number)) = read_device(&entry.path()) {
                self.names.insert(name, number);
            }
        }
    }

    /// A message of device-mapper with the number that it lacks; `None` for every other message.
    /// Learns from those that have it.
    pub(crate) fn complete_message(&mut self, message: &[u8]) -> Option<DmEvent> {
        let header: Header = read_plain(message).ok()?;
        if header.kind != Kind::Ioctl as u16 && header.kind != Kind::Uevent as u16 {
            return None;
        }
        let mut event: DmEvent = read_plain(message).ok()?;
        let name = decode_c_string(&event.name);
        if name.is_empty() {
            return None;
        }
        if let Some(number) = DevNum::from_kernel(event.major, event.minor) {
            let renamed = event.command == DM_RENAME && event.new_name[0] != 0;
            let name = if renamed {
                decode_c_string(&event.new_name)
            } else {
                name
            };
            self.names.insert(name, number);
            return None;
        }
        if !self.names.contains_key(&name)
            && self
                .read
                .is_none_or(|read| read.elapsed() >= MIN_LOOKUP_PAUSE)
        {
            self.read_devices();
        }
        let number = self.names.get(&name)?;
        event.major = number.major;
        event.minor = number.minor;
        event.header.flags |= EVENT_DEVICE_BY_NAME;
        Some(event)
    }
}

fn read_device(dir: &Path) -> Option<(String, DevNum)> {
    let name = fs::read(dir.join("dm/name")).ok()?;
    let number = fs::read_to_string(dir.join("dev")).ok()?;
    let (major, minor) = number.trim().split_once(':')?;
    let number = DevNum {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    };
    Some((decode_c_string(name.trim_ascii_end()), number))
}
