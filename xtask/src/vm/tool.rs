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

const PROMTOOL: &str = "promtool";
const PACKAGE: &str = "prometheus";
const FILE: &str = "usr/bin/promtool";

/// The directory that promtool is in, fetched if need be; nothing if `PATH` has it.
///
/// # Errors
/// It is neither installed nor can it be fetched.
pub fn promtool() -> Result<Option<PathBuf>> {
    if crate::host::has(PROMTOOL) {
        return Ok(None);
    }
    let cache = Cache::open()?;
    let key = cache::recipe_key(
        [PACKAGE, FILE]
            .into_iter()
            .chain(image::SUITES.iter().copied()),
    );
    let dir = cache.path("tools").join(PROMTOOL).join(key);
    let _lock = cache.lock()?;
    if !dir.join(PROMTOOL).is_file() {
        super::say("promtool: fetching");
        fetch(&cache, &dir).context("promtool: cannot be fetched")?;
    }
    Ok(Some(dir))
}

fn fetch(cache: &Cache, dir: &Path) -> Result<()> {
    let mut apt = Apt::open(&cache.path("apt"))?;
    let newest = layer::newest(&mut apt, PACKAGE)?;
    // What former recipes made is of no use any more.
    cache::remove_dir(&cache.path("tools").join(PROMTOOL))?;
    cache::build_dir(dir, |partial| {
        let deb = apt.download(&newest, &partial.join("debs"))?;
        let tree = partial.join("tree");
        host::unpack(&deb, &tree)?;
        fs::rename(tree.join(FILE), partial.join(PROMTOOL))
            .with_context(|| format!("{FILE}: not in package {PACKAGE}"))?;
        cache::remove_dir(&tree)?;
        cache::remove_dir(&partial.join("debs"))
    })
}
