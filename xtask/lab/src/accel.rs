//! Which accelerator QEMU gets. `/dev/kvm` may exist and still fail, so KVM counts only once it
//! has booted a guest.

use std::{fs, path::PathBuf, time::Duration};

use super::cache::Cache;

/// How QEMU runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// In hardware.
    Kvm,
    /// Emulated.
    Tcg,
}

impl Accel {
    /// KVM if it may work.
    pub(crate) fn detect(cache: &Cache) -> Self {
        let usable = fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok();
        let failed = fs::read_to_string(kvm_failure_marker(cache))
            .is_ok_and(|boot| boot == current_boot_id());
        if usable && !failed {
            Self::Kvm
        } else {
            Self::Tcg
        }
    }

    /// Remembers that KVM does not work, until this machine boots again.
    pub(crate) fn remember_kvm_failure(cache: &Cache) {
        // Not remembering costs only another try.
        let _ = fs::write(kvm_failure_marker(cache), current_boot_id());
    }

    /// QEMU's options. All CPUs in one thread, because QEMU before 8.1 may translate code while
    /// another thread writes it, and keep the old translation: a kernel that patches its own code
    /// then runs into a breakpoint it has removed ("Oops: int3"): with
    /// a thread for each CPU that took seconds when static keys were toggled in a loop, with one it
    /// did not happen in thousands of toggles.
    /// Without CX16 because QEMU 7.2's emulation of it breaks some kernels.
    pub(crate) fn qemu_options(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=single", "-cpu", "max,-cx16"],
        }
    }

    /// How long a guest may take to send its first frame.
    pub(crate) fn boot_timeout(self) -> Duration {
        match self {
            Self::Kvm => Duration::from_secs(12),
            Self::Tcg => Duration::from_secs(120),
        }
    }

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

fn kvm_failure_marker(cache: &Cache) -> PathBuf {
    cache.path("kvm-fails")
}

fn current_boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulated_cpus_share_one_thread() {
        assert!(Accel::Tcg.qemu_options().contains(&"tcg,thread=single"));
    }
}
