//! Cookies in what a program was started with.

use dmtrace_core::ids::Key;

/// The variable of libdevmapper.
const VARIABLE: &[u8] = b"DM_UDEV_COOKIE";

/// Cookies in an environment block.
pub(super) fn in_environment(block: &[u8]) -> Vec<Key> {
    block
        .split(|&byte| byte == 0)
        .filter_map(|variable| {
            let value = variable.strip_prefix(VARIABLE)?.strip_prefix(b"=")?;
            parse_cookie(value)
        })
        .collect()
}

/// They run what they are told to, later maybe: whoever waits for a password has not begun.
const RUNNERS: [&[u8]; 6] = [b"sudo", b"doas", b"su", b"script", b"screen", b"tmux"];

/// Cookies in an argument block: the option in both forms, the variable, and the operands of the two
/// commands that end a cookie, also within the text of an argument (`sh -c`). Of those who run what
/// they are told to every number counts, but for dmtrace, which does not act on the cookie it is asked
/// about.
pub(super) fn in_arguments(block: &[u8]) -> Vec<Key> {
    let words = block.split(|&byte| byte == 0 || is_between_words(byte));
    let words = words.filter(|word| !word.is_empty());
    let file_name = |word: &[u8]| -> Vec<u8> {
        let name = word.rsplit(|&byte| byte == b'/').next();
        name.unwrap_or_default().to_vec()
    };
    let runs_anything = words
        .clone()
        .next()
        .is_some_and(|first| RUNNERS.contains(&file_name(first).as_slice()))
        && !words.clone().any(|word| file_name(word) == b"dmtrace");
    let mut arguments = words.peekable();
    let mut keys = Vec::new();
    while let Some(argument) = arguments.next() {
        let mut next = || arguments.peek().copied();
        let value = match argument {
            b"udevreleasecookie" | b"udevcomplete" => next().and_then(parse_operand),
            word => match word.iter().position(|&byte| byte == b'=') {
                Some(end) if is_option(&word[..end]) || &word[..end] == VARIABLE => {
                    parse_cookie(&word[end + 1..])
                }
                None if is_option(word) => next().and_then(parse_cookie),
                _ if runs_anything => parse_cookie(word),
                _ => None,
            },
        };
        keys.extend(value);
    }
    keys
}

/// What stands between the words of a shell's text.
fn is_between_words(byte: u8) -> bool {
    byte.is_ascii_whitespace() || b"'\"`;&|(){}<>".contains(&byte)
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
    fn what_somebody_is_about_to_run() {
        let keys = |arguments: &[&str]| in_arguments(arguments.join("\0").as_bytes());
        for arguments in [
            &["sudo", "DM_UDEV_COOKIE=0xd4dbeef", "dmsetup", "resume", "x"][..],
            &[
                "/usr/bin/sudo",
                "env",
                "DM_UDEV_COOKIE=0xd4dbeef",
                "dmsetup",
            ],
            &[
                "sudo",
                "sh",
                "-c",
                "dmsetup resume x --udevcookie=223198959; echo",
            ],
            &["sh", "-c", "sleep 9; dmsetup udevreleasecookie '0xd4dbeef'"],
            &["bash", "-c", "(DM_UDEV_COOKIE=223198959 dmsetup resume x)"],
            &["sudo", "finish.sh", "0xd4dbeef"],
            &["script", "-c", "finish.sh 223198959"],
        ] {
            assert_eq!(keys(arguments), [KEY], "{arguments:?}");
        }
        for arguments in [
            &["sudo", "dmtrace", "clean", "0xd4dbeef"][..],
            &["sudo", "/usr/sbin/dmtrace", "explain", "0xd4dbeef"],
            &["grep", "0xd4dbeef", "log"],
            &["sudo", "--", "ls", "12"],
        ] {
            assert!(keys(arguments).is_empty(), "{arguments:?}");
        }
    }
}
