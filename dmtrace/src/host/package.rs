//! Which package a program is from: the databases of dpkg and apk are read, rpm is asked.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use dmtrace_core::event::{Package, ProcessImage};

use super::{Roots, identity};
use crate::wording::cause_text;

/// What tells executables apart: the same path is another file in another mount namespace.
pub fn package_key(image: &ProcessImage) -> Option<String> {
    let exe = image.exe.as_deref()?;
    Some(format!("{}:{exe}", image.mnt_ns))
}

/// The package of a process's executable; the files are those of its mount namespace.
///
/// # Errors
/// Why it is not known, in words.
pub fn of_process(roots: &Roots, image: &ProcessImage, until: Instant) -> Result<Package, String> {
    let exe = match image.exe.as_deref() {
        Some(exe) if exe.starts_with('/') => Path::new(exe),
        _ => return Err("the path of the program is not known".to_owned()),
    };
    if image.exe_deleted {
        return Err("the program's file was replaced or removed".to_owned());
    }
    // Its files are those that this process sees, or those of the host.
    let is_its = |whose: &str| {
        fs::metadata(roots.proc_path(format!("{whose}/ns/mnt")))
            .is_ok_and(|meta| meta.ino() == u64::from(image.mnt_ns))
    };
    if image.mnt_ns == 0 || is_its("self") || is_its("1") {
        return of_file(roots, exe, until);
    }
    if identity::image_if_alive(roots, image.id).is_none() {
        return Err(
            "it ran in another mount namespace, as in a container, and has ended".to_owned(),
        );
    }
    let inside = Roots {
        proc: roots.proc.clone(),
        fs: roots.proc_path(format!("{}/root", image.id.tgid)),
    };
    of_file(&inside, exe, until)
}

/// The package of a file.
///
/// # Errors
/// As [`of_process`].
pub fn of_file(roots: &Roots, file: &Path, until: Instant) -> Result<Package, String> {
    let names = path_aliases(file);
    if roots.exists("var/lib/dpkg/info") {
        return find_dpkg(roots, &names, until);
    }
    if roots.exists("lib/apk/db/installed") {
        return find_apk(roots, &names);
    }
    if roots.fs == Path::new("/") && roots.is_executable("usr/bin/rpm") {
        return find_rpm(file, until);
    }
    Err("no package database was found".to_owned())
}

const NO_PACKAGE: &str = "no package has this file";

/// A file by the names that a package may have for it: `/usr` may be merged.
fn path_aliases(file: &Path) -> Vec<String> {
    let name = file.display().to_string();
    let other = match name.strip_prefix("/usr") {
        Some(rest) => rest.to_owned(),
        None => format!("/usr{name}"),
    };
    vec![name, other]
}

fn find_dpkg(roots: &Roots, files: &[String], until: Instant) -> Result<Package, String> {
    let dir = Path::new("var/lib/dpkg/info");
    for list in roots.read_names(dir) {
        if list.extension().is_none_or(|extension| extension != "list") {
            continue;
        }
        if Instant::now() > until {
            return Err("looking for the package took too long".to_owned());
        }
        let text = roots.read_fs(dir.join(&list)).unwrap_or_default();
        let mut lines = text.split(|&byte| byte == b'\n');
        if !lines.any(|line| files.iter().any(|file| file.as_bytes() == line)) {
            continue;
        }
        let stem = list.file_stem().unwrap_or_default().to_string_lossy();
        let name = stem.split(':').next().unwrap_or_default().to_owned();
        let status = roots.read_fs("var/lib/dpkg/status").unwrap_or_default();
        let status = String::from_utf8_lossy(&status);
        let version = status
            .split("\n\n")
            .filter(|stanza| stanza.lines().next() == Some(&format!("Package: {name}")))
            .find_map(|stanza| {
                stanza
                    .lines()
                    .find_map(|line| line.strip_prefix("Version: "))
            });
        return Ok(Package {
            name,
            version: version.unwrap_or("?").to_owned(),
            manager: "dpkg".to_owned(),
        });
    }
    Err(NO_PACKAGE.to_owned())
}

fn find_apk(roots: &Roots, files: &[String]) -> Result<Package, String> {
    let text = roots.read_fs("lib/apk/db/installed").unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let (mut name, mut version, mut dir) = ("", "", "");
    for line in text.lines() {
        match line.split_once(':') {
            Some(("P", value)) => name = value,
            Some(("V", value)) => version = value,
            Some(("F", value)) => dir = value,
            Some(("R", value)) if files.contains(&format!("/{dir}/{value}")) => {
                return Ok(Package {
                    name: name.to_owned(),
                    version: version.to_owned(),
                    manager: "apk".to_owned(),
                });
            }
            _ => {}
        }
    }
    Err(NO_PACKAGE.to_owned())
}

fn find_rpm(file: &Path, until: Instant) -> Result<Package, String> {
    let mut child = Command::new("/usr/bin/rpm")
        .args(["-qf", "--qf", "%{NAME}\\t%{VERSION}-%{RELEASE}\\n"])
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("rpm: {}", cause_text(&error)))?;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            _ => {
                let _killed = child.kill();
                let _reaped = child.wait();
                return Err("rpm took too long".to_owned());
            }
        }
    };
    let mut text = String::new();
    let read = child
        .stdout
        .take()
        .map(|mut out| out.read_to_string(&mut text));
    let line = text.lines().next().unwrap_or_default();
    match (status.success(), read, line.split_once('\t')) {
        (true, Some(Ok(_)), Some((name, version))) => Ok(Package {
            name: name.to_owned(),
            version: version.to_owned(),
            manager: "rpm".to_owned(),
        }),
        _ => Err(NO_PACKAGE.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near_deadline() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn write_file(dir: &Path, path: &str, text: &str) {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn dpkg_knows_a_file_under_either_name() {
        let host = tempfile::tempdir().unwrap();
        let info = "var/lib/dpkg/info";
        write_file(
            host.path(),
            &format!("{info}/other.list"),
            "/.\n/sbin/dmsetup2\n",
        );
        write_file(
            host.path(),
            &format!("{info}/dmsetup:amd64.list"),
            "/.\n/sbin/dmsetup\n",
        );
        let status = "Package: dmsetup-udeb\nVersion: 9\n\nPackage: dmsetup\nStatus: x\nVersion: \
                      2:1.02.185-2\n";
        write_file(host.path(), "var/lib/dpkg/status", status);
        let roots = Roots::below(host.path());
        let expected = Package {
            name: "dmsetup".to_owned(),
            version: "2:1.02.185-2".to_owned(),
            manager: "dpkg".to_owned(),
        };
        for file in ["/sbin/dmsetup", "/usr/sbin/dmsetup"] {
            let found = of_file(&roots, Path::new(file), near_deadline());
            assert_eq!(found.as_ref(), Ok(&expected), "{file}");
        }
        let none = of_file(&roots, Path::new("/usr/local/bin/tool"), near_deadline());
        assert_eq!(none, Err(NO_PACKAGE.to_owned()));
        let late = of_file(&roots, Path::new("/sbin/dmsetup"), Instant::now());
        assert!(late.is_err(), "the time limit holds");
    }

    #[test]
    fn apk_lists_files_below_directories() {
        let host = tempfile::tempdir().unwrap();
        let text =
            "P:musl\nV:1.2\nF:lib\nR:libc.so\n\nP:device-mapper\nV:2.03-r1\nF:sbin\nR:dmsetup\n";
        write_file(host.path(), "lib/apk/db/installed", text);
        let found = of_file(
            &Roots::below(host.path()),
            Path::new("/sbin/dmsetup"),
            near_deadline(),
        );
        assert_eq!(found.unwrap().name, "device-mapper");
    }

    #[test]
    fn a_process_that_has_ended_had_the_files_that_are_seen_here() {
        let host = tempfile::tempdir().unwrap();
        write_file(host.path(), "proc/self/ns/mnt", "");
        write_file(host.path(), "proc/1/ns/mnt", "");
        let roots = Roots::below(host.path());
        let inode = |path: &str| {
            let meta = fs::metadata(host.path().join(path)).unwrap();
            u32::try_from(meta.ino()).unwrap()
        };
        let of_namespace = |mnt_ns: u32| {
            let image = ProcessImage {
                exe: Some("/bin/a".to_owned()),
                mnt_ns,
                ..ProcessImage::default()
            };
            of_process(&roots, &image, near_deadline()).unwrap_err()
        };
        for path in ["proc/self/ns/mnt", "proc/1/ns/mnt"] {
            let why = of_namespace(inode(path));
            assert_eq!(why, "no package database was found", "{path}");
        }
        let why = of_namespace(u32::MAX);
        assert!(why.contains("in another mount namespace"), "{why}");
    }

    #[test]
    fn what_cannot_be_known_is_said() {
        let host = tempfile::tempdir().unwrap();
        let roots = Roots::below(host.path());
        let mut image = ProcessImage {
            exe: Some("/bin/a".to_owned()),
            exe_deleted: true,
            ..ProcessImage::default()
        };
        assert!(
            of_process(&roots, &image, near_deadline())
                .unwrap_err()
                .contains("replaced")
        );
        image.exe = None;
        assert!(
            of_process(&roots, &image, near_deadline())
                .unwrap_err()
                .contains("path")
        );
        let none = of_file(&roots, Path::new("/bin/a"), near_deadline()).unwrap_err();
        assert!(none.contains("database"), "{none}");
    }
}
