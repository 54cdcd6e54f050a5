//! The lab: what is built in its cache, and what runs on it.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::{
    apt::Apt,
    boot,
    cache::Cache,
    config::{Config, Freshness},
    guest::Disks,
    host, image,
    kernel::{self, Kernel, KernelSpec},
    layer::Layer,
    outcome::RunOutcome,
    run::RunSpec,
    tool::DebianTool,
};

/// A lab: a cache of kernels and images, and the guests that are booted from it.
#[derive(Debug)]
pub struct Lab {
    config: Config,
    cache: Cache,
    apt: Option<Apt>,
}

impl Lab {
    /// Opens the cache, and installs the host programs that are missing.
    ///
    /// # Errors
    /// A program is missing and cannot be installed (this process is not root, or apt fails), or
    /// the cache cannot be made.
    pub fn open(config: Config) -> Result<Self> {
        host::install_missing_programs()?;
        Self::inspect(config)
    }

    /// Opens the cache and installs nothing: enough to see what is cached, to run a kernel that is,
    /// and for tools.
    ///
    /// # Errors
    /// The cache cannot be made.
    pub fn inspect(config: Config) -> Result<Self> {
        Ok(Self {
            cache: Cache::open(&config.cache)?,
            config,
            apt: None,
        })
    }

    /// The kernel, if it is cached, built from the present configuration.
    pub fn cached_kernel(&self, spec: &KernelSpec) -> Option<Kernel> {
        kernel::cached_kernel(&self.config, &self.cache, spec)
    }

    /// Whether the root image is cached, built from the present configuration.
    pub fn has_image(&self) -> bool {
        image::cached_image(&self.config, &self.cache).is_some()
    }

    /// A kernel that is ready to boot, from the cache or newly built; so is the root image then.
    ///
    /// # Errors
    /// No suite of the mirror has the kernel, a package cannot be fetched or verified, or the image
    /// has to be built and this process is not root.
    pub fn prepare_kernel(&mut self, spec: &KernelSpec) -> Result<Kernel> {
        if self.config.freshness == Freshness::Cached
            && let Some(kernel) = self.cached_kernel(spec)
            && self.has_image()
        {
            return Ok(kernel);
        }
        let _lock = self.cache.lock()?;
        let apt = Self::open_apt(&mut self.apt, &self.cache)?;
        let kernel = kernel::prepare_kernel(&self.config, &self.cache, apt, spec)?;
        image::prepare_image(&self.config, &self.cache, apt)?;
        Ok(kernel)
    }

    /// Makes a layer ready, from the cache or newly built.
    ///
    /// # Errors
    /// A package cannot be fetched or verified, or has no such file.
    pub fn prepare_layer(&mut self, layer: &Layer) -> Result<()> {
        if layer.cached_path(&self.cache).is_some() {
            return Ok(());
        }
        let _lock = self.cache.lock()?;
        layer.prepare_layer(&self.cache, Self::open_apt(&mut self.apt, &self.cache)?)
    }

    /// The directory that a program for this machine is in, from the cache or newly fetched.
    ///
    /// # Errors
    /// Its package cannot be fetched or verified, or has no such file.
    pub fn prepare_tool(&self, tool: &DebianTool) -> Result<PathBuf> {
        tool.prepare_tool(&self.cache)
    }

    /// apt's state, opened when it is first needed.
    fn open_apt<'a>(apt: &'a mut Option<Apt>, cache: &Cache) -> Result<&'a mut Apt> {
        if apt.is_none() {
            *apt = Some(Apt::open(&cache.path("apt"))?);
        }
        apt.as_mut().context("apt state: not open")
    }

    /// Boots a kernel that is ready and runs a command on it. A guest that dies before the command
    /// starts is booted again, up to three times in all.
    ///
    /// # Errors
    /// The root image or the layer is not built, a file for the guest cannot be read, the command or
    /// its environment is malformed, or QEMU cannot be started. How the command and the guest ended
    /// is in the outcome.
    pub fn run(&self, kernel: &Kernel, run: &RunSpec) -> Result<RunOutcome> {
        let command = self.config.prepare_command;
        let image = image::cached_image(&self.config, &self.cache)
            .with_context(|| format!("root image: not built; run `{command}`"))?;
        let layer =
            match run.layer {
                Some(layer) => Some(layer.cached_path(&self.cache).with_context(|| {
                    format!("layer {}: not built; run `{command}`", layer.name)
                })?),
                None => None,
            };
        let disks = Disks { image, layer };
        boot::run_in_guest(&self.config, &self.cache, kernel, &disks, run)
    }
}
