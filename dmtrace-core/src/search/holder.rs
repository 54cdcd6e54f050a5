//! What a process could do with the number of a cookie.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Form;

/// What a process could do with a number.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HolderClass {
    /// It uses cookies, or runs what it is told to: every form counts.
    Actor,
    /// It has the rights: what is hardly chance counts.
    Capable,
    /// It has the number from somebody else's output or messages, and does nothing with it.
    MentionOnly,
    /// It has neither the rights nor a program that could get at them.
    Powerless,
}

/// What was found out about a process.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HolderTrait {
    /// It maps libdevmapper.
    MapsLibdevmapper,
    /// Its program has device-mapper's own words in it: linked statically, or another implementation.
    ProgramKnowsCookies,
    /// Its program could not be read, so it may.
    ProgramUnread,
    /// It has `/dev/mapper/control` open.
    ControlOpen,
    /// It maps the library of an interpreter.
    MapsInterpreter,
    /// One of its user numbers is 0.
    Root,
    /// It has, or may give itself, `CAP_SYS_ADMIN` or `CAP_IPC_OWNER`.
    Capability,
    /// It has the descriptor of a virtual machine.
    RunsGuest,
}

/// What a program is by its path.
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum ProgramKind {
    /// This program.
    Dmtrace,
    /// udevd and its tool: uevents with cookies go through them.
    Udev,
    /// It keeps what others print: a log, a terminal, a pager.
    Keeper,
    /// It runs virtual machines.
    Hypervisor,
    /// A shell, or runs scripts in another language.
    Interpreter,
    /// Any other.
    #[default]
    Other,
}

/// Folders that only an administrator writes to. A program elsewhere may have any name.
const SYSTEM_FOLDERS: [&str; 10] = [
    "/bin/",
    "/sbin/",
    "/lib/",
    "/lib64/",
    "/usr/bin/",
    "/usr/sbin/",
    "/usr/lib/",
    "/usr/lib64/",
    "/usr/libexec/",
    "/usr/local/",
];

const UDEV: [&str; 3] = ["systemd-udevd", "udevadm", "udevd"];

/// What `sudo` or `script` were told to run is in their arguments, and counts there: whoever carries a
/// number in these is asked about apart from any search (`host/carriers.rs`).
const KEEPERS: [&str; 15] = [
    "auditd",
    "journalctl",
    "less",
    "more",
    "mosh-server",
    "most",
    "rsyslogd",
    "screen",
    "script",
    "sshd",
    "sshd-session",
    "sudo",
    "syslog-ng",
    "systemd-journald",
    "tmux",
];

/// Names begin so: versions stand behind them.
const INTERPRETERS: [&str; 34] = [
    "ash", "awk", "bash", "busybox", "csh", "dash", "deno", "elvish", "expect", "fish", "gawk",
    "guile", "java", "ksh", "lksh", "lua", "luajit", "make", "mawk", "mksh", "nawk", "node", "nu",
    "perl", "php", "posh", "pwsh", "python", "ruby", "sh", "tclsh", "tcsh", "yash", "zsh",
];

/// What a program is, from the path that the kernel has of it; never from the name that it gives
/// itself.
pub fn identify_program(path: &str) -> ProgramKind {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let name = path.rsplit('/').next().unwrap_or(path);
    // Who runs what it is told to is one wherever its program is.
    let stem = name.strip_suffix("-static").unwrap_or(name);
    let is_version = |rest: &str| {
        rest.chars()
            .all(|c| c.is_ascii_digit() || matches!(c, '.' | '-' | '_' | 'm'))
    };
    let mut interpreters = INTERPRETERS.iter();
    if interpreters.any(|it| stem.strip_prefix(it).is_some_and(is_version)) {
        return ProgramKind::Interpreter;
    }
    if !SYSTEM_FOLDERS.iter().any(|folder| path.starts_with(folder)) {
        return ProgramKind::Other;
    }
    if name == "dmtrace" {
        ProgramKind::Dmtrace
    } else if UDEV.contains(&name) {
        ProgramKind::Udev
    } else if KEEPERS.contains(&name) {
        ProgramKind::Keeper
    } else if name.starts_with("qemu-system-") || matches!(name, "qemu-kvm" | "kvm") {
        ProgramKind::Hypervisor
    } else {
        ProgramKind::Other
    }
}

/// What a process could do with a number. In doubt, more.
pub fn classify_holder(program: ProgramKind, traits: &BTreeSet<HolderTrait>) -> HolderClass {
    const USES_COOKIES: [HolderTrait; 4] = [
        HolderTrait::MapsLibdevmapper,
        HolderTrait::ProgramKnowsCookies,
        HolderTrait::ProgramUnread,
        HolderTrait::ControlOpen,
    ];
    let has = |it: &HolderTrait| traits.contains(it);
    match program {
        // They know cookies by trade. udevd completes none itself: it runs `dmsetup`.
        ProgramKind::Dmtrace | ProgramKind::Udev => HolderClass::MentionOnly,
        _ if USES_COOKIES.iter().any(has) => HolderClass::Actor,
        ProgramKind::Keeper => HolderClass::MentionOnly,
        // What is in its memory is the guest's.
        ProgramKind::Hypervisor if has(&HolderTrait::RunsGuest) => HolderClass::MentionOnly,
        // Of any user: sudo is a word away.
        ProgramKind::Interpreter => HolderClass::Actor,
        _ if has(&HolderTrait::MapsInterpreter) => HolderClass::Actor,
        _ if has(&HolderTrait::Root) || has(&HolderTrait::Capability) => HolderClass::Capable,
        _ => HolderClass::Powerless,
    }
}

/// Whether a number in this form makes such a process a holder. Four bytes at any address are a
/// coincidence in each 4 GiB of random data for a single cookie; with a multiple of 4, or as text, they
/// hardly are.
pub const fn counts_as_holder(class: HolderClass, form: Form) -> bool {
    match class {
        HolderClass::Actor => true,
        HolderClass::Capable => matches!(form, Form::Aligned4) || form.is_text(),
        HolderClass::MentionOnly | HolderClass::Powerless => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(path: &str, traits: &[HolderTrait]) -> HolderClass {
        classify_holder(identify_program(path), &traits.iter().copied().collect())
    }

    #[test]
    fn who_could_act() {
        use HolderClass::{Actor, Capable, MentionOnly, Powerless};
        use HolderTrait as T;
        for (path, traits, expected) in [
            (
                "/usr/sbin/dmsetup",
                &[T::Root, T::MapsLibdevmapper][..],
                Actor,
            ),
            ("/opt/app/agent", &[T::Root, T::ProgramKnowsCookies], Actor),
            ("/opt/app/agent", &[T::ProgramUnread], Actor),
            ("/opt/app/agent", &[T::ControlOpen], Actor),
            ("/opt/app/agent", &[T::Root], Capable),
            ("/opt/app/agent", &[T::Capability], Capable),
            ("/opt/app/agent", &[], Powerless),
            ("/opt/app/agent", &[T::MapsInterpreter], Actor),
            ("/usr/bin/bash", &[], Actor),
            ("/usr/bin/python3.11", &[], Actor),
            ("/tmp/bash (deleted)", &[], Actor),
            ("/usr/bin/shuf", &[], Powerless),
            ("/usr/lib/systemd/systemd-journald", &[T::Root], MentionOnly),
            (
                "/lib/systemd/systemd-udevd",
                &[T::Root, T::MapsLibdevmapper],
                MentionOnly,
            ),
            ("/usr/bin/udevadm", &[T::Root], MentionOnly),
            ("/usr/bin/less", &[T::Root], MentionOnly),
            ("/usr/bin/less (deleted)", &[T::Root], MentionOnly),
            // It hands on what is printed, where it has made a terminal for that.
            ("/usr/bin/sudo", &[T::Root], MentionOnly),
            ("/home/me/sudo", &[T::Root], Capable),
            ("/usr/bin/less", &[T::Root, T::ControlOpen], Actor),
            ("/tmp/less", &[T::Root], Capable),
            (
                "/usr/bin/qemu-system-x86_64",
                &[T::Root, T::RunsGuest],
                MentionOnly,
            ),
            ("/usr/bin/qemu-system-x86_64", &[T::Root], Capable),
            (
                "/usr/bin/dmtrace",
                &[T::Root, T::ProgramKnowsCookies],
                MentionOnly,
            ),
            ("/tmp/dmtrace", &[T::Root, T::ProgramKnowsCookies], Actor),
        ] {
            assert_eq!(class(path, traits), expected, "{path} {traits:?}");
        }
    }

    #[test]
    fn what_counts() {
        for form in Form::ALL {
            assert!(counts_as_holder(HolderClass::Actor, form));
            assert!(!counts_as_holder(HolderClass::MentionOnly, form));
            assert!(!counts_as_holder(HolderClass::Powerless, form));
        }
        let capable: Vec<Form> = Form::ALL
            .into_iter()
            .filter(|&form| counts_as_holder(HolderClass::Capable, form))
            .collect();
        assert_eq!(
            capable,
            [
                Form::Aligned4,
                Form::Hex,
                Form::Decimal,
                Form::CookieVariable
            ]
        );
    }
}
