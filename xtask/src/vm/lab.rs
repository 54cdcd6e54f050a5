//! The lab: what is built in its cache, and what runs on it.

use anyhow::{Context as _, Result};

use super::{
    apt::Apt,
    boot,
    cache::Cache,
    guest::Disks,
    host, image,
    kernel::{self, Kernel, Spec},
    layer::Layer,
    outcome::Outcome,
    run::RunSpec,
};

/// The lab: what is built and what can be run.
pub struct Lab {
    cache: Cache,
    apt: Option<Apt>,
    refresh: bool,
}

impl Lab {
    /// Opens the cache and makes sure of the host's programs. `refresh` looks for newer kernels
    /// than the cached ones.
    pub fn open(refresh: bool) -> Result<Self> {
        host::ensure_programs()?;
        Ok(Self {
            cache: Cache::open()?,
            apt: None,
            refresh,
        })
    }

    /// Makes a kernel, and the root image, ready: from the cache or newly built.
    pub fn prepare(&mut self, spec: &Spec) -> Result<Kernel> {
        if !self.refresh
            && let Some(kernel) = kernel::cached(&self.cache, spec)
            && image::cached(&self.cache).is_some()
        {
            return Ok(kernel);
        }
        let _lock = self.cache.lock()?;
        let apt = Self::apt(&mut self.apt, &self.cache)?;
        let kernel = kernel::prepare(&self.cache, apt, spec, self.refresh)?;
        image::prepare(&self.cache, apt)?;
        Ok(kernel)
    }

    /// Makes a layer ready: from the cache or newly built.
    pub fn prepare_layer(&mut self, layer: &Layer) -> Result<()> {
        if layer.cached(&self.cache).is_some() {
            return Ok(());
        }
        let _lock = self.cache.lock()?;
        layer.prepare(&self.cache, Self::apt(&mut self.apt, &self.cache)?)
    }

    /// apt's state, opened when it is first needed.
    fn apt<'a>(apt: &'a mut Option<Apt>, cache: &Cache) -> Result<&'a mut Apt> {
        if apt.is_none() {
            *apt = Some(Apt::open(&cache.path("apt"))?);
        }
        apt.as_mut().context("apt state: not open")
    }

    /// Runs a command on a kernel that is ready.
    pub fn run_one(&self, kernel: &Kernel, run: &RunSpec) -> Result<Outcome> {
        let image = image::cached(&self.cache)
            .context("root image: not built; run `cargo xtask vm --prepare`")?;
        let layer = match run.layer {
            Some(layer) => Some(layer.cached(&self.cache).with_context(|| {
                format!(
                    "layer {}: not built; run `cargo xtask vm --prepare`",
                    layer.name
                )
            })?),
            None => None,
        };
        boot::run(&self.cache, kernel, &Disks { image, layer }, run)
    }
}
