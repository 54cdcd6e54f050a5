//! Programs that tests of `packaging/` run on this machine, out of Debian packages that are not
//! installed: the package of promtool would start a server.

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

/// A program and where it is.
struct Tool {
    name: &'static str,
    package: &'static str,
    file: &'static str,
}

const PROMTOOL: Tool = Tool {
    name: "promtool",
    package: "prometheus",
    file: "usr/bin/promtool",
};

/// Directories for `PATH` with what this machine lacks; fetched if need be.
///
/// # Errors
/// It is neither installed nor can it be fetched.
pub fn directories() -> Result<Vec<PathBuf>> {
    let dir = PROMTOOL.prepare()?;
    Ok(dir.into_iter().collect())
}

impl Tool {
    /// The directory it is in, or nothing if `PATH` has it.
    fn prepare(&self) -> Result<Option<PathBuf>> {
        if crate::host::has(self.name) {
            return Ok(None);
        }
        let cache = Cache::open()?;
        let suites = image::SUITES.iter().copied();
        let key = cache::recipe_key([self.package, self.file].into_iter().chain(suites));
        let dir = cache.path("tools").join(self.name).join(key);
        let _lock = cache.lock()?;
        if !dir.join(self.name).is_file() {
            super::say(&format!("{}: fetching", self.name));
            self.fetch(&cache, &dir)
                .with_context(|| format!("{}: cannot be fetched", self.name))?;
        }
        Ok(Some(dir))
    }

    fn fetch(&self, cache: &Cache, dir: &Path) -> Result<()> {
        let mut apt = Apt::open(&cache.path("apt"))?;
        let newest = layer::newest(&mut apt, self.package)?;
        // What former recipes made is of no use any more.
        cache::remove_dir(&cache.path("tools").join(self.name))?;
        cache::build_dir(dir, |partial| {
            let deb = apt.download(&newest, &partial.join("debs"))?;
            let tree = partial.join("tree");
            host::run(host::command("dpkg-deb").arg("-x").arg(&deb).arg(&tree))?;
            fs::rename(tree.join(self.file), partial.join(self.name))
                .with_context(|| format!("{}: not in package {}", self.file, self.package))?;
            cache::remove_dir(&tree)?;
            cache::remove_dir(&partial.join("debs"))
        })
    }
}
