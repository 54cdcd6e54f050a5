//! Boots Debian kernels under QEMU and runs commands in them as root.
//!
//! A [`Lab`] takes kernels of several series from the Debian mirror that this machine's apt is
//! configured for, builds a small Debian root image, and boots one guest per command:
//! [`Lab::prepare_kernel`], then [`Lab::run`]. Everything built is cached, so that later runs fetch
//! nothing and need no root. `kernel` has the list of kernels.
//!
//! # The guest
//!
//! Debian 12 with systemd-udevd on the kernel asked for, with KVM where it works and emulated
//! elsewhere. [`Config`] says which packages and modules it has, a [`Layer`] adds programs that
//! only some runs need, and a [`RunSpec`] puts files into it. The root is writable and forgotten at
//! the end. The command's working directory is `/job`; what it leaves in `/out` is copied to
//! [`RunSpec::out`].
//!
//! # What it needs
//!
//! An x86_64 machine with Debian 12 or later and a working apt mirror. [`Lab::open`] installs the
//! host programs that are missing (QEMU, mmdebstrap, squashfs-tools, ...), which needs root, and so
//! does building the root image.
//!
//! # Errors
//!
//! Errors are [`anyhow::Error`]: one line that names the object, the cause and what to do. They are
//! about this machine, its mirror and the cache. What happens in a guest is no error, not even that
//! it does not boot: it is in the [`RunOutcome`], together with the complaints of the kernel
//! (oopses, warnings, lockups) that were found in its log. Progress goes to the crate `log`, at
//! level info.
//!
//! # Example
//!
//! ```no_run
//! use kernel_lab::{Config, Freshness, Lab, RunSpec, kernel};
//!
//! # fn main() -> anyhow::Result<()> {
//! let mut lab = Lab::open(Config {
//!     name: "my-lab",
//!     cache: "/var/cache/my-lab".into(),
//!     prepare_command: "my-program --prepare",
//!     accel: None,
//!     freshness: Freshness::Cached,
//!     packages: &["strace", "xfsprogs"],
//!     modules: &["fs/xfs/", "loop"],
//!     loaded_modules: &["loop"],
//! })?;
//! for spec in kernel::resolve_kernels(&["5.10".to_owned(), "6.12".to_owned()])? {
//!     let kernel = lab.prepare_kernel(spec)?;
//!     let run = RunSpec {
//!         argv: vec!["modprobe xfs && grep xfs /proc/filesystems".to_owned()],
//!         ..RunSpec::default()
//!     };
//!     let outcome = lab.run(&kernel, &run)?;
//!     println!("{}: {}", kernel.release, outcome.summary());
//! }
//! # Ok(())
//! # }
//! ```

mod accel;
mod apt;
mod boot;
mod cache;
mod config;
mod cpio;
mod frame;
mod guest;
mod host;
mod image;
pub mod kernel;
mod lab;
mod layer;
mod modules;
mod out;
mod outcome;
mod qemu;
mod run;
mod sources;
mod splat;
mod tool;
mod vmlinux;

pub use self::{
    accel::Accel,
    config::{Config, Freshness},
    host::install_missing,
    kernel::Kernel,
    lab::Lab,
    layer::Layer,
    out::format_table,
    outcome::{LAB_FAILED, RunEnd, RunOutcome},
    run::{FileSpec, GuestClock, RunSpec, Streams, guest_file},
    tool::DebianTool,
};
