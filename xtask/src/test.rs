//! Runs the tests of all tiers and adds up what their runners report.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{
    build::{self, Profile},
    guests, host, lint, scenario, setup,
    tally::TestTally,
};

/// A tier that takes longer hangs. coreutils' `timeout` ends it.
const TIER_SECONDS: &str = "1500";

/// The tier that traces this kernel, and with it whatever else happens on it.
const LIVE: &str = "live";

/// The tier whose tests run programs of others on what `packaging/` has.
const PACKAGING: &str = "packaging";

/// Runs the tests of a tier.
type Tier = fn() -> Result<TestTally>;

/// What runs on real kernels in QEMU. The first name stands for all.
const GUESTS: [(&str, Tier); 3] = [
    ("vm", scenario::run_tier),
    ("storm", scenario::storm::run_tier),
    ("service", scenario::service::run_tier),
];

/// The tiers in their order; others that tests/Cargo.toml has come before `live`.
const ORDER: [&str; 4] = ["harness", "host", "cli", "replay"];

/// `cargo xtask test`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// One tier: lint, unit, a test target of tests/ such as host or live, or vm, which has the
    /// tiers storm and service with it
    #[arg(long, default_value = "all")]
    tier: String,
    /// Without the scenarios on real kernels, which boot in QEMU and take most of the time
    #[arg(long)]
    no_vm: bool,
}

/// Runs the tests; the last line it prints is their sum.
///
/// # Errors
/// No test could be started.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let targets = test_targets()?;
    let wanted = |tier: &str| args.tier == "all" || args.tier == tier;
    let black_box: Vec<_> = targets.iter().filter(|name| wanted(name)).collect();
    let guests: Vec<_> = GUESTS
        .iter()
        .filter(|(name, _)| wanted(name) || wanted(GUESTS[0].0))
        .collect();
    if !wanted("lint") && !wanted("unit") && guests.is_empty() && black_box.is_empty() {
        bail!(
            "--tier {}: no such tier; use lint, unit, {}, {} or all",
            args.tier,
            targets.join(", "),
            GUESTS.map(|(name, _)| name).join(", ")
        );
    }
    setup::ensure_setup()?;
    let no_guests = match args.no_vm {
        true => Some("asked for (--no-vm)".to_owned()),
        false => scenario::unavailable_reason(),
    };
    let preparation = match &no_guests {
        None if !guests.is_empty() && !black_box.is_empty() => prepare_guests(),
        _ => None,
    };
    let mut tally = TestTally::default();
    if wanted("lint") {
        tally += lint::run_checks();
    }
    if wanted("unit") {
        tally += run_timed("unit", run_unit);
    }
    if !black_box.is_empty() {
        let built = timed_build();
        wait_for_guests(preparation);
        match built {
            Ok(built) => {
                for tier in black_box {
                    tally += run_timed(tier, || built.run_tier(tier));
                }
            }
            Err(error) => {
                println!("build: {error:#}");
                tally += TestTally::FAILED;
            }
        }
    }
    if !guests.is_empty() {
        if let Some(why) = no_guests {
            println!("\n== vm\nSKIPPED: {why}");
            tally.skipped += 1;
        } else {
            for (name, run) in guests {
                tally += run_timed(name, run);
            }
        }
    }

    println!("\n{tally}");
    Ok(if tally.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Fetches what guests are made of while programs are built: the one waits for the network, the
/// other for processors. Nothing is tested meanwhile but what needs no kernel. The tiers fetch what
/// this could not, and say why that fails.
fn prepare_guests() -> Option<Child> {
    let mut command = Command::new(env::current_exe().ok()?);
    command.args([
        "vm",
        "--prepare",
        "--kernel",
        &scenario::TIER_KERNELS.join(","),
    ]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().ok()
}

fn wait_for_guests(preparation: Option<Child>) {
    if let Some(mut child) = preparation {
        let _the_tier_says_it = child.wait();
    }
}

/// Runs a tier between two lines that tell its name, its sum and its time. One that broke off
/// counts as failed.
fn run_timed(tier: &str, run: impl FnOnce() -> Result<TestTally>) -> TestTally {
    println!("\n== {tier}");
    let start = Instant::now();
    let tally = run().unwrap_or_else(|error| {
        println!("{tier}: {error:#}");
        TestTally::FAILED
    });
    println!("-- {tier}: {tally}, {:.1} s", start.elapsed().as_secs_f64());
    tally
}

/// What stands beside the code; needs neither root nor a kernel.
fn run_unit() -> Result<TestTally> {
    let mut command = host::cargo_command();
    command.args(["test", "--workspace", "--exclude", "dmtrace-tests"]);
    host::quiet_unless_terminal(&mut command);
    add_up(&mut command)
}

/// Test targets of the package dmtrace-tests, in the order in which they are to run.
fn test_targets() -> Result<Vec<String>> {
    let path = host::workspace_root().join("tests/Cargo.toml");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut names: Vec<_> = text
        .split("[[test]]")
        .skip(1)
        .filter_map(name_of_section)
        .collect();
    names.sort_by_key(|name| {
        let known = ORDER.iter().position(|tier| tier == name);
        (name == LIVE, known.unwrap_or(ORDER.len()))
    });
    Ok(names)
}

fn name_of_section(section: &str) -> Option<String> {
    let own = section.split("\n[").next()?;
    let line = own
        .lines()
        .find(|line| line.trim_start().starts_with("name"))?;
    Some(line.split('"').nth(1)?.to_owned())
}

/// What the black-box tests run and what they are run against.
struct BuiltPrograms {
    dmtrace: PathBuf,
    xtask: PathBuf,
    tests: BTreeMap<String, PathBuf>,
}

fn timed_build() -> Result<BuiltPrograms> {
    println!("\n== build");
    let start = Instant::now();
    let dmtrace = build::build_binary("dmtrace", "dmtrace", Profile::Release)?;
    let tests = test_programs()?;
    println!("-- build: {:.1} s", start.elapsed().as_secs_f64());
    Ok(BuiltPrograms {
        dmtrace,
        xtask: env::current_exe().context("the path of xtask: unreadable")?,
        tests,
    })
}

/// Builds the test targets. The whole workspace is named so that its features are those of the
/// unit tests, and nothing is compiled twice.
fn test_programs() -> Result<BTreeMap<String, PathBuf>> {
    let mut command = host::cargo_command();
    command.args(["test", "--workspace", "--no-run"]);
    command.arg("--message-format=json-render-diagnostics");
    host::quiet_unless_terminal(&mut command);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("tests: cannot run cargo")?;
    if !output.status.success() {
        bail!("tests: do not build; see the messages above");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(parse_artifact).collect())
}

/// Name and path of a test target of tests/, from one of cargo's messages.
fn parse_artifact(message: &str) -> Option<(String, PathBuf)> {
    let field = |name: &str| {
        let (_, rest) = message.split_once(&format!("\"{name}\":\""))?;
        rest.split('"').next()
    };
    let ours = field("manifest_path")?.ends_with("/tests/Cargo.toml");
    let path = field("executable")?;
    // The name of the target stands after its kind.
    let (_, target) = message.split_once("\"kind\":[\"test\"]")?;
    let (_, name) = target.split_once("\"name\":\"")?;
    let name = name.split('"').next()?;
    ours.then(|| (name.to_owned(), path.into()))
}

impl BuiltPrograms {
    fn run_tier(&self, tier: &str) -> Result<TestTally> {
        let program = self.tests.get(tier);
        let program = program.with_context(|| format!("{tier}: cargo has not built it"))?;
        let mut command = if tier != LIVE || host::is_root() {
            self.plain_command(program)
        } else if host::output_of("sudo", &["-n", "-E", "true"]).is_some() {
            self.through_sudo(program)
        } else {
            println!("SKIPPED: {tier}: needs root; run as root: cargo xtask test --tier {tier}");
            return Ok(TestTally::SKIPPED);
        };
        if tier == PACKAGING {
            command.env("PATH", path_with_tools()?);
        }
        if tier == LIVE {
            command.arg("--test-threads=1");
        }
        add_up(command.current_dir(host::workspace_root().join("tests")))
    }

    /// Where the tests find what they run.
    fn test_variables(&self) -> [(&'static str, &Path); 2] {
        [("DMTRACE_BIN", &self.dmtrace), ("XTASK_BIN", &self.xtask)]
    }

    /// In the foreground, so that Ctrl-C reaches the tests.
    fn plain_command(&self, program: &Path) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["--foreground", "--kill-after=10", TIER_SECONDS])
            .arg(program);
        command.envs(self.test_variables());
        command
    }

    /// sudo may drop variables in spite of `-E`: those that matter are passed as arguments.
    fn through_sudo(&self, program: &Path) -> Command {
        let mut command = Command::new("sudo");
        command.args(["-n", "-E", "env"]);
        for (name, path) in self.test_variables() {
            command.arg(format!("{name}={}", path.display()));
        }
        command
            .args(["timeout", "--foreground", "--kill-after=10", TIER_SECONDS])
            .arg(program);
        command
    }
}

/// `PATH` with the promtool; if it cannot be had, the tests that need it say so and are skipped.
fn path_with_tools() -> Result<OsString> {
    let found = guests::promtool_dir().unwrap_or_else(|error| {
        println!("{PACKAGING}: {error:#}");
        None
    });
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths(env::split_paths(&path).chain(found)).context("PATH")
}

/// Runs test runners, shows what they print and adds up their closing lines.
fn add_up(command: &mut Command) -> Result<TestTally> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let mut tally = TestTally::default();
    let mut closed = false;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.context("output of the tests")?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            if let Some(more) = TestTally::of_line(&line) {
                tally += more;
                closed = true;
            }
        }
    }
    let status = child.wait().context("end of the tests")?;
    if status.success() && !closed {
        println!("the runner reported no result");
    } else if !status.success() && tally.failed == 0 {
        println!("the runner broke off: {status}");
    } else {
        return Ok(tally);
    }
    tally += TestTally::FAILED;
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_test_programs_in_messages() {
        let message = r#"{"reason":"compiler-artifact","package_id":"x","manifest_path":"/a/tests/Cargo.toml","target":{"kind":["test"],"crate_types":["bin"],"name":"host","src_path":"/a"},"executable":"/t/host-1","fresh":true}"#;
        assert_eq!(
            parse_artifact(message),
            Some(("host".to_owned(), "/t/host-1".into()))
        );
        assert_eq!(
            parse_artifact(&message.replace("[\"test\"]", "[\"bin\"]")),
            None
        );
        assert_eq!(parse_artifact(&message.replace("/tests/", "/xtask/")), None);
    }

    #[test]
    fn reads_the_names_of_test_targets() {
        let section = "\nname = \"live\"\npath = \"live/main.rs\"\n\n[lints]\nname = \"no\"\n";
        assert_eq!(name_of_section(section), Some("live".to_owned()));
    }
}
