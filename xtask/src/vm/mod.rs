//! `cargo xtask vm`: a command on a real kernel with real device-mapper, udev and lvm2.
//!
//! `docs/vm-lab.md` tells how to use it. [`Lab`] is the library behind the command line.

mod accel;
mod apt;
mod boot;
mod cache;
mod cli;
mod config;
mod cpio;
mod docs;
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
pub mod service;
mod sources;
mod splat;
pub mod storm;
pub mod suite;
mod tool;
mod vmlinux;

pub use self::{
    accel::Accel,
    cli::{Args, main},
    config::{Config, Freshness},
    kernel::Kernel,
    lab::Lab,
    layer::Layer,
    outcome::{End, Outcome},
    run::{Clock, RunSpec, Streams, guest_file},
    tool::Tool,
};
