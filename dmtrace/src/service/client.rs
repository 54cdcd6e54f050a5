//! The other side of the control socket.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow, bail};
use serde_json::Value;

use super::{SOCKET, request::ServiceRequest, status::ServiceReport};

use crate::wording::cause_text;

/// Longest answer that is read.
const ANSWER_MAX: u64 = 16 << 20;
/// How often the service is asked whether its search is over.
const SEARCH_POLL: Duration = Duration::from_millis(500);
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks the running service how it is. Returns what it has sent, and what is read of that.
///
/// # Errors
/// None runs, or this user may not ask.
pub(crate) fn ask_status() -> Result<(Value, ServiceReport)> {
    let answer = ask(ServiceRequest::Status)?;
    let unreadable = |error| anyhow!("{SOCKET}: the answer cannot be read: {error}");
    let report = serde_json::from_value(answer.clone()).map_err(unreadable)?;
    Ok((answer, report))
}

/// Asks the running service to search, and waits for the end of that. Returns how the service is then.
///
/// # Errors
/// None runs, this user may not ask, or the service is too old for it.
pub(crate) fn ask_search() -> Result<(Value, ServiceReport)> {
    // One that is being made already will do, too: it sees what is there now.
    ask(ServiceRequest::Search)?;
    loop {
        thread::sleep(SEARCH_POLL);
        let (answer, report) = ask_status()?;
        let Some(search) = &report.search else {
            bail!("{SOCKET}: the service knows no search; restart it");
        };
        if !search.running && report.as_of_seconds_ago.is_none() {
            return Ok((answer, report));
        }
    }
}

fn ask(request: ServiceRequest) -> Result<Value> {
    // In words: a connection that breaks off is no reader of ours that has gone.
    let stream = UnixStream::connect(SOCKET).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            let why = cause_text(&error);
            anyhow!("{SOCKET}: {why}; only root, and the group of dmtrace serve --group, may ask")
        }
        _ => {
            let why = cause_text(&error);
            anyhow!("{SOCKET}: no service answers ({why}); start it as root: dmtrace serve")
        }
    })?;
    let answer = ask_service(stream, request)
        .map_err(|error| anyhow!("{SOCKET}: {}", cause_text(&error)))?;
    let unreadable = |error| anyhow!("{SOCKET}: the answer cannot be read: {error}");
    let answer: Value = serde_json::from_str(&answer).map_err(unreadable)?;
    if let Some(error) = answer["error"].as_str() {
        bail!("{SOCKET}: {error}");
    }
    Ok(answer)
}

fn ask_service(mut stream: UnixStream, request: ServiceRequest) -> io::Result<String> {
    stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
    stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
    stream.write_all(request.to_line().as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}
