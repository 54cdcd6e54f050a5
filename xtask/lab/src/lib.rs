//! Boots Debian kernels under QEMU and runs commands in them.

#![warn(unreachable_pub)]

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
    kernel::Kernel,
    lab::Lab,
    layer::Layer,
    out::format_table,
    outcome::{End, LAB_FAILED, Outcome},
    run::{Clock, FileSpec, RunSpec, Streams, guest_file},
    tool::Tool,
};
