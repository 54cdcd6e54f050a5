//! The log of `auditd`: what rules of this host have the kernel write down, which only root can change.

use dmtrace_core::witness::{AuditReader, AuditRecord, Testimony, Witness, is_cookie_program};

use super::{Hearing, text_file::Tail};
use crate::wording::cause_text;

/// The newest first.
const FILES: [&str; 5] = [
    "var/log/audit/audit.log",
    "var/log/audit/audit.log.1",
    "var/log/audit/audit.log.2",
    "var/log/audit/audit.log.3",
    "var/log/audit/audit.log.4",
];

const WHAT: &str = "audit";

/// A host without such a log has no witness less: there is nothing in it unless somebody set a rule.
pub(super) fn read(hearing: &mut Hearing<'_>) {
    for path in FILES {
        if hearing.is_late() {
            hearing.cannot_read(WHAT, format!("/{path}: there was no time for it"));
            return;
        }
        let tail = match Tail::read(hearing.roots, path, hearing.limits.text_bytes) {
            Ok(Some(tail)) => tail,
            Ok(None) => continue,
            Err(error) => {
                hearing.cannot_read(WHAT, format!("/{path}: {}", cause_text(&error)));
                continue;
            }
        };
        let source = format!("/{path}");
        let mut reader = AuditReader::default();
        for line in tail.lines() {
            let Some(record) = AuditRecord::from_line(&line) else {
                continue;
            };
            if !hearing.windows.contains(record.at.0) {
                continue;
            }
            let said = reader.read(&record, Witness::Audit, &source);
            if let Some(said) = said.filter(|it| matters(hearing, it)) {
                hearing.add(said);
            }
        }
    }
}

/// Who made a set, who was killed, last operators, and programs that make cookies: rules may have every
/// system call of a host written down.
fn matters(hearing: &Hearing<'_>, said: &Testimony) -> bool {
    let is_operator = said.pid.is_some_and(|pid| hearing.pids.contains(&pid));
    let makes_cookies = said.name.as_deref().is_some_and(is_cookie_program);
    said.made.is_some_and(|it| it.key.has_cookie_magic())
        || said.tells_kill()
        || is_operator
        || makes_cookies
}
