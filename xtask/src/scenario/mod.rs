//! `cargo xtask vm --suite`: the scenarios of `tests/vm/scenarios` on real kernels.
//!
//! A boot runs many scenarios one after the other; the guest only does things and keeps what
//! dmtrace says, the judgement is made here.

mod answers;
mod consistency;
mod docs;
mod expect;
mod expectation;
mod explain;
mod fields;
mod kept;
mod lives;
pub(crate) mod programs;
mod script;
pub(crate) mod service;
pub(crate) mod stepper;
pub(crate) mod storm;
mod suspects;
mod table;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use kernel_lab::{
    FileSpec, Freshness, GuestClock, Kernel, Lab, RunEnd, RunOutcome, RunSpec, Streams,
    kernel::{self, KernelSpec},
};

use self::{
    kept::{program_fingerprint, results_dir},
    programs::{ExtraProgram, ScenarioPrograms},
    script::{Entries, Scenario},
    table::{ScenarioCell, ScenarioTable},
};
use crate::{
    guests::{self, print_note},
    host,
    tally::TestTally,
};

/// Kernels that the tiers of `cargo xtask test` boot.
pub(crate) const TIER_KERNELS: [&str; 3] = ["5.10", "6.1", "6.12"];

/// Kernels of the suite in `cargo xtask test`: the oldest and a recent one.
const USUAL: [&str; 2] = ["5.10", "6.12"];

/// Options of `--suite`.
#[derive(clap::Args)]
pub(crate) struct SuiteArgs {
    /// Run the scenario suite instead of a command; without --kernel on 5.10 and 6.12
    #[arg(long, conflicts_with_all = ["command", "prepare", "files", "env", "out"])]
    pub suite: bool,
    /// Only this scenario, or those that begin so if it ends in a star; repeatable
    #[arg(long = "scenario", value_name = "NAME", requires = "suite", value_delimiter = ',', num_args = 1..)]
    scenarios: Vec<String>,
    /// Write the table to docs/compatibility.md, with the outcomes of former runs of the same
    /// dmtrace for what was not run now
    #[arg(long, requires = "suite")]
    write_docs: bool,
    /// Show what each failed scenario left
    #[arg(long, requires = "suite")]
    logs: bool,
}

/// The suite as the command line asks for it; returns an exit code.
pub(crate) fn main(
    args: &SuiteArgs,
    kernels: &[String],
    list: bool,
    freshness: Freshness,
) -> Result<i32> {
    let all = script::load_scenarios(&host::workspace_root().join("tests/vm/scenarios"))?;
    let chosen = script::choose_scenarios(&all, &args.scenarios)?;
    if list {
        print!("{}", script::list_text(&chosen));
        return Ok(0);
    }
    let specs = match kernels {
        [] => kernel::resolve_kernels(&USUAL.map(str::to_owned))?,
        names => kernel::resolve_kernels(names)?,
    };
    let programs = ScenarioPrograms::build_with(&ExtraProgram::needed_by(&chosen, &specs))?;
    let table = run_scenarios(
        &chosen,
        &specs,
        Extent::All,
        freshness,
        args.logs,
        &programs,
    )?;
    if args.write_docs {
        let program = program_fingerprint(&programs.dmtrace)?;
        docs::write_table(&all, &kept::complete_table(&all, &table, &program))?;
    }
    println!("{}", table.to_tally());
    Ok(i32::from(table.to_tally().failed > 0))
}

/// Why the tier cannot run on this machine.
pub(crate) fn unavailable_reason() -> Option<String> {
    if !host::has_program("apt-get") {
        return Some(
            "needs Debian: the lab takes kernels and programs from its packages".to_owned(),
        );
    }
    let has_image = || guests::inspect_lab().is_ok_and(|lab| lab.has_image());
    (!host::is_root() && !has_image())
        .then(|| format!("needs root once: run as root: {}", guests::PREPARE))
}

/// Which scenarios a kernel gets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Extent {
    /// All that can run on it.
    All,
    /// On the oldest kernel only those whose outcome rests on what the probes see: the programs of the
    /// others are the same on each kernel.
    ProbesOnOldest,
}

/// The suite as a tier of `cargo xtask test`.
pub(crate) fn run_tier() -> Result<TestTally> {
    let all = script::load_scenarios(&host::workspace_root().join("tests/vm/scenarios"))?;
    let chosen: Vec<&Scenario> = all.iter().collect();
    let specs = kernel::resolve_kernels(&USUAL.map(str::to_owned))?;
    Ok(run_scenarios(
        &chosen,
        &specs,
        Extent::ProbesOnOldest,
        Freshness::Cached,
        true,
        &ScenarioPrograms::build_with(&ExtraProgram::needed_by(&chosen, &specs))?,
    )?
    .to_tally())
}

/// Runs scenarios on kernels and prints the table.
fn run_scenarios(
    scenarios: &[&Scenario],
    specs: &[&KernelSpec],
    extent: Extent,
    freshness: Freshness,
    logs: bool,
    programs: &ScenarioPrograms,
) -> Result<ScenarioTable> {
    let mut lab = guests::open_lab(freshness)?;
    let kernels: Vec<(&KernelSpec, Result<Kernel>)> = specs
        .iter()
        .map(|spec| (*spec, lab.prepare_kernel(spec)))
        .collect();
    for layer in scenarios.iter().filter_map(|it| it.layer_needed()) {
        // Those that need it fail, the others run.
        if let Err(error) = lab.prepare_layer(layer) {
            print_note(&format!("{error:#}"));
        }
    }
    let program = program_fingerprint(&programs.dmtrace)?;
    let mut columns: Vec<(String, Vec<(String, ScenarioCell)>)> = Vec::new();
    let mut queue = Vec::new();
    for (column, (spec, kernel)) in kernels.iter().enumerate() {
        let mut cells = Vec::new();
        match kernel {
            Ok(kernel) => {
                let narrow = extent == Extent::ProbesOnOldest && spec.name == USUAL[0];
                let (chosen, left_out): (Vec<&Scenario>, Vec<&Scenario>) = scenarios
                    .iter()
                    .partition(|scenario| !narrow || scenario.about_probes);
                let why = "rests on programs, not on the kernel: cargo xtask vm --suite";
                let skipped = ScenarioCell::Skipped(why.to_owned());
                cells.extend(script::same_cells(&left_out, &skipped));
                cells.extend(script::unfit_cells(&chosen, spec.name));
                let boots = script::plan_boots(&chosen, spec.name).into_iter();
                queue.extend(boots.map(|entries| (column, kernel, entries)));
            }
            Err(error) => {
                let failed = ScenarioCell::Failed(vec![format!("{error:#}")]);
                cells.extend(script::same_cells(scenarios, &failed));
            }
        }
        columns.push((spec.name.to_owned(), cells));
    }
    let booted = guests::run_side_by_side(queue, |(column, kernel, entries)| {
        let begun = Instant::now();
        let cells = boot_guest(&lab, kernel, &entries, programs);
        print_progress(&kernel.name, &cells, begun.elapsed());
        (column, cells)
    });
    for (column, cells) in booted {
        if let Some((kernel, all)) = columns.get_mut(column) {
            kept::save_cells(kernel, &cells, &program);
            all.extend(cells);
        }
    }
    let order: Vec<String> = scenarios.iter().flat_map(|it| it.table_entries()).collect();
    for (_, cells) in &mut columns {
        cells.sort_by_key(|(entry, _)| order.iter().position(|known| known == entry));
    }
    let table = ScenarioTable::new(columns);
    print!("{}", table.to_text());
    for (kernel, entry, cell) in table.failed_cells() {
        if let ScenarioCell::Failed(why) = cell {
            println!("\nFAIL {entry} on {kernel}:");
            why.iter().for_each(|line| println!("  {line}"));
            if logs {
                print_log(kernel, entry);
            }
        }
    }
    Ok(table)
}

/// Tells how a boot went: a whole suite takes minutes.
fn print_progress(kernel: &str, cells: &[(String, ScenarioCell)], time: Duration) {
    let passed = cells
        .iter()
        .filter(|(_, cell)| *cell == ScenarioCell::Passed);
    let failed: Vec<&str> = cells
        .iter()
        .filter(|(_, cell)| matches!(cell, ScenarioCell::Failed(_)))
        .map(|(entry, _)| entry.as_str())
        .collect();
    let failed = match failed.as_slice() {
        [] => String::new(),
        names => format!("; failed: {}", names.join(", ")),
    };
    print_note(&format!(
        "kernel {kernel}: {} of {} passed in {} s{failed}",
        passed.count(),
        cells.len(),
        time.as_secs()
    ));
}

fn print_log(kernel: &str, entry: &str) {
    let path = results_dir(kernel).join(entry).join("log");
    for line in fs::read_to_string(&path).unwrap_or_default().lines() {
        println!("  | {line}");
    }
}

/// Some scenarios in one boot.
fn boot_guest(
    lab: &Lab,
    kernel: &Kernel,
    entries: &Entries<'_>,
    programs: &ScenarioPrograms,
) -> Vec<(String, ScenarioCell)> {
    match try_boot(lab, kernel, entries, programs) {
        Ok(outcome) => {
            if let Some(line) = outcome.splats.first() {
                return failed_cells(entries, &format!("the kernel complained: {line}"));
            }
            let dir = results_dir(&kernel.name);
            let after = match &outcome.end {
                RunEnd::Exited(0) => None,
                RunEnd::Exited(code) => Some(format!("the guest's runner ended with {code}")),
                RunEnd::TimedOut => Some("the guest ran out of time".to_owned()),
                RunEnd::LabFailed(why) => Some(format!("the guest failed: {why}")),
            };
            entries
                .iter()
                .map(|(_, entry)| {
                    let cell = expect::judge_scenario(&dir.join(entry), after.as_deref());
                    (entry.clone(), cell)
                })
                .collect()
        }
        Err(error) => failed_cells(entries, &format!("{error:#}")),
    }
}

fn failed_cells(entries: &Entries<'_>, why: &str) -> Vec<(String, ScenarioCell)> {
    entries
        .iter()
        .map(|(_, entry)| (entry.clone(), ScenarioCell::Failed(vec![why.to_owned()])))
        .collect()
}

fn try_boot(
    lab: &Lab,
    kernel: &Kernel,
    entries: &Entries<'_>,
    programs: &ScenarioPrograms,
) -> Result<RunOutcome> {
    let out = results_dir(&kernel.name);
    for (_, entry) in entries {
        let dir = out.join(entry);
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
        }
    }
    let mut argv = vec!["sh".to_owned(), "/job/suite/run.sh".to_owned()];
    argv.extend(entries.iter().map(|(_, entry)| entry.clone()));
    // The limit of each, and what cleaning up may take.
    let limit: u64 = entries
        .iter()
        .map(|(scenario, _)| scenario.limit_seconds() + 30)
        .sum();
    let clock = entries
        .first()
        .map_or(GuestClock::Host, |(scenario, _)| scenario.guest_clock());
    let cpus = match clock {
        GuestClock::Host => RunSpec::default().cpus,
        GuestClock::Instructions => 1,
    };
    let outcome = lab.run(
        kernel,
        &RunSpec {
            argv,
            files: guest_files(programs)?,
            out: Some(out),
            timeout: Duration::from_secs(limit),
            systemd: entries.iter().any(|(scenario, _)| scenario.needs_systemd()),
            layer: entries
                .iter()
                .find_map(|(scenario, _)| scenario.layer_needed()),
            clock,
            cpus,
            streams: Streams::Capture,
            ..RunSpec::default()
        },
    )?;
    let text = String::from_utf8_lossy(&outcome.stderr);
    for line in text.lines() {
        print_note(&format!("kernel {}: {line}", kernel.name));
    }
    if !matches!(outcome.end, RunEnd::Exited(0)) {
        let done = String::from_utf8_lossy(&outcome.stdout).into_owned();
        let last = done.lines().last().unwrap_or("none");
        let summary = outcome.summary();
        print_note(&format!(
            "kernel {}: {summary}; last scenario done: {last}",
            kernel.name
        ));
    }
    Ok(outcome)
}

/// What the guest needs.
fn guest_files(programs: &ScenarioPrograms) -> Result<Vec<FileSpec>> {
    let spec = |host: &Path, guest: &str| format!("{}:{guest}", host.display()).parse::<FileSpec>();
    let mut files = vec![
        spec(&programs.scripts, "/job/suite")?,
        spec(&programs.dmtrace, "/job/dmtrace")?,
        spec(&programs.actor, "/job/cookie-actor")?,
    ];
    if let Some(stepper) = &programs.stepper {
        files.push(spec(stepper, "/job/cookie-stepper")?);
    }
    if let Some(actor32) = &programs.actor32 {
        files.push(spec(actor32, "/job/cookie-actor32")?);
    }
    if let Some(xtask) = &programs.xtask {
        files.push(spec(xtask, "/job/xtask")?);
    }
    Ok(files)
}
