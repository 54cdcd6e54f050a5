//! A BPF file system of a test's own, where a service keeps what outlives it.

use std::{ffi::CString, os::unix::ffi::OsStrExt, path::PathBuf};

use anyhow::{Context, Result, ensure};

/// Mounted as long as it lives; what is pinned there ends with it.
pub(crate) struct BpfFs {
    mount: tempfile::TempDir,
}

impl BpfFs {
    pub(crate) fn mount() -> Result<Self> {
        let mount = tempfile::Builder::new()
            .prefix("dmtrace-bpf")
            .tempdir_in("/run")?;
        let target = CString::new(mount.path().as_os_str().as_bytes())?;
        // SAFETY: C strings that outlive the call.
        let result = unsafe {
            libc::mount(
                c"bpf".as_ptr(),
                target.as_ptr(),
                c"bpf".as_ptr(),
                0,
                std::ptr::null(),
            )
        };
        ensure!(
            result == 0,
            "mount -t bpf: {}",
            std::io::Error::last_os_error()
        );
        Ok(Self { mount })
    }

    /// For `--pins`.
    pub(crate) fn pins_arg(&self) -> String {
        self.dir().display().to_string()
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.mount.path().join("dmtrace")
    }

    /// Removes the links, as if this kernel could not pin them.
    pub(crate) fn remove_links(&self) -> Result<()> {
        for layout in std::fs::read_dir(self.dir())? {
            for entry in std::fs::read_dir(layout?.path())? {
                let path = entry?.path();
                if path.is_dir() {
                    std::fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
                }
            }
        }
        Ok(())
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let _none = std::fs::remove_dir_all(self.dir());
        if let Ok(target) = CString::new(self.mount.path().as_os_str().as_bytes()) {
            // SAFETY: a C string that outlives the call.
            unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
        }
    }
}
