//! A QEMU process: its options, its ports, its logs.

use std::{
    fs, io,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    accel::Accel,
    config::Config,
    guest::{self, Disks},
    host,
    kernel::Kernel,
    run::{GuestClock, RunSpec},
};

/// The run's initramfs in its directory.
const INITRAMFS: &str = "initramfs";
/// The kernel's command line. Warnings go to the console, because a dying guest has no other way
/// to tell; the log is large enough to keep them all.
const CMDLINE: &str = "console=ttyS0 loglevel=5 panic=-1 log_buf_len=4M rdinit=/init \
                       random.trust_cpu=on net.ifnames=0 no_timer_check";

/// A running QEMU. Dropping it ends it.
pub(crate) struct Qemu {
    child: Child,
    dir: PathBuf,
    listeners: Vec<UnixListener>,
}

impl Qemu {
    /// Ports of the guest, in the order of [`Qemu::accept_ports`].
    const PORTS: [&'static str; 3] = ["lab", "stdout", "stderr"];

    /// Starts a guest of `kernel` with its files in `dir`.
    pub(crate) fn start(
        dir: &Path,
        config: &Config,
        kernel: &Kernel,
        disks: &Disks,
        spec: &RunSpec,
        accel: Accel,
    ) -> Result<Self> {
        guest::write_initramfs(config, kernel, disks, spec, &dir.join(INITRAMFS))?;
        let mut listeners = Vec::new();
        // setpriv: QEMU must not outlive this process, however it ends.
        let mut command = host::host_command("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        command.arg(
            host::find_program("qemu-system-x86_64").context("qemu-system-x86_64: not found")?,
        );
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
        ]);
        command
            .args(["-machine", "q35", "-m"])
            .arg(format!("{}M", spec.memory_mb));
        command.args(["-smp", &spec.cpus.to_string()]);
        command.args(accel.qemu_options());
        if spec.clock == GuestClock::Instructions {
            // With sleep=off the time of an idle guest is skipped: hours take no time.
            command.args(["-icount", "shift=0,sleep=off", "-rtc", "clock=vm"]);
        }
        command.arg("-kernel").arg(kernel.dir.join("vmlinux"));
        command.arg("-initrd").arg(dir.join(INITRAMFS));
        command.args(["-append", CMDLINE]);
        command
            .arg("-serial")
            .arg(format!("file:{}", dir.join("console.log").display()));
        let modules = kernel.dir.join("modules.squashfs");
        for disk in [&disks.image.root, &modules]
            .into_iter()
            .chain(&disks.layer)
        {
            let file = disk.display().to_string().replace(',', ",,");
            command.arg("-drive");
            command.arg(format!("if=virtio,format=raw,readonly=on,file={file}"));
        }
        command.args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]);
        for port in Self::PORTS {
            let socket = dir.join(port);
            // A boot before this one left its socket behind.
            let _ = fs::remove_file(&socket);
            listeners.push(
                UnixListener::bind(&socket)
                    .with_context(|| format!("{}: cannot be made", socket.display()))?,
            );
            command
                .arg("-chardev")
                .arg(format!("socket,id={port},path={}", socket.display()));
            command
                .arg("-device")
                .arg(format!("virtserialport,chardev={port},name={port}"));
        }
        let log = fs::File::create(dir.join("qemu.log"))?;
        let _ = fs::remove_file(dir.join("dmesg.log"));
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("qemu-system-x86_64: cannot be started")?;
        Ok(Self {
            child,
            dir: dir.to_owned(),
            listeners,
        })
    }

    /// Waits for QEMU to open the guest's ports.
    pub(crate) fn accept_ports(&mut self) -> Result<[UnixStream; 3]> {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut streams = Vec::new();
        for listener in &self.listeners {
            listener.set_nonblocking(true)?;
            loop {
                match listener.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(false)?;
                        streams.push(stream);
                        break;
                    }
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                        return Err(error.into());
                    }
                    Err(_) => {}
                }
                if self.child.try_wait()?.is_some() || Instant::now() > deadline {
                    bail!("{}", self.failure_message("qemu did not start"));
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        streams
            .try_into()
            .map_err(|_| anyhow::anyhow!("qemu opened too few ports"))
    }

    /// Removes the initramfs, which a booted guest needs no more: it is the one large file that an
    /// interrupted run would leave behind.
    pub(crate) fn remove_initramfs(&self) {
        let _ = fs::remove_file(self.dir.join(INITRAMFS));
    }

    /// Puts the guest's kernel log beside the other logs.
    pub(crate) fn save_dmesg(&self, log: &str) -> Result<()> {
        Ok(fs::write(self.dir.join("dmesg.log"), log)?)
    }

    /// Ends it, if it has not ended by itself.
    pub(crate) fn stop(&mut self) {
        // Both fail only if it is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// What the guest wrote on its serial console.
    pub(crate) fn read_console(&self) -> String {
        fs::read(self.dir.join("console.log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// What QEMU itself reported.
    fn read_log(&self) -> String {
        fs::read_to_string(self.dir.join("qemu.log")).unwrap_or_default()
    }

    /// Whether QEMU says that KVM failed; it then waits for ever.
    pub(crate) fn reports_kvm_failure(&self) -> bool {
        self.read_log().contains("KVM internal error") || self.read_log().contains("kvm run failed")
    }

    /// A message with the end of QEMU's and the console's output.
    pub(crate) fn failure_message(&self, what: &str) -> String {
        let text = format!("{}\n{}", self.read_log(), self.read_console());
        match host::last_lines(&text, 3) {
            output if output.is_empty() => format!("{what}; it wrote nothing"),
            output => format!("{what}; last output: {output}"),
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.stop();
    }
}
