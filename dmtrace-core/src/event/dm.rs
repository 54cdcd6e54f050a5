//! What device-mapper does with cookies.

use std::{borrow::Cow, fmt};

use borsh::{BorshDeserialize, BorshSerialize};
use dmtrace_common::{
    DM_DEFERRED_REMOVE, DM_REMOVE, DM_RENAME, DM_SUSPEND_FLAG, DM_UEVENT_GENERATED, DmEvent, Kind,
};
use serde::{Deserialize, Serialize};

use super::{EventKind, text::decode_c_string};
use crate::ids::{BootTime, DevNum, IpcNs, Key, SemId};

/// An ioctl that may carry a cookie.
#[derive(
    Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize, BorshSerialize, BorshDeserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum DmCommand {
    /// `DM_DEV_SUSPEND` without the suspend flag.
    Resume,
    /// `DM_DEV_SUSPEND`: never makes a uevent, so that a cookie on it is never completed.
    Suspend,
    /// `DM_DEV_REMOVE`.
    Remove,
    /// `DM_DEV_RENAME`.
    Rename,
}

impl DmCommand {
    /// Name as in the kernel's header.
    pub const fn ioctl_name(self) -> &'static str {
        match self {
            Self::Resume | Self::Suspend => "DM_DEV_SUSPEND",
            Self::Remove => "DM_DEV_REMOVE",
            Self::Rename => "DM_DEV_RENAME",
        }
    }
}

impl fmt::Display for DmCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Resume => "resume",
            Self::Suspend => "suspend",
            Self::Remove => "remove",
            Self::Rename => "rename",
        })
    }
}

/// Action of a uevent, `enum kobject_action`.
#[derive(
    Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize, BorshSerialize, BorshDeserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum UeventAction {
    /// `KOBJ_ADD`.
    Add,
    /// `KOBJ_REMOVE`.
    Remove,
    /// `KOBJ_CHANGE`.
    Change,
    /// Another one; device-mapper sends none with a cookie.
    Other,
}

impl UeventAction {
    const fn from_raw(raw: u32) -> Self {
        match raw {
            0 => Self::Add,
            1 => Self::Remove,
            2 => Self::Change,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for UeventAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Change => "change",
            Self::Other => "other",
        })
    }
}

/// A device-mapper ioctl that has returned.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct DmIoctl {
    /// The cookie's set, as the kernel side knows it: semid -1 if it does not.
    pub sem: SemId,
    /// The cookie.
    pub key: Key,
    /// Which.
    pub command: DmCommand,
    /// 0, or a positive errno.
    pub errno: i32,
    /// When it was entered.
    pub began: BootTime,
    /// Name of the device; empty if neither the caller nor the kernel gave it.
    pub name: String,
    /// Its new name (rename).
    pub new_name: Option<String>,
    /// Its UUID.
    pub uuid: Option<String>,
    /// Its number.
    pub device: Option<DevNum>,
    /// The kernel has sent a uevent with the cookie.
    pub uevent: bool,
    /// The caller accepts that a busy device is removed later, without a uevent that carries the
    /// cookie.
    pub deferred: bool,
    /// `DM_UDEV_*` flags for the rules, the high half of the cookie on the wire.
    pub udev_flags: u16,
}

/// A uevent with a cookie.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Uevent {
    /// The cookie's set, as the kernel side knows it: semid -1 if it does not.
    pub sem: SemId,
    /// The cookie.
    pub key: Key,
    /// What it announces.
    pub action: UeventAction,
    /// The ioctl that sends it.
    pub command: DmCommand,
    /// Name of the device.
    pub name: String,
    /// UUID of the device.
    pub uuid: Option<String>,
    /// Its number.
    pub device: Option<DevNum>,
}

pub(super) fn decode_dm_event(kind: Kind, event: &DmEvent) -> EventKind {
    let sem = SemId {
        ns: IpcNs(event.ns),
        semid: event.semid,
    };
    let key = Key(event.key);
    let command = match event.command {
        DM_REMOVE => DmCommand::Remove,
        DM_RENAME => DmCommand::Rename,
        _ if event.flags & DM_SUSPEND_FLAG != 0 => DmCommand::Suspend,
        _ => DmCommand::Resume,
    };
    let some = |text: String| (!text.is_empty()).then_some(text);
    let (name, uuid) = (
        decode_c_string(&event.name),
        some(decode_c_string(&event.uuid)),
    );
    let device = DevNum::from_kernel(event.major, event.minor);
    if kind == Kind::Uevent {
        return EventKind::Uevent(Box::new(Uevent {
            sem,
            key,
            action: UeventAction::from_raw(event.action),
            command,
            name,
            uuid,
            device,
        }));
    }
    EventKind::Ioctl(Box::new(DmIoctl {
        sem,
        key,
        command,
        errno: if event.ret < 0 { -event.ret } else { 0 },
        began: BootTime(event.began),
        name,
        new_name: some(decode_c_string(&event.new_name)),
        uuid,
        device,
        // The flag is also set in what the caller hands in, if it reuses its buffer: dm clears it.
        uevent: event.ret >= 0 && event.flags_out & DM_UEVENT_GENERATED != 0,
        deferred: event.flags & DM_DEFERRED_REMOVE != 0,
        udev_flags: (event.word >> 16) as u16,
    }))
}

/// An errno by name, the ones that device-mapper returns.
pub fn errno_word(errno: i32) -> Cow<'static, str> {
    Cow::Borrowed(match errno {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::EINTR => "EINTR",
        libc::EIO => "EIO",
        libc::ENXIO => "ENXIO",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::ENODEV => "ENODEV",
        libc::EINVAL => "EINVAL",
        libc::ENOSPC => "ENOSPC",
        other => return Cow::Owned(format!("errno {other}")),
    })
}

#[cfg(test)]
mod tests {
    use dmtrace_common::{DM_NAME_LEN, DM_SUSPEND, DM_UUID_LEN, Header};

    use super::*;
    use crate::event::{as_bytes, decode_event, read_plain};

    fn sample_event(kind: Kind) -> DmEvent {
        let mut event: DmEvent = read_plain(&[0; size_of::<DmEvent>()]).expect("zeros");
        event.header = Header {
            kind: kind as u16,
            tid: 7,
            ts: 100,
            ..Header::default()
        };
        event.ns = 4_026_531_839;
        event.semid = 5;
        event.key = 0x0d4d_1234;
        event.word = 0x0020_1234;
        event.name[..3].copy_from_slice(b"a-b");
        event.uuid[..5].copy_from_slice(b"LVM-x");
        event
    }

    #[test]
    fn an_ioctl_is_decoded() {
        let mut event = sample_event(Kind::Ioctl);
        event.command = DM_REMOVE;
        event.ret = -libc::EBUSY;
        event.flags = DM_DEFERRED_REMOVE;
        event.flags_out = DM_UEVENT_GENERATED;
        event.major = 253;
        event.minor = 3;
        let decoded = decode_event(as_bytes(&event)).expect("decodes");
        let EventKind::Ioctl(ioctl) = decoded.what else {
            panic!("{decoded:?}")
        };
        assert_eq!(ioctl.command, DmCommand::Remove);
        assert_eq!(ioctl.errno, libc::EBUSY);
        assert!(!ioctl.uevent, "a failed call has sent nothing");
        assert!(ioctl.deferred);
        assert_eq!(ioctl.name, "a-b");
        assert_eq!(ioctl.uuid.as_deref(), Some("LVM-x"));
        assert_eq!(ioctl.device.map(|it| it.to_string()), Some("253:3".into()));
        assert_eq!(ioctl.udev_flags, 0x20);
        assert_eq!(ioctl.sem.semid, 5);
    }

    #[test]
    fn suspend_and_resume_are_one_ioctl() {
        for (flags, command) in [
            (0, DmCommand::Resume),
            (DM_SUSPEND_FLAG, DmCommand::Suspend),
        ] {
            let mut event = sample_event(Kind::Uevent);
            event.command = DM_SUSPEND;
            event.flags = flags;
            event.action = 2;
            let decoded = decode_event(as_bytes(&event)).expect("decodes");
            let EventKind::Uevent(uevent) = decoded.what else {
                panic!("{decoded:?}")
            };
            assert_eq!(uevent.command, command);
            assert_eq!(uevent.action, UeventAction::Change);
            assert_eq!(uevent.device, None);
        }
    }

    #[test]
    fn names_without_an_end_and_short_messages_are_no_danger() {
        let mut event = sample_event(Kind::Ioctl);
        event.name = [b'n'; DM_NAME_LEN];
        event.uuid = [b'\n'; DM_UUID_LEN];
        let whole = as_bytes(&event);
        let EventKind::Ioctl(ioctl) = decode_event(whole).expect("decodes").what else {
            panic!("not an ioctl")
        };
        assert_eq!(ioctl.name.len(), DM_NAME_LEN);
        assert!(!ioctl.uuid.expect("a uuid").contains('\n'));
        for len in 0..whole.len() {
            assert!(decode_event(&whole[..len]).is_err());
        }
    }
}
