//! The kernels a lab can boot, by name: [`MATRIX`], [`resolve_kernels`].

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::{
    apt::{self, Apt, PackageVersion},
    cache::{self, Cache},
    config::{Config, Freshness},
    host, modules, vmlinux,
};

/// Raised when the way a kernel is prepared changes, so that caches are rebuilt.
const RECIPE: &str = "1";

/// A kernel one can ask for by name.
#[derive(Debug, PartialEq, Eq)]
pub struct KernelSpec {
    /// Its name.
    pub name: &'static str,
    /// Version series it must be of; empty for any.
    series: &'static str,
    /// Suites to look in; the newest version of all of them wins.
    suites: &'static [&'static str],
}

/// Every kernel that a lab can boot. A name stands for the newest package of its series.
pub const MATRIX: &[KernelSpec] = &[
    KernelSpec {
        name: "5.10",
        series: "5.10",
        suites: &["bullseye-security", "bullseye"],
    },
    KernelSpec {
        name: "6.1",
        series: "6.1",
        suites: &["bookworm-security", "bookworm"],
    },
    KernelSpec {
        name: "6.12",
        series: "6.12",
        suites: &["trixie-security", "trixie", "bookworm-backports"],
    },
    KernelSpec {
        name: "7.2",
        series: "7.2",
        suites: &["sid", "trixie-backports"],
    },
    KernelSpec {
        name: "newest",
        series: "",
        suites: &["sid", "trixie-backports"],
    },
];

/// A kernel that is ready to boot.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Suite its package came from.
    pub suite: String,
    /// Version of its package.
    pub version: String,
    /// What `uname -r` says in it.
    pub release: String,
    /// Its directory in the cache.
    pub(crate) dir: PathBuf,
}

/// Kernels by their names; `all` is the whole matrix. Each comes once, in the order asked for.
///
/// # Errors
/// A name is not in the matrix.
pub fn resolve_kernels(names: &[String]) -> Result<Vec<&'static KernelSpec>> {
    let mut specs: Vec<&KernelSpec> = Vec::new();
    for name in names {
        let matching: Vec<&KernelSpec> = MATRIX
            .iter()
            .filter(|spec| name == "all" || spec.name == name)
            .collect();
        if matching.is_empty() {
            let known: Vec<&str> = MATRIX.iter().map(|spec| spec.name).collect();
            bail!(
                "kernel {name}: not in the matrix; choose from {}, all",
                known.join(", ")
            );
        }
        for spec in matching {
            if !specs.contains(&spec) {
                specs.push(spec);
            }
        }
    }
    Ok(specs)
}

/// The cached kernel of that name, if its recipe is still this one.
pub(crate) fn cached_kernel(config: &Config, cache: &Cache, spec: &KernelSpec) -> Option<Kernel> {
    let base = cache.path("kernels").join(spec.name);
    let dir = base.join(fs::read_to_string(base.join("current")).ok()?.trim());
    let meta = fs::read_to_string(dir.join("meta")).ok()?;
    let field = |name: &str| {
        meta.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(str::to_owned)
    };
    (field("recipe")? == kernel_key(config)).then_some(())?;
    Some(Kernel {
        name: spec.name.to_owned(),
        suite: field("suite")?,
        version: field("version")?,
        release: field("release")?,
        dir,
    })
}

/// The cached kernel, or a new one from the mirror.
pub(crate) fn prepare_kernel(
    config: &Config,
    cache: &Cache,
    apt: &mut Apt,
    spec: &KernelSpec,
) -> Result<Kernel> {
    let present = cached_kernel(config, cache, spec);
    if let Some(kernel) = &present
        && config.freshness == Freshness::Cached
    {
        return Ok(kernel.clone());
    }
    let image = match (find_newest_image(apt, spec), &present) {
        (Ok(image), _) => image,
        (Err(error), Some(kernel)) => {
            log::info!("{error:#}; keeping the cached {}", kernel.version);
            return Ok(kernel.clone());
        }
        (Err(error), None) => return Err(error),
    };
    if let Some(kernel) = present
        && kernel.version == image.version
    {
        return Ok(kernel);
    }
    log::info!(
        "kernel {}: fetching {} ({})",
        spec.name,
        image.version,
        image.suite
    );
    let base = cache.path("kernels").join(spec.name);
    let version = image.version.replace([':', '/'], "_");
    let name = format!("{version}-{}", kernel_key(config));
    let dir = base.join(&name);
    cache::build_dir(&dir, |partial| {
        build_kernel(config, apt, spec, &image, partial)
    })?;
    fs::write(base.join("current"), &name)?;
    remove_other_versions(&base, &name)?;
    cached_kernel(config, cache, spec).with_context(|| {
        format!(
            "kernel {}: built, yet not readable in {}",
            spec.name,
            dir.display()
        )
    })
}

/// The concrete image package behind the newest `linux-image-amd64` of the spec's suites.
fn find_newest_image(apt: &mut Apt, spec: &KernelSpec) -> Result<PackageVersion> {
    let mut best: Option<PackageVersion> = None;
    let mut seen = Vec::new();
    for suite in spec.suites {
        if let Err(error) = apt.update_lists(suite) {
            // One of several suites may be gone or have no mirror; the others decide.
            seen.push(format!("{error:#}"));
            continue;
        }
        for meta in apt.candidates(suite, "linux-image-amd64")? {
            seen.push(format!("{suite} has {}", meta.version));
            let newer = best
                .as_ref()
                .is_none_or(|best| apt::is_newer(&meta.version, &best.version));
            if is_in_series(&meta.version, spec.series) && newer {
                best = Some(meta);
            }
        }
    }
    let meta = best.with_context(|| {
        format!(
            "kernel {}: no suite of this machine's mirror offers it ({}); leave it out or take \
             another one, such as newest",
            spec.name,
            seen.join("; ")
        )
    })?;
    let package = meta
        .depends
        .iter()
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("kernel {}: linux-image-amd64 names no image", spec.name))?;
    find_exact(apt, &meta, package)
}

/// Whether a Debian version belongs to a kernel series.
fn is_in_series(version: &str, series: &str) -> bool {
    series.is_empty()
        || version
            .strip_prefix(series)
            .is_some_and(|rest| rest.starts_with(['.', '-', '~', '+']))
}

/// The version of `package` that goes with `like`.
fn find_exact(apt: &Apt, like: &PackageVersion, package: &str) -> Result<PackageVersion> {
    apt.candidates(&like.suite, package)?
        .into_iter()
        .find(|found| found.version == like.version)
        .with_context(|| format!("package {package}={}: not in {}", like.version, like.suite))
}

/// Downloads and unpacks a kernel and leaves the bootable files in `dir`.
fn build_kernel(
    config: &Config,
    apt: &Apt,
    spec: &KernelSpec,
    image: &PackageVersion,
    dir: &Path,
) -> Result<()> {
    let tree = dir.join("tree");
    let debs = dir.join("debs");
    // Since 7.2 an image package is empty; its parts are packages of their own.
    let mut wanted = vec![image.clone()];
    let parts = ["linux-base-", "linux-binary-", "linux-modules-"];
    for name in &image.depends {
        if parts.iter().any(|part| name.starts_with(part)) {
            wanted.push(find_exact(apt, image, name)?);
        }
    }
    for candidate in &wanted {
        let deb = apt.download(candidate, &debs)?;
        host::unpack_package(&deb, &tree)?;
    }
    let (boot_file, release) = find_boot_image(&tree)?;
    let image_bytes =
        fs::read(&boot_file).with_context(|| format!("{}: unreadable", boot_file.display()))?;
    vmlinux::extract_elf(&image_bytes, &dir.join("vmlinux"))
        .with_context(|| format!("kernel {}: its vmlinux cannot be extracted", spec.name))?;
    if let Some(config) = find_config(&tree, &release) {
        fs::copy(&config, dir.join("config"))?;
    }
    modules::pack_modules(config.modules, &tree, &release, dir)
        .with_context(|| format!("kernel {}: its modules cannot be packed", spec.name))?;
    cache::remove_dir(&tree)?;
    cache::remove_dir(&debs)?;
    let meta = format!(
        "recipe={}\nsuite={}\nversion={}\nrelease={release}\n",
        kernel_key(config),
        image.suite,
        image.version
    );
    Ok(fs::write(dir.join("meta"), meta)?)
}

/// The compressed kernel in an unpacked package, and its release. It is in `/boot`, since 7.2 in
/// the directory of the modules.
fn find_boot_image(tree: &Path) -> Result<(PathBuf, String)> {
    for path in list_dir(&tree.join("boot")) {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if let Some(release) = name.strip_prefix("vmlinuz-") {
            return Ok((path, release.to_owned()));
        }
    }
    for dir in list_dir(&tree.join("usr/lib/modules")) {
        let path = dir.join("vmlinuz");
        if path.is_file() {
            let release = dir
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            return Ok((path, release));
        }
    }
    bail!("package of the kernel: no vmlinuz in it; its layout changed and the lab must learn it")
}

/// The kernel's configuration, wherever the package has it.
fn find_config(tree: &Path, release: &str) -> Option<PathBuf> {
    let boot = tree.join("boot").join(format!("config-{release}"));
    let modules = tree.join("usr/lib/modules").join(release).join("config");
    [boot, modules].into_iter().find(|path| path.is_file())
}

/// What a directory holds; nothing if it is not there.
fn list_dir(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

/// Removes versions that are no longer current.
fn remove_other_versions(base: &Path, keep: &str) -> Result<()> {
    for entry in fs::read_dir(base)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && entry.file_name() != keep {
            cache::remove_dir(&entry.path())?;
        }
    }
    Ok(())
}

/// The key of everything that shapes a prepared kernel, its version aside.
fn kernel_key(config: &Config) -> String {
    let modules = modules::recipe_lines(config.modules);
    cache::recipe_key([RECIPE].into_iter().chain(modules))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec_names(list: &[&str]) -> Vec<&'static str> {
        let list: Vec<String> = list.iter().map(ToString::to_string).collect();
        resolve_kernels(&list)
            .unwrap()
            .iter()
            .map(|spec| spec.name)
            .collect()
    }

    #[test]
    fn names_resolve_once_and_in_order() {
        assert_eq!(spec_names(&["6.12", "5.10", "6.12"]), ["6.12", "5.10"]);
        assert_eq!(
            spec_names(&["newest", "all"]),
            ["newest", "5.10", "6.1", "6.12", "7.2"]
        );
    }

    #[test]
    fn unknown_names_list_the_matrix() {
        let error = resolve_kernels(&["4.19".to_owned()]).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("4.19") && text.contains("6.12") && text.contains("all"),
            "{text}"
        );
    }

    #[test]
    fn a_series_is_no_prefix() {
        assert!(is_in_series("6.1.192-2", "6.1"));
        assert!(!is_in_series("6.12.117-1", "6.1"));
        assert!(is_in_series("7.2-1", "7.2"));
        assert!(is_in_series("7.3.4-1~bpo13+1", ""));
    }
}
