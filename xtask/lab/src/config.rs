//! What the user of a lab decides: where it keeps its files, and what its guests are made of.

use std::path::PathBuf;

use super::accel::Accel;

/// What a lab's guests are made of, where the lab keeps its files, and what its messages suggest.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the lab: the host name of its guests, and the beginning of the names of its
    /// temporary folders.
    pub name: &'static str,
    /// The folder of everything that is fetched and built, and of the logs. It is made if it is
    /// not there. Labs of the same packages and modules may share one.
    pub cache: PathBuf,
    /// How the user fills the cache: messages about what is not built suggest it.
    pub prepare_command: &'static str,
    /// How QEMU runs the guests. `None` tries KVM, and emulates where it does not work.
    pub accel: Option<Accel>,
    /// Which kernel packages to take.
    pub freshness: Freshness,
    /// Debian packages of the root image, beside the essential ones and those that the lab's own
    /// scripts need.
    pub packages: &'static [&'static str],
    /// Modules that the guests can load: names, or directories of the kernel's source tree that
    /// end in a slash. What they depend on comes along.
    pub modules: &'static [&'static str],
    /// Modules that are loaded before the command starts. A guest that cannot load them is broken.
    pub loaded_modules: &'static [&'static str],
}

/// Which packages of a kernel to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Those that are cached, if there are any.
    Cached,
    /// The newest that the mirror has.
    Newest,
}
