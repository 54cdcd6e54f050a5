//! The service in guests: what outlives it, its unit under systemd and at boot, its image.

use std::{os::unix::fs::symlink, time::Duration};

use anyhow::{Context as _, Result, bail};
use kernel_lab::{Freshness, Kernel, Lab, Layer, RunSpec, Streams, guest_file, kernel};

use super::programs::ScenarioPrograms;
use crate::{guests, host, tally::TestTally};

/// A script of `tests/vm` on a kernel.
struct ServiceCase {
    script: &'static str,
    kernel: &'static str,
    init: Init,
}

/// What the guest is started with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Init {
    Small,
    /// A full systemd, which knows the unit.
    Systemd,
    /// The same, with the unit enabled.
    Enabled,
    /// The lab's own, with Docker there.
    Docker,
}

const fn new_case(script: &'static str, kernel: &'static str, init: Init) -> ServiceCase {
    ServiceCase {
        script,
        kernel,
        init,
    }
}

const CASES: [ServiceCase; 7] = [
    new_case("kept.sh", "5.10", Init::Small),
    new_case("kept.sh", "6.12", Init::Small),
    new_case("kept.sh", "5.10", Init::Systemd),
    new_case("kept.sh", "6.12", Init::Systemd),
    new_case("unit.sh", "6.12", Init::Systemd),
    new_case("boot.sh", "6.12", Init::Enabled),
    new_case("pod.sh", "6.1", Init::Docker),
];

/// Runs all, for `cargo xtask test`.
pub(crate) fn run_tier() -> Result<TestTally> {
    let programs = ScenarioPrograms::build()?;
    let mut lab = guests::open_lab(Freshness::Cached)?;
    let mut jobs = Vec::new();
    for case in &CASES {
        let mut kernels = kernel::resolve_kernels(&[case.kernel.to_owned()])?;
        let kernel = lab.prepare_kernel(kernels.pop().context("no kernel")?)?;
        if let Some(layer) = case.layer_needed()? {
            lab.prepare_layer(layer)?;
        }
        jobs.push((case, kernel));
    }
    let tallies = guests::run_side_by_side(jobs, |(case, kernel)| {
        let name = format!("{} on {}, init {:?}", case.script, case.kernel, case.init);
        match run_case(&lab, &kernel, &programs, case) {
            Ok(()) => {
                println!("service: {name} ... ok");
                TestTally::PASSED
            }
            Err(error) => {
                println!("service: {name} ... FAILED: {error:#}");
                TestTally::FAILED
            }
        }
    });
    let mut tally = TestTally::default();
    tallies.into_iter().for_each(|one| tally += one);
    Ok(tally)
}

impl ServiceCase {
    /// Programs that it needs beside those of the image.
    fn layer_needed(&self) -> Result<Option<&'static Layer>> {
        match self.init {
            Init::Docker => guests::layer_named("docker").map(Some),
            Init::Small | Init::Systemd | Init::Enabled => Ok(None),
        }
    }
}

fn run_case(
    lab: &Lab,
    kernel: &Kernel,
    programs: &ScenarioPrograms,
    case: &ServiceCase,
) -> Result<()> {
    let script = format!("/job/{}", case.script);
    let mut files = vec![
        guest_file(&programs.scripts.join(case.script), &script)?,
        guest_file(&programs.actor, "/job/cookie-actor")?,
    ];
    let systemd = matches!(case.init, Init::Systemd | Init::Enabled);
    let mut packaged = Vec::new();
    if systemd {
        packaged.push(("dmtrace.service", "/etc/systemd/system/dmtrace.service"));
        packaged.push(("dmtrace.tmpfiles.conf", "/usr/lib/tmpfiles.d/dmtrace.conf"));
    }
    let wants = tempfile::tempdir()?;
    if case.init == Init::Enabled {
        // What `systemctl enable` leaves.
        symlink("../dmtrace.service", wants.path().join("dmtrace.service"))?;
        let folder = "/etc/systemd/system/sysinit.target.wants";
        files.push(guest_file(wants.path(), folder)?);
    }
    let layer = case.layer_needed()?;
    if layer.is_some() {
        packaged.push(("Dockerfile", "/image/Dockerfile"));
        packaged.push(("kubernetes.yaml", "/job/kubernetes.yaml"));
        files.push(guest_file(&programs.dmtrace, "/image/dmtrace")?);
    } else {
        files.push(guest_file(&programs.dmtrace, "/usr/sbin/dmtrace")?);
    }
    let packaging = host::workspace_root().join("packaging");
    for (name, guest) in packaged {
        files.push(guest_file(&packaging.join(name), guest)?);
    }
    let outcome = lab.run(
        kernel,
        &RunSpec {
            argv: vec!["sh".to_owned(), script],
            files,
            systemd,
            layer,
            timeout: Duration::from_secs(600),
            streams: Streams::Capture,
            ..RunSpec::default()
        },
    )?;
    if outcome.exit_code() != 0 {
        let said = [&outcome.stdout, &outcome.stderr].map(|text| String::from_utf8_lossy(text));
        bail!(
            "{}\n{}{}{}",
            outcome.summary(),
            said[0],
            said[1],
            outcome.splats.join("\n")
        );
    }
    Ok(())
}
