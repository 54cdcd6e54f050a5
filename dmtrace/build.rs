//! Builds the kernel side for `bpfel-unknown-none` and hands its object to `probe::object`.
//!
//! A nested cargo, because the target needs its own `core` (`-Z build-std`, which stable cargo
//! takes with `RUSTC_BOOTSTRAP=1`) and its own flags. Paths are remapped, so that the object is
//! the same whatever folder it was built in.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, exit},
};

const TARGET: &str = "bpfel-unknown-none";

fn main() {
    println!("cargo::rerun-if-env-changed=DMTRACE_BPF_OBJECT");
    if env::var_os("CARGO_FEATURE_LIVE").is_none() {
        return;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let object = out.join("dmtrace.bpf.o");
    let built = match env::var_os("DMTRACE_BPF_OBJECT") {
        Some(given) => PathBuf::from(given),
        None => build(&out).unwrap_or_else(|message| {
            // `cargo::error` would bury the line between warnings of other crates.
            eprintln!("error: {message}");
            exit(1);
        }),
    };
    if let Err(error) = std::fs::copy(&built, &object) {
        eprintln!(
            "error: cannot copy the eBPF object {}: {error}",
            built.display()
        );
        exit(1);
    }
    println!("cargo::rustc-env=DMTRACE_BPF_PATH={}", object.display());
}

fn build(out: &Path) -> Result<PathBuf, String> {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let root = manifest
        .parent()
        .ok_or("dmtrace has no parent directory")?
        .to_path_buf();
    for watched in ["dmtrace-ebpf", "dmtrace-common", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    check_tools()?;
    let target_dir = out.join("ebpf");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| "x86_64".into());
    let mut flags = vec![
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        format!("--remap-path-prefix={}=/dmtrace", root.display()),
    ];
    for (variable, name) in [("CARGO_HOME", "/cargo"), ("RUSTUP_HOME", "/rustup")] {
        if let Some(path) = env::var_os(variable) {
            flags.push(format!(
                "--remap-path-prefix={}={name}",
                Path::new(&path).display()
            ));
        }
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(&root)
        .args([
            "build",
            "--package",
            "dmtrace-ebpf",
            "--release",
            "--locked",
        ])
        .args(["-Zbuild-std=core", "--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CARGO_PROFILE_RELEASE_LTO", "false")
        .env("CARGO_PROFILE_RELEASE_STRIP", "none")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
        .env_remove("RUSTC")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTFLAGS")
        .output()
        .map_err(|error| format!("cannot run cargo for the eBPF side: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "the eBPF side does not build:\n{}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    Ok(target_dir.join(TARGET).join("release/dmtrace-ebpf"))
}

/// One line with the command that fixes it beats a page of linker output.
fn check_tools() -> Result<(), String> {
    let runs = |program: &str, argument: &str| {
        Command::new(program)
            .arg(argument)
            .output()
            .is_ok_and(|output| output.status.success())
    };
    if !runs("bpf-linker", "--version") {
        return Err("bpf-linker is missing; run: cargo xtask setup".into());
    }
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let sysroot = Command::new(rustc)
        .args(["--print", "sysroot"])
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .map_err(|error| format!("cannot run rustc: {error}"))?;
    let core = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core");
    if !core.exists() {
        return Err("the toolchain component rust-src is missing; run: cargo xtask setup".into());
    }
    Ok(())
}
