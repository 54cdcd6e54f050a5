//! Programs that make cookies, by the name that the kernel or a log has of them.

/// Names of processes, cut at 15 bytes as the kernel does.
const COOKIE_PROGRAMS: &[&str] = &[
    "blkdeactivate",
    "containerd",
    "containerd-snap",
    "crio",
    "cryptsetup",
    "devmapper",
    "dmeventd",
    "dmraid",
    "dmsetup",
    "dmstats",
    "docker",
    "docker-containe",
    "docker-current",
    "dockerd",
    "dockerd-current",
    "integritysetup",
    "kpartx",
    "ldmtool",
    "lvm",
    "lvmdbusd",
    "lvmpolld",
    "multipath",
    "multipathd",
    "parted",
    "podman",
    "stratis-min",
    "stratisd",
    "stratisd-min",
    "systemd-cryptse",
    "systemd-integri",
    "systemd-repart",
    "systemd-veritys",
    "udisksd",
    "veritysetup",
];

/// LVM runs under the name of its command.
pub(crate) const LVM_PREFIXES: [&str; 3] = ["lv", "vg", "pv"];

/// Of those, the ones that only look.
const LVM_READERS: [&str; 9] = [
    "lvdisplay",
    "lvmconfig",
    "lvmdiskscan",
    "lvmdump",
    "lvmetad",
    "lvscan",
    "pvck",
    "pvdisplay",
    "vgdisplay",
];

/// Those that may have any number of cookies at a moment; the others handle one command and end.
const DAEMONS: &[&str] = &[
    "containerd",
    "containerd-snap",
    "crio",
    "devmapper",
    "dmeventd",
    "docker",
    "docker-containe",
    "docker-current",
    "dockerd",
    "dockerd-current",
    "lvmdbusd",
    "lvmpolld",
    "multipathd",
    "podman",
    "stratisd",
    "stratisd-min",
    "udisksd",
];

/// udevd and its workers. What they run completes cookies.
const UDEV: [&str; 6] = [
    "(udev-worker)",
    "eudevd",
    "systemd-udevd",
    "udev-worker",
    "udevadm",
    "udevd",
];

/// A name as the kernel keeps it.
fn kernel_name(name: &str) -> &str {
    const COMM: usize = 15;
    &name[..name.floor_char_boundary(COMM)]
}

/// Whether a process of this name makes cookies.
pub fn is_cookie_program(name: &str) -> bool {
    let name = kernel_name(name);
    let lvm = LVM_PREFIXES.iter().any(|it| {
        name.strip_prefix(it).is_some_and(|rest| {
            rest.len() > 1 && rest.bytes().all(|byte| byte.is_ascii_lowercase())
        })
    });
    (lvm && !LVM_READERS.contains(&name)) || COOKIE_PROGRAMS.contains(&name)
}

/// Whether it may have any number of cookies at a moment.
pub(super) fn is_daemon(name: &str) -> bool {
    DAEMONS.contains(&kernel_name(name)) || !is_cookie_program(name)
}

/// Whether a process of this name is `dmsetup`, which udev runs, too.
pub(super) fn is_dmsetup(name: &str) -> bool {
    name.starts_with("dmsetup")
}

/// Whether a process of this name is udevd or a worker of it.
pub(super) fn is_udev(name: &str) -> bool {
    UDEV.contains(&kernel_name(name))
}

/// Whether a command line, or a line of a script, runs a program that makes cookies: as a word, with a
/// path or without.
pub fn mentions_cookie_program(text: &str) -> bool {
    let border = |c: char| c.is_whitespace() || "\"'`;|&()=$".contains(c);
    text.split(border)
        .map(|word| word.rsplit('/').next().unwrap_or(word))
        .any(|word| is_cookie_program(word) && word.len() <= 24)
}

/// The name of a process from its command line.
pub(super) fn name_of_command(command: &str) -> Option<&str> {
    let words = || command.split_whitespace();
    // `DM_UDEV_COOKIE=1 dmsetup …`, `sudo dmsetup …`.
    let word = words().find(|word| !word.contains('=') && *word != "sudo" && *word != "exec")?;
    let name = word.rsplit('/').next().unwrap_or(word);
    (!name.is_empty()).then(|| kernel_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_commands() {
        for name in [
            "lvcreate",
            "vgchange",
            "pvmove",
            "dmsetup",
            "dockerd",
            "systemd-cryptsetup",
        ] {
            assert!(is_cookie_program(name), "{name}");
        }
        for name in [
            "lv", "lvx2", "pv", "vgs2", "bash", "udevadm", "lvs", "lvscan", "",
        ] {
            assert!(!is_cookie_program(name), "{name}");
        }
        assert!(is_daemon("dockerd") && is_daemon("storaged") && !is_daemon("lvcreate"));
        assert!(mentions_cookie_program(
            "Started x.service - /usr/sbin/lvcreate -L 8M"
        ));
        assert!(mentions_cookie_program("C=$(dmsetup udevcreatecookie)"));
        assert!(!mentions_cookie_program("echo no such thing"));
        assert_eq!(
            name_of_command("DM_UDEV_COOKIE=7 /sbin/dmsetup create"),
            Some("dmsetup")
        );
        assert_eq!(name_of_command("sudo lvcreate -n x"), Some("lvcreate"));
        assert_eq!(name_of_command(" "), None);
    }
}
