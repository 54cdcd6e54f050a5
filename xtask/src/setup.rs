//! Makes a fresh machine able to build. Does nothing, quickly, where nothing is to do.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{self, Command},
};

use anyhow::{Context, Error, Result, bail};

use crate::{
    host,
    linker::{self, VERSION},
};

/// A program of cargo's registry, in a folder for its version, so that none in `PATH` is replaced.
struct CargoTool {
    name: &'static str,
    version: &'static str,
}

const CARGO_DENY: CargoTool = CargoTool {
    name: "cargo-deny",
    version: "0.20.2",
};
const CARGO_MACHETE: CargoTool = CargoTool {
    name: "cargo-machete",
    version: "0.9.2",
};

/// What may be set for a build of ours, and changes that of a tool.
const FOREIGN: [&str; 4] = [
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "RUSTFLAGS",
];

/// Installs what is missing for a build.
///
/// # Errors
/// Something is missing and cannot be installed.
pub(crate) fn ensure_setup() -> Result<()> {
    c_linker()?;
    add_components()?;
    bpf_linker()
}

fn c_linker() -> Result<()> {
    if host::has_program("cc") {
        return Ok(());
    }
    let fix = "apt-get install -y gcc libc6-dev";
    if !host::is_root() || !host::has_program("apt-get") {
        bail!("cc: no C linker in PATH; as root run: {fix}");
    }
    print_note("installing gcc");
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command.args(args).args(["--quiet", "--yes"]);
        host::check_command(&mut command, "gcc")
    };
    // The lists of a fresh machine may be stale or missing.
    let install = || apt(&["install", "gcc", "libc6-dev"]);
    install()
        .or_else(|_| apt(&["update"]).and_then(|()| install()))
        .with_context(|| format!("cc: cannot be installed; run: {fix}"))
}

fn add_components() -> Result<()> {
    let toolchain = active_toolchain()?;
    let sysroot = rustc_sysroot()?;
    let parts = [
        ("rust-src", "lib/rustlib/src/rust/library/core"),
        ("rustfmt", "bin/cargo-fmt"),
        ("clippy", "bin/cargo-clippy"),
    ];
    let missing: Vec<_> = parts
        .iter()
        .filter(|(_, path)| !sysroot.join(path).exists())
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !host::has_program("rustup") {
        bail!(
            "{names}: missing in {} and there is no rustup; install Rust with rustup",
            sysroot.display()
        );
    }
    print_note(&format!("adding {names} to {toolchain}"));
    let mut command = Command::new("rustup");
    command.args(["component", "add", "--toolchain", &toolchain]);
    host::check_command(command.args(&missing), &names).with_context(|| {
        format!("{toolchain}: run: rustup component add --toolchain {toolchain} {names}")
    })
}

/// Where the toolchain in use is.
///
/// # Errors
/// It does not run.
pub(crate) fn rustc_sysroot() -> Result<PathBuf> {
    let path = host::output_of("rustc", &["--print", "sysroot"]);
    path.map(PathBuf::from).with_context(|| {
        let toolchain = active_toolchain().unwrap_or_default();
        format!(
            "rustc: toolchain {toolchain} does not run; run: rustup toolchain install {toolchain}"
        )
    })
}

/// The toolchain in use: what rustup has chosen, else the one that is pinned.
fn active_toolchain() -> Result<String> {
    if let Ok(chosen) = env::var("RUSTUP_TOOLCHAIN") {
        return Ok(chosen);
    }
    let path = host::workspace_root().join("rust-toolchain.toml");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let channel = text.lines().find_map(|line| {
        let value = line
            .strip_prefix("channel")?
            .trim_start()
            .strip_prefix('=')?;
        Some(value.trim().trim_matches('"').to_owned())
    });
    channel.with_context(|| format!("{}: names no channel; restore it", path.display()))
}

/// Linked to the LLVM that rustc uses, so that it reads what that rustc writes, and so that no other
/// LLVM has to be installed.
fn bpf_linker() -> Result<()> {
    let place = linker::LinkerPlace::for_sysroot(&rustc_sysroot()?).map_err(Error::msg)?;
    lay_llvm(&place)?;
    if place.is_ready() {
        return Ok(());
    }
    let tool = CargoTool {
        name: "bpf-linker",
        version: VERSION,
    };
    // It remembers the folder `lib` below this one, and finds LLVM there whoever runs it.
    tool.install_tool(&place.root, |command| {
        command.env("LLVM_PREFIX", &place.root);
    })?;
    if !place.is_ready() {
        bail!(
            "{}: does not run with {}; remove {} and run: cargo xtask setup",
            place.program_path().display(),
            place.llvm.display(),
            place.root.display()
        );
    }
    Ok(())
}

/// Puts rustc's LLVM where bpf-linker looks for it, under the name that a linker looks for and the
/// one that a loader does.
fn lay_llvm(place: &linker::LinkerPlace) -> Result<()> {
    let dir = place.root.join("lib");
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    for name in ["libLLVM.so", &place.soname] {
        let link = dir.join(name);
        if fs::read_link(&link).is_ok_and(|target| target == place.llvm) {
            continue;
        }
        // Another setup may be at work: what is there is replaced at once.
        let fresh = dir.join(format!("{name}.{}", process::id()));
        let laid = symlink(&place.llvm, &fresh).and_then(|()| fs::rename(&fresh, &link));
        laid.with_context(|| format!("{}: cannot be made", link.display()))?;
    }
    Ok(())
}

/// Where cargo-deny is, after installing it if need be.
///
/// # Errors
/// It cannot be installed.
pub(crate) fn cargo_deny() -> Result<PathBuf> {
    CARGO_DENY.ensure_tool()
}

/// Where cargo-machete is, after installing it if need be.
///
/// # Errors
/// It cannot be installed.
pub(crate) fn cargo_machete() -> Result<PathBuf> {
    CARGO_MACHETE.ensure_tool()
}

impl CargoTool {
    fn ensure_tool(&self) -> Result<PathBuf> {
        let root = linker::tools_dir().map_err(Error::msg)?;
        let root = root.join(format!("{}-{}", self.name, self.version));
        let program = root.join("bin").join(self.name);
        if !program.is_file() {
            // What it takes longer to run is less than what it takes longer to build.
            self.install_tool(&root, |command| {
                command
                    .arg("--debug")
                    .env("CARGO_PROFILE_DEV_DEBUG", "false");
            })?;
        }
        Ok(program)
    }

    fn install_tool(&self, root: &Path, more: impl FnOnce(&mut Command)) -> Result<()> {
        let Self { name, version } = self;
        print_note(&format!(
            "installing {name} {version}, which takes a minute or two"
        ));
        let mut command = host::cargo_command();
        command.args(["install", name, "--version", version, "--locked", "--quiet"]);
        command.args(["--force", "--no-track", "--root"]).arg(root);
        more(&mut command);
        // Its build is thrown away: it has no place in our target directory.
        for variable in FOREIGN {
            command.env_remove(variable);
        }
        host::check_command(&mut command, name)
    }
}

fn print_note(what: &str) {
    eprintln!("setup: {what}");
}
