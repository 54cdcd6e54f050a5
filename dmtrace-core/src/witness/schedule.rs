//! Entries of cron and timers of systemd: which of them start just when cookies appear.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{
    Grade, Ground, LocalMoment, Rhythm, Role, Suspect, TimePattern, Who, bounded_text,
    calendar::{CivilDay, DAY},
};

/// A job may work so long until it leaves a cookie, minutes.
const LEAD: u16 = 10;

/// What starts more often than so fits everything that happens once a day.
const MAX_DAILY_STARTS: usize = 2;

/// What kind of entry it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// A line for cron.
    Cron,
    /// A timer of systemd.
    Timer,
}

impl fmt::Display for ScheduleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cron => "cron job",
            Self::Timer => "timer",
        })
    }
}

/// Values of a field, as bits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Field {
    bits: u64,
    any: bool,
}

/// When something is started.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Schedule {
    /// What it is.
    pub kind: ScheduleKind,
    /// The file it stands in.
    pub source: String,
    /// When, as it stands there.
    pub when: String,
    /// What it starts: a command line, or a unit.
    pub what: String,
    /// Whether what it starts runs programs that make cookies.
    pub uses_cookies: bool,
    /// So many minutes later at most.
    pub delay: u16,
    minutes: Field,
    hours: Field,
    days: Field,
    months: Field,
    weekdays: Field,
}

impl Schedule {
    /// A line of a crontab: `source` is its file, `user` whether a user stands before the command.
    /// `None` if it starts nothing, or not at a time of day.
    pub fn from_cron(source: &str, line: &str, user: bool) -> Option<Self> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let mut rest = line;
        let mut next = || {
            let word = rest.split_whitespace().next()?;
            rest = rest.trim_start().get(word.len()..)?;
            Some(word)
        };
        let first = next()?;
        let fields: [&str; 5] = match first {
            "@hourly" => ["0", "*", "*", "*", "*"],
            "@daily" | "@midnight" => ["0", "0", "*", "*", "*"],
            "@weekly" => ["0", "0", "*", "*", "0"],
            "@monthly" => ["0", "0", "1", "*", "*"],
            "@yearly" | "@annually" => ["0", "0", "1", "1", "*"],
            _ => [first, next()?, next()?, next()?, next()?],
        };
        if user {
            next()?;
        }
        let what = rest.trim();
        if what.is_empty() {
            return None;
        }
        Some(Self {
            kind: ScheduleKind::Cron,
            source: source.to_owned(),
            when: if first.starts_with('@') {
                first.to_owned()
            } else {
                fields.join(" ")
            },
            what: bounded_text(what),
            uses_cookies: false,
            delay: 0,
            minutes: Field::cron(fields[0], 0, 59)?,
            hours: Field::cron(fields[1], 0, 23)?,
            days: Field::cron(fields[2], 1, 31)?,
            months: Field::cron(fields[3], 1, 12)?,
            weekdays: Field::cron(fields[4], 0, 7)?.with_sunday(),
        })
    }

    /// A value of `OnCalendar=`; `None` if it is of a form that starts at no time of day, or one that
    /// is not read here.
    pub fn from_calendar(source: &str, value: &str, unit: &str) -> Option<Self> {
        let full = match value.trim() {
            "minutely" => "*-*-* *:*:00",
            "hourly" => "*-*-* *:00:00",
            "daily" => "*-*-* 00:00:00",
            "weekly" => "Mon *-*-* 00:00:00",
            "monthly" => "*-*-01 00:00:00",
            other => other,
        };
        let (mut weekdays, mut date, mut time) = (None, None, None);
        for word in full.split_whitespace() {
            let begins = word.chars().next()?;
            if begins.is_ascii_alphabetic() && word != "UTC" {
                weekdays = Some(word.trim_end_matches(','));
            } else if word.contains(':') {
                time = Some(word);
            } else if word.contains('-') {
                date = Some(word);
            } else {
                // A time zone: of another clock than the one on the wall.
                return None;
            }
        }
        let mut date = date.unwrap_or("*-*-*").rsplitn(3, '-');
        let (day, month) = (date.next()?, date.next()?);
        let mut time = time.unwrap_or("00:00").split(':');
        let (hour, minute) = (time.next()?, time.next()?);
        Some(Self {
            kind: ScheduleKind::Timer,
            source: source.to_owned(),
            when: bounded_text(value),
            what: bounded_text(unit),
            uses_cookies: false,
            // `AccuracySec=` if nothing else is said.
            delay: 1,
            minutes: Field::cron(minute, 0, 59)?,
            hours: Field::cron(hour, 0, 23)?,
            days: Field::cron(day, 1, 31)?,
            months: Field::cron(month, 1, 12)?,
            weekdays: match weekdays {
                Some(days) => Field::cron(&days.replace("..", "-"), 0, 7)?.with_sunday(),
                None => Field::ANY,
            },
        })
    }

    /// Whether it starts on a day, and then in which minutes.
    fn starts(&self, days: i64) -> impl Iterator<Item = u16> + '_ {
        let day = CivilDay::from_days(days);
        let (in_month, in_week) = (self.days.has(day.day), self.weekdays.has(day.weekday));
        // cron: if both are restricted, either does. systemd: both must.
        let either = self.kind == ScheduleKind::Cron && !self.days.any && !self.weekdays.any;
        let runs = self.months.has(day.month)
            && if either {
                in_month || in_week
            } else {
                in_month && in_week
            };
        (0..DAY).filter(move |minute| {
            let (hour, minute) = (minute / 60, minute % 60);
            runs && self.hours.bits >> hour & 1 == 1 && self.minutes.bits >> minute & 1 == 1
        })
    }

    fn started_before(&self, moment: LocalMoment) -> bool {
        let back = LEAD + self.delay;
        let (day, minute) = (moment.day(), moment.minute());
        self.starts(day)
            .any(|start| start <= minute && minute - start <= back)
            || self
                .starts(day - 1)
                .any(|start| DAY - start + minute <= back)
    }

    fn fits(&self, pattern: &TimePattern) -> bool {
        let specific = |day: i64| {
            let count = self.starts(day).count();
            match pattern.rhythm {
                Some(Rhythm::Daily { .. }) => count <= MAX_DAILY_STARTS,
                Some(Rhythm::Hourly { .. }) => count <= 24,
                None => false,
            }
        };
        pattern
            .bursts
            .iter()
            .all(|it| self.started_before(it.from) && specific(it.from.day()))
    }

    /// It as a suspect: inferred if it alone fits at least three times, and its own text says what it
    /// runs.
    pub fn to_suspect(&self, pattern: &TimePattern, alone: bool) -> Suspect {
        const OFTEN: usize = 3;
        let sure = alone && self.uses_cookies && pattern.bursts.len() >= OFTEN;
        let mut grounds = vec![Ground::StartsThen {
            source: self.source.clone(),
        }];
        grounds.extend(self.uses_cookies.then_some(Ground::UsesCookies));
        let timer = self.kind == ScheduleKind::Timer;
        Suspect {
            who: Who {
                name: Some(format!("{} {}", self.kind, self.source)),
                command: (!timer).then(|| self.what.clone()),
                unit: timer.then(|| self.what.clone()),
                ..Who::default()
            },
            role: Role::Schedule,
            grade: if sure {
                Grade::Inferred
            } else {
                Grade::Possible
            },
            grounds,
            doubts: Vec::new(),
        }
    }
}

/// Those that start shortly before every burst of a rhythm, and hardly at other times.
pub fn fitting_schedules<'a>(
    pattern: &TimePattern,
    schedules: &'a [Schedule],
) -> Vec<&'a Schedule> {
    if pattern.rhythm.is_none() {
        return Vec::new();
    }
    schedules.iter().filter(|it| it.fits(pattern)).collect()
}

const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];

impl Field {
    const ANY: Self = Self {
        bits: u64::MAX,
        any: true,
    };

    /// `*`, `5`, `1-5`, `*/10`, `0/15`, `1,2`, `mon-fri`.
    fn cron(text: &str, least: u8, most: u8) -> Option<Self> {
        if text == "*" {
            return Some(Self::ANY);
        }
        let mut bits = 0_u64;
        for part in text.split(',') {
            let (range, step) = match part.split_once('/') {
                Some((range, step)) => (range, step.parse::<u8>().ok()?),
                None => (part, 0),
            };
            let (from, to) = match range.split_once('-').or_else(|| range.split_once("..")) {
                Some((from, to)) => (number(from, least)?, number(to, least)?),
                None if range == "*" => (least, most),
                None if step > 0 => (number(range, least)?, most),
                None => (number(range, least)?, number(range, least)?),
            };
            // `fri-mon` of systemd is not read.
            if from < least || to > most || from > to {
                return None;
            }
            for value in (from..=to).step_by(usize::from(step.max(1))) {
                bits |= 1 << value;
            }
        }
        Some(Self { bits, any: false })
    }

    /// Sunday is 0 and 7.
    const fn with_sunday(mut self) -> Self {
        if self.bits >> 7 & 1 == 1 {
            self.bits |= 1;
        }
        self
    }

    const fn has(self, value: u8) -> bool {
        self.bits >> value & 1 == 1
    }
}

fn number(text: &str, least: u8) -> Option<u8> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let name = text.get(..3)?.to_ascii_lowercase();
    let place = |names: &[&str]| names.iter().position(|it| *it == name);
    let found = match least {
        0 => place(&WEEKDAYS)?,
        _ => place(&MONTHS)? + 1,
    };
    u8::try_from(found).ok()
}
