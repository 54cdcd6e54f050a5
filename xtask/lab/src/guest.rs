//! The initramfs of one run: busybox, early modules, the guest's scripts, the run's files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::{
    config::Config,
    cpio::Archive,
    image::Image,
    kernel::Kernel,
    run::{GuestClock, RunSpec},
};

const INIT: &str = include_str!("guest/init.sh");
const PID1: &str = include_str!("guest/pid1.sh");
const LIB: &str = include_str!("guest/lib.sh");
const RUN: &str = include_str!("guest/run.sh");
const SYSTEMD_RUN: &str = include_str!("guest/systemd-run.sh");
const UNIT: &str = include_str!("guest/lab.service");

/// What a guest's root is made of.
pub(crate) struct Disks {
    pub(crate) image: Image,
    /// Laid over the image.
    pub(crate) layer: Option<PathBuf>,
}

/// Writes the initramfs of a run to `target`.
pub(crate) fn write_initramfs(
    config: &Config,
    kernel: &Kernel,
    disks: &Disks,
    spec: &RunSpec,
    target: &Path,
) -> Result<()> {
    let mut archive = Archive::new(Vec::new());
    archive.add_host_path(&disks.image.busybox, "bin/busybox")?;
    archive.add_file("init", 0o755, INIT.as_bytes())?;
    archive.add_host_path(&kernel.dir.join("early"), "early")?;
    let options = kernel.dir.join("config");
    if options.is_file() {
        archive.add_host_path(&options, "config")?;
    }
    archive.add_file("lab/pid1", 0o755, PID1.as_bytes())?;
    archive.add_file("lab/lib", 0o644, LIB.as_bytes())?;
    archive.add_file("lab/run", 0o755, RUN.as_bytes())?;
    if spec.systemd {
        archive.add_file("lab/systemd", 0o755, SYSTEMD_RUN.as_bytes())?;
        let unit = "files/etc/systemd/system";
        archive.add_file(&format!("{unit}/lab.service"), 0o644, UNIT.as_bytes())?;
        archive.add_symlink(
            &format!("{unit}/default.target"),
            "/lib/systemd/system/multi-user.target",
        )?;
        archive.add_symlink(
            &format!("{unit}/multi-user.target.wants/lab.service"),
            "../lab.service",
        )?;
    }
    if disks.layer.is_some() {
        archive.add_file("lab/layer", 0o644, b"")?;
    }
    archive.add_file(
        "lab/settings",
        0o644,
        guest_settings(config, spec).as_bytes(),
    )?;
    archive.add_file("lab/command", 0o644, command_script(spec)?.as_bytes())?;
    for file in &spec.files {
        archive.add_host_path(&file.host, &format!("files{}", file.guest))?;
    }
    let bytes = archive.finish()?;
    fs::write(target, bytes).with_context(|| format!("{}: cannot be written", target.display()))
}

/// Variables of the guest's scripts.
fn guest_settings(config: &Config, spec: &RunSpec) -> String {
    let limit = spec.timeout.as_secs().max(1);
    let limit = match spec.clock {
        GuestClock::Host => limit,
        // Its hours may take a second here; this side's deadline holds.
        GuestClock::Instructions => limit.saturating_mul(100_000),
    };
    format!(
        "LAB_NAME={}\nLAB_MODULES={}\nLAB_TIMEOUT={}\n",
        shell_quote(config.name),
        shell_quote(&config.loaded_modules.join(" ")),
        limit
    )
}

/// The shell script that becomes the command. One word alone is a shell line, as with ssh;
/// several words are a program and its arguments.
fn command_script(spec: &RunSpec) -> Result<String> {
    let mut script = String::new();
    for setting in &spec.env {
        let Some((name, value)) = setting.split_once('=') else {
            bail!("environment {setting:?}: no value; write NAME=VALUE");
        };
        if name.is_empty()
            || !name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            bail!("environment {setting:?}: {name:?} is no variable name");
        }
        script.push_str(&format!("export {name}={}\n", shell_quote(value)));
    }
    let line = match spec.argv.as_slice() {
        [] => bail!("no command to run; give one after `--`"),
        [line] if !spec.shell_less => format!("exec /bin/sh -c {}", shell_quote(line)),
        words => {
            let words: Vec<String> = words.iter().map(|word| shell_quote(word)).collect();
            format!("exec {}", words.join(" "))
        }
    };
    script.push_str(&line);
    script.push('\n');
    Ok(script)
}

/// A word as the shell reads it back unchanged.
fn shell_quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::{config::Freshness, host};

    #[test]
    fn settings_survive_the_shell() {
        let config = Config {
            name: "it's",
            cache: "/nowhere".into(),
            prepare_command: "",
            accel: None,
            freshness: Freshness::Cached,
            packages: &[],
            modules: &[],
            loaded_modules: &["a", "b"],
        };
        let script = guest_settings(&config, &RunSpec::default());
        let echo = format!("{script}echo \"$LAB_NAME|$LAB_MODULES|$LAB_TIMEOUT\"");
        let output = host::capture_output(Command::new("/bin/sh").args(["-c", &echo])).unwrap();
        assert_eq!(output, b"it's|a b|300\n");
    }

    fn script_text(argv: &[&str], shell_less: bool) -> String {
        let argv = argv.iter().map(ToString::to_string).collect();
        command_script(&RunSpec {
            argv,
            shell_less,
            ..RunSpec::default()
        })
        .unwrap()
    }

    #[test]
    fn commands_survive_the_shell() {
        assert_eq!(script_text(&["a", "it's"], false), "exec 'a' 'it'\\''s'\n");
        assert_eq!(script_text(&["a | b"], false), "exec /bin/sh -c 'a | b'\n");
        assert_eq!(script_text(&["a | b"], true), "exec 'a | b'\n");
    }

    #[test]
    fn environment_is_checked() {
        let spec = |env: &str| RunSpec {
            argv: vec!["true".into()],
            env: vec![env.into()],
            ..RunSpec::default()
        };
        assert!(
            command_script(&spec("A_1=x y"))
                .unwrap()
                .starts_with("export A_1='x y'\n")
        );
        assert!(command_script(&spec("A")).is_err());
        assert!(command_script(&spec("A;B=1")).is_err());
    }
}
