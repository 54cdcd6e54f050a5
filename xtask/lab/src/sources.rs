//! Which Debian mirror this machine uses: apt's one-line and deb822 sources, read only.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

/// Suites that only Debian's own archive has; third-party sources use other names.
const DEBIAN: &[&str] = &[
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "sid",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

/// The addresses the machine's sources give for Debian's archive.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mirror {
    main: String,
    security: Option<String>,
}

/// One address with its suites.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    uri: String,
    suites: Vec<String>,
}

impl Mirror {
    /// Reads `/etc/apt/sources.list` and `/etc/apt/sources.list.d`.
    pub(crate) fn from_host_sources() -> Result<Self> {
        let mut entries = Vec::new();
        let mut files = vec![Path::new("/etc/apt/sources.list").to_owned()];
        if let Ok(dir) = fs::read_dir("/etc/apt/sources.list.d") {
            files.extend(dir.flatten().map(|entry| entry.path()));
        }
        files.sort();
        for file in files {
            let Ok(text) = fs::read_to_string(&file) else {
                continue;
            };
            match file.extension().and_then(|ext| ext.to_str()) {
                Some("list") => entries.extend(parse_one_line(&text)),
                Some("sources") => entries.extend(parse_deb822(&text)),
                _ => {}
            }
        }
        Self::from_entries(&entries).context(
            "apt sources: no Debian mirror found in /etc/apt/sources.list or \
             /etc/apt/sources.list.d; the lab needs a Debian machine with a working mirror",
        )
    }

    /// Picks the archive's and the security archive's address.
    fn from_entries(entries: &[Entry]) -> Option<Self> {
        let of = |wanted: fn(&str) -> bool| {
            entries
                .iter()
                .find(|entry| entry.suites.iter().any(|suite| wanted(suite)))
                .map(|entry| entry.uri.clone())
        };
        Some(Self {
            main: of(|suite| DEBIAN.contains(&suite))?,
            security: of(|suite| {
                suite
                    .strip_suffix("-security")
                    .is_some_and(|base| DEBIAN.contains(&base))
            }),
        })
    }

    /// The address that has `suite`; `None` for a security suite without a security mirror.
    pub(crate) fn uri_of(&self, suite: &str) -> Option<&str> {
        if suite.ends_with("-security") {
            self.security.as_deref()
        } else {
            Some(&self.main)
        }
    }
}

/// Reads `deb [options] URI SUITE COMPONENT...` lines.
fn parse_one_line(text: &str) -> Vec<Entry> {
    text.lines()
        .filter_map(|line| {
            let line = line.split('#').next()?.trim();
            let mut rest = line.strip_prefix("deb")?;
            // `deb-src` and words that merely begin with deb are not binary sources.
            if !rest.starts_with([' ', '\t']) {
                return None;
            }
            rest = rest.trim_start();
            if let Some(options) = rest.strip_prefix('[') {
                rest = options.split_once(']')?.1;
            }
            let mut words = rest.split_whitespace();
            let (uri, suite) = (words.next()?, words.next()?);
            words.any(|component| component == "main").then(|| Entry {
                uri: uri.to_owned(),
                suites: vec![suite.to_owned()],
            })
        })
        .collect()
}

fn parse_deb822(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    let text: String =
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .fold(String::new(), |mut all, line| {
                all.push_str(line.trim_end());
                all.push('\n');
                all
            });
    for stanza in text.split("\n\n") {
        let words = |name: &str| deb822_field(stanza, name);
        let disabled = words("enabled").iter().any(|word| word == "no");
        let binary = words("types").iter().any(|word| word == "deb");
        let main = words("components").iter().any(|word| word == "main");
        let suites = words("suites");
        if disabled || !binary || !main || suites.is_empty() {
            continue;
        }
        entries.extend(words("uris").into_iter().map(|uri| Entry {
            uri,
            suites: suites.clone(),
        }));
    }
    entries
}

/// The words of a field, continuation lines included. Names are case-insensitive.
fn deb822_field(stanza: &str, name: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut inside = false;
    for line in stanza.lines() {
        let value = if line.starts_with([' ', '\t']) {
            if !inside {
                continue;
            }
            line
        } else {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            inside = key.eq_ignore_ascii_case(name);
            if !inside {
                continue;
            }
            value
        };
        words.extend(value.split_whitespace().map(str::to_owned));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "Types: deb\n# a comment: with a colon\nURIs: http://m.example/debian\n\
        Suites: bookworm\n bookworm-updates\nComponents: main contrib\nSigned-By: /k.gpg\n\n\
        Types: deb deb-src\nURIs: http://m.example/security\nSuites: bookworm-security\n\
        Components: main\n\n\
        Enabled: no\nTypes: deb\nURIs: http://off.example\nSuites: sid\nComponents: main\n";

    #[test]
    fn deb822_sources() {
        let entries = parse_deb822(DEB822);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].suites, ["bookworm", "bookworm-updates"]);
        let mirror = Mirror::from_entries(&entries).unwrap();
        assert_eq!(mirror.uri_of("sid"), Some("http://m.example/debian"));
        assert_eq!(
            mirror.uri_of("bullseye-security"),
            Some("http://m.example/security")
        );
    }

    #[test]
    fn one_line_sources() {
        let entries = parse_one_line(
            "# deb http://no.example bookworm main\n\
             deb-src http://src.example bookworm main\n\
             deb [arch=amd64 signed-by=/k] https://node.example nodistro main\n\
             deb\t[trusted=no] http://m.example/debian bookworm main non-free # why\n",
        );
        assert_eq!(entries.len(), 2);
        let mirror = Mirror::from_entries(&entries).unwrap();
        assert_eq!(mirror.uri_of("trixie"), Some("http://m.example/debian"));
        assert_eq!(mirror.uri_of("trixie-security"), None);
    }

    #[test]
    fn third_party_sources_are_no_mirror() {
        let entries = parse_one_line("deb https://node.example nodistro main\n");
        assert_eq!(Mirror::from_entries(&entries), None);
    }
}
