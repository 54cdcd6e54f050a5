//! The audit record of a clean-up: what is destroyed is written and synced before.
//!
//! One JSON object a line, appended: `clean_begin` with who, when and the whole plan,
//! `clean_intent` before each removal, `clean_outcome` after it, `clean_end`. An intent without an
//! outcome means that the program was killed there: the removal may or may not have happened.
//! `raise_limit` and `restore_limit` tell of changes of `kernel.sem`.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use dmtrace_core::{
    cleanup::plan::{Plan, PlanEntry},
    facts::SetSnapshot,
};
use serde_json::{Value, json};

use super::{file::is_trusted, witness::Sighting};
use crate::{
    host::{Roots, clock, identity},
    output::{json::json_envelope, time::Moment},
    wording::cause_text,
};

/// The audit record cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot write the audit record: {}; {hint}", path.display(), cause_text(source))]
pub struct AuditError {
    path: PathBuf,
    source: io::Error,
    hint: &'static str,
}

/// When a line must be on disk. A line that was written survives the end of the program at once,
/// and that of the machine once it is synced.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum SyncPolicy {
    /// Before the next step.
    Now,
    /// With a later line.
    Later,
}

/// An open audit record.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    file: File,
    /// Names the lines of this run.
    run: String,
}

impl Audit {
    /// Opens the file for appending, alone.
    ///
    /// # Errors
    /// It cannot be opened, others could have written it, or another clean-up writes it now.
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        let failed = |source: io::Error, hint| AuditError {
            path: path.to_owned(),
            source,
            hint,
        };
        let elsewhere = "nothing is removed without one; use --audit FILE";
        let new = !path.exists();
        let file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
            .map_err(|error| failed(error, elsewhere))?;
        let meta = file.metadata().map_err(|error| failed(error, elsewhere))?;
        if !meta.is_file() || !is_trusted(&meta) || meta.nlink() != 1 {
            let error = io::Error::other("not a file that only you or root can write");
            return Err(failed(error, elsewhere));
        }
        // SAFETY: two numbers; the descriptor is open. The lock ends with the descriptor.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            let error = io::Error::last_os_error();
            let hint = match error.kind() {
                io::ErrorKind::WouldBlock => "another dmtrace clean is at work; wait for it",
                _ => elsewhere,
            };
            return Err(failed(error, hint));
        }
        let mut audit = Self {
            path: path.to_owned(),
            file,
            run: format!("{}-{}", std::process::id(), clock::boot_now().0),
        };
        audit
            .end_torn_line()
            .map_err(|error| failed(error, elsewhere))?;
        if new {
            sync_directory(path).map_err(|error| failed(error, elsewhere))?;
        }
        Ok(audit)
    }

    /// Name of this run in the file.
    pub fn run_name(&self) -> &str {
        &self.run
    }

    /// Ends a line that an earlier run could not end, so that ours are readable.
    fn end_torn_line(&mut self) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        let mut last = *b"\n";
        if length > 0 {
            self.file.seek(SeekFrom::Start(length - 1))?;
            self.file.read_exact(&mut last)?;
        }
        if last == *b"\n" {
            Ok(())
        } else {
            self.append_line(b"\n", SyncPolicy::Later)
        }
    }

    /// Who removes what, and everything that the decision rests on.
    ///
    /// # Errors
    /// It is not safely on disk: nothing may be removed.
    pub fn write_begin(&mut self, plan: &Plan) -> Result<(), AuditError> {
        let roots = Roots::host();
        self.write_record(
            "clean_begin",
            json!({
                "boot_id": clock::boot_id(&roots),
                "who": requester_json(&roots),
                "plan": plan,
            }),
            SyncPolicy::Now,
        )
    }

    /// That a cookie is about to be removed, and what it looks like now.
    ///
    /// # Errors
    /// It is not safely on disk: the cookie may not be removed.
    pub fn write_intent(
        &mut self,
        entry: &PlanEntry,
        set: &SetSnapshot,
        seen: Option<Sighting>,
    ) -> Result<(), AuditError> {
        self.write_record(
            "clean_intent",
            json!({
                "ipc_ns": entry.sem.ns,
                "semid": entry.sem.semid,
                "key": entry.identity.key.to_string(),
                "act": entry.action,
                "set": set,
                "last_op_seen": seen.map(|seen| seen.last_op),
                "owner": entry.owner,
                "verdict": entry.verdict,
            }),
            SyncPolicy::Now,
        )
    }

    /// What came of it.
    ///
    /// # Errors
    /// It cannot be written. The intent is on disk.
    pub fn write_outcome(
        &mut self,
        entry: &PlanEntry,
        outcome: &str,
        detail: Option<&str>,
    ) -> Result<(), AuditError> {
        self.write_record(
            "clean_outcome",
            json!({
                "ipc_ns": entry.sem.ns,
                "semid": entry.sem.semid,
                "key": entry.identity.key.to_string(),
                "outcome": outcome,
                "detail": detail,
            }),
            SyncPolicy::Later,
        )
    }

    /// That a limit of the kernel was changed, by whom, and from what to what.
    ///
    /// # Errors
    /// It is not safely on disk.
    pub fn write_limit(&mut self, kind: &str, was: &str, is: &str) -> Result<(), AuditError> {
        let roots = Roots::host();
        self.write_record(
            kind,
            json!({
                "boot_id": clock::boot_id(&roots),
                "who": requester_json(&roots),
                "kernel_sem": { "was": was, "is": is },
            }),
            SyncPolicy::Now,
        )
    }

    /// The end of the run.
    ///
    /// # Errors
    /// It is not safely on disk.
    pub fn write_end(&mut self, counts: Value) -> Result<(), AuditError> {
        self.write_record("clean_end", counts, SyncPolicy::Now)
    }

    fn write_record(
        &mut self,
        kind: &str,
        mut body: Value,
        sync: SyncPolicy,
    ) -> Result<(), AuditError> {
        body["run"] = json!(self.run);
        body["at"] = json!(Moment::now().to_rfc3339(6));
        body["at_boot_ns"] = json!(clock::boot_now());
        let mut line = json_envelope(kind, &body).to_string();
        line.push('\n');
        self.append_line(line.as_bytes(), sync)
            .map_err(|source| AuditError {
                path: self.path.clone(),
                source,
                hint: "stopped; free space or use --audit FILE",
            })
    }

    /// Appends with one `write`. A line that does not fit is taken back.
    fn append_line(&mut self, line: &[u8], sync: SyncPolicy) -> io::Result<()> {
        let before = self.file.metadata()?.len();
        let done = self.file.write_all(line).and_then(|()| match sync {
            SyncPolicy::Now => self.file.sync_data(),
            SyncPolicy::Later => Ok(()),
        });
        if done.is_err() {
            // What remains of it would be ended by `mend` the next time.
            let _best_effort = self.file.set_len(before);
        }
        done
    }
}

/// The name of a new file is on disk only when its directory is.
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(directory) if directory != Path::new("") => directory,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

/// Who asks for it: the process, and the person as far as the system knows.
fn requester_json(roots: &Roots) -> Value {
    let number = |name: &str| -> Option<u32> {
        let text = fs::read_to_string(roots.proc_path("self").join(name)).ok()?;
        text.trim().parse().ok()
    };
    let environment = |name: &str| std::env::var(name).ok();
    let arguments: Vec<String> = std::env::args_os()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let pid = std::process::id();
    json!({
        "pid": pid,
        "uid": rustix::process::getuid().as_raw(),
        "euid": rustix::process::geteuid().as_raw(),
        // 2^32-1 is "not set": a daemon, not a login.
        "loginuid": number("loginuid").filter(|&uid| uid != u32::MAX),
        "session": number("sessionid").filter(|&id| id != u32::MAX),
        "sudo_user": environment("SUDO_USER"),
        "command_line": arguments,
        "version": env!("CARGO_PKG_VERSION"),
        "process": identity::image_of(roots, pid),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use dmtrace_core::{
        cleanup::plan::{CookieIdentity, PlannedAction, VerdictSummary},
        ids::SemId,
        verdict::Touched,
    };

    fn sample_entry() -> PlanEntry {
        PlanEntry {
            sem: SemId::default(),
            identity: CookieIdentity::default(),
            owner: None,
            gone: Vec::new(),
            parents: Vec::new(),
            touched: Touched::default(),
            verdict: VerdictSummary {
                class: "leaked".to_owned(),
                text: String::new(),
                brief: String::new(),
                observed: true,
                evidence: Vec::new(),
            },
            orphan: None,
            action: PlannedAction::Destroy,
        }
    }

    fn read_lines(path: &Path) -> Vec<Value> {
        fs::read_to_string(path)
            .unwrap()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    #[test]
    fn runs_follow_each_other_and_a_torn_line_harms_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        let entry = sample_entry();
        for run in 1..=3 {
            let mut audit = Audit::open(&path).unwrap();
            audit
                .write_intent(&entry, &SetSnapshot::default(), None)
                .unwrap();
            audit.write_outcome(&entry, "removed", None).unwrap();
            drop(audit);
            assert_eq!(read_lines(&path).len(), 2 * run);
            let mut file = File::options().append(true).open(&path).unwrap();
            file.write_all(b"{\"type\":\"clean_out").unwrap();
        }
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn one_run_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        let _first = Audit::open(&path).unwrap();
        let error = Audit::open(&path).unwrap_err().to_string();
        assert!(error.contains("another dmtrace clean"), "{error}");
    }

    #[test]
    fn only_own_plain_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(Audit::open(&path).is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(Audit::open(&path).is_ok());
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(Audit::open(&link).is_err());
        let other = dir.path().join("other");
        fs::hard_link(&path, &other).unwrap();
        assert!(Audit::open(&other).is_err());
        assert!(Audit::open(Path::new("/dev/null")).is_err());
        assert!(Audit::open(&dir.path().join("no/such")).is_err());
    }

    #[test]
    fn a_full_disk_is_an_error_before_the_act() {
        // `/dev/full` is no plain file, so the refusal of the write itself is tried below `open`.
        let file = File::options().append(true).open("/dev/full").unwrap();
        let mut audit = Audit {
            path: "/dev/full".into(),
            file,
            run: String::new(),
        };
        let entry = sample_entry();
        let error = audit.write_intent(&entry, &SetSnapshot::default(), None);
        assert!(error.unwrap_err().to_string().contains("No space left"));
    }
}
