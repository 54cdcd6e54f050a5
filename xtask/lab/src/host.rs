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
];

/// What else the lab uses, and the Debian package each comes from.
const FILES: &[(&str, &str)] = &[(KEYRING, "debian-archive-keyring")];

/// The keyring the host trusts Debian's archive by.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where Debian keeps administrator programs; a user's `PATH` often lacks it.
const SBIN: &[&str] = &["/usr/sbin", "/sbin"];

/// The full path of `program`, looked up in `PATH` and the sbin directories.
pub(crate) fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SBIN.iter().map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// A command for `program`, found even when only sbin has it.
pub(crate) fn host_command(program: &str) -> Command {
    Command::new(find_program(program).unwrap_or_else(|| PathBuf::from(program)))
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// Installs what the lab itself uses, as far as it is missing.
pub(crate) fn install_missing_programs() -> Result<()> {
    install_missing(PROGRAMS, FILES)
}

/// Installs the Debian packages of those programs (looked up in `PATH`) and files that are missing:
/// what is to run in a guest may need more to be built than the lab itself.
///
/// # Errors
/// The machine has no apt-get, this process is not root, or apt-get fails; the error names the
/// packages.
pub fn install_missing(programs: &[(&str, &str)], files: &[(&str, &str)]) -> Result<()> {
    let programs = programs
        .iter()
        .filter(|(program, _)| find_program(program).is_none());
    let files = files.iter().filter(|(file, _)| !Path::new(file).is_file());
    let mut missing: Vec<&str> = programs.chain(files).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    missing.dedup();
    let list = missing.join(" ");
    if find_program("apt-get").is_none() {
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
    log::info!("installing host packages: {list}");
    // One broken third-party source fails the update, yet the packages may be there all the same.
    let updated = run_command(host_command("apt-get").args(["-qq", "update"]));
    let installed = run_command(
        host_command("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-qq", "install", "-y", "--no-install-recommends"])
            .args(&missing),
    );
    match (installed, updated) {
        (Ok(()), _) => Ok(()),
        (Err(_), Err(error)) => Err(error).context("host packages: apt's lists cannot be updated"),
        (Err(error), Ok(())) => Err(error).context("host packages: cannot be installed"),
    }
}

/// Runs a command to its end; on failure the error carries the end of its output.
pub(crate) fn run_command(command: &mut Command) -> Result<()> {
    capture_output(command).map(drop)
}

/// Unpacks the files of a Debian package into a directory; nothing of the package is run.
pub(crate) fn unpack_package(deb: &Path, into: &Path) -> Result<()> {
    run_command(host_command("dpkg-deb").arg("-x").arg(deb).arg(into))
}

/// Runs a command and returns its standard output; on failure the error carries the end of its
/// output.
pub(crate) fn capture_output(command: &mut Command) -> Result<Vec<u8>> {
    let name = program_name(command.get_program());
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{name}: cannot be started"))?;
    if !output.status.success() {
        let mut text = String::from_utf8_lossy(&output.stderr).into_owned();
        if text.trim().is_empty() {
            text = String::from_utf8_lossy(&output.stdout).into_owned();
        }
        bail!(
            "{name}: {}: {}",
            output.status,
            last_lines(&apt_errors(&text), 6)
        );
    }
    Ok(output.stdout)
}

/// Of apt's output only the errors, if it has any; of other output all.
fn apt_errors(text: &str) -> String {
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
pub(crate) fn last_lines(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    all[all.len().saturating_sub(lines)..].join(" | ")
}

/// The last component of a program's path, for messages.
fn program_name(program: &OsStr) -> String {
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
    fn last_lines_keep_the_end_without_blank_lines() {
        assert_eq!(last_lines("a\n\n b \nc\n", 2), "b | c");
        assert_eq!(last_lines("", 2), "");
    }

    #[test]
    fn errors_of_apt_come_without_its_warnings() {
        assert_eq!(apt_errors("W: x\nE: y\nHit:1\n"), "E: y");
        assert_eq!(apt_errors("x\ny"), "x\ny");
    }

    #[test]
    fn a_failing_command_is_named_with_its_output() {
        let error =
            run_command(Command::new("/bin/sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("sh") && text.contains('3') && text.contains("why"),
            "{text}"
        );
    }
}
