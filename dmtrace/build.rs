//! Builds the kernel side for `bpfel-unknown-none` and tells the crate where its object is.
//!
//! A nested cargo, because the target needs its own `core` (`-Z build-std`, which stable cargo
//! takes with `RUSTC_BOOTSTRAP=1`) and its own flags. Paths are remapped and DWARF is removed, so
//! that the object is the same whatever folder it was built in.

fn main() {
    println!("cargo::rerun-if-env-changed=DMTRACE_BPF_OBJECT");
    // A static program relocates itself: packed, its table takes a sixtieth of the space. glibc
    // would ask for a version of itself that can read it.
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|it| it == "musl") {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    let out = std::env::var("OUT_DIR").unwrap_or_default();
    if std::env::var_os("CARGO_FEATURE_SHORT_AGES").is_some() && out.contains("/dist/") {
        println!("cargo::error=feature short-ages: for a test only, never in what is packaged");
    }
    println!("cargo::rustc-env=DMTRACE_BOOKS_FORM={:016x}", books_form());
    #[cfg(feature = "live")]
    match kernel_side::find_object() {
        Ok(path) => println!("cargo::rustc-env=DMTRACE_BPF_PATH={}", path.display()),
        // A line for cargo to show; it would hide anything else in a dump of our output.
        Err(message) => println!("cargo::error={message}"),
    }
}

/// Stands for the form in which a trace gives its books to others (src/trace/books.rs): programs that
/// differ in the types of the core do not read each other's.
fn books_form() -> u64 {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
    let core = std::path::Path::new(&manifest).join("../dmtrace-core/src");
    println!("cargo::rerun-if-changed={}", core.display());
    let mut folders = vec![core];
    let mut files = std::collections::BTreeMap::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(text) = std::fs::read(&path) {
                files.insert(path, text);
            }
        }
    }
    // FNV-1a.
    files
        .into_values()
        .flatten()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
            (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

#[cfg(feature = "live")]
#[path = "../xtask/src/linker.rs"]
mod linker;

#[cfg(feature = "live")]
mod kernel_side {
    use std::{
        env,
        ffi::OsString,
        fs,
        path::{Path, PathBuf},
        process::{Command, exit},
    };

    use super::linker::{self, LinkerPlace};

    const TARGET: &str = "bpfel-unknown-none";

    /// The finished object, packed: the one that `DMTRACE_BPF_OBJECT` names, or a new one.
    pub(crate) fn find_object() -> Result<PathBuf, String> {
        let out = path_of("OUT_DIR")?;
        let built = match env::var_os("DMTRACE_BPF_OBJECT") {
            Some(given) => PathBuf::from(given),
            None => build(&out)?,
        };
        let named = |error: &dyn std::fmt::Display| format!("{}: {error}", built.display());
        let object = fs::read(&built).map_err(|error| named(&error))?;
        let object = without_dwarf(&object).map_err(|error| named(&error))?;
        let path = out.join("dmtrace.bpf.o.lz4");
        let packed = lz4_flex::block::compress_prepend_size(&object);
        fs::write(&path, packed).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    }

    fn build(out: &Path) -> Result<PathBuf, String> {
        let manifest = path_of("CARGO_MANIFEST_DIR")?;
        let root = manifest.parent().unwrap_or(&manifest);
        for watched in ["dmtrace-ebpf", "dmtrace-common", "Cargo.toml", "Cargo.lock"] {
            println!("cargo::rerun-if-changed={}", root.join(watched).display());
        }
        let Tools { sources, linker } = find_tools()?;
        let target_dir = target_dir(out);
        let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| "x86_64".into());
        let mut flags: Vec<OsString> = vec![
            format!("--cfg=bpf_target_arch=\"{arch}\"").into(),
            // bpf-linker makes BTF out of debug info.
            "-Cdebuginfo=2".into(),
            "-Clink-arg=--btf".into(),
        ];
        // The last one that fits wins: the target directory may be in the root.
        flags.push(remap_flag(root, "/dmtrace"));
        flags.push(remap_flag(&target_dir, "/target"));
        flags.push(remap_flag(&sources, "/rust"));
        flags.extend(
            cargo_registries()
                .iter()
                .map(|path| remap_flag(path, "/registry")),
        );
        let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .current_dir(root)
            .args([
                "build",
                "--package",
                "dmtrace-ebpf",
                "--bin",
                "dmtrace-ebpf",
                "--release",
                "--locked",
            ])
            .args(["-Zbuild-std=core", "--target", TARGET, "--target-dir"])
            .arg(&target_dir)
            .env("RUSTC_BOOTSTRAP", "1")
            .env(linker::VARIABLE, linker)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f".as_ref()))
            .env("CARGO_PROFILE_RELEASE_LTO", "false")
            .env("CARGO_PROFILE_RELEASE_STRIP", "none")
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
            .env_remove("RUSTC")
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .env_remove("RUSTFLAGS")
            .output()
            .map_err(|error| format!("cargo for the kernel side: cannot be run: {error}"))?;
        if !output.status.success() {
            // The compiler's own words, as they are.
            eprintln!("the kernel side does not build:");
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
            exit(1);
        }
        Ok(target_dir.join(TARGET).join("release/dmtrace-ebpf"))
    }

    struct Tools {
        sources: PathBuf,
        linker: OsString,
    }

    /// One line with the command that fixes it beats a page of linker output.
    fn find_tools() -> Result<Tools, String> {
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let output = Command::new(rustc).args(["--print", "sysroot"]).output();
        let output = output.map_err(|error| format!("rustc: cannot be run: {error}"))?;
        let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        let sources = sysroot.join("lib/rustlib/src/rust");
        if !sources.join("library/core").exists() {
            return Err(format!(
                "rust-src: missing in {}, the kernel side needs it; run: cargo xtask setup",
                sysroot.display()
            ));
        }
        println!("cargo::rerun-if-env-changed={}", linker::VARIABLE);
        let linker = match env::var_os(linker::VARIABLE) {
            Some(chosen) => chosen,
            None => own_linker(&sysroot)?.into(),
        };
        Ok(Tools { sources, linker })
    }

    fn own_linker(sysroot: &Path) -> Result<PathBuf, String> {
        let place = LinkerPlace::for_sysroot(sysroot)?;
        println!("cargo::rerun-if-changed={}", place.program_path().display());
        if !place.is_ready() {
            return Err(format!(
                "bpf-linker {} for {}: missing, it links the kernel side; run: cargo xtask setup",
                linker::VERSION,
                place.llvm.display()
            ));
        }
        Ok(place.program_path())
    }

    /// One directory for all profiles, beside them: the kernel side is the same for all. Ours is
    /// `TARGET/PROFILE/build/PACKAGE/out`.
    fn target_dir(out: &Path) -> PathBuf {
        let mut above = out.ancestors().skip(2);
        let expected = above.next().is_some_and(|dir| dir.ends_with("build"));
        let shared = above.nth(1).filter(|_| expected);
        shared.unwrap_or(out).join("ebpf")
    }

    /// Where cargo unpacks packages. The names depend on the registry and on the machine's
    /// replacement for it.
    fn cargo_registries() -> Vec<PathBuf> {
        let home = env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
        let entries = home.and_then(|home| fs::read_dir(home.join("registry/src")).ok());
        let entries = entries.into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    fn remap_flag(path: &Path, name: &str) -> OsString {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(path);
        flag.push("=");
        flag.push(name);
        flag
    }

    /// The object without DWARF, which is four fifths of it and which neither aya nor the kernel
    /// reads; BTF stays. References from BTF to code are offsets already, so that their
    /// relocations go too.
    fn without_dwarf(object: &[u8]) -> object::build::Result<Vec<u8>> {
        let mut builder = object::build::elf::Builder::read(object)?;
        for section in &mut builder.sections {
            let name = section.name.as_slice();
            section.delete = name.starts_with(b".debug_")
                || name.starts_with(b".rel.debug_")
                || name.starts_with(b".rel.BTF");
        }
        builder.delete_orphans();
        // LLVM keeps all names in one table; the builder wants those of sections apart.
        let names = builder.sections.add();
        names.name = b".shstrtab"[..].into();
        names.sh_type = object::elf::SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = object::build::elf::SectionData::SectionString;
        let mut stripped = Vec::new();
        builder.write(&mut stripped)?;
        Ok(stripped)
    }

    fn path_of(variable: &str) -> Result<PathBuf, String> {
        let value =
            env::var_os(variable).ok_or_else(|| format!("{variable}: cargo has not set it"));
        value.map(PathBuf::from)
    }
}
