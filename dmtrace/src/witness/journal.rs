//! systemd's journal. What it says of who wrote a line (`_PID`, `_COMM`, `_SYSTEMD_UNIT`) is its own
//! knowledge; the line itself is whatever that process wrote.

use std::{path::Path, process::Command, time::Instant};

use dmtrace_core::{
    event::workload::Workload,
    ids::UnixTime,
    search::{ProgramKind, identify_program},
    witness::{
        AuditReader, AuditRecord, Author, Message, Testimony, Told, Witness, bounded_text,
        is_device_mapper_line, read_message,
    },
};
use serde_json::Value;

use super::{Hearing, Limits, command, command::Output};
use crate::host::Roots;

const WHAT: &str = "journal";

/// The fields that are asked for; stamps come with every entry.
const FIELDS: &str = "_AUDIT_ID,_PID,_UID,_COMM,_EXE,_CMDLINE,_SYSTEMD_UNIT,_SYSTEMD_CGROUP,_TRANSPORT,\
                      MESSAGE,UNIT,CONTAINER_NAME,SYSLOG_IDENTIFIER";

/// Where `journalctl` is.
const PROGRAMS: [&str; 2] = ["/usr/bin/journalctl", "/bin/journalctl"];

/// Somebody who has the lines of a journal.
pub trait Journal {
    /// Entries of a span of the wall clock as JSON, the newest if there are too many.
    ///
    /// # Errors
    /// Why there are none, in words.
    fn read(
        &self,
        from: i64,
        to: i64,
        limits: &Limits,
        deadline: Instant,
    ) -> Result<JournalPart, String>;
}

/// Part of a journal.
#[derive(Clone, Debug, Default)]
pub struct JournalPart {
    /// Entries, one JSON object each.
    pub entries: Vec<Vec<u8>>,
    /// Why that may not be all.
    pub cut: Option<&'static str>,
}

/// The journal of the host, by `journalctl`.
#[derive(Clone, Debug)]
pub struct SystemJournal {
    roots: Roots,
}

impl SystemJournal {
    /// Of this host.
    pub fn new(roots: &Roots) -> Self {
        Self {
            roots: roots.clone(),
        }
    }
}

impl Journal for SystemJournal {
    fn read(
        &self,
        from: i64,
        to: i64,
        limits: &Limits,
        deadline: Instant,
    ) -> Result<JournalPart, String> {
        let kept = ["run/log/journal", "var/log/journal"];
        if !kept.iter().any(|dir| self.roots.exists(dir)) {
            return Err("it is not kept on this host".to_owned());
        }
        let program = PROGRAMS.iter().find(|it| Path::new(it).exists());
        let program = program.ok_or("there is no journalctl")?;
        let mut command = Command::new(program);
        command.args(["--boot", "--quiet", "--no-pager", "--output=json"]);
        command.arg(format!("--output-fields={FIELDS}"));
        command.arg(format!("--since=@{from}"));
        command.arg(format!("--until=@{to}"));
        command.arg(format!("--lines={}", limits.journal_lines));
        if self.roots.fs.as_os_str() != "/" {
            command.arg(format!("--root={}", self.roots.fs.display()));
        }
        let Output { lines, cut } = command::read_lines(
            &mut command,
            limits.journal_lines,
            limits.journal_bytes,
            deadline,
        )?;
        Ok(JournalPart {
            entries: lines,
            cut,
        })
    }
}

pub(super) fn read(hearing: &mut Hearing<'_>, journal: &dyn Journal) {
    let deadline = hearing
        .deadline
        .min(Instant::now() + hearing.limits.journal_time);
    let windows: Vec<(i64, i64)> = hearing.windows.iter().rev().collect();
    let most = hearing.limits.journal_windows;
    if windows.len() > most {
        let all = windows.len();
        hearing.cannot_read(
            WHAT,
            format!("of {all} spans of time only the last {most} were looked up"),
        );
    }
    let mut audit = AuditReader::default();
    for &(from, to) in windows.iter().take(most) {
        if Instant::now() >= deadline {
            hearing.cannot_read(WHAT, "it took too long");
            return;
        }
        match journal.read(from, to, hearing.limits, deadline) {
            Ok(part) => {
                if let Some(cut) = part.cut {
                    hearing.cannot_read(WHAT, cut);
                }
                for entry in &part.entries {
                    for testimony in parse_entry(entry, &mut audit) {
                        hearing.add(testimony);
                    }
                }
            }
            Err(why) => {
                hearing.cannot_read(WHAT, why);
                return;
            }
        }
    }
}

/// What an entry says: of who wrote it, and of whom it tells.
fn parse_entry(entry: &[u8], audit: &mut AuditReader) -> Vec<Testimony> {
    let Ok(entry) = serde_json::from_slice::<Value>(entry) else {
        return Vec::new();
    };
    let field = |name: &str| field_text(&entry[name]);
    let number = |name: &str| field(name)?.parse::<u32>().ok();
    let micros = field("__REALTIME_TIMESTAMP").and_then(|it| it.parse::<i64>().ok());
    let Some(micros) = micros else {
        return Vec::new();
    };
    let at = UnixTime(micros.div_euclid(1_000_000));
    let message = field("MESSAGE").unwrap_or_default();
    let bounded = |name: &str| field(name).map(|it| bounded_text(&it));
    let (pid, uid) = (number("_PID"), number("_UID"));
    let transport = field("_TRANSPORT");
    if transport.as_deref() == Some("audit") {
        let (kind, fields) = message.split_once(' ').unwrap_or((&message, ""));
        let serial = field("_AUDIT_ID").and_then(|it| it.parse().ok());
        let record = AuditRecord {
            kind,
            at,
            serial: serial.unwrap_or(0),
            fields,
        };
        return Vec::from_iter(audit.read(&record, Witness::Journal, WHAT));
    }
    let kernel = transport.as_deref() == Some("kernel");
    let manager = pid == Some(1);
    let from = if kernel {
        Message::Kernel(&message)
    } else if manager {
        Message::Manager(&message)
    } else {
        Message::Program(&message)
    };
    let container = bounded("CONTAINER_NAME").or_else(|| {
        let workload = Workload::from_cgroup(&field("_SYSTEMD_CGROUP")?);
        Some(bounded_text(&workload.container?))
    });
    let by = field("_COMM").or_else(|| field("SYSLOG_IDENTIFIER"));
    let by = by.unwrap_or_else(|| if kernel { "kernel" } else { "?" }.to_owned());
    let line = match pid {
        Some(pid) => format!("{by}[{pid}]: {message}"),
        None => format!("{by}: {message}"),
    };
    let said = || Testimony {
        author: if kernel {
            Author::Kernel
        } else {
            Author::Program
        },
        ..Testimony::of_line(Witness::Journal, WHAT, at, &line)
    };
    let mut found = Vec::new();
    if manager {
        // Of the unit, whose number it does not say.
        found.extend(bounded("UNIT").map(|unit| Testimony {
            unit: Some(unit),
            ..said()
        }));
    } else if !kernel && pid.is_some() {
        found.push(Testimony {
            pid,
            name: bounded("_COMM"),
            command: bounded("_CMDLINE"),
            exe: bounded("_EXE"),
            uid,
            unit: bounded("_SYSTEMD_UNIT"),
            container: container.clone(),
            ..said()
        });
    }
    if let Some(told) = read_message(from) {
        // A daemon of root logs names that others send it; a shell says of its own children.
        let shell = transport.as_deref() == Some("stdout")
            && field("_EXE").is_some_and(|it| identify_program(&it) == ProgramKind::Interpreter);
        let knows = kernel || manager || (uid == Some(0) && shell);
        let forgeable = told.of_anybody || !knows;
        let unit = if manager {
            None
        } else {
            bounded("_SYSTEMD_UNIT")
        };
        let testimony = testify(told, unit, container.is_some(), said());
        let testimony = Testimony {
            forgeable,
            container,
            ..testimony
        };
        match found.last_mut() {
            // The same unit: one statement.
            Some(last) if manager && testimony.pid.is_none() && last.unit == testimony.unit => {
                *last = testimony;
            }
            _ => found.push(testimony),
        }
    } else if kernel && is_device_mapper_line(&message) {
        found.push(said());
    }
    found
}

/// Puts what a line tells into a statement. `inside`: in a container, where processes have other
/// numbers.
pub(super) fn testify(
    told: Told,
    unit: Option<String>,
    inside: bool,
    said: Testimony,
) -> Testimony {
    let bounded = |text: Option<String>| text.map(|it| bounded_text(&it));
    Testimony {
        pid: told.pid.filter(|_| !inside),
        name: bounded(told.name),
        command: bounded(told.command),
        unit: bounded(told.unit).or(unit),
        uid: told.uid,
        ending: told.ending,
        forgeable: said.forgeable || told.of_anybody,
        ..said
    }
}

/// A field: a string, bytes where it is no UTF-8, or several of them.
fn field_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(values) if values.first().is_some_and(Value::is_number) => {
            let bytes = values.iter().take(8192);
            let bytes = bytes.map(|it| it.as_u64().and_then(|it| u8::try_from(it).ok()));
            let bytes: Option<Vec<u8>> = bytes.collect();
            Some(String::from_utf8_lossy(&bytes?).into_owned())
        }
        Value::Array(values) => match values.first() {
            Some(Value::String(text)) => Some(text.clone()),
            _ => None,
        },
        _ => None,
    }
}
