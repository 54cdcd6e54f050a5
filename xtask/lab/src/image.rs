//! The guest's root image: a small Debian with udev and what the lab's user wants in it.

use std::{collections::BTreeSet, fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};

use super::{
    apt::Apt,
    cache::{self, Cache},
    config::Config,
    host,
};

/// Raised when the way the image is built changes, so that caches are rebuilt.
const RECIPE: &str = "1";

pub(crate) const SUITES: &[&str] = &["bookworm", "bookworm-updates", "bookworm-security"];

/// What the lab's own scripts need besides the essential packages.
const PACKAGES: &[&str] = &["busybox-static", "kmod", "systemd", "udev", "util-linux"];

/// Files the guest has no use for.
const EXCLUDED: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/var/cache/apt/*",
    "/var/lib/apt/lists/*",
];

/// A built root image.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// The root file system.
    pub(crate) root: PathBuf,
    /// A static busybox for the initramfs.
    pub(crate) busybox: PathBuf,
}

/// The image of the present recipe, if it is built.
pub(crate) fn cached_image(config: &Config, cache: &Cache) -> Option<Image> {
    let dir = cache.path("image").join(image_key(config));
    let image = Image {
        root: dir.join("root.squashfs"),
        busybox: dir.join("busybox"),
    };
    (image.root.is_file() && image.busybox.is_file()).then_some(image)
}

/// The cached image, or a new one.
pub(crate) fn prepare_image(config: &Config, cache: &Cache, apt: &Apt) -> Result<Image> {
    if let Some(image) = cached_image(config, cache) {
        return Ok(image);
    }
    if !host::is_root() {
        bail!(
            "root image: not built yet, and building needs root; run `{}` as root",
            config.prepare_command
        );
    }
    log::info!("root image: building (half a minute)");
    // Images of former recipes are of no use any more.
    cache::remove_dir(&cache.path("image"))?;
    let dir = cache.path("image").join(image_key(config));
    cache::build_dir(&dir, |partial| {
        let tree = partial.join("tree");
        let sources = partial.join("sources.list");
        fs::write(&sources, apt.source_lines(SUITES))?;
        let mut command = host::host_command("mmdebstrap");
        command.args([
            "--quiet",
            "--variant=apt",
            "--mode=root",
            "--format=directory",
        ]);
        let packages: Vec<&str> = image_packages(config).into_iter().collect();
        command.arg(format!("--include={}", packages.join(",")));
        command.arg("--aptopt=APT::Install-Recommends \"false\"");
        for line in Apt::acquire_settings()? {
            command.arg(format!("--aptopt={line}"));
        }
        for path in EXCLUDED {
            command.arg(format!("--dpkgopt=path-exclude={path}"));
        }
        host::run_command(command.arg(SUITES[0]).arg(&tree).arg(&sources))?;
        fs::copy(tree.join("bin/busybox"), partial.join("busybox"))?;
        host::run_command(
            host::host_command("mksquashfs")
                .arg(&tree)
                .arg(partial.join("root.squashfs"))
                .args(["-quiet", "-no-progress", "-comp", "lz4", "-noappend"]),
        )?;
        cache::remove_dir(&tree)
    })
    .context("root image: cannot be built")?;
    cached_image(config, cache).context("root image: built, yet not found in the cache")
}

/// All packages that are asked for.
fn image_packages(config: &Config) -> BTreeSet<&'static str> {
    PACKAGES.iter().chain(config.packages).copied().collect()
}

/// The key of everything that shapes the image.
fn image_key(config: &Config) -> String {
    let parts = [RECIPE].into_iter().chain(SUITES.iter().copied());
    let parts = parts.chain(image_packages(config));
    cache::recipe_key(parts.chain(EXCLUDED.iter().copied()))
}
