//! Words that many messages share: a number with its noun, and the cause of an error.

use std::{error::Error, fmt::Display};

pub(crate) use dmtrace_core::wording::{count_noun, of_number, times_text};

/// An error as a person reads it: without the number that the standard library puts behind the
/// text of the system, `Permission denied (os error 13)`.
pub(crate) fn cause_text(error: &(impl Display + ?Sized)) -> String {
    const NUMBER: &str = " (os error ";
    let mut text = error.to_string();
    while let Some(begin) = text.find(NUMBER) {
        let digits = &text[begin + NUMBER.len()..];
        let length = digits.bytes().take_while(u8::is_ascii_digit).count();
        if length == 0 || digits.as_bytes().get(length) != Some(&b')') {
            break;
        }
        let end = begin + NUMBER.len() + length + 1;
        text.replace_range(begin..end, "");
    }
    text
}

/// An error with its causes in one line, each said once: many errors print what they come from
/// themselves, and name the file that their caller names, too.
pub(crate) fn chain_text(error: &anyhow::Error) -> String {
    join_errors(error.chain())
}

/// As [`chain_text`], for an error of the library.
pub(crate) fn causes_text(error: &(dyn Error + 'static)) -> String {
    join_errors(std::iter::successors(Some(error), |&error| error.source()))
}

fn join_errors<'a>(errors: impl Iterator<Item = &'a (dyn Error + 'static)>) -> String {
    let mut said = String::new();
    for error in errors {
        let text = cause_text(error);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if contains_part(&said, &text) {
            continue;
        }
        // `FILE: cannot be read` and then `FILE: Permission denied`.
        let mut rest = text.as_str();
        while let Some((part, more)) = rest.split_once(": ")
            && contains_part(&said, part)
        {
            rest = more;
        }
        if !said.is_empty() {
            said.push_str(": ");
        }
        said.push_str(rest);
    }
    said
}

/// Whether a text has `part` as one of the parts between its marks.
fn contains_part(text: &str, part: &str) -> bool {
    let border = |c: Option<char>| c.is_none_or(|c| ":;() ".contains(c));
    text.match_indices(part).any(|(at, _)| {
        let end = at + part.len();
        let opened = at == 0 || text[..at].ends_with(": ") || text[..at].ends_with(['(', ' ']);
        !part.is_empty() && opened && border(text[end..].chars().next())
    })
}

/// The commands that say more of findings: a clean-up is one only where something leaked.
/// `recording`: where they were kept, if not by a trace that goes on. `filters`: as they are given
/// on a command line, each after a space.
pub(crate) fn finding_commands(leaked: usize, recording: Option<&str>, filters: &str) -> String {
    let file = recording.map_or_else(String::new, |file| format!(" {file}"));
    let report = format!("who and why: dmtrace report{file}{filters}");
    let trace = recording.map_or_else(String::new, |file| format!(" --trace {file}"));
    match leaked {
        0 => report,
        _ => format!("{report}; remove: dmtrace clean{trace}{filters}"),
    }
}

/// As a shell reads it as one word.
pub(crate) fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,+@%=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context as _;

    use super::*;

    #[test]
    fn errors_of_the_system_have_no_number() {
        let denied = io::Error::from_raw_os_error(13);
        assert_eq!(cause_text(&denied), "Permission denied");
        let nested = format!("a: {denied}, b: {denied}");
        assert_eq!(
            cause_text(&nested),
            "a: Permission denied, b: Permission denied"
        );
        // Not from the standard library.
        assert_eq!(cause_text("x (os error y)"), "x (os error y)");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("/a/file: cannot be read: {source}; run as root")]
    struct Wrapped {
        source: io::Error,
    }

    #[test]
    fn a_clean_up_is_named_where_something_leaked() {
        assert_eq!(finding_commands(0, None, ""), "who and why: dmtrace report");
        assert_eq!(
            finding_commands(1, None, " --uid 0"),
            "who and why: dmtrace report --uid 0; remove: dmtrace clean --uid 0"
        );
        assert_eq!(
            finding_commands(1, Some("a.dmt"), " --uid 0"),
            "who and why: dmtrace report a.dmt --uid 0; remove: dmtrace clean --trace a.dmt --uid 0"
        );
    }

    #[test]
    fn nothing_is_said_twice() {
        let source = || io::Error::from_raw_os_error(13);
        let error = anyhow::Error::from(Wrapped { source: source() });
        assert_eq!(
            chain_text(&error),
            "/a/file: cannot be read: Permission denied; run as root"
        );
        let error = Err::<(), _>(Wrapped { source: source() })
            .context("/a/file")
            .expect_err("it is one");
        assert_eq!(
            chain_text(&error),
            "/a/file: cannot be read: Permission denied; run as root"
        );
        // A word that happens to be in the text is no repetition.
        let error = anyhow::anyhow!("no").context("/a/notes");
        assert_eq!(chain_text(&error), "/a/notes: no");
    }
}
