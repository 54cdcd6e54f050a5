//! Requests on the control socket: one line of JSON, of bounded length.

use serde::{Deserialize, Serialize};

use crate::history::HistoryQuery;

/// Longest request, its line feed included.
pub(super) const REQUEST_MAX: usize = 1024;

/// What may be asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ServiceRequest {
    /// How the service is, and what it has found.
    Status,
    /// That it searches who holds the cookies that no trace saw being made.
    Search,
    /// What it has found before. The answer has many lines.
    History(HistoryQuery),
}

/// A request as it is sent.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestLine {
    request: ServiceRequest,
}

impl ServiceRequest {
    /// As it is sent, with its end of line.
    pub(super) fn to_line(self) -> String {
        let request = serde_json::json!(RequestLine { request: self });
        format!("{request}\n")
    }
}

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum RequestError {
    /// Longer than [`REQUEST_MAX`].
    #[error("the request is longer than {REQUEST_MAX} bytes")]
    TooLong,
    /// The other side has hung up before the end of the line.
    #[error("the request has no end of line")]
    Cut,
    /// Not one of [`ServiceRequest`].
    #[error(
        "no such request; this service knows: {{\"request\":\"status\"}}, \
             {{\"request\":\"search\"}} and {{\"request\":{{\"history\":{{}}}}}}"
    )]
    Unknown,
}

/// What the bytes received so far are.
///
/// # Errors
/// They will never be a request.
pub(super) fn parse_request(bytes: &[u8]) -> Result<Option<ServiceRequest>, RequestError> {
    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
        return if bytes.len() >= REQUEST_MAX {
            Err(RequestError::TooLong)
        } else {
            Ok(None)
        };
    };
    if end >= REQUEST_MAX {
        return Err(RequestError::TooLong);
    }
    let line: RequestLine =
        serde_json::from_slice(&bytes[..end]).map_err(|_| RequestError::Unknown)?;
    Ok(Some(line.request))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_is_known_once_its_line_is_complete() {
        let line = b"{\"request\":\"status\"}\n";
        for length in 0..line.len() {
            assert_eq!(parse_request(&line[..length]), Ok(None));
        }
        assert_eq!(parse_request(line), Ok(Some(ServiceRequest::Status)));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for line in [
            "\n",
            "status\n",
            "{}\n",
            "{\"request\":\"shutdown\"}\n",
            "{\"request\":\"status\",\"path\":\"/etc/shadow\"}\n",
        ] {
            assert_eq!(
                parse_request(line.as_bytes()),
                Err(RequestError::Unknown),
                "{line}"
            );
        }
        assert_eq!(
            parse_request(&[b' '; REQUEST_MAX]),
            Err(RequestError::TooLong)
        );
        let deep = format!("{}\n", "[".repeat(REQUEST_MAX - 2));
        assert_eq!(parse_request(deep.as_bytes()), Err(RequestError::Unknown));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decided_within_the_bound(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            let parsed = parse_request(&bytes);
            if bytes.len() >= REQUEST_MAX {
                prop_assert_ne!(parsed, Ok(None), "would read on for ever");
            }
        }

        #[test]
        fn what_is_written_is_read(tail in prop::collection::vec(any::<u8>(), 0..50)) {
            let mut line = ServiceRequest::Status.to_line().into_bytes();
            line.extend(tail);
            prop_assert_eq!(parse_request(&line), Ok(Some(ServiceRequest::Status)));
            let line = ServiceRequest::Search.to_line().into_bytes();
            prop_assert_eq!(parse_request(&line), Ok(Some(ServiceRequest::Search)));
        }
    }
}
