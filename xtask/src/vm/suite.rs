//! `cargo xtask vm --suite`: the scenarios of `tests/vm/scenarios` on real kernels.
//!
//! A boot runs many scenarios one after the other; the guest only does things and keeps what
//! dmtrace says, the judgement is made here.

mod docs;
mod expect;
mod fields;
mod programs;
mod scenario;
mod table;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use self::{
    programs::Programs,
    scenario::Scenario,
    table::{Cell, Table},
};
use super::{
    End, Kernel, Lab, Outcome, RunSpec, Streams,
    guest::FileSpec,
    kernel::{self, Spec},
    say,
};
use crate::{host, tally::Tally};

/// Kernels of `cargo xtask test`: the oldest and a recent one.
const USUAL: [&str; 2] = ["5.10", "6.12"];

/// Options of `--suite`.
#[derive(clap::Args)]
pub struct SuiteArgs {
    /// Run the scenario suite instead of a command; without --kernel on 5.10 and 6.12
    #[arg(long, conflicts_with_all = ["command", "prepare", "files", "env", "out"])]
    pub suite: bool,
    /// Only this scenario, or those that begin so if it ends in a star; repeatable
    #[arg(long = "scenario", value_name = "NAME", requires = "suite", value_delimiter = ',', num_args = 1..)]
    scenarios: Vec<String>,
    /// Write the table to docs/compatibility.md
    #[arg(long, requires = "suite")]
    write_docs: bool,
    /// Show what each failed scenario left
    #[arg(long, requires = "suite")]
    logs: bool,
}

/// The suite as the command line asks for it; returns an exit code.
pub fn main(args: &SuiteArgs, kernels: &[String], list: bool, refresh: bool) -> Result<i32> {
    let all = scenario::load(&host::root().join("tests/vm/scenarios"))?;
    let chosen = scenario::choose(&all, &args.scenarios)?;
    if list {
        print!("{}", scenario::list(&chosen));
        return Ok(0);
    }
    let specs = match kernels {
        [] => kernel::resolve(&USUAL.map(str::to_owned))?,
        names => kernel::resolve(names)?,
    };
    let (table, seconds) = run(&chosen, &specs, refresh, args.logs)?;
    if args.write_docs {
        docs::write(&all, &table, seconds)?;
    }
    println!("{}", table.tally());
    Ok(i32::from(table.tally().failed > 0))
}

/// The suite as a tier of `cargo xtask test`.
pub fn tier() -> Result<Tally> {
    let all = scenario::load(&host::root().join("tests/vm/scenarios"))?;
    let chosen: Vec<&Scenario> = all.iter().collect();
    let specs = kernel::resolve(&USUAL.map(str::to_owned))?;
    Ok(run(&chosen, &specs, false, true)?.0.tally())
}

/// Runs scenarios on kernels, two guests at a time, and prints the table.
fn run(
    scenarios: &[&Scenario],
    specs: &[&Spec],
    refresh: bool,
    logs: bool,
) -> Result<(Table, u64)> {
    let programs = Programs::build()?;
    let mut lab = Lab::open(refresh)?;
    let kernels: Vec<(&Spec, Result<Kernel>)> = specs
        .iter()
        .map(|spec| (*spec, lab.prepare(spec)))
        .collect();
    let begun = std::time::Instant::now();
    let queue = Mutex::new(kernels.into_iter().enumerate().collect::<Vec<_>>());
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let next = queue
                        .lock()
                        .ok()
                        .and_then(|mut queue| (!queue.is_empty()).then(|| queue.remove(0)));
                    let Some((place, (spec, kernel))) = next else {
                        return;
                    };
                    let column = match kernel {
                        Ok(kernel) => on_kernel(&lab, &kernel, scenarios, &programs),
                        Err(error) => scenario::nothing(scenarios, &format!("{error:#}")),
                    };
                    if let Ok(mut done) = done.lock() {
                        done.push((place, spec.name.to_owned(), column));
                    }
                }
            });
        }
    });
    let mut columns = done.into_inner().unwrap_or_default();
    columns.sort_by_key(|(place, ..)| *place);
    let table = Table::new(
        columns
            .into_iter()
            .map(|(_, name, cells)| (name, cells))
            .collect(),
    );
    print!("{}", table.text());
    for (kernel, entry, cell) in table.failures() {
        if let Cell::Failed(why) = cell {
            println!("\nFAIL {entry} on {kernel}:");
            why.iter().for_each(|line| println!("  {line}"));
            if logs {
                print_log(kernel, entry);
            }
        }
    }
    Ok((table, begun.elapsed().as_secs()))
}

fn print_log(kernel: &str, entry: &str) {
    let path = results(kernel).join(entry).join("log");
    for line in fs::read_to_string(&path).unwrap_or_default().lines() {
        println!("  | {line}");
    }
}

/// Where the artefacts of the last run are kept.
fn results(kernel: &str) -> PathBuf {
    host::target_dir()
        .unwrap_or_default()
        .join("vm-suite")
        .join(kernel)
}

/// All scenarios on one kernel: the modest in one boot, the others in one each.
fn on_kernel(
    lab: &Lab,
    kernel: &Kernel,
    scenarios: &[&Scenario],
    programs: &Programs,
) -> Vec<(String, Cell)> {
    let mut cells = Vec::new();
    let mut shared: Vec<(&Scenario, String)> = Vec::new();
    for scenario in scenarios {
        for entry in scenario.entries() {
            if let Some(reason) = scenario.unfit(&kernel.name) {
                cells.push((entry, Cell::Skipped(reason)));
            } else if scenario.own_boot() {
                cells.extend(boot(lab, kernel, &[(scenario, entry)], programs));
            } else {
                shared.push((scenario, entry));
            }
        }
    }
    if !shared.is_empty() {
        cells.extend(boot(lab, kernel, &shared, programs));
    }
    let order: Vec<String> = scenarios
        .iter()
        .flat_map(|scenario| scenario.entries())
        .collect();
    cells.sort_by_key(|(entry, _)| order.iter().position(|known| known == entry));
    cells
}

/// Some scenarios in one boot.
fn boot(
    lab: &Lab,
    kernel: &Kernel,
    entries: &[(&Scenario, String)],
    programs: &Programs,
) -> Vec<(String, Cell)> {
    match try_boot(lab, kernel, entries, programs) {
        Ok(outcome) => {
            if let Some(line) = outcome.splats.first() {
                return failed(entries, &format!("the kernel complained: {line}"));
            }
            let dir = results(&kernel.name);
            let after = match &outcome.end {
                End::Exited(0) => None,
                End::Exited(code) => Some(format!("the guest's runner ended with {code}")),
                End::TimedOut => Some("the guest ran out of time".to_owned()),
                End::Lab(why) => Some(format!("the guest failed: {why}")),
            };
            entries
                .iter()
                .map(|(_, entry)| {
                    let cell = expect::judge(&dir.join(entry), after.as_deref());
                    (entry.clone(), cell)
                })
                .collect()
        }
        Err(error) => failed(entries, &format!("{error:#}")),
    }
}

fn failed(entries: &[(&Scenario, String)], why: &str) -> Vec<(String, Cell)> {
    entries
        .iter()
        .map(|(_, entry)| (entry.clone(), Cell::Failed(vec![why.to_owned()])))
        .collect()
}

fn try_boot(
    lab: &Lab,
    kernel: &Kernel,
    entries: &[(&Scenario, String)],
    programs: &Programs,
) -> Result<Outcome> {
    let out = results(&kernel.name);
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
        .map(|(scenario, _)| scenario.limit() + 30)
        .sum();
    let outcome = lab.run_one(
        kernel,
        &RunSpec {
            argv,
            files: files(programs)?,
            out: Some(out),
            timeout: Duration::from_secs(limit),
            systemd: entries.iter().any(|(scenario, _)| scenario.systemd()),
            streams: Streams::Capture,
            ..RunSpec::default()
        },
    )?;
    let text = String::from_utf8_lossy(&outcome.stderr);
    for line in text.lines() {
        say(&format!("kernel {}: {line}", kernel.name));
    }
    if !matches!(outcome.end, End::Exited(0)) {
        let done = String::from_utf8_lossy(&outcome.stdout).into_owned();
        let last = done.lines().last().unwrap_or("none");
        let summary = outcome.summary();
        say(&format!(
            "kernel {}: {summary}; last scenario done: {last}",
            kernel.name
        ));
    }
    Ok(outcome)
}

/// What the guest needs.
fn files(programs: &Programs) -> Result<Vec<FileSpec>> {
    let spec = |host: &Path, guest: &str| format!("{}:{guest}", host.display()).parse::<FileSpec>();
    let mut files = vec![
        spec(&host::root().join("tests/vm"), "/job/suite")?,
        spec(&programs.dmtrace, "/job/dmtrace")?,
        spec(&programs.actor, "/job/cookie-actor")?,
    ];
    if let Some(actor32) = &programs.actor32 {
        files.push(spec(actor32, "/job/cookie-actor32")?);
    }
    Ok(files)
}
