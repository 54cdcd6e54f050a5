//! What the guests are made of in which dmtrace is tried, and where their lab keeps its files.

use std::{env, path::PathBuf, sync::Mutex, thread};

use anyhow::{Context as _, Result};
use kernel_lab::{Accel, Config, DebianTool, Freshness, Lab, Layer};

use crate::host;

/// How to fill the lab's cache.
pub(crate) const PREPARE: &str = "cargo xtask vm --prepare";

/// Packages of the root image.
const PACKAGES: &[&str] = &[
    "bpftool",
    "cryptsetup-bin",
    "dmsetup",
    "e2fsprogs",
    "iproute2",
    "kpartx",
    "ksh93u+m",
    "lvm2",
    "procps",
    "python3-minimal",
    "strace",
    "thin-provisioning-tools",
];

/// Modules that can be loaded, and directories of such.
const MODULES: &[&str] = &[
    "drivers/md/",
    "drivers/virtio/",
    "crypto/",
    "arch/x86/crypto/",
    "net/bridge/",
    "net/netfilter/",
    "net/ipv4/netfilter/",
    "net/ipv6/netfilter/",
    "brd",
    "dummy",
    "ext4",
    "loop",
    "nbd",
    "null_blk",
    "overlay",
    "scsi_debug",
    "sd_mod",
    "sg",
    "squashfs",
    "tun",
    "veth",
    "virtio_blk",
    "virtio_console",
    "virtio_net",
    "virtio_pci",
    "virtio_rng",
    "virtio_scsi",
    "xfs",
    "zram",
];

/// Modules that are there before a command starts.
const LOADED_MODULES: &[&str] = &["dm_mod", "loop"];

/// Programs that only a few commands need.
pub(crate) const LAYERS: &[Layer] = &[
    Layer {
        name: "docker",
        packages: &["containerd", "docker.io", "runc"],
        files: &[
            "usr/bin/containerd",
            "usr/bin/containerd-shim-runc-v2",
            "usr/bin/docker",
            "usr/sbin/dockerd",
            "usr/sbin/runc",
        ],
    },
    Layer {
        name: "audit",
        packages: &["auditd", "libauparse0"],
        files: &[
            "usr/lib/x86_64-linux-gnu/libauparse.so.0",
            "usr/lib/x86_64-linux-gnu/libauparse.so.0.0.0",
            "usr/sbin/auditctl",
            "usr/sbin/auditd",
        ],
    },
];

/// Checks the alerts of `packaging/`. Its package would start a server.
const PROMTOOL: DebianTool = DebianTool {
    name: "promtool",
    package: "prometheus",
    file: "usr/bin/promtool",
};

/// The lab's configuration. The cache is in `DMTRACE_VM_CACHE`, or `vm-lab` in cargo's target
/// directory; `DMTRACE_VM_ACCEL` decides between KVM and emulation.
///
/// # Errors
/// Cargo's target directory is not known.
fn lab_config(freshness: Freshness) -> Result<Config> {
    show_progress();
    let cache = match env::var_os("DMTRACE_VM_CACHE") {
        Some(dir) => PathBuf::from(dir),
        None => host::target_dir()?.join("vm-lab"),
    };
    let accel = match env::var("DMTRACE_VM_ACCEL").as_deref() {
        Ok("kvm") => Some(Accel::Kvm),
        Ok("tcg") => Some(Accel::Tcg),
        _ => None,
    };
    Ok(Config {
        name: "dmtrace-lab",
        cache,
        prepare_command: PREPARE,
        accel,
        freshness,
        packages: PACKAGES,
        modules: MODULES,
        loaded_modules: LOADED_MODULES,
    })
}

/// The lab, with what it needs of this machine.
///
/// # Errors
/// A program is missing and cannot be installed, or there is no cache.
pub(crate) fn open_lab(freshness: Freshness) -> Result<Lab> {
    Lab::open(lab_config(freshness)?)
}

/// The lab as it is, to see what is cached.
///
/// # Errors
/// There is no cache.
pub(crate) fn inspect_lab() -> Result<Lab> {
    Lab::inspect(lab_config(Freshness::Cached)?)
}

/// A layer by its name on the command line and in the headers of scenarios.
///
/// # Errors
/// There is none of that name.
pub(crate) fn layer_named(name: &str) -> Result<&'static Layer> {
    let found = LAYERS.iter().find(|layer| layer.name == name);
    found.with_context(|| {
        let known: Vec<&str> = LAYERS.iter().map(|layer| layer.name).collect();
        format!(
            "layer {name}: there is no such layer; choose from {}",
            known.join(", ")
        )
    })
}

/// The directory that promtool is in, fetched if need be; nothing if `PATH` has it.
///
/// # Errors
/// It is neither installed nor can it be fetched.
pub(crate) fn promtool_dir() -> Result<Option<PathBuf>> {
    if host::has_program(PROMTOOL.name) {
        return Ok(None);
    }
    inspect_lab()?.prepare_tool(&PROMTOOL).map(Some)
}

/// Prints a line about the lab. The prefix keeps it apart from what the command prints.
pub(crate) fn print_note(line: &str) {
    eprintln!("vm: {line}");
}

/// Shows what the lab logs, as lines of its own.
fn show_progress() {
    struct Lines;

    impl log::Log for Lines {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &log::Record<'_>) {
            print_note(&record.args().to_string());
        }

        fn flush(&self) {}
    }

    // Fails if it is set already, which is as good.
    if log::set_logger(&Lines).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}

/// Guests that run at the same time: each of them sleeps half of its time.
const GUESTS: usize = 2;

/// Does all jobs, some guests at a time, and returns what came of them in the order of their ends.
pub(crate) fn run_side_by_side<T: Send, R: Send>(
    jobs: Vec<T>,
    run: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    let queue = Mutex::new(jobs.into_iter());
    let done = Mutex::new(Vec::new());
    let work = || {
        loop {
            let next = queue.lock().ok().and_then(|mut queue| queue.next());
            let Some(job) = next else {
                return;
            };
            let outcome = run(job);
            if let Ok(mut done) = done.lock() {
                done.push(outcome);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..GUESTS {
            scope.spawn(work);
        }
    });
    done.into_inner().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn visit_files(dir: &Path, check: &impl Fn(&Path, &str)) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit_files(&path, check);
            } else {
                check(&path, &fs::read_to_string(&path).unwrap());
            }
        }
    }

    #[test]
    fn the_lab_knows_nothing_of_dmtrace() {
        visit_files(&host::workspace_root().join("xtask/lab"), &|path, text| {
            for word in ["dmtrace", "cookie", "scenario", "cargo xtask"] {
                let found = text.to_lowercase().contains(word);
                assert!(!found, "{}: has the word {word}", path.display());
            }
        });
    }

    #[test]
    fn layers_have_names() {
        assert_eq!(layer_named("docker").unwrap(), &LAYERS[0]);
        let error = layer_named("no").unwrap_err().to_string();
        assert!(error.contains("docker"), "{error}");
    }

    #[test]
    fn layers_do_not_hide_the_links_of_the_root() {
        // /bin, /sbin and /lib are links there; a directory of that name would hide all behind it.
        let mut files = LAYERS.iter().flat_map(|layer| layer.files);
        assert!(files.all(|file| file.starts_with("usr/")));
    }
}
