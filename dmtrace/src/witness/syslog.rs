//! Text files of syslog. Any user can write a line there, with any name and number in it.

use dmtrace_core::{
    ids::UnixTime,
    witness::{
        Author, Message, Testimony, Witness, bounded_text, is_device_mapper_line, read_message,
    },
};

use super::{Hearing, Zone, journal::testify, text_file::Tail};
use crate::wording::cause_text;

const FILES: [&str; 8] = [
    "var/log/syslog",
    "var/log/syslog.1",
    "var/log/messages",
    "var/log/messages.1",
    "var/log/daemon.log",
    "var/log/daemon.log.1",
    "var/log/kern.log",
    "var/log/kern.log.1",
];

const WHAT: &str = "syslog";

pub(super) fn read(hearing: &mut Hearing<'_>) {
    let mut any = false;
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
                any = true;
                continue;
            }
        };
        any = true;
        let source = format!("/{path}");
        let mut years = Years::new(&hearing.limits.zone, tail.modified);
        // Backwards: the year of a line is known from those behind it.
        for line in tail.lines().rev() {
            let Some((at, rest)) = years.read_stamp(&line) else {
                continue;
            };
            if !hearing.windows.contains(at) {
                continue;
            }
            if let Some(testimony) = parse_line(&source, UnixTime(at), rest) {
                hearing.add(testimony);
            }
        }
    }
    if !any {
        hearing.cannot_read(WHAT, "no text files are kept on this host");
    }
}

/// `host name[pid]: message`, `host name: message`.
fn parse_line(source: &str, at: UnixTime, rest: &str) -> Option<Testimony> {
    let (_host, rest) = rest.split_once(' ')?;
    let (tag, message) = rest.split_once(": ").unwrap_or((rest, ""));
    let said = Testimony {
        forgeable: true,
        ..Testimony::of_line(Witness::Syslog, source, at, rest)
    };
    let (name, pid) = match tag.split_once('[') {
        Some((name, pid)) => (name, pid.trim_end_matches(']').parse().ok()),
        None => (tag, None),
    };
    let message = message.trim_start();
    // `[12345.678901] Out of memory: …`
    let bare = message
        .strip_prefix('[')
        .and_then(|it| it.split_once("] "))
        .map_or(message, |(_, it)| it);
    // By its tag, which any user can write: `forgeable` stays.
    let by_kernel = name == "kernel" && pid.is_none();
    let author = if by_kernel {
        Author::Kernel
    } else {
        Author::Program
    };
    let said = Testimony { author, ..said };
    if by_kernel && is_device_mapper_line(bare) {
        return Some(said);
    }
    let told = match name {
        "kernel" => read_message(Message::Kernel(bare)),
        "systemd" if pid == Some(1) => read_message(Message::Manager(message)),
        _ => read_message(Message::Program(message)),
    };
    if let Some(told) = told {
        return Some(testify(told, None, false, said));
    }
    let unit = message
        .strip_prefix("Started ")
        .or_else(|| message.strip_prefix("Starting "))
        .and_then(|it| it.split(' ').next())
        .filter(|it| name == "systemd" && pid == Some(1) && it.ends_with(".service"));
    let name = name.rsplit('/').next().unwrap_or(name);
    Some(Testimony {
        pid: pid.filter(|&pid| pid > 1),
        name: pid
            .filter(|&pid: &u32| pid > 1)
            .map(|_| bounded_text(&name[..name.floor_char_boundary(15)])),
        unit: unit.map(bounded_text),
        ..said
    })
}

/// Reads stamps, newest first: the traditional ones have no year.
pub(super) struct Years<'a> {
    zone: &'a Zone,
    latest: i64,
    year: i16,
}

/// A line may be older than the one behind it by so much, and is not from another year.
const DAY: i64 = 86_400;

impl<'a> Years<'a> {
    pub(super) fn new(zone: &'a Zone, modified: i64) -> Self {
        let year = zone.year_at(UnixTime(modified));
        Self {
            zone,
            latest: modified,
            year,
        }
    }

    /// The moment of a line, and the rest of it.
    pub(super) fn read_stamp<'l>(&mut self, line: &'l str) -> Option<(i64, &'l str)> {
        if line.as_bytes().first()?.is_ascii_digit() {
            let (stamp, rest) = line.split_once(' ')?;
            return Some((Zone::parse_absolute(stamp)?.0, rest));
        }
        // `Nov 30 21:54:52 `, the day filled up with a blank.
        let (stamp, rest) = (line.get(..15)?, line.get(16..)?);
        let month = match stamp.get(..3)? {
            "Jan" => 1,
            "Feb" => 2,
            "Mar" => 3,
            "Apr" => 4,
            "May" => 5,
            "Jun" => 6,
            "Jul" => 7,
            "Aug" => 8,
            "Sep" => 9,
            "Oct" => 10,
            "Nov" => 11,
            "Dec" => 12,
            _ => return None,
        };
        let day: i8 = stamp.get(4..6)?.trim_start().parse().ok()?;
        let mut time = stamp.get(7..)?.split(':').map(str::parse::<i8>);
        let mut next = || time.next()?.ok();
        let (hour, minute, second) = (next()?, next()?, next()?);
        let of_year = |year: i16| {
            let time = (hour, minute, second);
            Some(self.zone.moment_of((year, month, day), time)?.0)
        };
        let mut at = of_year(self.year);
        if at.is_none_or(|at| at > self.latest.saturating_add(DAY)) {
            // The 29th of February, too, is of an earlier year then.
            let earlier = (1..=4).find_map(|back| {
                let year = self.year.checked_sub(back)?;
                Some((year, of_year(year)?))
            });
            let (year, found) = earlier?;
            self.year = year;
            at = Some(found);
        }
        let at = at?;
        self.latest = at;
        Some((at, rest))
    }
}
