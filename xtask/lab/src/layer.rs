//! Programs that only a few commands need: a squashfs that is laid over the root image.
//!
//! The root image stays small this way, and what is here is fetched only when it is asked for.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};

use super::{
    apt::{self, Apt, PackageVersion},
    cache::{self, Cache},
    host, image,
};

/// Some files of some packages. Their dependencies are in the root image.
#[derive(Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its name.
    pub name: &'static str,
    /// Packages of the guest's distribution; nothing of theirs is run while it is made.
    pub packages: &'static [&'static str],
    /// What is taken out of them, without a leading slash. All of it is in `usr/`: `/bin`, `/sbin`
    /// and `/lib` are links in the root image, and a directory of that name would hide all behind
    /// it.
    pub files: &'static [&'static str],
}

impl Layer {
    fn dir(&self, cache: &Cache) -> PathBuf {
        let parts = [self.name].into_iter().chain(image::SUITES.iter().copied());
        let parts = parts.chain(self.packages.iter().chain(self.files).copied());
        let key = cache::recipe_key(parts);
        cache.path("layers").join(self.name).join(key)
    }

    /// Its file system, if it is built.
    pub(crate) fn cached_path(&self, cache: &Cache) -> Option<PathBuf> {
        let file = self.dir(cache).join("layer.squashfs");
        file.is_file().then_some(file)
    }

    /// Builds it if it is not there.
    pub(crate) fn prepare_layer(&self, cache: &Cache, apt: &mut Apt) -> Result<()> {
        if self.cached_path(cache).is_some() {
            return Ok(());
        }
        if let Some(file) = self.files.iter().find(|file| !file.starts_with("usr/")) {
            bail!("layer {}: {file} is not in usr/", self.name);
        }
        log::info!("layer {}: fetching and building", self.name);
        // What former recipes made is of no use any more.
        cache::remove_dir(&cache.path("layers").join(self.name))?;
        cache::build_dir(&self.dir(cache), |partial| {
            let (packages, tree) = (partial.join("packages"), partial.join("tree"));
            for package in self.packages {
                let newest = find_newest(apt, package)?;
                let deb = apt.download(&newest, &partial.join("debs"))?;
                host::unpack_package(&deb, &packages)?;
            }
            for file in self.files {
                let to = tree.join(file);
                // A package may still have it where the root image has a link.
                let places = [*file, file.trim_start_matches("usr/")].map(|it| packages.join(it));
                let from = places.iter().find(|it| it.symlink_metadata().is_ok());
                let from = from.with_context(|| format!("{file}: in no package"))?;
                fs::create_dir_all(to.parent().context("a file has a directory")?)?;
                fs::rename(from, &to).with_context(|| format!("{file}: cannot be moved"))?;
            }
            host::run_command(
                host::host_command("mksquashfs")
                    .arg(&tree)
                    .arg(partial.join("layer.squashfs"))
                    .args(["-quiet", "-no-progress", "-comp", "lz4"])
                    .args(["-all-root", "-noappend"]),
            )?;
            for dir in [packages, tree, partial.join("debs")] {
                cache::remove_dir(&dir)?;
            }
            Ok(())
        })
        .with_context(|| format!("layer {}: cannot be built", self.name))
    }
}

/// The newest version of a package in the suites of the root image.
pub(crate) fn find_newest(apt: &mut Apt, package: &str) -> Result<PackageVersion> {
    let mut best: Option<PackageVersion> = None;
    let mut errors = Vec::new();
    for suite in image::SUITES {
        if let Err(error) = apt.update_lists(suite) {
            // One of several suites may be gone or have no mirror; the others decide.
            errors.push(format!("{error:#}"));
            continue;
        }
        for found in apt.candidates(suite, package)? {
            let newer = best
                .as_ref()
                .is_none_or(|best| apt::is_newer(&found.version, &best.version));
            if newer {
                best = Some(found);
            }
        }
    }
    match best {
        Some(best) => Ok(best),
        None if errors.is_empty() => bail!("package {package}: in no suite of the guest's"),
        None => bail!("package {package}: not found; {}", errors.join("; ")),
    }
}
