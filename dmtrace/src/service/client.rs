//! The other side of the control socket.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use anyhow::{Result, anyhow, bail};
use serde_json::Value;

use super::{SOCKET, request::ServiceRequest, status::ServiceReport};

use crate::wording::cause_text;

/// Longest answer that is read.
const ANSWER_MAX: u64 = 16 << 20;
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks the running service how it is. Returns what it has sent, and what is read of that.
///
/// # Errors
/// None runs, or this user may not ask.
pub(crate) fn ask_status() -> Result<(Value, ServiceReport)> {
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
    let answer =
        ask_service(stream).map_err(|error| anyhow!("{SOCKET}: {}", cause_text(&error)))?;
    let unreadable = |error| anyhow!("{SOCKET}: the answer cannot be read: {error}");
    let answer: Value = serde_json::from_str(&answer).map_err(unreadable)?;
    if let Some(error) = answer["error"].as_str() {
        bail!("{SOCKET}: {error}");
    }
    let report = serde_json::from_value(answer.clone()).map_err(unreadable)?;
    Ok((answer, report))
}

fn ask_service(mut stream: UnixStream) -> io::Result<String> {
    stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
    stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
    stream.write_all(ServiceRequest::Status.to_line().as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}
