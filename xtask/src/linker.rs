//! Where bpf-linker is: `cargo xtask setup` puts it there, and dmtrace/build.rs, which has this file
//! as a module, uses it. A folder for each version of bpf-linker and of Rust, below cargo's home:
//! checkouts that pin others do not disturb each other, and no program in `PATH` is replaced.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The version that the kernel side is linked with.
pub(crate) const VERSION: &str = "0.13.0";
/// With it, cargo is told to use another one.
pub(crate) const VARIABLE: &str = "CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER";

/// Where tools are that are our own: below cargo's home, which is kept between builds.
///
/// # Errors
/// Nobody knows where that is.
pub(crate) fn tools_dir() -> Result<PathBuf, String> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(env::home_dir()?.join(".cargo")));
    let home = home.ok_or("cargo: no home directory; set CARGO_HOME")?;
    Ok(home.join("dmtrace"))
}

/// The place of a bpf-linker that uses the LLVM of one Rust toolchain.
pub(crate) struct LinkerPlace {
    /// The library that rustc itself uses.
    pub llvm: PathBuf,
    /// Its name, which tells the versions of LLVM and of Rust.
    pub soname: String,
    /// `bin/` and `lib/` are below it.
    pub root: PathBuf,
}

impl LinkerPlace {
    /// # Errors
    /// The toolchain has no LLVM of its own, or nobody knows where cargo's home is.
    pub(crate) fn for_sysroot(sysroot: &Path) -> Result<Self, String> {
        let dir = sysroot.join("lib");
        let entries = fs::read_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let mut names: Vec<_> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with("libLLVM.so."))
            .collect();
        names.sort();
        let soname = names.pop().ok_or_else(|| {
            format!(
                "{}: no libLLVM.so, with which bpf-linker works; install Rust with rustup",
                dir.display()
            )
        })?;
        let version = soname.trim_start_matches("libLLVM.so.");
        let root = tools_dir()?.join(format!("bpf-linker-{VERSION}-llvm-{version}"));
        Ok(Self {
            llvm: dir.join(&soname),
            soname,
            root,
        })
    }

    pub(crate) fn program_path(&self) -> PathBuf {
        self.root.join("bin/bpf-linker")
    }

    /// Whether it is there, of this version, linked to this LLVM, and runs.
    pub(crate) fn is_ready(&self) -> bool {
        let program = self.program_path();
        let Ok(bytes) = fs::read(&program) else {
            return false;
        };
        let wanted = self.soname.as_bytes();
        if !bytes.windows(wanted.len()).any(|window| window == wanted) {
            return false;
        }
        let output = Command::new(program).arg("--version").output();
        output.is_ok_and(|output| {
            let said = String::from_utf8_lossy(&output.stdout);
            output.status.success() && said.trim() == format!("bpf-linker {VERSION}")
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const SONAME: &str = "libLLVM.so.23.1-rust-1.99.1-stable";

    /// Whether a program is taken that says this version and this library.
    fn is_taken(version: &str, library: &str, end: i32) -> bool {
        let dir = tempfile::tempdir().unwrap();
        let place = LinkerPlace {
            llvm: dir.path().join(SONAME),
            soname: SONAME.to_owned(),
            root: dir.path().to_owned(),
        };
        fs::create_dir(dir.path().join("bin")).unwrap();
        let script = format!("#!/bin/sh\n# {library}\necho 'bpf-linker {version}'\nexit {end}\n");
        fs::write(place.program_path(), script).unwrap();
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(place.program_path(), mode).unwrap();
        place.is_ready()
    }

    #[test]
    fn only_this_version_with_this_llvm_is_taken() {
        assert!(is_taken(VERSION, SONAME, 0));
        assert!(!is_taken("0.10.4", SONAME, 0));
        assert!(!is_taken(VERSION, "libLLVM.so.22.1-rust-1.95.0-stable", 0));
        // The loader ends so where the library is gone.
        assert!(!is_taken(VERSION, SONAME, 127));
    }

    #[test]
    fn each_rust_has_a_place_of_its_own() {
        let root = |soname: &str| {
            let sysroot = tempfile::tempdir().unwrap();
            let lib = sysroot.path().join("lib");
            fs::create_dir(&lib).unwrap();
            fs::write(lib.join(soname), "").unwrap();
            LinkerPlace::for_sysroot(sysroot.path()).map(|place| place.root)
        };
        let one = root(SONAME).unwrap();
        assert_eq!(one, root(SONAME).unwrap());
        assert_ne!(one, root("libLLVM.so.23.1-rust-1.99.2-stable").unwrap());
        let none = root("libstd.so").unwrap_err();
        assert!(none.contains("install Rust with rustup"), "{none}");
    }
}
