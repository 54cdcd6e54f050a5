//! The one request that there is.

use super::Format;

/// Longest head of a request.
pub(super) const HEAD_MAX: usize = 8 << 10;
/// More headers than any scraper sends.
const HEADERS_MAX: usize = 64;

/// What a request gets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wanted {
    Metrics(Format),
    Head(Format),
    Error(Refusal),
}

/// Why a request gets nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refusal {
    /// It is no HTTP.
    Malformed,
    /// It is too long.
    TooLarge,
    /// There is something at `/metrics` only.
    NotFound,
    /// GET and HEAD only.
    Method,
}

impl Refusal {
    /// Status line without the version.
    pub(super) const fn status(self) -> &'static str {
        match self {
            Self::Malformed => "400 Bad Request",
            Self::TooLarge => "431 Request Header Fields Too Large",
            Self::NotFound => "404 Not Found",
            Self::Method => "405 Method Not Allowed",
        }
    }
}

/// Reads a request; `None` if its head is not complete yet.
pub(super) fn read(bytes: &[u8]) -> Option<Wanted> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Some(Wanted::Error(Refusal::TooLarge));
        }
        Err(_) => return Some(Wanted::Error(Refusal::Malformed)),
        Ok(httparse::Status::Complete(_)) => {}
    }
    let path = request.path.unwrap_or_default();
    if path.split('?').next() != Some("/metrics") {
        return Some(Wanted::Error(Refusal::NotFound));
    }
    let mut accepts = request
        .headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("accept"));
    let open = accepts.any(|header| {
        let value = String::from_utf8_lossy(header.value);
        value.contains("application/openmetrics-text")
    });
    let format = if open {
        Format::OpenMetrics
    } else {
        Format::Prometheus
    };
    Some(match request.method {
        Some("GET") => Wanted::Metrics(format),
        Some("HEAD") => Wanted::Head(format),
        _ => Wanted::Error(Refusal::Method),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asked(line: &str, accept: &str) -> Option<Wanted> {
        read(format!("{line}\r\nHost: x\r\nAccept: {accept}\r\n\r\n").as_bytes())
    }

    #[test]
    fn scrapers_choose_the_format() {
        let new = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2";
        let get = "GET /metrics HTTP/1.1";
        let metrics = |format| Some(Wanted::Metrics(format));
        assert_eq!(asked(get, new), metrics(Format::OpenMetrics));
        assert_eq!(asked(get, "*/*"), metrics(Format::Prometheus));
        let line = "GET /metrics?collect=all HTTP/1.0";
        assert_eq!(asked(line, "*/*"), metrics(Format::Prometheus));
        let head = Some(Wanted::Head(Format::Prometheus));
        assert_eq!(asked("HEAD /metrics HTTP/1.1", "*/*"), head);
    }

    #[test]
    fn everything_else_is_refused() {
        for (line, why) in [
            ("GET / HTTP/1.1", Refusal::NotFound),
            ("GET /metrics/../etc HTTP/1.1", Refusal::NotFound),
            ("GET http://x/metrics HTTP/1.1", Refusal::NotFound),
            ("POST /metrics HTTP/1.1", Refusal::Method),
            ("CONNECT /metrics HTTP/1.1", Refusal::Method),
            ("hello", Refusal::Malformed),
            ("\u{16}\u{3}\u{1}", Refusal::Malformed),
        ] {
            assert_eq!(asked(line, "*/*"), Some(Wanted::Error(why)), "{line}");
        }
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65));
        assert_eq!(
            read(many.as_bytes()),
            Some(Wanted::Error(Refusal::TooLarge))
        );
        let long = format!("GET /metrics HTTP/1.1\r\na: {}", "b".repeat(HEAD_MAX));
        assert_eq!(
            read(long.as_bytes()),
            Some(Wanted::Error(Refusal::TooLarge))
        );
    }

    proptest! {
        #[test]
        fn nothing_panics_and_long_heads_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
            let wanted = read(&bytes);
            prop_assert!(wanted.is_some() || bytes.len() < HEAD_MAX);
        }

        #[test]
        fn a_request_in_pieces_is_waited_for(cut in 0usize..37) {
            let whole = b"GET /metrics HTTP/1.1\r\nHost: host\r\n\r\n";
            prop_assert_eq!(read(&whole[..cut]), None);
            prop_assert_eq!(read(whole), Some(Wanted::Metrics(Format::Prometheus)));
        }
    }
}
