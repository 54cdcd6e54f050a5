//! What is run in a guest, and with what.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use anyhow::{Result, bail};

use super::layer::Layer;

/// Where files go whose place in the guest is not given; it is the command's working directory
/// and comes first in its `PATH`.
const WORK: &str = "/job";

/// What to run in a guest.
#[derive(Clone, Debug)]
pub struct RunSpec {
    /// Program and arguments; one word alone is a shell line.
    pub argv: Vec<String>,
    /// Never a shell.
    pub shell_less: bool,
    /// `NAME=VALUE` for the command.
    pub env: Vec<String>,
    /// Files for the guest, in its memory: they are part of the initramfs.
    pub files: Vec<FileSpec>,
    /// Where the guest's `/out` goes; nowhere if `None`.
    pub out: Option<PathBuf>,
    /// Time limit of the command; whole seconds, at least one.
    pub timeout: Duration,
    /// A full systemd as PID 1, instead of a small init that starts udevd only.
    pub systemd: bool,
    /// What is laid over the root image.
    pub layer: Option<&'static Layer>,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Processors.
    pub cpus: u32,
    /// What makes the guest's clock go.
    pub clock: GuestClock,
    /// What happens to the command's streams.
    pub streams: Streams,
}

impl Default for RunSpec {
    fn default() -> Self {
        Self {
            argv: Vec::new(),
            shell_less: false,
            env: Vec::new(),
            files: Vec::new(),
            out: None,
            timeout: Duration::from_secs(300),
            systemd: false,
            layer: None,
            memory_mb: 2048,
            cpus: 2,
            clock: GuestClock::Host,
            streams: Streams::Live,
        }
    }
}

/// What makes the guest's clock go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestClock {
    /// The host's clock.
    Host,
    /// The guest's instructions, each of which takes a nanosecond. Needs emulation and one
    /// processor; what the guest measures is the same in each run.
    Instructions,
}

/// What happens to the command's standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// They go to this process's own, as they come.
    Live,
    /// They are collected in the outcome.
    Capture,
}

/// A host file or directory and its place in the guest: parsed from `HOST[:GUEST]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSpec {
    pub(crate) host: PathBuf,
    pub(crate) guest: String,
}

impl FromStr for FileSpec {
    type Err = anyhow::Error;

    /// Reads `HOST[:GUEST]`. A relative GUEST is below the working directory, and one that ends in
    /// a slash keeps the host's name.
    fn from_str(text: &str) -> Result<Self> {
        let (host, guest) = match text.split_once(':') {
            Some((host, guest)) => (host, Some(guest)),
            None => (text, None),
        };
        let host = PathBuf::from(host);
        let Some(name) = host
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
        else {
            bail!("file {text:?}: no file name before the colon; write HOST or HOST:GUEST");
        };
        let guest = match guest {
            None | Some("") => format!("{WORK}/{name}"),
            Some(guest) => {
                let base = if guest.starts_with('/') { "" } else { WORK };
                let name = if guest.ends_with('/') {
                    name.as_str()
                } else {
                    ""
                };
                let slash = if base.is_empty() { "" } else { "/" };
                format!("{base}{slash}{guest}{name}")
            }
        };
        Ok(Self { host, guest })
    }
}

/// A file of the host at its place in the guest, which is read as [`FileSpec`] reads it.
///
/// # Errors
/// The host's path has no file name.
pub fn guest_file(host: &Path, guest: &str) -> Result<FileSpec> {
    format!("{}:{guest}", host.display()).parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_guest(text: &str) -> String {
        text.parse::<FileSpec>().unwrap().guest
    }

    #[test]
    fn file_specs() {
        assert_eq!(parse_guest("target/x/program"), "/job/program");
        assert_eq!(parse_guest("a/b:/etc/c"), "/etc/c");
        assert_eq!(parse_guest("a/b:/etc/"), "/etc/b");
        assert_eq!(parse_guest("a/b:sub/c"), "/job/sub/c");
        assert_eq!(parse_guest("a/b:"), "/job/b");
        assert!("".parse::<FileSpec>().is_err());
        assert!(":/x".parse::<FileSpec>().is_err());
    }
}
