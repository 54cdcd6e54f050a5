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
    outcome::Outcome,
    run::RunSpec,
    tool::Tool,
};

/// The lab: what is built and what can be run.
pub struct Lab {
    config: Config,
    cache: Cache,
    apt: Option<Apt>,
}

impl Lab {
    /// Opens the cache and makes sure of the host's programs.
    pub fn open(config: Config) -> Result<Self> {
        host::install_missing_programs()?;
        Self::inspect(config)
    }

    /// Opens the cache only, to see what is there: nothing is installed on the host.
    pub fn inspect(config: Config) -> Result<Self> {
        Ok(Self {
            cache: Cache::open(&config.cache)?,
            config,
            apt: None,
        })
    }

    /// The kernel, if it is cached.
    pub fn cached_kernel(&self, spec: &KernelSpec) -> Option<Kernel> {
        kernel::cached(&self.config, &self.cache, spec)
    }

    /// Whether the root image is cached.
    pub fn has_image(&self) -> bool {
        image::cached(&self.config, &self.cache).is_some()
    }

    /// Makes a kernel, and the root image, ready: from the cache or newly built.
    pub fn prepare_kernel(&mut self, spec: &KernelSpec) -> Result<Kernel> {
        if self.config.freshness == Freshness::Cached
            && let Some(kernel) = self.cached_kernel(spec)
            && self.has_image()
        {
            return Ok(kernel);
        }
        let _lock = self.cache.lock()?;
        let apt = Self::open_apt(&mut self.apt, &self.cache)?;
        let kernel = kernel::prepare(&self.config, &self.cache, apt, spec)?;
        image::prepare(&self.config, &self.cache, apt)?;
        Ok(kernel)
    }

    /// Makes a layer ready: from the cache or newly built.
    pub fn prepare_layer(&mut self, layer: &Layer) -> Result<()> {
        if layer.cached(&self.cache).is_some() {
            return Ok(());
        }
        let _lock = self.cache.lock()?;
        layer.prepare(&self.cache, Self::open_apt(&mut self.apt, &self.cache)?)
    }

    /// The directory that a program for this machine is in: from the cache or newly fetched.
    pub fn prepare_tool(&self, tool: &Tool) -> Result<PathBuf> {
        tool.prepare(&self.cache)
    }

    /// apt's state, opened when it is first needed.
    fn open_apt<'a>(apt: &'a mut Option<Apt>, cache: &Cache) -> Result<&'a mut Apt> {
        if apt.is_none() {
            *apt = Some(Apt::open(&cache.path("apt"))?);
        }
        apt.as_mut().context("apt state: not open")
    }

    /// Runs a command on a kernel that is ready.
    pub fn run(&self, kernel: &Kernel, run: &RunSpec) -> Result<Outcome> {
        let command = self.config.prepare_command;
        let image = image::cached(&self.config, &self.cache)
            .with_context(|| format!("root image: not built; run `{command}`"))?;
        let layer =
            match run.layer {
                Some(layer) => Some(layer.cached(&self.cache).with_context(|| {
                    format!("layer {}: not built; run `{command}`", layer.name)
                })?),
                None => None,
            };
        let disks = Disks { image, layer };
        boot::run_in_guest(&self.config, &self.cache, kernel, &disks, run)
    }
}
