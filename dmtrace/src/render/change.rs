//! A change in the books in words.

use dmtrace_core::{
    event::{ProcessImage, errno_word},
    ids::DevNum,
    ledger::{Change, ChangeKind, DecrementMeaning, Device, EndKind, Ledger, Name},
};

use super::row::devices;
use crate::{trace::session::DmReport, wording::count_noun};

/// A change as one word.
pub(crate) fn change_word(change: &Change) -> &'static str {
    match change.kind {
        ChangeKind::Created { .. } => "create",
        ChangeKind::Found => "found",
        ChangeKind::Set { .. } => "set",
        ChangeKind::Up { .. } => "+1",
        ChangeKind::Down { .. } => "-1",
        ChangeKind::DecrementFailed => "-1 failed",
        ChangeKind::Waiting { .. } => "wait",
        ChangeKind::Released => "released",
        ChangeKind::WaitFailed { .. } => "wait end",
        ChangeKind::Destroyed { .. } => "destroy",
        ChangeKind::OwnerExited { .. } => "exit",
        ChangeKind::CreateFailed { .. } => "no create",
        ChangeKind::LookupFailed { .. } => "no lookup",
        ChangeKind::Ioctl { .. } => "ioctl",
        ChangeKind::Uevent { .. } => "uevent",
    }
}

/// What a change needs beside its word.
pub(crate) fn change_detail(change: &Change, ledger: &Ledger) -> String {
    match change.kind {
        ChangeKind::Ioctl {
            command,
            errno,
            unseen,
            uevent,
            deferred,
            ref name,
            ref new_name,
            device,
            ..
        } => {
            let target = device_text(name, device);
            let new_name = new_name
                .as_ref()
                .map(|name| format!(" to {name}"))
                .unwrap_or_default();
            let result = match (errno, uevent, deferred) {
                _ if unseen && !uevent => "result not seen".to_owned(),
                (0, true, _) => "ok".to_owned(),
                (0, false, true) => "ok, deferred: no uevent".to_owned(),
                (0, false, false) => "ok, no uevent".to_owned(),
                (errno, ..) => errno_word(errno).into_owned(),
            };
            format!("{command} {target}{new_name}: {result}")
        }
        ChangeKind::Uevent {
            action,
            ref name,
            device,
            ..
        } => match device {
            Some(device) => format!("{action} dm-{} {name}", device.minor),
            None => format!("{action} {name}"),
        },
        ChangeKind::Created { .. } => change
            .who
            .as_ref()
            .and_then(|who| ledger.process(who.image)?.image.as_deref())
            .map(ProcessImage::command_line)
            .unwrap_or_default(),
        ChangeKind::Down {
            meaning: DecrementMeaning::Completion,
            ..
        } => "completion".to_owned(),
        ChangeKind::WaitFailed { errno } | ChangeKind::CreateFailed { errno } => errno_name(errno),
        ChangeKind::LookupFailed {
            errno,
            lives_in: Some(ns),
        } => {
            format!("{}; it lives in IPC namespace {ns}", errno_name(errno))
        }
        ChangeKind::LookupFailed {
            errno,
            lives_in: None,
        } => errno_name(errno),
        ChangeKind::OwnerExited { status, stage } => match status {
            Some(status) => format!("{status} {stage}"),
            None => format!("ended {stage}"),
        },
        ChangeKind::Destroyed { ending } => match ending {
            EndKind::ByWaiter | EndKind::ByCreator => String::new(),
            EndKind::WhileLive => {
                let of = ledger.closed_cookie(change.sem).map_or(&[][..], devices);
                let names: Vec<String> = of.iter().map(Device::full_label).collect();
                format!("while in use! {}", names.join(", "))
                    .trim_end()
                    .to_owned()
            }
            EndKind::ByOther => "by another process".to_owned(),
            EndKind::WithNamespace => "with its IPC namespace".to_owned(),
            EndKind::NamespaceGone => "its IPC namespace is gone (inferred)".to_owned(),
            EndKind::Vanished => "removal not seen".to_owned(),
        },
        _ => String::new(),
    }
}

/// A device by name and number, as far as they are known.
fn device_text(name: &Name, device: Option<DevNum>) -> String {
    match (name.as_str(), device) {
        ("", None) => "?".to_owned(),
        ("", Some(device)) => device.to_string(),
        (name, None) => name.to_owned(),
        (name, Some(device)) => format!("{name} ({device})"),
    }
}

/// The errors that semaphore calls return, by name.
pub(crate) fn errno_name(errno: i32) -> String {
    match errno {
        libc::ENOSPC => "ENOSPC: the limits of kernel.sem are reached".to_owned(),
        libc::ENOMEM => "ENOMEM".to_owned(),
        libc::ENOENT => "ENOENT".to_owned(),
        libc::EINTR => "EINTR: interrupted by a signal".to_owned(),
        libc::EIDRM => "EIDRM: the set was removed under the waiter".to_owned(),
        libc::EAGAIN => "EAGAIN: the value was 0 already".to_owned(),
        libc::EACCES => "EACCES".to_owned(),
        libc::EEXIST => "EEXIST".to_owned(),
        other => format!("errno {other}"),
    }
}

/// That device-mapper came later than the trace.
pub(crate) fn dm_loaded(report: &DmReport) -> String {
    const LOADED: &str = "device-mapper was loaded and is traced now";
    match report.cookies_before {
        0 => LOADED.to_owned(),
        before => format!(
            "{LOADED}; devices of {} are unknown",
            count_noun(before, "earlier cookie", "earlier cookies")
        ),
    }
}
