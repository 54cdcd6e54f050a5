//! The part of a kernel's modules that the lab needs, packed for the guest.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::{cache, host};

/// Modules the initramfs loads itself, before the root image is there.
const EARLY: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_rng",
    "squashfs",
    "overlay",
];

/// What shapes the packed modules, for the cache's key.
pub(crate) fn recipe_lines(wanted: &'static [&'static str]) -> impl Iterator<Item = &'static str> {
    wanted.iter().chain(EARLY).copied()
}

/// Packs modules of the unpacked package `tree` into `dir`: those that `wanted` names or has the
/// directories of, with their dependencies, into `modules.squashfs`, and the early ones as
/// `early/NN.ko` in loading order.
pub(crate) fn pack_modules(wanted: &[&str], tree: &Path, release: &str, dir: &Path) -> Result<()> {
    let base = ["usr/lib/modules", "lib/modules"]
        .iter()
        .map(|place| tree.join(place).join(release))
        .find(|path| path.is_dir())
        .with_context(|| format!("{}: has no modules of {release}", tree.display()))?;
    // depmod wants lib/modules below its base; newer packages have usr/lib/modules only.
    let work = dir.join("modules");
    let full = work.join("full/lib/modules");
    fs::create_dir_all(&full)?;
    let source = full.join(release);
    fs::rename(&base, &source)?;
    run_depmod(&work.join("full"), release)?;
    let deps = Dependencies::parse(&read_text(&source.join("modules.dep"))?);

    let slim = work.join("slim/lib/modules").join(release);
    for path in deps.modules_needed(&[wanted, EARLY].concat()) {
        copy_uncompressed(&source.join(&path), &slim.join(&path))?;
    }
    for name in [
        "modules.order",
        "modules.builtin",
        "modules.builtin.modinfo",
    ] {
        if source.join(name).is_file() {
            fs::copy(source.join(name), slim.join(name))?;
        }
    }
    run_depmod(&work.join("slim"), release)?;

    let early = dir.join("early");
    fs::create_dir_all(&early)?;
    for (number, path) in deps.load_order(EARLY).iter().enumerate() {
        fs::copy(
            without_compression(&slim.join(path)),
            early.join(format!("{number:02}.ko")),
        )?;
    }
    host::run_command(
        host::host_command("mksquashfs")
            .arg(work.join("slim/lib/modules"))
            .arg(dir.join("modules.squashfs"))
            .args([
                "-quiet",
                "-no-progress",
                "-comp",
                "lz4",
                "-all-root",
                "-noappend",
            ]),
    )?;
    cache::remove_dir(&work)
}

/// Runs depmod on the modules below `base`.
fn run_depmod(base: &Path, release: &str) -> Result<()> {
    host::run_command(
        host::host_command("depmod")
            .arg("-b")
            .arg(base)
            .arg(release),
    )
}

/// Copies a module, uncompressed: the initramfs cannot decompress, and squashfs compresses anyway.
fn copy_uncompressed(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    let program = match from.extension().and_then(|ext| ext.to_str()) {
        Some("ko") => {
            fs::rename(from, to).with_context(|| format!("{}: cannot be kept", from.display()))?;
            return Ok(());
        }
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => bail!("{}: a module in an unknown compression", from.display()),
    };
    let data = host::capture_output(host::host_command(program).arg("-dc").arg(from))?;
    Ok(fs::write(without_compression(to), data)?)
}

/// A module's path without the suffix of its compression.
fn without_compression(path: &Path) -> PathBuf {
    if path.extension().is_some_and(|ext| ext == "ko") {
        path.to_owned()
    } else {
        path.with_extension("")
    }
}

fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("{}: unreadable", path.display()))
}

/// depmod's dependency table: module path to the paths it needs, the first needed last.
struct Dependencies(BTreeMap<String, Vec<String>>);

impl Dependencies {
    fn parse(text: &str) -> Self {
        Self(
            text.lines()
                .filter_map(|line| line.split_once(':'))
                .map(|(path, needs)| {
                    (
                        path.to_owned(),
                        needs.split_whitespace().map(str::to_owned).collect(),
                    )
                })
                .collect(),
        )
    }

    /// Paths of the modules that `wanted` names.
    fn modules_matching<'a>(&'a self, wanted: &'a str) -> impl Iterator<Item = &'a String> {
        self.0.keys().filter(move |path| {
            if wanted.ends_with('/') {
                path.strip_prefix("kernel/")
                    .is_some_and(|rest| rest.starts_with(wanted))
            } else {
                module_name(path) == wanted
            }
        })
    }

    /// Everything `wanted` names and needs.
    fn modules_needed(&self, wanted: &[&str]) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for path in wanted.iter().flat_map(|one| self.modules_matching(one)) {
            all.insert(path.clone());
            all.extend(self.0[path].iter().cloned());
        }
        all
    }

    /// `wanted` and what they need, each once, every module after those it needs. A module that
    /// this kernel has built in is left out.
    fn load_order(&self, wanted: &[&str]) -> Vec<String> {
        let mut order: Vec<String> = Vec::new();
        for path in wanted.iter().flat_map(|one| self.modules_matching(one)) {
            for one in self.0[path].iter().rev().chain([path]) {
                if !order.contains(one) {
                    order.push(one.clone());
                }
            }
        }
        order
    }
}

/// A module's name as the kernel spells it.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "kernel/drivers/md/dm-mod.ko.xz:\n\
        kernel/drivers/md/dm-thin-pool.ko.xz: kernel/a/dm-bufio.ko.xz kernel/drivers/md/dm-mod.ko.xz\n\
        kernel/drivers/block/loop.ko:\nkernel/a/dm-bufio.ko.xz: kernel/drivers/md/dm-mod.ko.xz\n\
        kernel/sound/snd.ko:\n";

    #[test]
    fn closure_takes_directories_names_and_dependencies() {
        let deps = Dependencies::parse(TABLE);
        let kept = deps.modules_needed(&["drivers/md/", "loop"]);
        assert_eq!(kept.len(), 4);
        assert!(!kept.contains("kernel/sound/snd.ko"));
    }

    #[test]
    fn load_order_puts_needs_first_and_skips_builtins() {
        let deps = Dependencies::parse(TABLE);
        let order = deps.load_order(&["built_in", "dm_thin_pool"]);
        let names: Vec<String> = order.iter().map(|path| module_name(path)).collect();
        assert_eq!(names, ["dm_mod", "dm_bufio", "dm_thin_pool"]);
    }

    #[test]
    fn uncompressed_paths_lose_only_the_compression() {
        assert_eq!(
            without_compression(Path::new("a/b.ko.xz")),
            Path::new("a/b.ko")
        );
        assert_eq!(
            without_compression(Path::new("a/b.ko")),
            Path::new("a/b.ko")
        );
    }
}
