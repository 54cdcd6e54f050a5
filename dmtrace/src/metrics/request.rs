//! The one request that there is.

use super::ExpositionFormat;

/// Longest head of a request.
pub(super) const HEAD_MAX: usize = 8 << 10;
/// More headers than any scraper sends.
const HEADERS_MAX: usize = 64;

/// What a request gets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum RequestedResource {
    Metrics(ExpositionFormat),
    Head(ExpositionFormat),
    Error(RequestRefusal),
}

/// Why a request gets nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum RequestRefusal {
    /// It is no HTTP.
    Malformed,
    /// It is too long.
    TooLarge,
    /// There is something at `/metrics` only.
    NotFound,
    /// GET and HEAD only.
    Method,
}

impl RequestRefusal {
    /// Status line without the version.
    pub(super) const fn status_line(self) -> &'static str {
        match self {
            Self::Malformed => "400 Bad Request",
            Self::TooLarge => "431 Request Header Fields Too Large",
            Self::NotFound => "404 Not Found",
            Self::Method => "405 Method Not Allowed",
        }
    }
}

/// Reads a request; `None` if its head is not complete yet.
pub(super) fn read_request(bytes: &[u8]) -> Option<RequestedResource> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Some(RequestedResource::Error(RequestRefusal::TooLarge));
        }
        Err(_) => return Some(RequestedResource::Error(RequestRefusal::Malformed)),
        Ok(httparse::Status::Complete(_)) => {}
    }
    let path = request.path.unwrap_or_default();
    if path.split('?').next() != Some("/metrics") {
        return Some(RequestedResource::Error(RequestRefusal::NotFound));
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
        ExpositionFormat::OpenMetrics
    } else {
        ExpositionFormat::Prometheus
    };
    Some(match request.method {
        Some("GET") => RequestedResource::Metrics(format),
        Some("HEAD") => RequestedResource::Head(format),
        _ => RequestedResource::Error(RequestRefusal::Method),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse_target(line: &str, accept: &str) -> Option<RequestedResource> {
        read_request(format!("{line}\r\nHost: x\r\nAccept: {accept}\r\n\r\n").as_bytes())
    }

    #[test]
    fn scrapers_choose_the_format() {
        let new = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2";
        let get = "GET /metrics HTTP/1.1";
        let metrics = |format| Some(RequestedResource::Metrics(format));
        assert_eq!(
            parse_target(get, new),
            metrics(ExpositionFormat::OpenMetrics)
        );
        assert_eq!(
            parse_target(get, "*/*"),
            metrics(ExpositionFormat::Prometheus)
        );
        let line = "GET /metrics?collect=all HTTP/1.0";
        assert_eq!(
            parse_target(line, "*/*"),
            metrics(ExpositionFormat::Prometheus)
        );
        let head = Some(RequestedResource::Head(ExpositionFormat::Prometheus));
        assert_eq!(parse_target("HEAD /metrics HTTP/1.1", "*/*"), head);
    }

    #[test]
    fn everything_else_is_refused() {
        for (line, why) in [
            ("GET / HTTP/1.1", RequestRefusal::NotFound),
            ("GET /metrics/../etc HTTP/1.1", RequestRefusal::NotFound),
            ("GET http://x/metrics HTTP/1.1", RequestRefusal::NotFound),
            ("POST /metrics HTTP/1.1", RequestRefusal::Method),
            ("CONNECT /metrics HTTP/1.1", RequestRefusal::Method),
            ("hello", RequestRefusal::Malformed),
            ("\u{16}\u{3}\u{1}", RequestRefusal::Malformed),
        ] {
            assert_eq!(
                parse_target(line, "*/*"),
                Some(RequestedResource::Error(why)),
                "{line}"
            );
        }
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65));
        assert_eq!(
            read_request(many.as_bytes()),
            Some(RequestedResource::Error(RequestRefusal::TooLarge))
        );
        let long = format!("GET /metrics HTTP/1.1\r\na: {}", "b".repeat(HEAD_MAX));
        assert_eq!(
            read_request(long.as_bytes()),
            Some(RequestedResource::Error(RequestRefusal::TooLarge))
        );
    }

    proptest! {
        #[test]
        fn nothing_panics_and_long_heads_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
            let wanted = read_request(&bytes);
            prop_assert!(wanted.is_some() || bytes.len() < HEAD_MAX);
        }

        #[test]
        fn a_request_in_pieces_is_waited_for(cut in 0usize..37) {
            let whole = b"GET /metrics HTTP/1.1\r\nHost: host\r\n\r\n";
            prop_assert_eq!(read_request(&whole[..cut]), None);
            prop_assert_eq!(read_request(whole), Some(RequestedResource::Metrics(ExpositionFormat::Prometheus)));
        }
    }
}
