//! Makes a fresh machine able to build. Does nothing, quickly, where nothing is to do.

use std::{env, fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::host;

/// The last series that loads the LLVM of the pinned Rust toolchain, instead of asking for one.
const BPF_LINKER: &str = "0.10.4";
const BPF_LINKER_SERIES: &str = "bpf-linker 0.10.";

/// Installs what is missing.
///
/// # Errors
/// Something is missing and cannot be installed.
pub fn ensure() -> Result<()> {
    c_linker()?;
    components()?;
    bpf_linker()
}

fn c_linker() -> Result<()> {
    if host::has("cc") {
        return Ok(());
    }
    let fix = "apt-get install -y gcc libc6-dev";
    if !host::is_root() || !host::has("apt-get") {
        bail!("cc: no C linker in PATH; as root run: {fix}");
    }
    say("installing gcc");
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command.args(args).args(["--quiet", "--yes"]);
        host::check(&mut command, "gcc")
    };
    // The lists of a fresh machine may be stale or missing.
    let install = || apt(&["install", "gcc", "libc6-dev"]);
    install()
        .or_else(|_| apt(&["update"]).and_then(|()| install()))
        .with_context(|| format!("cc: cannot be installed; run: {fix}"))
}

fn components() -> Result<()> {
    let toolchain = toolchain()?;
    let sysroot = host::output("rustc", &["--print", "sysroot"]).with_context(|| {
        format!(
            "rustc: toolchain {toolchain} does not run; run: rustup toolchain install {toolchain}"
        )
    })?;
    let parts = [
        ("rust-src", "lib/rustlib/src/rust/library/core"),
        ("rustfmt", "bin/cargo-fmt"),
        ("clippy", "bin/cargo-clippy"),
    ];
    let missing: Vec<_> = parts
        .iter()
        .filter(|(_, path)| !Path::new(&sysroot).join(path).exists())
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !host::has("rustup") {
        bail!("{names}: missing in {sysroot} and there is no rustup; install Rust with rustup");
    }
    say(&format!("adding {names} to {toolchain}"));
    let mut command = Command::new("rustup");
    command.args(["component", "add", "--toolchain", &toolchain]);
    host::check(command.args(&missing), &names).with_context(|| {
        format!("{toolchain}: run: rustup component add --toolchain {toolchain} {names}")
    })
}

/// The toolchain in use: what rustup has chosen, else the one that is pinned.
fn toolchain() -> Result<String> {
    if let Ok(chosen) = env::var("RUSTUP_TOOLCHAIN") {
        return Ok(chosen);
    }
    let path = host::root().join("rust-toolchain.toml");
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

fn bpf_linker() -> Result<()> {
    let version = host::output("bpf-linker", &["--version"]);
    if version
        .as_ref()
        .is_some_and(|version| version.starts_with(BPF_LINKER_SERIES))
    {
        return Ok(());
    }
    say(&format!(
        "installing bpf-linker {BPF_LINKER}, which takes a minute or two"
    ));
    let mut command = host::cargo();
    command.args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked"]);
    if version.is_some() {
        command.arg("--force");
    }
    // Its build is thrown away: it has no place in our target directory.
    command.env_remove("CARGO_TARGET_DIR");
    host::check(&mut command, "bpf-linker").with_context(|| {
        format!("bpf-linker: run: cargo install bpf-linker --version {BPF_LINKER} --locked")
    })
}

fn say(what: &str) {
    eprintln!("setup: {what}");
}
