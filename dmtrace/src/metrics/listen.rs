//! Where metrics are asked for.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

/// An address to listen on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ListenAddress {
    /// `127.0.0.1:9942`, `[::1]:9942`.
    Tcp(SocketAddr),
    /// `/run/dmtrace/metrics.sock`, or the same with `unix:` before it.
    Unix(PathBuf),
}

/// Whether others than this host may ask.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Exposure {
    /// No: only loopback addresses and sockets in the file system.
    #[default]
    Loopback,
    /// Yes: the administrator has said so.
    Network,
}

/// It is no address, or not one to listen on.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ListenError {
    /// Neither an address with a port nor an absolute path.
    #[error("{0:?}: give ADDRESS:PORT, such as 127.0.0.1:9942, or the absolute path of a socket")]
    Malformed(String),
    /// Others could ask, and nobody has allowed it.
    #[error(
        "{0}: not a loopback address: anybody could read the metrics; listen on 127.0.0.1, or add \
         --metrics-exposed"
    )]
    Exposed(SocketAddr),
}

impl FromStr for ListenAddress {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, ListenError> {
        let path = text.strip_prefix("unix:").unwrap_or(text);
        if Path::new(path).is_absolute() {
            return Ok(Self::Unix(path.into()));
        }
        match text.parse() {
            Ok(address) => Ok(Self::Tcp(address)),
            Err(_) => Err(ListenError::Malformed(text.to_owned())),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}/metrics"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl ListenAddress {
    /// Checks that nobody gets more to read than the administrator wants.
    ///
    /// # Errors
    /// [`ListenError::Exposed`].
    pub fn check_exposure(&self, exposure: Exposure) -> Result<(), ListenError> {
        match self {
            Self::Tcp(address) if !is_loopback(address) && exposure == Exposure::Loopback => {
                Err(ListenError::Exposed(*address))
            }
            _ => Ok(()),
        }
    }
}

/// An IPv4 address may come in the clothes of IPv6.
fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let read = |text: &str| text.parse::<ListenAddress>();
        for text in ["/run/m.sock", "unix:/run/m.sock"] {
            assert_eq!(
                read(text),
                Ok(ListenAddress::Unix("/run/m.sock".into())),
                "{text}"
            );
        }
        for text in ["127.0.0.1:9942", "[::1]:9942"] {
            let listen = read(text).unwrap();
            assert_eq!(listen.check_exposure(Exposure::Loopback), Ok(()), "{text}");
        }
        for text in ["", "9942", ":9942", "localhost:9942", "127.0.0.1", "m.sock"] {
            let error = read(text).unwrap_err();
            assert_eq!(error, ListenError::Malformed(text.to_owned()));
        }
    }

    #[test]
    fn the_network_gets_nothing_unless_told() {
        for text in [
            "0.0.0.0:9942",
            "[::]:9942",
            "192.0.2.1:9942",
            "[::ffff:192.0.2.1]:9942",
        ] {
            let listen = text.parse::<ListenAddress>().unwrap();
            let refused = listen.check_exposure(Exposure::Loopback).unwrap_err();
            assert!(refused.to_string().contains("--metrics-exposed"), "{text}");
            assert_eq!(listen.check_exposure(Exposure::Network), Ok(()), "{text}");
        }
        let mapped = "[::ffff:127.0.0.1]:9942".parse::<ListenAddress>().unwrap();
        assert_eq!(mapped.check_exposure(Exposure::Loopback), Ok(()));
    }
}
