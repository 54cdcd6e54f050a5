//! A running `dmtrace watch --json`, and what it said.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use dmtrace_tests::harness::dmtrace_bin;
use serde_json::Value;

/// A tracer in the background. Killed when dropped.
pub(crate) struct WatchProcess {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<Value>,
}

/// Everything a tracer has said.
pub(crate) struct TracerOutput {
    /// All objects, in order.
    pub objects: Vec<Value>,
    pub summary: Value,
    pub code: i32,
}

impl WatchProcess {
    /// Starts `dmtrace watch --json` and waits until it is attached.
    pub(crate) fn start(args: &[&str]) -> Result<Self> {
        let mut child = Command::new(dmtrace_bin()?)
            .args(["watch", "--json"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("dmtrace watch")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let (send, lines) = channel();
        // Reads all the time: a full pipe would stop the tracer.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let mut tracer = Self {
            child,
            lines,
            seen: Vec::new(),
        };
        tracer.wait_object(|object| object["type"] == "start", Duration::from_secs(60))?;
        Ok(tracer)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reads until an object of this kind comes.
    pub(crate) fn wait_object(
        &mut self,
        wanted: impl Fn(&Value) -> bool,
        patience: Duration,
    ) -> Result<Value> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self
                .lines
                .recv_timeout(left)
                .context("dmtrace watch did not say what was awaited")?;
            let object: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
            self.seen.push(object.clone());
            if wanted(&object) {
                return Ok(object);
            }
        }
    }

    /// What it has said so far.
    pub(crate) fn seen_objects(&self) -> impl Iterator<Item = &Value> {
        self.seen.iter()
    }

    pub(crate) fn send_signal(&self, signal: i32) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        // SAFETY: two numbers; the child is not reaped yet, so the number is its.
        let sent = unsafe { libc::kill(pid, signal) };
        ensure!(sent == 0, "kill: {}", std::io::Error::last_os_error());
        Ok(())
    }

    /// Ctrl-C, then everything to the end.
    pub(crate) fn stop_trace(mut self) -> Result<TracerOutput> {
        self.send_signal(libc::SIGINT)?;
        self.read_to_end()
    }

    fn read_to_end(&mut self) -> Result<TracerOutput> {
        let mut objects = std::mem::take(&mut self.seen);
        loop {
            match self.lines.recv_timeout(Duration::from_secs(120)) {
                Ok(line) => {
                    objects.push(serde_json::from_str(&line).with_context(|| line.clone())?);
                }
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                Err(error) => bail!("dmtrace watch does not end: {error}"),
            }
        }
        let code = self.child.wait()?.code().unwrap_or(-1);
        let summary = objects
            .iter()
            .rfind(|object| object["type"] == "summary")
            .cloned()
            .context("no summary")?;
        Ok(TracerOutput {
            objects,
            summary,
            code,
        })
    }
}

impl Drop for WatchProcess {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl TracerOutput {
    /// Changes of one kind in one namespace.
    pub(crate) fn changes_of<'a>(
        &'a self,
        kind: &'a str,
        ns: u32,
    ) -> impl Iterator<Item = &'a Value> {
        self.objects.iter().filter(move |object| {
            object["type"] == "change" && object["change"] == kind && object["sem"]["ns"] == ns
        })
    }

    /// Command lines of processes, by number. A process is introduced once.
    pub(crate) fn command_lines(&self) -> BTreeMap<u64, String> {
        self.objects
            .iter()
            .filter_map(|object| {
                let process = object.get("process")?;
                let arguments: Vec<&str> = process["cmdline"]
                    .as_array()?
                    .iter()
                    .filter_map(Value::as_str)
                    .collect();
                Some((process["id"]["tgid"].as_u64()?, arguments.join(" ")))
            })
            .collect()
    }

    /// A number of the accounting.
    pub(crate) fn account_number(&self, name: &str) -> Result<u64> {
        self.summary["accounting"][name]
            .as_u64()
            .with_context(|| format!("no {name} in {}", self.summary))
    }

    /// The identities that must hold whatever happens to the consumer.
    pub(crate) fn check_identities(&self) -> Result<()> {
        let (seen, submitted, dropped, received) = (
            self.account_number("seen")?,
            self.account_number("submitted")?,
            self.account_number("dropped")?,
            self.account_number("received")?,
        );
        ensure!(
            seen == submitted + dropped,
            "seen {seen} is not {submitted} + {dropped}"
        );
        ensure!(
            submitted == received,
            "submitted {submitted} is not received {received}"
        );
        let (ledger, kernel) = (
            self.account_number("ledger_sets")?,
            self.account_number("kernel_sets")?,
        );
        ensure!(ledger == kernel, "ledger {ledger} is not kernel {kernel}");
        Ok(())
    }
}

/// Runs `dmtrace` to its end.
pub(crate) fn run_dmtrace(args: &[&str]) -> Result<Output> {
    dmtrace_at(None, args)
}

/// As [`run_dmtrace`], on so many columns; `None` for those of a pipe, which have no limit.
pub(crate) fn dmtrace_at(columns: Option<usize>, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(dmtrace_bin()?);
    match columns {
        Some(columns) => command.env("COLUMNS", columns.to_string()),
        None => command.env_remove("COLUMNS"),
    };
    command
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("dmtrace {}", args.join(" ")))
}

/// Runs `dmtrace` with `--json` and reads its one object.
pub(crate) fn dmtrace_json(args: &[&str]) -> Result<(Value, i32)> {
    let output = Command::new(dmtrace_bin()?)
        .arg("--json")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("dmtrace {}", args.join(" ")))?;
    let text = String::from_utf8(output.stdout)?;
    let object = serde_json::from_str(text.trim()).with_context(|| {
        format!(
            "dmtrace {}: {text:?}, {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        )
    })?;
    Ok((object, output.status.code().unwrap_or(-1)))
}
