//! Where bpf-linker is: `cargo xtask setup` puts it there, and dmtrace/build.rs, which has this file
//! as a module, uses it. A folder for each version of bpf-linker and of Rust, below cargo's home:
//! checkouts that pin others do not disturb each other, and no program in `PATH` is replaced.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The version that the kernel side is linked with.
pub const VERSION: &str = "0.13.0";
/// With it, cargo is told to use another one.
pub const VARIABLE: &str = "CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER";

/// The place of a bpf-linker that uses the LLVM of one Rust toolchain.
pub struct Place {
    /// The library that rustc itself uses.
    pub llvm: PathBuf,
    /// Its name, which tells the versions of LLVM and of Rust.
    pub soname: String,
    /// `bin/` and `lib/` are below it.
    pub root: PathBuf,
}

impl Place {
    /// # Errors
    /// The toolchain has no LLVM of its own, or nobody knows where cargo's home is.
    pub fn of(sysroot: &Path) -> Result<Self, String> {
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
        let home = env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(env::home_dir()?.join(".cargo")));
        let home = home.ok_or("cargo: no home directory; set CARGO_HOME")?;
        let version = soname.trim_start_matches("libLLVM.so.");
        let root = home.join(format!("dmtrace/bpf-linker-{VERSION}-llvm-{version}"));
        Ok(Self {
            llvm: dir.join(&soname),
            soname,
            root,
        })
    }

    /// The program.
    pub fn program(&self) -> PathBuf {
        self.root.join("bin/bpf-linker")
    }

    /// Whether it is there, of this version, linked to this LLVM, and runs.
    pub fn is_ready(&self) -> bool {
        let program = self.program();
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
