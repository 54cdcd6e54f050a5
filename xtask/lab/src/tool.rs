//! Programs for this machine, out of Debian packages that are not installed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{
    apt::Apt,
    cache::{self, Cache},
    host, image, layer,
};

/// A program of a Debian package. Only its file is taken: the package is not installed, and nothing
/// of it is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebianTool {
    /// Name of the program.
    pub name: &'static str,
    /// The package that has it.
    pub package: &'static str,
    /// Its place in the package, without a leading slash.
    pub file: &'static str,
}

impl DebianTool {
    /// The directory that it is in, fetched if need be.
    pub(crate) fn prepare_tool(&self, cache: &Cache) -> Result<PathBuf> {
        let parts = [self.package, self.file].into_iter();
        let key = cache::recipe_key(parts.chain(image::SUITES.iter().copied()));
        let dir = cache.path("tools").join(self.name).join(key);
        let _lock = cache.lock()?;
        if !dir.join(self.name).is_file() {
            log::info!("{}: fetching", self.name);
            self.fetch_tool(cache, &dir)
                .with_context(|| format!("{}: cannot be fetched", self.name))?;
        }
        Ok(dir)
    }

    fn fetch_tool(&self, cache: &Cache, dir: &Path) -> Result<()> {
        let mut apt = Apt::open(&cache.path("apt"))?;
        let newest = layer::find_newest(&mut apt, self.package)?;
        // What former recipes made is of no use any more.
        cache::remove_dir(&cache.path("tools").join(self.name))?;
        cache::build_dir(dir, |partial| {
            let deb = apt.download(&newest, &partial.join("debs"))?;
            let tree = partial.join("tree");
            host::unpack_package(&deb, &tree)?;
            fs::rename(tree.join(self.file), partial.join(self.name))
                .with_context(|| format!("{}: not in package {}", self.file, self.package))?;
            cache::remove_dir(&tree)?;
            cache::remove_dir(&partial.join("debs"))
        })
    }
}
