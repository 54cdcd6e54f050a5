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
    pub(crate) fn choose(cache: &Cache) -> Self {
        let usable = fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok();
        let failed = fs::read_to_string(mark(cache)).is_ok_and(|boot| boot == this_boot());
        if usable && !failed {
            Self::Kvm
        } else {
            Self::Tcg
        }
    }

    /// Remembers that KVM does not work, until this machine boots again.
    pub(crate) fn give_up_kvm(cache: &Cache) {
        // Not remembering costs only another try.
        let _ = fs::write(mark(cache), this_boot());
    }

    /// QEMU's options. All CPUs in one thread, because QEMU before 8.1 may translate code while
    /// another thread writes it, and keep the old translation: a kernel that patches its own code
    /// then runs into a breakpoint it has removed ("Oops: int3"): with
    /// a thread for each CPU that took seconds when static keys were toggled in a loop, with one it
    /// did not happen in thousands of toggles.
    /// Without CX16 because QEMU 7.2's emulation of it breaks some kernels.
    pub(crate) fn options(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=single", "-cpu", "max,-cx16"],
        }
    }

    /// How long a guest may take to say its first word.
    pub(crate) fn boot_limit(self) -> Duration {
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

fn mark(cache: &Cache) -> PathBuf {
    cache.path("kvm-fails")
}

fn this_boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulated_cpus_share_one_thread() {
        assert!(Accel::Tcg.options().contains(&"tcg,thread=single"));
    }
}
