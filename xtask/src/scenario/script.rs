//! The files of `tests/vm/scenarios`: a shell script with a header of `# field: text` lines.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};
use kernel_lab::{GuestClock, Layer, kernel::MATRIX};

use super::{programs::ExtraProgram, table::ScenarioCell};
use crate::guests;

#[derive(Debug)]
pub(super) struct Scenario {
    /// Its name: that of its file.
    pub name: String,
    /// What it does, in a sentence.
    pub what: String,
    /// What dmtrace must say of it, in words. The script has it exactly.
    pub expect: String,
    /// Kernels that it can run on; empty for all.
    kernels: Vec<String>,
    /// Why not on the others.
    unfit_because: String,
    /// Backends that it is run with beside the one that dmtrace chooses.
    variants: Vec<String>,
    /// Words of `own`, `systemd` and `virtual-clock`: a boot of its own.
    boot: Vec<String>,
    /// What it needs beside the root image; then it has a boot of its own, too.
    layer: Option<&'static Layer>,
    /// Its outcome rests on what the probes see, which differs from kernel to kernel; that of others
    /// rests on programs, which are the same on each.
    pub about_probes: bool,
    /// Programs that it needs beside those that all have.
    pub programs: Vec<ExtraProgram>,
    /// Seconds.
    limit: u64,
}

/// Seconds for a scenario that says nothing else; tests/vm/run.sh has the same number.
const LIMIT: u64 = 120;

/// All scenarios of a directory, by name.
pub(super) fn load_scenarios(dir: &Path) -> Result<Vec<Scenario>> {
    let mut scenarios = Vec::new();
    let entries = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    for entry in entries {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if let Some(name) = name.strip_suffix(".sh") {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            scenarios
                .push(Scenario::parse(name, &text).with_context(|| path.display().to_string())?);
        }
    }
    scenarios.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(scenarios)
}

/// Those that are asked for; all if none is.
pub(super) fn choose_scenarios<'a>(
    all: &'a [Scenario],
    names: &[String],
) -> Result<Vec<&'a Scenario>> {
    let asked = |name: &str, wanted: &str| match wanted.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == wanted,
    };
    for wanted in names {
        if !all.iter().any(|scenario| asked(&scenario.name, wanted)) {
            bail!("scenario {wanted}: there is none; see cargo xtask vm --suite --list");
        }
    }
    let wanted = |scenario: &&Scenario| {
        names.is_empty() || names.iter().any(|name| asked(&scenario.name, name))
    };
    Ok(all.iter().filter(wanted).collect())
}

/// Scenarios with what they do.
pub(super) fn list_text(scenarios: &[&Scenario]) -> String {
    let width = scenarios.iter().map(|it| it.name.len()).max().unwrap_or(0);
    let lines = scenarios.iter().map(|it| {
        let Scenario {
            name, what, expect, ..
        } = it;
        format!("{name:width$}  {what}\n{:width$}  -> {expect}\n", "")
    });
    lines.collect()
}

/// Scenarios of one boot, each with its row.
pub(super) type Entries<'a> = [(&'a Scenario, String)];

/// Rows in one boot, about: a guest that dies takes no more with it.
const IN_A_BOOT: usize = 12;

/// What is to be run on a kernel, by boots: the modest scenarios together, the others alone.
pub(super) fn plan_boots<'a>(
    scenarios: &[&'a Scenario],
    kernel: &str,
) -> Vec<Vec<(&'a Scenario, String)>> {
    let fitting = scenarios
        .iter()
        .filter(|it| it.unfit_reason(kernel).is_none());
    let (own, shared): (Vec<&Scenario>, Vec<&Scenario>) = fitting.partition(|it| it.own_boot());
    let rows = |it: &&'a Scenario| -> Vec<(&'a Scenario, String)> {
        it.table_entries()
            .into_iter()
            .map(|entry| (*it, entry))
            .collect()
    };
    let shared: Vec<_> = shared.iter().flat_map(rows).collect();
    let count = shared.len().div_ceil(IN_A_BOOT).max(1);
    let mut boots: Vec<Vec<_>> = own.iter().flat_map(rows).map(|row| vec![row]).collect();
    let size = shared.len().div_ceil(count).max(1);
    boots.extend(shared.chunks(size).map(<[_]>::to_vec));
    boots
}

/// What cannot run on a kernel.
pub(super) fn unfit_cells(scenarios: &[&Scenario], kernel: &str) -> Vec<(String, ScenarioCell)> {
    let mut cells = Vec::new();
    for scenario in scenarios {
        if let Some(reason) = scenario.unfit_reason(kernel) {
            let skipped = |entry| (entry, ScenarioCell::Skipped(reason.clone()));
            cells.extend(scenario.table_entries().into_iter().map(skipped));
        }
    }
    cells
}

/// All rows of scenarios with the same outcome, such as of a kernel that could not be had.
pub(super) fn same_cells(
    scenarios: &[&Scenario],
    cell: &ScenarioCell,
) -> Vec<(String, ScenarioCell)> {
    let entries = scenarios
        .iter()
        .flat_map(|scenario| scenario.table_entries());
    entries.map(|entry| (entry, cell.clone())).collect()
}

impl Scenario {
    fn parse(name: &str, text: &str) -> Result<Self> {
        let mut scenario = Self {
            name: name.to_owned(),
            what: String::new(),
            expect: String::new(),
            kernels: Vec::new(),
            unfit_because: String::new(),
            variants: Vec::new(),
            boot: Vec::new(),
            layer: None,
            about_probes: false,
            programs: Vec::new(),
            limit: LIMIT,
        };
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        for line in text.lines().map_while(|line| line.strip_prefix("# ")) {
            let Some((field, value)) = line.split_once(": ") else {
                bail!("header: {line:?} is no `field: text`");
            };
            match field {
                "what" => scenario.what = value.to_owned(),
                "expect" => scenario.expect = value.to_owned(),
                "kernels" => scenario.kernels = words(value),
                "because" => scenario.unfit_because = value.to_owned(),
                "variants" => scenario.variants = words(value),
                "boot" => scenario.boot = words(value),
                "with" => scenario.layer = Some(guests::layer_named(value).context("header")?),
                "probes" if value == "yes" => scenario.about_probes = true,
                "programs" => {
                    let programs = words(value).into_iter().map(|word| word.parse());
                    scenario.programs = programs
                        .collect::<Result<_>>()
                        .context("header: programs")?;
                }
                "limit" => scenario.limit = value.parse().context("header: limit")?,
                _ => bail!("header: {field:?} is unknown"),
            }
        }
        if scenario.what.is_empty() || scenario.expect.is_empty() {
            bail!("header: `what` and `expect` are missing");
        }
        let known = |kernel: &String| MATRIX.iter().any(|spec| spec.name == kernel);
        if let Some(kernel) = scenario.kernels.iter().find(|kernel| !known(kernel)) {
            bail!("header: kernel {kernel} is not in the matrix");
        }
        let known = |word: &&String| matches!(word.as_str(), "own" | "systemd" | "virtual-clock");
        if let Some(word) = scenario.boot.iter().find(|word| !known(word)) {
            bail!("header: boot {word:?}; use own, systemd or virtual-clock");
        }
        Ok(scenario)
    }

    /// Its rows in the table: itself, and itself with each other backend.
    pub(super) fn table_entries(&self) -> Vec<String> {
        let variants = self.variants.iter().map(|it| format!("{}@{it}", self.name));
        std::iter::once(self.name.clone()).chain(variants).collect()
    }

    /// Why it cannot run on a kernel.
    pub(super) fn unfit_reason(&self, kernel: &str) -> Option<String> {
        let fits = self.kernels.is_empty() || self.kernels.iter().any(|fit| fit == kernel);
        (!fits).then(|| match self.unfit_because.as_str() {
            "" => format!("only for {}", self.kernels.join(", ")),
            because => because.to_owned(),
        })
    }

    /// Whether it needs a boot of its own.
    pub(super) fn own_boot(&self) -> bool {
        !self.boot.is_empty() || self.layer.is_some()
    }

    /// Whether it needs a whole systemd.
    pub(super) fn needs_systemd(&self) -> bool {
        self.boot.iter().any(|word| word == "systemd")
    }

    /// What makes its guest's clock go.
    pub(super) fn guest_clock(&self) -> GuestClock {
        match self.boot.iter().any(|word| word == "virtual-clock") {
            true => GuestClock::Instructions,
            false => GuestClock::Host,
        }
    }

    /// What is to be laid over the root image.
    pub(super) const fn layer_needed(&self) -> Option<&'static Layer> {
        self.layer
    }

    /// Its time limit in seconds.
    pub(super) const fn limit_seconds(&self) -> u64 {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_a_good_header() {
        let all =
            load_scenarios(&crate::host::workspace_root().join("tests/vm/scenarios")).unwrap();
        assert!(all.len() > 8);
        assert_eq!(
            choose_scenarios(&all, &["healthy-lvm".to_owned()])
                .unwrap()
                .len(),
            1
        );
        assert!(
            choose_scenarios(&all, &["healthy-*".to_owned()])
                .unwrap()
                .len()
                > 2
        );
        assert!(choose_scenarios(&all, &["no".to_owned()]).is_err());
    }

    #[test]
    fn headers_are_checked() {
        let text = "# what: a\n# expect: b\n# variants: kprobe\n# boot: own\n# limit: 7\n\n# x\n";
        let scenario = Scenario::parse("n", text).unwrap();
        assert_eq!(scenario.table_entries(), ["n", "n@kprobe"]);
        assert!(scenario.own_boot() && !scenario.needs_systemd() && scenario.limit_seconds() == 7);
        let docker = Scenario::parse("n", "# what: a\n# expect: b\n# with: docker\n").unwrap();
        assert!(docker.own_boot() && docker.layer_needed().is_some());
        assert!(Scenario::parse("n", "# what: a\n# expect: b\n# with: no\n").is_err());
        let both = "# what: a\n# expect: b\n# boot: systemd virtual-clock\n";
        let both = Scenario::parse("n", both).unwrap();
        assert!(both.own_boot() && both.needs_systemd());
        assert!(matches!(both.guest_clock(), GuestClock::Instructions));
        assert!(Scenario::parse("n", "# what: a\n# expect: b\n# boot: systemd x\n").is_err());
        assert!(Scenario::parse("n", "# what: a\n").is_err());
        assert!(Scenario::parse("n", "# what: a\n# expect: b\n# kernels: 1.0\n").is_err());
        assert!(Scenario::parse("n", "# what: a\n# expect: b\n# other: b\n").is_err());
    }
}
