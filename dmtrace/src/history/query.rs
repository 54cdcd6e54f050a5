//! Where the history is read from: the service that has it open, else the file.

use std::{
    io::{self, BufRead as _, BufReader, ErrorKind, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Result, anyhow, bail};
use serde_json::{Value, json};

use crate::{
    history::{
        AnswerHead, HistoryEntry, HistoryQuery, NO_HISTORY, PATH, ReadError, SOCKET, read_file,
    },
    wording::{causes_text, chain_text},
};

/// For an answer, and for each part of it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest line of an answer.
const LINE: u64 = 1 << 20;

/// Why a service does not give what was asked for.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum ServiceRefusal {
    /// It has none to give.
    #[error("the service keeps no history (--no-history); an old one: --history FILE")]
    NoHistory,
    /// As it says.
    #[error("{0}")]
    Other(String),
}

/// What a query wants, and where it was found; `None` where nobody has ever kept a history.
///
/// # Errors
/// There is one, but it cannot be read; or the file that was named is not there.
pub(crate) fn find_entries(
    named: Option<&Path>,
    query: &HistoryQuery,
) -> Result<Option<(AnswerHead, Vec<HistoryEntry>)>> {
    if let Some(path) = named {
        let read = read_file(path, query);
        return read.map(Some).map_err(|error| {
            let shown = path.display();
            let text = match error {
                ReadError::Busy => {
                    format!("{shown}: {error}; leave out --history to ask the running service")
                }
                error => format!("{shown}: {}", causes_text(&error)),
            };
            anyhow!(text)
        });
    }
    if let Ok(stream) = UnixStream::connect(SOCKET) {
        let answer = ask_service(stream, query);
        return answer.map(Some).map_err(|error| {
            if is_no_history(&error) {
                return error;
            }
            if let Some(refusal) = error.downcast_ref::<ServiceRefusal>() {
                return anyhow!("{SOCKET}: {refusal}");
            }
            // Not as a cause: a connection that breaks off is no reader of ours that has gone.
            let why = chain_text(&error);
            anyhow!("{SOCKET}: the service does not answer: {why}")
        });
    }
    match read_file(Path::new(PATH), query) {
        Ok(found) => Ok(Some(found)),
        Err(ReadError::None) => Ok(None),
        Err(ReadError::Busy) => Err(anyhow!(
            "{PATH}: a service has it open and does not answer on {SOCKET}; run as root, or see \
             dmtrace serve --group"
        )),
        // Root may read it: it is damaged.
        Err(error) => {
            let fix = if rustix::process::geteuid().is_root() {
                ""
            } else {
                "; run as root"
            };
            Err(anyhow!("{PATH}: {}{fix}", causes_text(&error)))
        }
    }
}

/// Whether there is no history because the service that runs keeps none.
pub(crate) fn is_no_history(error: &anyhow::Error) -> bool {
    error.downcast_ref() == Some(&ServiceRefusal::NoHistory)
}

fn ask_service(
    mut stream: UnixStream,
    query: &HistoryQuery,
) -> Result<(AnswerHead, Vec<HistoryEntry>)> {
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    writeln!(stream, "{}", json!({"request": {"history": query}}))?;
    read_answer(BufReader::new(stream))
}

/// Reads what [`HistoryAsker::send_query`](crate::history::HistoryAsker::send_query) writes.
fn read_answer(mut lines: impl io::BufRead) -> Result<(AnswerHead, Vec<HistoryEntry>)> {
    let mut head = None;
    let mut entries = Vec::new();
    loop {
        let mut line = Vec::new();
        let length = io::Read::take(&mut lines, LINE).read_until(b'\n', &mut line)?;
        if length == 0 {
            bail!("the answer is cut short");
        }
        if line.last() != Some(&b'\n') {
            bail!(io::Error::from(ErrorKind::InvalidData));
        }
        let value: Value = serde_json::from_slice(&line)?;
        if let Some(error) = value["error"].as_str() {
            bail!(match error {
                NO_HISTORY => ServiceRefusal::NoHistory,
                other => ServiceRefusal::Other(other.to_owned()),
            });
        }
        match value["type"].as_str() {
            Some("history") => head = Some(serde_json::from_value(value)?),
            Some("end") => {
                let head = head.ok_or_else(|| anyhow!("the answer has no header"))?;
                return Ok((head, entries));
            }
            // A newer service may know more.
            _ => entries.extend(HistoryEntry::from_json(&line)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_or_an_error() {
        let head = r#"{"type":"history","dropped_for_space":3,"dropped_for_age":0,"alive_ms":7,"notes":["n"]}"#;
        let gap = r#"{"id":1,"boot_id":"b","type":"gap","from":{"time":"2001-09-09T01:46:40Z","boot_ns":1},"to":{"time":"2001-09-09T01:46:41Z","boot_ns":2},"why":"stopped"}"#;
        let newer = r#"{"id":2,"boot_id":"b","type":"of_tomorrow"}"#;
        let whole = format!("{head}\n{gap}\n{newer}\n{{\"type\":\"end\"}}\n");
        let (head, entries) = read_answer(whole.as_bytes()).unwrap();
        assert_eq!((head.dropped_for_space, head.notes.len()), (3, 1));
        assert_eq!(entries.len(), 1);
        for cut in 0..whole.len() {
            assert!(read_answer(&whole.as_bytes()[..cut]).is_err(), "{cut}");
        }
        let refused = read_answer(&b"{\"error\":\"no such request\"}\n"[..]);
        assert_eq!(refused.unwrap_err().to_string(), "no such request");
    }

    #[test]
    fn a_service_without_a_history_has_answered() {
        let refused = read_answer(format!("{}\n", json!({"error": NO_HISTORY})).as_bytes());
        let error = refused.unwrap_err();
        assert!(is_no_history(&error), "{error}");
        assert_eq!(
            error.to_string(),
            "the service keeps no history (--no-history); an old one: --history FILE"
        );
        let other = read_answer(&b"{\"error\":\"no such request\"}\n"[..]);
        assert!(!is_no_history(&other.unwrap_err()));
    }
}
