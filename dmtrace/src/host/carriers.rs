//! Processes that carry a cookie: it is a number, and scripts pass it on.
//!
//! `dmsetup udevcreatecookie` exits and leaves the cookie to a shell, which hands it to later
//! `dmsetup` processes by `DM_UDEV_COOKIE` or `--udevcookie`. Only the environment that a program
//! was *started* with is visible: a variable that a shell exported later shows in its children,
//! not in the shell.

use std::{collections::BTreeMap, io};

use dmtrace_core::ids::Key;

use super::{
    Roots,
    processes::{self, ProcessList},
};
use crate::wording::cause_text;

/// Who carries which cookie.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Carriers {
    /// By cookie.
    pub carriers: BTreeMap<Key, Vec<u32>>,
    /// Processes that could not be read.
    pub unread: Vec<u32>,
    /// Why carriers may be missing.
    pub incomplete: Option<String>,
}

/// Looks at the environment and the arguments of every process.
pub fn find_carriers(roots: &Roots, list: &ProcessList) -> Carriers {
    let mut out = Carriers::default();
    for (&pid, process) in &list.processes {
        if process.kernel {
            continue;
        }
        let mut keys = Vec::new();
        let mut look = |file: &str, from: fn(&[u8]) -> Vec<Key>| -> io::Result<()> {
            keys.extend(from(&roots.read_proc(format!("{pid}/{file}"))?));
            Ok(())
        };
        let read = look("environ", in_environment).and_then(|()| look("cmdline", in_arguments));
        if let Err(error) = read
            && !processes::is_gone(&error)
            // Init started before the first cookie; only a sandbox forbids root to look at it.
            && pid != 1
        {
            out.unread.push(pid);
            out.incomplete.get_or_insert_with(|| {
                format!(
                    "cookies carried by process {pid}: {}; run as root",
                    cause_text(&error)
                )
            });
        }
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            out.carriers.entry(key).or_default().push(pid);
        }
    }
    if let Some(cause) = &list.incomplete {
        out.incomplete.get_or_insert_with(|| cause.clone());
    }
    out
}

/// Cookies in an environment block.
fn in_environment(block: &[u8]) -> Vec<Key> {
    block
        .split(|&byte| byte == 0)
        .filter_map(|variable| parse_cookie(variable.strip_prefix(b"DM_UDEV_COOKIE=")?))
        .collect()
}

/// Cookies in an argument block: the option in both forms, and the operands of the two commands
/// that end a cookie.
fn in_arguments(block: &[u8]) -> Vec<Key> {
    let arguments: Vec<&[u8]> = block.split(|&byte| byte == 0).collect();
    let mut keys = Vec::new();
    for (at, argument) in arguments.iter().enumerate() {
        let next = || arguments.get(at + 1).copied();
        let value = match *argument {
            b"udevreleasecookie" | b"udevcomplete" => next().and_then(parse_operand),
            option => match option.iter().position(|&byte| byte == b'=') {
                Some(end) if is_option(&option[..end]) => parse_cookie(&option[end + 1..]),
                None if is_option(option) => next().and_then(parse_cookie),
                _ => None,
            },
        };
        keys.extend(value);
    }
    keys
}

/// `getopt_long` accepts every beginning that fits one option only.
fn is_option(argument: &[u8]) -> bool {
    argument.starts_with(b"--ud") && b"--udevcookie".starts_with(argument)
}

/// A cookie as `_get_cookie_value` of dmsetup reads it: `strtoul` with base 0. A number without
/// the magic is no cookie.
fn parse_cookie(text: &[u8]) -> Option<Key> {
    parse_strtoul(text)
        .map(Key)
        .filter(|key| key.has_cookie_magic())
}

/// The operand of `udevcomplete` comes from a uevent: it has flags where the magic belongs
/// (`_udevcomplete` puts the magic back).
fn parse_operand(text: &[u8]) -> Option<Key> {
    let base = parse_strtoul(text)? & 0xffff;
    (base != 0).then_some(Key(dmtrace_common::COOKIE_MAGIC << 16 | base))
}

fn parse_strtoul(text: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(text).ok()?.trim_ascii_start();
    let text = text.strip_prefix('+').unwrap_or(text);
    let lower = text.to_ascii_lowercase();
    let (digits, radix) = if let Some(hex) = lower.strip_prefix("0x") {
        (hex, 16)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (&lower[1..], 8)
    } else {
        (lower.as_str(), 10)
    };
    digits
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric())
        .then_some(())?;
    u32::from_str_radix(digits, radix).ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    const KEY: Key = Key(0x0d4d_beef);

    #[test]
    fn forms_of_a_number() {
        for form in [
            "0xd4dbeef",
            "0X0D4DBEEF",
            "223198959",
            "01523337357",
            " +223198959",
        ] {
            assert_eq!(parse_cookie(form.as_bytes()), Some(KEY), "{form}");
        }
        for form in [
            "",
            "0",
            "0x",
            "12",
            "223198959x",
            "-223198959",
            "99999999999",
            "0x+1",
        ] {
            assert_eq!(parse_cookie(form.as_bytes()), None, "{form}");
        }
    }

    #[test]
    fn forms_of_an_option() {
        let keys = |line: &str| in_arguments(line.replace(' ', "\0").as_bytes());
        assert_eq!(keys("dmsetup --udevcookie 0xd4dbeef resume x"), [KEY]);
        assert_eq!(keys("dmsetup resume x --udevcookie=223198959"), [KEY]);
        assert_eq!(keys("dmsetup resume x --udevc=223198959"), [KEY]);
        assert_eq!(keys("dmsetup udevreleasecookie 223198959"), [KEY]);
        assert_eq!(keys("dmsetup udevcomplete 4243183"), [KEY]);
        assert!(keys("dmsetup udevcomplete 4194304").is_empty());
        assert!(keys("dmsetup resume x --udevcookie").is_empty());
        assert!(keys("grep --udevcookies=223198959").is_empty());
    }

    #[test]
    fn a_child_that_carries_a_cookie_is_found() {
        let mut child = Command::new("sleep")
            .arg("60")
            .env("DM_UDEV_COOKIE", "0x0d4dbeef")
            .spawn()
            .unwrap();
        let roots = Roots::host();
        // Between fork and exec the environment is still ours.
        let found = (0..1000).find_map(|_| {
            let found = find_carriers(&roots, &processes::list_processes(&roots));
            let pids = found.carriers.get(&KEY)?;
            pids.contains(&child.id()).then_some(())
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.is_some());
    }

    proptest! {
        #[test]
        fn no_block_panics(block: Vec<u8>) {
            let _keys = (in_environment(&block), in_arguments(&block));
        }
    }
}
