//! Tier `packaging`: what is installed beside the program fits the program.

mod exposition;
mod kubernetes;
mod monitoring;
mod unit;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};
use dmtrace_tests::harness::{dmtrace_bin, run_tier};
use saphyr::{LoadableYamlNode as _, Yaml};

fn main() -> ExitCode {
    let mut tests = monitoring::tests();
    tests.extend(unit::tests());
    tests.extend(kubernetes::tests());
    run_tier("packaging", tests)
}

/// A file of the repository.
fn repository_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

fn read_file(name: &str) -> Result<String> {
    std::fs::read_to_string(repository_path(name)).with_context(|| name.to_owned())
}

/// The documents in YAML.
fn parse_yaml(text: &str) -> Result<Vec<Yaml<'_>>> {
    Yaml::load_from_str(text).context("not YAML")
}

/// Every option of `serve` that is used is one.
fn known_options(used: &[String]) -> Result<()> {
    let output = Command::new(dmtrace_bin()?)
        .args(["serve", "--help"])
        .output()?;
    let help = String::from_utf8(output.stdout)?;
    let words: Vec<_> = help.split([' ', '\n', '=', ',']).collect();
    for option in used.iter().filter(|word| word.starts_with("--")) {
        let name = option.split('=').next().unwrap_or(option);
        ensure!(words.contains(&name), "serve has no option {option}");
    }
    Ok(())
}
