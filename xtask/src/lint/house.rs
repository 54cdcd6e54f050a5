//! Rules of the house. Every complaint names the file, the line, and the rule.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::host;

const LONGEST: usize = 500;
const LONGEST_MAIN: usize = 150;

/// Folders in which sessions and machines of the project live. In pieces, so that this file is
/// not among its own findings.
const LOCAL: [&str; 2] = [concat!("/", "work"), concat!("/", "root")];

/// Where packages come from. Machines have mirrors; a name that is written down breaks there.
const REGISTRIES: [&str; 10] = [
    concat!("crates", ".io"),
    concat!("static.rust-lang", ".org"),
    concat!("deb.debian", ".org"),
    concat!("ftp.debian", ".org"),
    concat!("security.debian", ".org"),
    concat!("snapshot.debian", ".org"),
    concat!("pypi", ".org"),
    concat!("pythonhosted", ".org"),
    concat!("npmjs", ".org"),
    concat!("proxy.golang", ".org"),
];

/// Only `emit.rs` touches the ring, so that no drop goes uncounted; `maps.rs` declares it.
pub(super) fn check_ring() -> Result<()> {
    fail_with(&find_in_files(|path, line| {
        let kernel_side = path.starts_with("dmtrace-ebpf/src");
        let allowed = path.ends_with("emit.rs") || path.ends_with("maps.rs");
        (kernel_side && !allowed && has_word(line, "RING"))
            .then(|| "touches the ring; only emit.rs may".to_owned())
    })?)
}

/// Times and durations are formatted in one place, so that no answer mixes forms or zones.
pub(super) fn check_times() -> Result<()> {
    const CALENDAR: [&str; 5] = [
        "jiff",
        "chrono",
        "strftime",
        "format_duration",
        "format_rfc3339",
    ];
    // A number with a unit behind it.
    const UNITS: [&str; 7] = [
        "}s ago",
        "} s ago",
        "seconds}s",
        "secs}s",
        "seconds} s",
        "} ms\"",
        "} min ",
    ];
    fail_with(&find_in_files(|path, line| {
        let program = path.starts_with("dmtrace/src") && !path.starts_with("dmtrace/src/output");
        let found = CALENDAR.into_iter().find(|word| has_word(line, word));
        let found = found.or_else(|| UNITS.into_iter().find(|unit| line.contains(unit)));
        found.filter(|_| program).map(|what| {
            format!(
                "{what}: times and durations are formatted by output::time and output::duration"
            )
        })
    })?)
}

/// No source file is longer than a reader bears.
pub(super) fn check_lengths() -> Result<()> {
    let mut found = Vec::new();
    for path in committed_files()? {
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let main = path.file_name().is_some_and(|name| name == "main.rs");
        let limit = if main { LONGEST_MAIN } else { LONGEST };
        let lines = read_text(&path)?.lines().count();
        if lines > limit {
            found.push(format!(
                "{}: {lines} lines; {limit} are allowed",
                path.display()
            ));
        }
    }
    fail_with(&found)
}

/// No path of the machine that something was written on.
pub(super) fn local_paths() -> Result<()> {
    fail_with(&find_in_files(|file, line| {
        // A guest has its own root.
        if file.starts_with("xtask/lab/src/guest") {
            return None;
        }
        let path = LOCAL.into_iter().find(|path| has_path(line, path))?;
        Some(format!("{path} is a path of one machine"))
    })?)
}

/// No name of a package registry: not the public ones, and not those of this machine.
pub(super) fn registry_hosts() -> Result<()> {
    let mut hosts: Vec<_> = REGISTRIES.into_iter().map(str::to_owned).collect();
    hosts.extend(machine_mirrors());
    fail_with(&find_in_files(|path, line| {
        let host = hosts.iter().find(|host| line.contains(host.as_str()))?;
        // cargo writes this file and puts its own registry into each entry.
        let lock = path == Path::new("Cargo.lock");
        (!lock).then(|| format!("{host} is a package registry; say what to install, not whence"))
    })?)
}

/// What messages of dmtrace count.
const COUNTED: [&str; 20] = [
    "cookies",
    "findings",
    "sets",
    "threads",
    "processes",
    "namespaces",
    "messages",
    "events",
    "operations",
    "completions",
    "decrements",
    "devices",
    "records",
    "differences",
    "steps",
    "times",
    "calls",
    "waits",
    "ioctls",
    "uevents",
];

/// A number never stands before a fixed plural: `1 cookies`. `wording::count_noun` chooses.
pub(super) fn check_plurals() -> Result<()> {
    fail_with(&find_in_files(|path, line| {
        let of_tests = path.components().any(|part| part.as_os_str() == "tests");
        let messages =
            path.starts_with("dmtrace/src") && !of_tests && !path.ends_with("wording.rs");
        let noun = messages.then(|| counted_plural(line)).flatten()?;
        Some(format!(
            "a number before '{noun}', which may be 1; use wording::count"
        ))
    })?)
}

/// The plural behind a placeholder, as in `"{} cookies"` or `"{more} more cookies"`. Of `3 of
/// {limit} sets` the first number is what counts.
fn counted_plural(line: &str) -> Option<&str> {
    let code = line.split("//").next()?;
    code.match_indices("} ").find_map(|(at, _)| {
        let begin = code[..at].rfind('{')?;
        let before = code[..begin].trim_end();
        let total = before.ends_with(" of") || before.ends_with(" all");
        let string = code[..begin].contains('"') || code.trim_start().starts_with('{');
        let mut words = code[at + 2..].split(|c: char| !c.is_alphanumeric() && c != ' ');
        let mut words = words.next()?.split(' ').take(2);
        let noun = words.find(|word| COUNTED.contains(word))?;
        (string && !total).then_some(noun)
    })
}

/// Hosts that this machine's apt and cargo are told to use.
fn machine_mirrors() -> Vec<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    files.extend(cargo.map(|home| home.join("config.toml")));
    let mut hosts = Vec::new();
    for text in files
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
    {
        for rest in text.split("://").skip(1) {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != '-');
            let host = &rest[..end.unwrap_or(rest.len())];
            // A forge is named for other reasons too, and a loopback address tells nothing.
            if host.contains('.') && host != "github.com" && !host.starts_with("127.") {
                hosts.push(host.to_owned());
            }
        }
    }
    hosts
}

/// What `rule` says of each line of each committed text file.
fn find_in_files(rule: impl Fn(&Path, &str) -> Option<String>) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for path in committed_files()? {
        for (index, line) in read_text(&path)?.lines().enumerate() {
            if let Some(complaint) = rule(&path, line) {
                found.push(format!("{}:{}: {complaint}", path.display(), index + 1));
            }
        }
    }
    Ok(found)
}

pub(super) fn fail_with(found: &[String]) -> Result<()> {
    if !found.is_empty() {
        bail!("{}", found.join("\n"));
    }
    Ok(())
}

/// Files that git knows, relative to the root.
fn committed_files() -> Result<Vec<PathBuf>> {
    let list = host::output_of("git", &["ls-files"]);
    let list = list.context("git: cannot list the committed files; run in a clone")?;
    let paths = list.lines().map(PathBuf::from);
    // Removed, but not committed so.
    Ok(paths
        .filter(|path| host::workspace_root().join(path).is_file())
        .collect())
}

/// A file as text; binary files have no lines to complain about.
fn read_text(path: &Path) -> Result<String> {
    let bytes =
        fs::read(host::workspace_root().join(path)).with_context(|| path.display().to_string())?;
    Ok(if bytes.contains(&0) {
        String::new()
    } else {
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn has_word(line: &str, word: &str) -> bool {
    let joins = |c: char| c.is_ascii_alphanumeric() || c == '_';
    chars_around(line, word)
        .any(|(before, after)| !before.is_some_and(joins) && !after.is_some_and(joins))
}

/// Whether an absolute path that begins with `path` stands in the line: not the end of another
/// one (`/proc/1/root`), not a longer name, and not a home directory in a line of a password file.
fn has_path(line: &str, path: &str) -> bool {
    let joins = |c: char| c.is_ascii_alphanumeric() || "_-.~)}>]*".contains(c);
    chars_around(line, path).any(|(before, after)| {
        !before.is_some_and(|c| joins(c) || c == ':')
            && !after.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
    })
}

/// The neighbours of each occurrence.
fn chars_around<'a>(
    line: &'a str,
    word: &'a str,
) -> impl Iterator<Item = (Option<char>, Option<char>)> + 'a {
    line.match_indices(word).map(move |(at, _)| {
        (
            line[..at].chars().next_back(),
            line[at + word.len()..].chars().next(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_before_plurals_are_found() {
        assert_eq!(counted_plural(r#"("{} cookies left")"#), Some("cookies"));
        assert_eq!(
            counted_plural(r#"("{n:>6} semaphore sets, now")"#),
            Some("sets")
        );
        for not in [
            r#""{} of {limit} sets in use""#,
            r#""{} cookie""#,
            r#""{} wait; cookies""#,
            r#"let x = match it { A => b } // cookies"#,
        ] {
            assert_eq!(counted_plural(not), None, "{not}");
        }
    }

    #[test]
    fn words_and_paths_have_borders() {
        assert!(has_word("RING.reserve()", "RING"));
        assert!(!has_word("STRING RINGS", "RING"));
        assert!(has_path("cd /home/x; ls", "/home"));
        assert!(has_path("\"/home\"", "/home"));
        for not in [
            "/proc/1/home/x",
            "/homes",
            "{dir}/home",
            "x:0:/home:/bin/sh",
            "/home-x",
        ] {
            assert!(!has_path(not, "/home"), "{not}");
        }
    }
}
