//! Filters, with the same names in every verb.

use std::{str::FromStr, time::Duration};

use clap::Args;

use crate::{
    host::container::Workload,
    ids::{IpcNs, Key},
    ledger::Device,
};

/// Which semaphores.
#[derive(Args, Clone, Debug, Default)]
pub struct Filters {
    /// Made by this process.
    #[arg(long, value_name = "PID", help_heading = "Filters")]
    pub pid: Option<u32>,
    /// Made by a process of this name.
    #[arg(long, value_name = "NAME", help_heading = "Filters")]
    pub comm: Option<String>,
    /// Made by this user (number).
    #[arg(long, value_name = "UID", help_heading = "Filters")]
    pub uid: Option<u32>,
    /// Made in this container or unit: the beginning of its identifier, or its name.
    #[arg(long, value_name = "ID", help_heading = "Filters")]
    pub container: Option<String>,
    /// Used for this device: its name, UUID, number (253:3) or node (dm-3).
    #[arg(long, value_name = "DEVICE", help_heading = "Filters")]
    pub device: Option<String>,
    /// In this IPC namespace: a number, or `host`.
    #[arg(long, value_name = "NS", value_parser = parse_ns, help_heading = "Filters")]
    pub ipc_ns: Option<IpcNs>,
    /// With this key: a cookie, in hexadecimal (0x0d4d1234) or decimal.
    #[arg(long, value_name = "KEY", value_parser = parse_key, help_heading = "Filters")]
    pub key: Option<Key>,
    /// With this semid.
    #[arg(long, value_name = "SEMID", help_heading = "Filters")]
    pub semid: Option<i32>,
    /// In this state, such as leaked, stuck, open, waiting, unknown, foreign.
    #[arg(long, value_name = "STATE", help_heading = "Filters")]
    pub state: Option<String>,
    /// Older than this, such as 10m.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, help_heading = "Filters")]
    pub min_age: Option<Duration>,
}

/// What filters look at.
#[derive(Clone, Debug, Default)]
pub struct Candidate<'a> {
    /// Creator.
    pub pid: Option<u32>,
    /// Its name.
    pub comm: &'a str,
    /// Its real uid, or the owner's.
    pub uid: Option<u32>,
    /// Its cgroup.
    pub cgroup: &'a str,
    /// IPC namespace.
    pub ns: IpcNs,
    /// Key.
    pub key: Key,
    /// semid.
    pub semid: i32,
    /// State; `None` where it is not judged.
    pub state: Option<&'a str>,
    /// Age.
    pub age: Option<Duration>,
    /// Devices that it was used for.
    pub devices: &'a [Device],
}

impl Filters {
    /// Whether nothing is filtered out.
    pub const fn is_empty(&self) -> bool {
        let Self {
            pid,
            comm,
            uid,
            container,
            device,
            ipc_ns,
            key,
            semid,
            state,
            min_age,
        } = self;
        pid.is_none()
            && comm.is_none()
            && uid.is_none()
            && container.is_none()
            && device.is_none()
            && ipc_ns.is_none()
            && key.is_none()
            && semid.is_none()
            && state.is_none()
            && min_age.is_none()
    }

    /// Whether a semaphore passes.
    pub fn pass(&self, it: &Candidate<'_>) -> bool {
        fn is<T: PartialEq>(wanted: Option<&T>, got: Option<&T>) -> bool {
            wanted.is_none() || wanted == got
        }
        is(self.pid.as_ref(), it.pid.as_ref())
            && self.comm.as_deref().is_none_or(|comm| comm == it.comm)
            && is(self.uid.as_ref(), it.uid.as_ref())
            && self
                .container
                .as_deref()
                .is_none_or(|wanted| in_container(wanted, it.cgroup))
            && self
                .device
                .as_deref()
                .is_none_or(|wanted| it.devices.iter().any(|device| device.is(wanted)))
            && is(self.ipc_ns.as_ref(), Some(&it.ns))
            && is(self.key.as_ref(), Some(&it.key))
            && is(self.semid.as_ref(), Some(&it.semid))
            && self
                .state
                .as_deref()
                .is_none_or(|state| it.state.is_none_or(|is| is == state))
            && self
                .min_age
                .is_none_or(|min| it.age.is_some_and(|age| age >= min))
    }
}

fn in_container(wanted: &str, cgroup: &str) -> bool {
    let workload = Workload::from_cgroup(cgroup);
    workload
        .container
        .as_deref()
        .is_some_and(|id| id.starts_with(wanted))
        || workload.pod.as_deref() == Some(wanted)
        || workload.unit.as_deref() == Some(wanted)
}

fn parse_ns(text: &str) -> Result<IpcNs, String> {
    if text == "host" {
        return Ok(IpcNs::HOST);
    }
    let digits = text
        .strip_prefix("ipc:[")
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    digits
        .parse()
        .map(IpcNs)
        .map_err(|_| "give a number such as 4026531839, or host".to_owned())
}

/// A key as people and tools write it: `0x0d4d1234`, `223150080`, or negative as
/// `/proc/sysvipc/sem` prints large ones.
pub fn parse_key(text: &str) -> Result<Key, String> {
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let key = match hex {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => u32::from_str(text)
            .ok()
            .or_else(|| i32::from_str(text).ok().map(|key| key as u32)),
    };
    key.map(Key)
        .ok_or_else(|| "give a key such as 0x0d4d1234".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_tools_write_them() {
        assert_eq!(parse_key("0x0d4d1234"), Ok(Key(0x0d4d_1234)));
        assert_eq!(parse_key("223154740"), Ok(Key(0x0d4d_1234)));
        assert_eq!(parse_key("-2"), Ok(Key(0xffff_fffe)));
        assert!(parse_key("cookie").is_err());
        assert!(parse_key("0x1ffffffff").is_err());
    }

    #[test]
    fn namespaces_are_read_as_tools_write_them() {
        assert_eq!(parse_ns("host"), Ok(IpcNs::HOST));
        assert_eq!(parse_ns("ipc:[4026531839]"), Ok(IpcNs::HOST));
        assert!(parse_ns("mine").is_err());
    }

    #[test]
    fn every_filter_restricts() {
        let it = Candidate {
            pid: Some(7),
            comm: "lvm",
            semid: 3,
            state: Some("leaked"),
            ..Candidate::default()
        };
        assert!(Filters::default().pass(&it));
        assert!(
            Filters {
                pid: Some(7),
                comm: Some("lvm".into()),
                semid: Some(3),
                ..Filters::default()
            }
            .pass(&it)
        );
        for wrong in [
            Filters {
                pid: Some(8),
                ..Filters::default()
            },
            Filters {
                comm: Some("dmsetup".into()),
                ..Filters::default()
            },
            Filters {
                uid: Some(0),
                ..Filters::default()
            },
            Filters {
                semid: Some(4),
                ..Filters::default()
            },
            Filters {
                state: Some("open".into()),
                ..Filters::default()
            },
            Filters {
                min_age: Some(Duration::from_secs(1)),
                ..Filters::default()
            },
            Filters {
                container: Some("0123".into()),
                ..Filters::default()
            },
            Filters {
                device: Some("vg-lv".into()),
                ..Filters::default()
            },
        ] {
            assert!(!wrong.pass(&it), "{wrong:?}");
        }
    }
}
