//! A command of the administrator that is told of each new finding.

use std::{
    fmt,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Stdio,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dmtrace_core::{duration::Span, event::workload::Workload};
use tokio::{
    io::AsyncWriteExt as _, process::Command, sync::mpsc, task::JoinHandle, time::timeout,
};

use crate::{
    finding::SetReport, metrics::HookRun, output::json::json_envelope, wording::cause_text,
};

/// Findings that wait while the command runs; more are dropped and counted.
const QUEUE: usize = 64;
/// Longest value of a variable, bytes.
const VALUE_MAX: usize = 256;
/// All that the command gets of the service's environment.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command line. No shell sees it: quotes group words, and nothing is expanded.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct CommandLine {
    program: String,
    arguments: Vec<String>,
}

/// It cannot be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandLineError {
    /// No words, or a quote without its end.
    #[error("{0:?}: a quote is not closed, or there is no word; give: PROGRAM ARGUMENT ...")]
    Malformed(String),
    /// Its directory is not given.
    #[error("{0}: give the program's absolute path")]
    Relative(String),
    /// There is no such program.
    #[error("{0}: no executable file")]
    Missing(String),
}

impl FromStr for CommandLine {
    type Err = CommandLineError;

    fn from_str(text: &str) -> Result<Self, CommandLineError> {
        let words = shlex::split(text).filter(|words| !words.is_empty());
        let mut words = words.ok_or_else(|| CommandLineError::Malformed(text.to_owned()))?;
        let program = words.remove(0);
        let path = Path::new(&program);
        if !path.is_absolute() {
            return Err(CommandLineError::Relative(program));
        }
        let runs = path
            .metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
        if !runs {
            return Err(CommandLineError::Missing(program));
        }
        Ok(Self {
            program,
            arguments: words,
        })
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.program)
    }
}

/// What the command is told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct HookFinding {
    json: String,
    variables: Vec<(&'static str, String)>,
}

impl HookFinding {
    /// Of a judged cookie.
    pub(crate) fn from_row(set: &SetReport) -> Self {
        let text = set.verdict.as_ref().map(|verdict| verdict.text.clone());
        let owner = set.owner.as_ref();
        let workload = set.maker.as_ref().map(|maker| maker.workload.clone());
        let Workload { container, pod, .. } = workload.unwrap_or_default();
        let variables = [
            ("DMTRACE_STATE", Some(set.state.clone())),
            ("DMTRACE_FINDING", text),
            ("DMTRACE_COOKIE", Some(set.key.to_string())),
            ("DMTRACE_SEMID", Some(set.semid.to_string())),
            ("DMTRACE_IPC_NS", Some(set.ipc_ns.to_string())),
            ("DMTRACE_PID", owner.map(|owner| owner.pid.to_string())),
            ("DMTRACE_COMM", owner.map(|owner| owner.comm.clone())),
            ("DMTRACE_CONTAINER", container),
            ("DMTRACE_POD", pod),
        ];
        let known = variables.into_iter();
        let known = known.filter_map(|(name, value)| Some((name, plain_line(&value?))));
        Self {
            json: format!("{}\n", json_envelope("finding", set)),
            variables: known.filter(|(_, value)| !value.is_empty()).collect(),
        }
    }
}

/// One short line, whatever a process calls itself.
fn plain_line(text: &str) -> String {
    let mut text = text.replace(dmtrace_core::event::text::steers_terminal, " ");
    let mut end = text.len().min(VALUE_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// The running hook: at most one command at a time, each with its limit of time.
#[derive(Debug)]
pub(crate) struct Hook {
    queue: mpsc::Sender<HookFinding>,
    runs: Arc<[AtomicU64; HookRun::ALL.len()]>,
    runner: JoinHandle<()>,
}

impl Hook {
    /// Waits for findings. Must be called in a runtime. `problem` is told why a run failed.
    pub(crate) fn start(
        command: CommandLine,
        limit: Duration,
        problem: impl Fn(String) + Send + 'static,
    ) -> Self {
        let (queue, mut findings) = mpsc::channel::<HookFinding>(QUEUE);
        let runs = Arc::<[AtomicU64; HookRun::ALL.len()]>::default();
        let counted = Arc::clone(&runs);
        let runner = tokio::spawn(async move {
            while let Some(finding) = findings.recv().await {
                let (run, why) = run_command(&command, &finding, limit).await;
                if let Some(why) = why {
                    problem(format!("hook {command}: {why}"));
                }
                counted[run as usize].fetch_add(1, Ordering::Relaxed);
            }
        });
        Self {
            queue,
            runs,
            runner,
        }
    }

    /// Tells the command soon. Never waits: without room the finding is dropped and counted.
    pub(crate) fn queue_finding(&self, finding: HookFinding) {
        if self.queue.try_send(finding).is_err() {
            self.runs[HookRun::Dropped as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How its runs ended, by [`HookRun`].
    pub(crate) fn run_counts(&self) -> [u64; HookRun::ALL.len()] {
        HookRun::ALL.map(|run| self.runs[run as usize].load(Ordering::Relaxed))
    }

    /// Lets it tell what waits, for this time; then what runs is killed.
    pub(crate) async fn finish(self, patience: Duration) {
        let Self {
            queue, mut runner, ..
        } = self;
        drop(queue);
        if timeout(patience, &mut runner).await.is_err() {
            runner.abort();
            let _cancelled = runner.await;
        }
    }
}

/// Kills a process group, unless it has ended well.
struct ProcessGroup(Option<i32>);

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // SAFETY: two numbers. The leader has not been waited for: its number is not reused.
            unsafe { libc::kill(-leader, libc::SIGKILL) };
        }
    }
}

async fn run_command(
    command: &CommandLine,
    finding: &HookFinding,
    limit: Duration,
) -> (HookRun, Option<String>) {
    let spawned = Command::new(&command.program)
        .args(&command.arguments)
        .env_clear()
        .env("PATH", PATH)
        .envs(finding.variables.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => return (HookRun::Failed, Some(cause_text(&error))),
    };
    let mut group = ProcessGroup(child.id().and_then(|id| i32::try_from(id).ok()));
    let stdin = child.stdin.take();
    let told = async {
        if let Some(mut stdin) = stdin {
            // It need not read.
            let _unread = stdin.write_all(finding.json.as_bytes()).await;
        }
    };
    let ended = async {
        // What it has left running may keep the pipe open.
        tokio::select! {
            status = child.wait() => status,
            status = async { told.await; std::future::pending().await } => status,
        }
    };
    match timeout(limit, ended).await {
        Err(_) => {
            drop(group);
            let _reaped = child.wait().await;
            let why = format!("killed after {}", Span(limit));
            (HookRun::TimedOut, Some(why))
        }
        Ok(Err(error)) => (HookRun::Failed, Some(cause_text(&error))),
        Ok(Ok(status)) => {
            group.0 = None;
            if status.success() {
                (HookRun::Ok, None)
            } else {
                (HookRun::Failed, Some(status.to_string()))
            }
        }
    }
}

#[cfg(test)]
mod tests;
