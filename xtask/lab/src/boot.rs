//! One guest from power-on to its end, and the policy around it: time limits, second
//! chances for guests that die before the command starts, splats.

use std::{
    fs,
    io::{self, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use super::{
    accel::Accel,
    cache::Cache,
    config::Config,
    frame::{self, GuestFrame},
    guest::Disks,
    kernel::Kernel,
    out,
    outcome::{RunEnd, RunOutcome},
    qemu::Qemu,
    run::{GuestClock, RunSpec, Streams},
    splat,
};

/// Boots of a guest before the lab gives up.
const BOOTS: u32 = 3;
/// What a guest may take beyond the command's own time to hand over its results.
const GRACE: Duration = Duration::from_secs(45);

/// What one boot came to.
#[derive(Default)]
struct BootRun {
    greeted: bool,
    started: Option<Duration>,
    timed_out: bool,
    code: Option<i32>,
    splats: Vec<String>,
    failure: Option<String>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Runs a command in a guest of `kernel`. Only what has to do with the host is an error; all the
/// rest is in the outcome.
pub(crate) fn run_in_guest(
    config: &Config,
    cache: &Cache,
    kernel: &Kernel,
    disks: &Disks,
    spec: &RunSpec,
) -> Result<RunOutcome> {
    let begun = Instant::now();
    // Not in the cache: a socket's path is limited to 107 bytes.
    let dir = tempfile::Builder::new()
        .prefix(&format!("{}-", config.name))
        .tempdir()?;
    let mut accel = match spec.clock {
        GuestClock::Host => config.accel.unwrap_or_else(|| Accel::detect(cache)),
        GuestClock::Instructions => Accel::Tcg,
    };
    let mut boots = 0;
    let boot = loop {
        boots += 1;
        let boot = boot_once(dir.path(), config, kernel, disks, spec, accel)?;
        keep_logs(cache, &kernel.name, dir.path());
        if boot.started.is_some() {
            break boot;
        }
        let why = boot.failure.as_deref().unwrap_or("it died");
        if accel == Accel::Kvm && !boot.greeted {
            log::info!(
                "kernel {}: KVM does not work here ({why}); using TCG",
                kernel.name
            );
            Accel::remember_kvm_failure(cache);
            accel = Accel::Tcg;
            boots -= 1;
            continue;
        }
        if boots == BOOTS {
            break boot;
        }
        log::info!(
            "kernel {}: boot {boots} of at most {BOOTS} failed ({why}); again",
            kernel.name
        );
    };
    let end = match (&boot.failure, boot.code) {
        (Some(failure), _) => RunEnd::LabFailed(failure.clone()),
        (None, Some(_)) if boot.timed_out => RunEnd::TimedOut,
        (None, Some(code)) => RunEnd::Exited(code),
        (None, None) => RunEnd::LabFailed("the guest ended without an exit code".to_owned()),
    };
    Ok(RunOutcome {
        kernel: kernel.clone(),
        end,
        splats: boot.splats,
        boots,
        accel,
        boot_time: boot.started,
        total_time: begun.elapsed(),
        stdout: boot.stdout,
        stderr: boot.stderr,
    })
}

/// Boots once and follows the guest to its end.
fn boot_once(
    dir: &Path,
    config: &Config,
    kernel: &Kernel,
    disks: &Disks,
    spec: &RunSpec,
    accel: Accel,
) -> Result<BootRun> {
    let begun = Instant::now();
    let mut boot = BootRun::default();
    let mut qemu = Qemu::start(dir, config, kernel, disks, spec, accel)?;
    let ports = match qemu.accept_ports() {
        Ok(ports) => ports,
        Err(error) => {
            boot.failure = Some(format!("{error:#}"));
            return Ok(boot);
        }
    };
    let [lab, stdout, stderr] = ports;
    let stdout = forward_stream(stdout, io::stdout(), spec.streams);
    let stderr = forward_stream(stderr, io::stderr(), spec.streams);
    let frames = receive_frames(lab);
    follow_guest(&mut boot, &mut qemu, &frames, spec, accel, begun)?;
    qemu.stop();
    boot.stdout = stdout.join().unwrap_or_default();
    boot.stderr = stderr.join().unwrap_or_default();
    if boot.splats.is_empty() {
        let console = qemu.read_console();
        boot.splats = splat::find_splats(&console)
            .into_iter()
            .map(str::to_owned)
            .collect();
    }
    Ok(boot)
}

/// Takes the guest's frames until it is done, dead or out of time.
fn follow_guest(
    boot: &mut BootRun,
    qemu: &mut Qemu,
    frames: &Receiver<io::Result<GuestFrame>>,
    spec: &RunSpec,
    accel: Accel,
    begun: Instant,
) -> Result<()> {
    let mut deadline = begun + accel.boot_timeout();
    loop {
        let wait = deadline.saturating_duration_since(Instant::now());
        match frames.recv_timeout(wait.min(Duration::from_millis(250))) {
            Ok(Ok(GuestFrame::Hello(_))) => {
                boot.greeted = true;
                qemu.remove_initramfs();
                deadline = Instant::now() + Accel::Tcg.boot_timeout();
            }
            Ok(Ok(GuestFrame::Start)) => {
                boot.started = Some(begun.elapsed());
                deadline = Instant::now() + spec.timeout + GRACE;
            }
            Ok(Ok(GuestFrame::Broken(what))) => boot.failure = Some(format!("guest: {what}")),
            Ok(Ok(GuestFrame::TimedOut)) => boot.timed_out = true,
            Ok(Ok(GuestFrame::Exit(code))) => boot.code = Some(code),
            Ok(Ok(GuestFrame::Taint(taint))) => boot.splats.extend(splat::splats_of_taint(taint)),
            Ok(Ok(GuestFrame::Dmesg(log))) => {
                let log = String::from_utf8_lossy(&log).into_owned();
                let found: Vec<String> = splat::find_splats(&log)
                    .into_iter()
                    .map(str::to_owned)
                    .collect();
                // The log's own lines say more than the taint, so they come first.
                boot.splats.splice(0..0, found);
                qemu.save_dmesg(&log)?;
            }
            Ok(Ok(GuestFrame::Out(tar))) => out::unpack_out(&tar, spec.out.as_deref())?,
            Ok(Ok(GuestFrame::Other(name))) => {
                bail!("frame {name:?}: unknown; host and guest differ")
            }
            Ok(Ok(GuestFrame::End)) => return Ok(()),
            Ok(Err(error)) => {
                boot.failure = Some(format!("what the guest sent is cut or garbled: {error}"));
                return Ok(());
            }
            Err(RecvTimeoutError::Disconnected) => {
                boot.failure = Some(qemu.failure_message("the guest died"));
                return Ok(());
            }
            Err(RecvTimeoutError::Timeout) => {
                if !boot.greeted && accel == Accel::Kvm && qemu.reports_kvm_failure() {
                    boot.failure = Some("KVM internal error".to_owned());
                    return Ok(());
                }
                if Instant::now() >= deadline {
                    if boot.started.is_some() {
                        boot.timed_out = true;
                        boot.code = boot.code.or(Some(124));
                    } else {
                        boot.failure = Some(qemu.failure_message("the guest does not get ready"));
                    }
                    return Ok(());
                }
            }
        }
    }
}

/// Copies a guest's stream to the host's, or collects it.
fn forward_stream(
    mut from: UnixStream,
    mut to: impl Write + Send + 'static,
    streams: Streams,
) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut kept = Vec::new();
        let mut buffer = [0; 16 * 1024];
        loop {
            let count = match from.read(&mut buffer) {
                Ok(0) => return kept,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return kept,
            };
            match streams {
                Streams::Capture => kept.extend_from_slice(&buffer[..count]),
                // A reader that went away is no reason to stop the run; its exit code counts.
                Streams::Live => {
                    let _ = to.write_all(&buffer[..count]).and_then(|()| to.flush());
                }
            }
        }
    })
}

/// Reads frames in a thread, so that the follower can watch the clock.
fn receive_frames(lab: UnixStream) -> Receiver<io::Result<GuestFrame>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut lab = BufReader::new(lab);
        while let Some(frame) = frame::read_frame(&mut lab).transpose() {
            let last = frame.is_err();
            if sender.send(frame).is_err() || last {
                return;
            }
        }
    });
    receiver
}

/// Keeps the logs of a kernel's last run for a look afterwards. Losing them fails nothing.
fn keep_logs(cache: &Cache, kernel: &str, dir: &Path) {
    let target = cache.path("runs").join(kernel);
    if fs::create_dir_all(&target).is_ok() {
        for log in ["console.log", "dmesg.log", "qemu.log"] {
            let _ = fs::remove_file(target.join(log));
            let _ = fs::copy(dir.join(log), target.join(log));
        }
    }
}
