//! Values on the command line, as people write them: durations, users, namespaces, keys, cookies,
//! columns.

use std::{ffi::OsStr, fmt, fs, ops::RangeInclusive, str::FromStr, time::Duration};

use clap::{
    Arg, Command, Error,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use dmtrace_core::ids::{IpcNs, Key};

use crate::{
    case::Vouched,
    host::{Roots, users::Users},
    output::table::Column,
};

/// A duration: `10s`, `1h 30m`, or a bare number of seconds.
///
/// # Errors
/// It is something else.
pub(super) fn duration_arg(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.trim().parse() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text)
        .map_err(|_| "give a time such as 10s, 5m or 2h; a bare number is seconds".to_owned())
}

/// A duration as [`duration_arg`] reads it, to the millisecond.
pub(super) fn duration_word(time: Duration) -> String {
    match time.subsec_nanos() {
        0 => time.as_secs().to_string(),
        _ => format!("{}ms", time.as_millis()),
    }
}

/// A process, by its number, or a file, by its path.
///
/// # Errors
/// It is empty.
pub(super) fn vouched_arg(text: &str) -> Result<Vouched, String> {
    if text.is_empty() {
        return Err("give the number of a process, or the path of a file".to_owned());
    }
    let process = text.parse().map(Vouched::Process);
    Ok(process.unwrap_or_else(|_| Vouched::File(text.into())))
}

/// A whole number.
///
/// # Errors
/// It is something else, or too large.
pub(super) fn parse_number<T: FromStr>(text: &str) -> Result<T, String> {
    let text = text.trim();
    text.parse().map_err(|_| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let why = if digits {
            "give a number; this one is too large"
        } else {
            "give a number"
        };
        why.to_owned()
    })
}

/// A whole number within these bounds.
///
/// # Errors
/// It is something else.
pub(super) fn number_in<T>(
    bounds: RangeInclusive<T>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + fmt::Display + Clone + Send + Sync + 'static,
{
    move |text| {
        let number = text.trim().parse().ok();
        number.filter(|it| bounds.contains(it)).ok_or_else(|| {
            let (least, most) = (bounds.start(), bounds.end());
            format!("give a number from {least} to {most}")
        })
    }
}

/// A user: a number, or a name of this machine.
///
/// # Errors
/// There is no such user.
pub(super) fn parse_uid(text: &str) -> Result<u32, String> {
    Users::read(&Roots::host())
        .uid(text)
        .ok_or_else(|| "no user of this name is in /etc/passwd; give the number".to_owned())
}

/// An IPC namespace: a number as tools write it, `host`, `self`, or a file such as
/// `/proc/1234/ns/ipc`.
///
/// # Errors
/// It is something else, or cannot be read.
pub(super) fn ipc_ns(text: &str) -> Result<IpcNs, String> {
    let linked = |path: &str| {
        let link = fs::read_link(path).map_err(|error| format!("{path}: {error}"))?;
        parse_namespace(&link.to_string_lossy())
            .ok_or_else(|| format!("{path} is no IPC namespace"))
    };
    match text {
        "host" => Ok(IpcNs::HOST),
        "self" => linked("/proc/self/ns/ipc"),
        path if path.starts_with('/') => linked(path),
        text => text
            .parse()
            .ok()
            .map(IpcNs)
            .or_else(|| parse_namespace(text))
            .ok_or_else(|| {
                "give a number such as 4026531839, host, self, or /proc/PID/ns/ipc".to_owned()
            }),
    }
}

/// `ipc:[4026531839]`.
fn parse_namespace(text: &str) -> Option<IpcNs> {
    let digits = text.strip_prefix("ipc:[")?.strip_suffix(']')?;
    digits.parse().ok().map(IpcNs)
}

/// A key as people and tools write it: `0x0d4d1234`, `223150080`, or negative as
/// `/proc/sysvipc/sem` prints large ones.
///
/// # Errors
/// It is something else.
pub(super) fn parse_key(text: &str) -> Result<Key, String> {
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let key = match hex {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => u32::from_str(text)
            .ok()
            .or_else(|| i32::from_str(text).ok().map(|key| key as u32)),
    };
    key.map(Key)
        .ok_or_else(|| "give a key such as 0x0d4d1234".to_owned())
}

/// A cookie by its key or by its semid. A decimal number may be either.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CookieName {
    /// The cookie's key.
    pub key: Option<Key>,
    /// Its semid.
    pub semid: Option<i32>,
}

impl CookieName {
    /// Whether this set is meant.
    pub fn matches(self, key: Key, semid: i32) -> bool {
        self.key == Some(key) || self.semid == Some(semid)
    }
}

impl fmt::Display for CookieName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.semid, self.key) {
            (Some(semid), _) => write!(f, "semid {semid}"),
            (None, Some(key)) => write!(f, "cookie {key}"),
            (None, None) => f.write_str("?"),
        }
    }
}

impl FromStr for CookieName {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let hex = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X"));
        let number = match hex {
            Some(hex) => i64::from_str_radix(hex, 16).ok(),
            None => word.parse::<i64>().ok(),
        };
        let key = number
            .and_then(|number| u32::try_from(number).ok())
            .map(Key)
            .filter(|key| key.has_cookie_magic());
        let semid = number
            .and_then(|number| i32::try_from(number).ok())
            .filter(|&semid| semid >= 0 && hex.is_none());
        match (key, semid) {
            (None, None) => Err("give a cookie (0x0d4d1234) or a semid".to_owned()),
            (key, semid) => Ok(Self { key, semid }),
        }
    }
}

/// Names of columns. Unknown ones are refused with the known ones, and the nearest.
#[derive(Clone)]
pub(super) struct ColumnNames {
    names: PossibleValuesParser,
    /// A leading `-` is taken, too.
    reversible: bool,
}

impl ColumnNames {
    /// For `-o`, where `help` is one, too.
    pub(super) fn shown_columns(columns: &'static [Column]) -> Self {
        let names = columns.iter().map(|column| PossibleValue::new(column.name));
        Self {
            names: names.chain([PossibleValue::new("help")]).into(),
            reversible: false,
        }
    }

    /// For `--sort`.
    pub(super) fn sort_columns(columns: &'static [Column]) -> Self {
        let names = columns.iter().map(|column| PossibleValue::new(column.name));
        Self {
            names: names.collect::<Vec<_>>().into(),
            reversible: true,
        }
    }
}

impl TypedValueParser for ColumnNames {
    type Value = String;

    fn parse_ref(&self, cmd: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<String, Error> {
        let text = value.to_str().unwrap_or_default();
        let bare = text.strip_prefix('-').filter(|_| self.reversible);
        let name = bare.map_or(value, OsStr::new);
        self.names.parse_ref(cmd, arg, name)?;
        Ok(text.to_owned())
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        self.names.possible_values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_tools_write_them() {
        assert_eq!(parse_key("0x0d4d1234"), Ok(Key(0x0d4d_1234)));
        assert_eq!(parse_key("223154740"), Ok(Key(0x0d4d_1234)));
        assert_eq!(parse_key("-2"), Ok(Key(0xffff_fffe)));
        assert!(parse_key("cookie").is_err());
        assert!(parse_key("0x1ffffffff").is_err());
    }

    #[test]
    fn namespaces_are_read_as_tools_write_them() {
        assert_eq!(ipc_ns("host"), Ok(IpcNs::HOST));
        assert_eq!(ipc_ns("4026531839"), Ok(IpcNs::HOST));
        assert_eq!(ipc_ns("ipc:[4026531839]"), Ok(IpcNs::HOST));
        let own = ipc_ns("self").unwrap();
        assert_eq!(ipc_ns("/proc/self/ns/ipc"), Ok(own));
        assert_eq!(ipc_ns(&own.0.to_string()), Ok(own));
        for wrong in ["mine", "", "ipc:[]", "/proc/self/ns/net", "/etc/passwd"] {
            assert!(ipc_ns(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn users_have_names_and_numbers() {
        assert_eq!(parse_uid("0"), Ok(0));
        assert_eq!(parse_uid("root"), Ok(0));
        assert!(parse_uid("no-such-user-here").is_err());
    }

    #[test]
    fn a_bare_number_is_seconds() {
        assert_eq!(duration_arg("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration_arg("0"), Ok(Duration::ZERO));
        assert_eq!(duration_arg("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration_arg("150ms"), Ok(Duration::from_millis(150)));
        for wrong in ["", "soon", "-5", "5 apples", "99999999999999999999"] {
            assert!(duration_arg(wrong).is_err(), "{wrong}");
        }
        for time in [0, 90_000, 1500, 1] {
            let time = Duration::from_millis(time);
            assert_eq!(duration_arg(&duration_word(time)), Ok(time));
        }
    }

    #[test]
    fn cookies_are_named_by_key_or_semid() {
        let of = |text: &str| text.parse::<CookieName>().ok();
        let (key, semid) = (Some(Key(0x0d4d_1234)), Some(223_154_740));
        assert_eq!(of("0x0d4d1234"), Some(CookieName { key, semid: None }));
        assert_eq!(of("223154740"), Some(CookieName { key, semid }));
        let seven = CookieName {
            key: None,
            semid: Some(7),
        };
        assert_eq!(of("7"), Some(seven));
        assert!(seven.matches(Key(1), 7) && !seven.matches(Key(7), 8));
        for wrong in ["0x1234", "-3", "cookie", "0x", ""] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
