//! What the lab needs of the machine it runs on: programs, packages, privilege.

use std::{
    ffi::OsStr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Programs the lab calls and the Debian package each comes from.
const PROGRAMS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("mmdebstrap", "mmdebstrap"),
    ("mksquashfs", "squashfs-tools"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("lz4", "lz4"),
    ("gpgv", "gpgv"),
    ("setpriv", "util-linux"),
    ("tar", "tar"),
    (CC32, "gcc-i686-linux-gnu"),
];

/// Links programs for 32 bits, with a C library that can be linked statically.
pub const CC32: &str = "i686-linux-gnu-gcc";

/// What else the lab uses, and the Debian package each comes from.
const FILES: &[(&str, &str)] = &[
    (super::apt::KEYRING, "debian-archive-keyring"),
    // The compiler only recommends it.
    ("/usr/i686-linux-gnu/lib/libc.a", "libc6-dev-i386-cross"),
];

/// Where Debian keeps administrator programs; a user's `PATH` often lacks it.
const SBIN: &[&str] = &["/usr/sbin", "/sbin"];

/// The full path of `program`, looked up in `PATH` and the sbin directories.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SBIN.iter().map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// A command for `program`, found even when only sbin has it.
pub fn command(program: &str) -> Command {
    Command::new(find(program).unwrap_or_else(|| PathBuf::from(program)))
}

/// Whether this process is root.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// Installs the packages of those programs and files that are missing.
pub fn ensure_programs() -> Result<()> {
    let programs = PROGRAMS
        .iter()
        .filter(|(program, _)| find(program).is_none());
    let files = FILES.iter().filter(|(file, _)| !Path::new(file).is_file());
    let mut missing: Vec<&str> = programs.chain(files).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    missing.dedup();
    let list = missing.join(" ");
    if find("apt-get").is_none() {
        bail!(
            "host packages missing: {list}: this machine has no apt-get; install them by hand \
             (Debian names) or run the lab on Debian 12 or later"
        );
    }
    if !is_root() {
        bail!(
            "host packages missing: {list}: not root; run `apt-get install \
             --no-install-recommends {list}` as root, then this again"
        );
    }
    super::say(&format!("installing host packages: {list}"));
    // One broken third-party source fails the update, yet the packages may be there all the same.
    let updated = run(command("apt-get").args(["-qq", "update"]));
    let installed = run(command("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-qq", "install", "-y", "--no-install-recommends"])
        .args(&missing));
    match (installed, updated) {
        (Ok(()), _) => Ok(()),
        (Err(_), Err(error)) => Err(error).context("host packages: apt's lists cannot be updated"),
        (Err(error), Ok(())) => Err(error).context("host packages: cannot be installed"),
    }
}

/// Runs a command to its end; on failure the error carries the end of its output.
pub fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Unpacks the files of a Debian package into a directory; nothing of the package is run.
pub fn unpack(deb: &Path, into: &Path) -> Result<()> {
    run(command("dpkg-deb").arg("-x").arg(deb).arg(into))
}

/// Runs a command and returns its standard output; on failure the error carries the end of its
/// output.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let name = display(command.get_program());
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{name}: cannot be started"))?;
    if !output.status.success() {
        let mut text = String::from_utf8_lossy(&output.stderr).into_owned();
        if text.trim().is_empty() {
            text = String::from_utf8_lossy(&output.stdout).into_owned();
        }
        bail!("{name}: {}: {}", output.status, tail(&errors(&text), 6));
    }
    Ok(output.stdout)
}

/// Of apt's output only the errors, if it has any; of other output all.
fn errors(text: &str) -> String {
    let only: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("E: ") || line.contains("NO_PUBKEY"))
        .collect();
    if only.is_empty() {
        text.to_owned()
    } else {
        only.join("\n")
    }
}

/// The last `lines` non-empty lines of `text`, joined to one.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    all[all.len().saturating_sub(lines)..].join(" | ")
}

/// The last component of a program's path, for messages.
fn display(program: &OsStr) -> String {
    Path::new(program)
        .file_name()
        .unwrap_or(program)
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_keeps_the_end_without_blank_lines() {
        assert_eq!(tail("a\n\n b \nc\n", 2), "b | c");
        assert_eq!(tail("", 2), "");
    }

    #[test]
    fn errors_of_apt_come_without_its_warnings() {
        assert_eq!(errors("W: x\nE: y\nHit:1\n"), "E: y");
        assert_eq!(errors("x\ny"), "x\ny");
    }

    #[test]
    fn a_failing_command_names_itself_and_its_words() {
        let error = run(Command::new("/bin/sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("sh") && text.contains('3') && text.contains("why"),
            "{text}"
        );
    }
}
