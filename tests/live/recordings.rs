//! `record`: whatever happens, what was there before is not lost and what was recorded is found.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use dmtrace_tests::harness::{
    Trial, actor_bin, dmtrace_bin, in_private_ns, new_trial, ns_of, start_actor,
};

use super::tracer::{dmtrace_json, run_dmtrace};
use crate::NEEDS;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial(
            "a_start_that_fails_leaves_no_file_and_harms_none",
            NEEDS,
            failed_start,
        ),
        new_trial(
            "a_recording_that_is_killed_harms_none_and_is_found",
            NEEDS,
            a_recording_that_is_killed_harms_none_and_is_found,
        ),
        new_trial("a_full_disk_harms_no_earlier_recording", NEEDS, full_disk),
        new_trial(
            "an_interrupted_recording_replaces_the_earlier_one_whole",
            NEEDS,
            an_interrupted_recording_replaces_the_earlier_one_whole,
        ),
        new_trial(
            "each_file_of_a_rotation_is_read_by_itself",
            NEEDS,
            each_file_of_a_rotation_is_read_by_itself,
        ),
        new_trial(
            "a_recording_that_was_removed_is_not_called_written",
            NEEDS,
            removed_meanwhile,
        ),
    ]
}

const LONG: Duration = Duration::from_secs(60);
/// After the end of its owner a cookie is not called leaked for so long (`Thresholds::young`), and
/// something on top.
const TOO_RECENT: Duration = Duration::from_secs(3);

/// A `dmtrace record` that has begun.
pub(crate) struct Recording(Child);

/// A test that fails leaves no trace behind: other tests would be answered by it.
impl Drop for Recording {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

impl Recording {
    pub(crate) fn start(file: &Path, more: &[&str]) -> Result<Self> {
        let mut child = Command::new(dmtrace_bin()?)
            .arg("record")
            .arg(file)
            .args(more)
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()?;
        let known = PathBuf::from(format!("/run/dmtrace/tracer-{}.json", child.id()));
        let begun = wait_until(|| known.exists());
        if !begun {
            let _ended = child.kill();
        }
        ensure!(begun, "it does not begin: {:?}", child.wait()?);
        Ok(Self(child))
    }

    pub(crate) fn end(mut self, signal: i32) -> Result<Option<i32>> {
        // SAFETY: two numbers; the child is not reaped yet, so the number is its.
        unsafe { libc::kill(self.0.id().cast_signed(), signal) };
        Ok(self.0.wait()?.code())
    }
}

fn wait_until(until: impl Fn() -> bool) -> bool {
    let began = Instant::now();
    while began.elapsed() < LONG {
        if until() {
            return true;
        }
        sleep(Duration::from_millis(10));
    }
    false
}

/// Whether this file tells of the actor that left a cookie in this namespace.
fn mentions_leak(file: &Path, ns: &str) -> bool {
    let file = file.to_string_lossy();
    // By its number: without the end of the recording the verdict is still to come.
    let told = dmtrace_json(&["explain", "0", &file, "--ipc-ns", ns]);
    told.is_ok_and(|(told, _)| told["explanations"].to_string().contains("after-inc"))
}

fn leak() -> Result<()> {
    let mut actor = start_actor(&["cycle", "--stop-at", "after-inc"])?;
    let _killed = actor.read_to_end()?;
    // It cleans up when it is dropped; the recording must have seen the end of the process before.
    std::mem::forget(actor);
    Ok(())
}

fn list_names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Nothing can be traced without capabilities.
fn failed_start() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let old = dir.path().join("old.dmt");
    fs::write(&old, b"DMTRACE\x01a good recording")?;
    for (name, force) in [
        ("new.dmt", ""),
        ("new.dmt", "--force"),
        ("old.dmt", "--force"),
    ] {
        let output = Command::new("setpriv")
            .args(["--bounding-set=-all", "--inh-caps=-all"])
            .arg(dmtrace_bin()?)
            .args(["record", "-d", "1s"])
            .arg(dir.path().join(name))
            .args((!force.is_empty()).then_some(force))
            .output()
            .context("setpriv")?;
        ensure!(output.status.code() == Some(3), "{output:?}");
        ensure!(
            list_names(dir.path())? == ["old.dmt"],
            "{:?}",
            list_names(dir.path())?
        );
        ensure!(fs::read(&old)? == b"DMTRACE\x01a good recording");
    }
    Ok(())
}

fn a_recording_that_is_killed_harms_none_and_is_found() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?.to_string();
        let dir = tempfile::tempdir()?;
        let new = dir.path().join("new.dmt");
        let recording = Recording::start(&new, &[])?;
        leak()?;
        ensure!(
            wait_until(|| mentions_leak(&new, &ns)),
            "a running recording is not read"
        );
        recording.end(libc::SIGKILL)?;
        ensure!(list_names(dir.path())? == ["new.dmt"]);
        ensure!(
            mentions_leak(&new, &ns),
            "what was recorded before the kill is gone"
        );

        let good = fs::read(&new)?;
        let recording = Recording::start(&new, &["--force"])?;
        let beside = dir
            .path()
            .join(format!("new.dmt.partial-{}", recording.0.id()));
        ensure!(beside.exists(), "{:?}", list_names(dir.path())?);
        // What runs is read, although it is not there yet under its name.
        let (case, _) = dmtrace_json(&["report", "--ipc-ns", &ns])?;
        ensure!(
            !case["notes"].to_string().contains("No such file"),
            "{case}"
        );
        recording.end(libc::SIGKILL)?;
        ensure!(fs::read(&new)? == good, "the earlier recording was harmed");
        let said = run_dmtrace(&["report", &new.to_string_lossy()])?;
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        ensure!(said.contains(&*beside.to_string_lossy()), "{said}");
        let (_, code) = dmtrace_json(&["report", &beside.to_string_lossy()])?;
        ensure!(code == 4 || code == 1, "exit code {code}");
        fs::remove_file(&new)?;
        let said = run_dmtrace(&["report", &new.to_string_lossy()])?;
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        ensure!(said.contains(&*beside.to_string_lossy()), "{said}");
        Ok(())
    })?
}

fn removed_meanwhile() -> Result<()> {
    in_private_ns(|| {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("a.dmt");
        let child = Command::new(dmtrace_bin()?)
            .args(["record", "--duration", "3s"])
            .arg(&file)
            .stderr(Stdio::piped())
            .spawn()?;
        ensure!(wait_until(|| file.exists()), "it does not begin");
        fs::remove_file(&file)?;
        let ended = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&ended.stderr);
        ensure!(ended.status.code() == Some(4), "{}: {said}", ended.status);
        ensure!(
            said.contains("a.dmt: it was removed while it was written") && !said.contains("wrote"),
            "{said}"
        );
        Ok(())
    })?
}

fn full_disk() -> Result<()> {
    // A file system of 64 KiB in a mount namespace of its own. The recording is to replace a file.
    let script = format!(
        "mount -t tmpfs -o size=64k small /mnt || exit
         printf 'DMTRACE\\001old\\n' >/mnt/a.dmt
         {bin} record --force /mnt/a.dmt 2> >(tee /dev/shm/$$ >&2) & tracer=$!
         until grep -q tracing /dev/shm/$$; do sleep 0.1; done
         {actor} churn --tag y --procs 400 >/dev/null
         wait $tracer; echo record $?; rm /dev/shm/$$
         cat /mnt/a.dmt; ls /mnt
         {bin} report --json /mnt/a.dmt.partial-*; echo report $?",
        bin = dmtrace_bin()?.display(),
        actor = actor_bin()?.display(),
    );
    let output = Command::new("unshare")
        .args(["-m", "-i", "bash", "-c", &script])
        .output()
        .context("unshare")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(errors.contains("No space left on device"), "{text}{errors}");
    ensure!(
        errors.contains("is still what it was, the new one is"),
        "{errors}"
    );
    ensure!(text.contains("record 4"), "{text}{errors}");
    ensure!(text.contains("old\na.dmt\na.dmt.partial-"), "{text}");
    // It ends with a whole entry: nothing is said of a byte where it is cut off.
    ensure!(
        text.contains("was not closed") && !text.contains("cut off"),
        "{text}"
    );
    Ok(())
}

fn an_interrupted_recording_replaces_the_earlier_one_whole() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?.to_string();
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("a.dmt");
        fs::write(&file, b"DMTRACE\x01old")?;
        let recording = Recording::start(&file, &["--force"])?;
        leak()?;
        let beside = dir
            .path()
            .join(format!("a.dmt.partial-{}", recording.0.id()));
        ensure!(
            wait_until(|| mentions_leak(&beside, &ns)),
            "it cannot be read while it is written"
        );
        ensure!(fs::read(&file)? == b"DMTRACE\x01old");
        recording.end(libc::SIGINT)?;
        ensure!(
            list_names(dir.path())? == ["a.dmt"],
            "{:?}",
            list_names(dir.path())?
        );
        ensure!(
            mentions_leak(&file, &ns),
            "the new recording has not taken the name"
        );
        Ok(())
    })?
}

fn each_file_of_a_rotation_is_read_by_itself() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?.to_string();
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("a.dmt");
        let older = |number: u32| dir.path().join(format!("a.dmt.{number}"));
        let recording = Recording::start(&file, &["--max-size", "64KiB", "--keep", "2"])?;
        // In the first file; it stays, and each later file must know whose it is.
        leak()?;
        // A file that ends before that only knows that it is too early to tell.
        sleep(TOO_RECENT);
        let began = Instant::now();
        let mut turns = 0;
        // Until the first file has gone.
        while turns < 200 && began.elapsed() < LONG {
            start_actor(&["churn", "--tag", "y", "--procs", "40"])?.read_to_end()?;
            turns += 1;
            if older(2).exists() && turns > 30 {
                break;
            }
        }
        ensure!(older(2).exists(), "{:?}", list_names(dir.path())?);
        ensure!(
            mentions_leak(&file, &ns),
            "the current file is not read by itself"
        );
        recording.end(libc::SIGINT)?;
        ensure!(
            list_names(dir.path())? == ["a.dmt", "a.dmt.1", "a.dmt.2"],
            "{:?}",
            list_names(dir.path())?
        );
        for path in [file, older(1), older(2)] {
            let shown = path.to_string_lossy();
            let (report, code) = dmtrace_json(&["report", &shown, "--ipc-ns", &ns])?;
            let (why, _) = dmtrace_json(&["explain", "0", &shown, "--ipc-ns", &ns])?;
            ensure!(code == 1, "{shown}: exit code {code}: {report}; {why}");
            ensure!(report["complete"] == true, "{report}");
            let leaked = &report["leaked"];
            ensure!(
                leaked.as_array().is_some_and(|it| it.len() == 1),
                "{report}"
            );
            ensure!(leaked[0]["verdict"]["confidence"] == "observed", "{report}");
            ensure!(
                leaked[0]["process"]["cmdline"]
                    .to_string()
                    .contains("after-inc")
            );
            // The books of a busy namespace take the most; a few frames may come on top.
            let size = fs::metadata(&path)?.len();
            ensure!(size < 2 << 20, "{shown}: {size} bytes");
        }
        Ok(())
    })?
}
