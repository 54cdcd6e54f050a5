//! Packages from the machine's own Debian mirror, without touching the machine's apt state.
//!
//! The mirror's address is read from the apt sources that are already configured; only the suite
//! is changed. Lists, sources and downloads live in the lab's cache, one directory per suite.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{
    host::{self, KEYRING},
    sources::Mirror,
};

/// Suites to take a newer keyring from when the host's lacks a suite's key.
const KEYRING_SUITES: &[&str] = &["bookworm", "trixie"];

/// One version of a package in a suite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PackageVersion {
    /// Suite it is in.
    pub(crate) suite: String,
    pub(crate) package: String,
    pub(crate) version: String,
    /// Names of the packages it depends on, first alternatives only.
    pub(crate) depends: Vec<String>,
}

/// Private apt state under the lab's cache.
#[derive(Debug)]
pub(crate) struct Apt {
    dir: PathBuf,
    mirror: Mirror,
    keyring: PathBuf,
    updated: BTreeSet<String>,
}

impl Apt {
    /// State in `dir`, for the mirror the machine's own sources name.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let mirror = Mirror::from_host_sources()?;
        fs::create_dir_all(dir).with_context(|| format!("{}: cannot be made", dir.display()))?;
        Ok(Self {
            dir: dir.to_owned(),
            mirror,
            keyring: PathBuf::from(KEYRING),
            updated: BTreeSet::new(),
        })
    }

    /// Source lines for `suites`, leaving out those the mirror cannot have.
    pub(crate) fn source_lines(&self, suites: &[&str]) -> String {
        suites
            .iter()
            .filter_map(|suite| self.source_line(suite))
            .collect()
    }

    /// The one-line source of `suite`, or `None` when it needs a security mirror and none is
    /// configured.
    fn source_line(&self, suite: &str) -> Option<String> {
        let uri = self.mirror.uri_of(suite)?;
        Some(format!(
            "deb [arch=amd64 signed-by={}] {uri} {suite} main\n",
            self.keyring.display()
        ))
    }

    /// The host's `Acquire` settings (proxies, time-outs), as `name "value";` lines.
    pub(crate) fn acquire_settings() -> Result<Vec<String>> {
        let dump = host::capture_output(Command::new("apt-config").arg("dump"))?;
        Ok(String::from_utf8_lossy(&dump)
            .lines()
            .filter(|line| keeps_setting(line))
            .map(str::to_owned)
            .collect())
    }

    /// A command of the apt family that sees only `suite`.
    fn command(&self, program: &str, suite: &str) -> Result<Command> {
        let dir = self.dir.join(suite);
        let config = dir.join("apt.conf");
        if !self.updated.contains(suite) {
            for part in ["lists/partial", "cache/archives/partial"] {
                fs::create_dir_all(dir.join(part))
                    .with_context(|| format!("{}: cannot be made", dir.display()))?;
            }
            let line = self.source_line(suite).with_context(|| {
                format!(
                    "suite {suite}: no security mirror in this machine's apt sources; add one or \
                     do without"
                )
            })?;
            fs::write(dir.join("sources.list"), line)?;
            fs::write(dir.join("status"), "")?;
            // The host's apt.conf.d is left out on purpose: its hooks act on the host.
            let mut text = format!(
                "Dir::State \"{0}\";\nDir::State::status \"{0}/status\";\n\
                 Dir::Cache \"{0}/cache\";\nDir::Etc::sourcelist \"{0}/sources.list\";\n\
                 Dir::Etc::sourceparts \"/dev/null\";\nDir::Etc::parts \"/dev/null\";\n\
                 Dir::Etc::main \"/dev/null\";\nDir::Etc::preferences \"/dev/null\";\n\
                 Dir::Etc::preferencesparts \"/dev/null\";\n\
                 APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\n\
                 APT::Sandbox::User \"root\";\nAPT::Update::Error-Mode \"any\";\n",
                dir.display()
            );
            for line in Self::acquire_settings()? {
                text.push_str(&line);
                text.push('\n');
            }
            text.push_str("Acquire::Languages \"none\";\n");
            fs::write(&config, text)?;
        }
        let mut command = host::host_command(program);
        command.env("APT_CONFIG", config).env("LC_ALL", "C");
        Ok(command)
    }

    /// Fetches the lists of `suite` once per process. A key the host's keyring lacks is looked for
    /// in a newer keyring package that the host's keyring vouches for.
    pub(crate) fn update_lists(&mut self, suite: &str) -> Result<()> {
        if self.updated.contains(suite) {
            return Ok(());
        }
        let first = self.fetch_lists(suite);
        let result = match first {
            Err(error)
                if reports_missing_key(&format!("{error:#}"))
                    && self.adopt_newer_keyring(suite)? =>
            {
                self.fetch_lists(suite)
            }
            other => other,
        };
        result.with_context(|| format!("suite {suite}: its package lists cannot be fetched"))?;
        self.updated.insert(suite.to_owned());
        Ok(())
    }

    /// One try at fetching the lists of `suite`.
    fn fetch_lists(&self, suite: &str) -> Result<()> {
        host::run_command(self.command("apt-get", suite)?.args(["-q", "update"]))
    }

    /// Replaces the keyring by a newer one out of a suite that the present one verifies. Returns
    /// whether there is a new one to try.
    fn adopt_newer_keyring(&mut self, suite: &str) -> Result<bool> {
        let target = self.dir.join("keyring");
        if self.keyring.starts_with(&target) {
            return Ok(false);
        }
        for from in KEYRING_SUITES.iter().filter(|from| **from != suite) {
            let package = "debian-archive-keyring";
            let fetched = self
                .fetch_lists(from)
                .and_then(|()| self.candidates(from, package))
                .and_then(|found| {
                    let newest = found.into_iter().next().context("not in the suite")?;
                    self.download(&newest, &target)
                });
            let Ok(deb) = fetched else { continue };
            host::unpack_package(&deb, &target)?;
            let keyring = target.join(KEYRING.trim_start_matches('/'));
            if keyring.is_file() {
                log::info!(
                    "suite {suite}: signed by a key this machine's keyring lacks; using {package} \
                     of {from}, which it verifies"
                );
                self.keyring = keyring;
                self.updated.clear();
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The versions of `package` in `suite`, newest first. The lists must have been fetched.
    pub(crate) fn candidates(&self, suite: &str, package: &str) -> Result<Vec<PackageVersion>> {
        let mut command = self.command("apt-cache", suite)?;
        let output = command
            .args(["show", package])
            .output()
            .context("apt-cache: cannot start")?;
        // apt-cache fails for a package that no suite has; that is an empty answer here.
        Ok(parse_stanzas(
            suite,
            &String::from_utf8_lossy(&output.stdout),
        ))
    }

    /// Downloads one package into `dir`; apt verifies it against the signed lists.
    pub(crate) fn download(&self, candidate: &PackageVersion, dir: &Path) -> Result<PathBuf> {
        fs::create_dir_all(dir).with_context(|| format!("{}: cannot be made", dir.display()))?;
        let wanted = format!("{}={}", candidate.package, candidate.version);
        host::run_command(
            self.command("apt-get", &candidate.suite)?
                .current_dir(dir)
                .args(["-q", "download", &wanted]),
        )
        .with_context(|| format!("package {wanted}: cannot be downloaded"))?;
        let prefix = format!("{}_", candidate.package);
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if name.starts_with(&prefix) && name.ends_with(".deb") {
                return Ok(path);
            }
        }
        bail!(
            "package {wanted}: apt reported success but left no file in {}",
            dir.display()
        )
    }
}

impl Drop for Apt {
    /// apt's binary caches are ten times the size of the lists and made again in a second.
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let _ = fs::remove_dir_all(entry.path().join("cache"));
        }
    }
}

/// Whether Debian version `a` is newer than `b`, by dpkg's own rules.
pub(crate) fn is_newer(a: &str, b: &str) -> bool {
    host::host_command("dpkg")
        .args(["--compare-versions", a, "gt", b])
        .status()
        .is_ok_and(|status| status.success())
}

/// Whether a line of the host's configuration is taken over. What weakens the check of signatures
/// is not, whatever the host thinks of it.
fn keeps_setting(line: &str) -> bool {
    line.starts_with("Acquire::")
        && ![
            "IndexTargets",
            "AllowInsecure",
            "AllowWeak",
            "AllowDowngrade",
        ]
        .iter()
        .any(|unwanted| line.contains(unwanted))
}

/// Whether apt's output says that a signing key is missing.
fn reports_missing_key(output: &str) -> bool {
    output.contains("NO_PUBKEY") || output.contains("Missing key")
}

/// Reads `apt-cache show` output.
fn parse_stanzas(suite: &str, text: &str) -> Vec<PackageVersion> {
    text.split("\n\n")
        .filter_map(|stanza| {
            let field = |name: &str| {
                stanza
                    .lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            };
            Some(PackageVersion {
                suite: suite.to_owned(),
                package: field("Package")?.to_owned(),
                version: field("Version")?.to_owned(),
                depends: field("Depends").map(dependency_names).unwrap_or_default(),
            })
        })
        .collect()
}

/// The package names of a `Depends` field, first alternatives only.
fn dependency_names(field: &str) -> Vec<String> {
    field
        .split(',')
        .filter_map(|one| one.split(['|', '(']).next())
        .filter_map(|one| one.trim().split([' ', ':']).next())
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stanzas_give_version_and_dependency_names() {
        let text = "Package: linux-image-amd64\nVersion: 5.10.262-1\n\
                    Depends: linux-image-5.10.0-46-amd64 (= 5.10.262-1), a | b, c:any (>= 1)\n\
                    Description: x\n\nPackage: linux-image-amd64\nVersion: 5.10.223-1\n\n";
        let found = parse_stanzas("bullseye", text);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].version, "5.10.262-1");
        assert_eq!(found[0].depends, ["linux-image-5.10.0-46-amd64", "a", "c"]);
        assert!(found[1].depends.is_empty());
        assert_eq!(found[1].suite, "bullseye");
    }

    #[test]
    fn no_package_is_no_candidate() {
        assert!(parse_stanzas("sid", "").is_empty());
    }

    #[test]
    fn settings_that_weaken_signatures_stay_behind() {
        assert!(keeps_setting(
            "Acquire::http::Proxy \"http://proxy.example\";"
        ));
        assert!(!keeps_setting("Acquire::AllowInsecureRepositories \"1\";"));
        assert!(!keeps_setting("APT::Architecture \"amd64\";"));
    }

    #[test]
    fn missing_keys_differ_from_other_failures() {
        assert!(reports_missing_key(
            "the following signatures ... NO_PUBKEY 6ED0E7B82643E131"
        ));
        assert!(!reports_missing_key("404 Not Found"));
    }
}
