//! Where the lab keeps what it built, and how it knows that a recipe changed.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// The lab's cache directory.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// The cache in `dir`, which is made if it is not there.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)
            .with_context(|| format!("{}: the lab's cache cannot be made", dir.display()))?;
        let dir = dir
            .canonicalize()
            .with_context(|| format!("{}: the lab's cache cannot be read", dir.display()))?;
        Ok(Self { dir })
    }

    /// A path in the cache.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Waits for other labs that build in this cache; the lock ends with the returned file.
    pub(crate) fn lock(&self) -> Result<File> {
        let path = self.path("lock");
        let file =
            File::create(&path).with_context(|| format!("{}: cannot be made", path.display()))?;
        if file.try_lock().is_err() {
            log::info!("another lab is building in this cache; waiting for it");
            file.lock()
                .with_context(|| format!("{}: cannot be locked", path.display()))?;
        }
        Ok(file)
    }
}

/// A key for a recipe: equal texts give equal keys, on every machine and compiler (FNV-1a).
pub(crate) fn recipe_key<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

/// Builds a directory under a temporary name and gives it its own name only when complete, so
/// that an interrupted build is never taken for a cached one.
pub(crate) fn build_dir(dir: &Path, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = dir.with_file_name(name);
    remove_dir(&partial)?;
    fs::create_dir_all(&partial)
        .with_context(|| format!("{}: cannot be made", partial.display()))?;
    if let Err(error) = build(&partial) {
        // The build's error matters more than a directory left behind.
        let _ = remove_dir(&partial);
        return Err(error);
    }
    remove_dir(dir)?;
    fs::rename(&partial, dir).with_context(|| format!("{}: cannot be put in place", dir.display()))
}

/// Removes a directory that may not exist.
pub(crate) fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{}: cannot be removed", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipe_keys_differ_by_text_and_by_split() {
        assert_eq!(recipe_key(["a", "b"]), recipe_key(["a", "b"]));
        assert_ne!(recipe_key(["a", "b"]), recipe_key(["ab"]));
        assert_ne!(recipe_key(["a"]), recipe_key(["b"]));
    }

    #[test]
    fn a_failed_build_leaves_no_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path();
        let target = dir.join("x");
        assert!(build_dir(&target, |_| anyhow::bail!("no")).is_err());
        assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
        build_dir(&target, |partial| Ok(fs::write(partial.join("f"), "1")?)).unwrap();
        assert!(target.join("f").exists());
    }
}
