//! What cron and systemd start at times of day.

use std::path::{Path, PathBuf};

use dmtrace_core::witness::{Schedule, ScheduleKind, mentions_cookie_program};

use super::text_file::Tail;
use crate::host::Roots;

/// A crontab, a unit, a script: larger ones are looked at from their end only.
const MAX_FILE: u64 = 256 << 10;

/// Files of one kind.
const MAX_FILES: usize = 500;

/// Entries of all files.
const MAX_SCHEDULES: usize = 2000;

/// Folders of units; the first that has one counts.
const UNIT_FOLDERS: [&str; 5] = [
    "etc/systemd/system",
    "run/systemd/system",
    "run/systemd/generator",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];

/// Folders whose scripts a line of a crontab runs.
const SCRIPT_FOLDERS: [&str; 4] = [
    "etc/cron.hourly",
    "etc/cron.daily",
    "etc/cron.weekly",
    "etc/cron.monthly",
];

/// All entries that could be read. A file that cannot is none that could fit.
pub(super) fn read(roots: &Roots) -> Vec<Schedule> {
    let mut found = Vec::new();
    let mut add_crontab = |path: &str, user: bool| {
        for line in read_lines(roots, path) {
            if found.len() < MAX_SCHEDULES {
                found.extend(Schedule::from_cron(&format!("/{path}"), &line, user));
            }
        }
    };
    add_crontab("etc/crontab", true);
    for name in names(roots, "etc/cron.d") {
        add_crontab(&format!("etc/cron.d/{name}"), true);
    }
    for folder in ["var/spool/cron/crontabs", "var/spool/cron"] {
        // Others than root cannot make cookies.
        add_crontab(&format!("{folder}/root"), false);
    }
    let mut seen: Vec<String> = Vec::new();
    for folder in UNIT_FOLDERS {
        for name in names(roots, folder) {
            if !name.ends_with(".timer") || seen.contains(&name) || found.len() >= MAX_SCHEDULES {
                continue;
            }
            if is_wanted(roots, &name) {
                found.extend(read_timer(roots, folder, &name));
            }
            seen.push(name);
        }
    }
    found
}

/// Whether something starts a timer.
fn is_wanted(roots: &Roots, timer: &str) -> bool {
    UNIT_FOLDERS.iter().any(|folder| {
        ["timers.target.wants", "multi-user.target.wants"]
            .iter()
            // The link may go nowhere from here.
            .any(|wants| {
                let wanted = roots.read_names(format!("{folder}/{wants}"));
                wanted.iter().any(|it| it == Path::new(timer))
            })
    })
}

fn read_timer(roots: &Roots, folder: &str, name: &str) -> Vec<Schedule> {
    let path = format!("{folder}/{name}");
    let lines = read_lines(roots, &path);
    let own = format!("{}.service", name.trim_end_matches(".timer"));
    let unit = values(&lines, "Unit").pop().unwrap_or(own);
    let delay = values(&lines, "RandomizedDelaySec").pop();
    let delay = delay.as_deref().map_or(0, minutes_of);
    values(&lines, "OnCalendar")
        .into_iter()
        .take(16)
        .filter_map(|when| Schedule::from_calendar(&format!("/{path}"), &when, &unit))
        .map(|mut schedule| {
            schedule.delay = schedule.delay.saturating_add(delay).min(24 * 60);
            schedule
        })
        .collect()
}

/// All values of a key.
fn values(lines: &[String], key: &str) -> Vec<String> {
    let values = lines.iter().filter_map(|line| {
        let (found, value) = line.split_once('=')?;
        (found.trim() == key).then(|| value.trim().to_owned())
    });
    values.collect()
}

/// A span of time as systemd writes it, in whole minutes: `1h 30min`, `12h`, `900`.
fn minutes_of(text: &str) -> u16 {
    let mut seconds = 0_u64;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let Ok(number) = rest[..digits].parse::<u64>() else {
            break;
        };
        rest = rest[digits..].trim_start();
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let unit = match &rest[..letters] {
            "h" | "hr" | "hour" | "hours" => 3600,
            "m" | "min" | "minute" | "minutes" => 60,
            "d" | "day" | "days" => 86_400,
            "w" | "week" | "weeks" => 604_800,
            _ => 1,
        };
        seconds = seconds.saturating_add(number.saturating_mul(unit));
        rest = rest[letters..].trim_start();
    }
    u16::try_from(seconds.div_ceil(60)).unwrap_or(u16::MAX)
}

/// Looks whether what these start runs programs that make cookies: by its command line, and by the
/// text of the scripts that it names.
pub(super) fn look_inside(roots: &Roots, schedules: &mut [Schedule]) {
    for schedule in schedules.iter_mut().take(MAX_FILES) {
        let commands = match schedule.kind {
            ScheduleKind::Cron => vec![schedule.what.clone()],
            ScheduleKind::Timer => commands_of_unit(roots, &schedule.what),
        };
        schedule.uses_cookies = commands.iter().any(|it| command_uses_cookies(roots, it));
    }
}

fn commands_of_unit(roots: &Roots, unit: &str) -> Vec<String> {
    if unit.contains('/') {
        return Vec::new();
    }
    let mut folders = UNIT_FOLDERS.iter();
    let lines = folders.find_map(|folder| {
        let lines = read_lines(roots, &format!("{folder}/{unit}"));
        (!lines.is_empty()).then_some(lines)
    });
    let lines = lines.unwrap_or_default();
    let commands = lines.iter().filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        let value = value.trim_start_matches(['-', '@', ':', '+', '!', ' ']);
        key.trim().starts_with("Exec").then(|| value.to_owned())
    });
    commands.collect()
}

fn command_uses_cookies(roots: &Roots, command: &str) -> bool {
    if mentions_cookie_program(command) {
        return true;
    }
    let border = |c: char| c.is_whitespace() || "\"'`;|&()".contains(c);
    let paths = command.split(border).filter(|it| it.starts_with('/'));
    let mut scripts = Vec::new();
    for path in paths.take(8) {
        let path = path.trim_matches('/');
        if SCRIPT_FOLDERS.contains(&path) {
            let of_folder = names(roots, path).into_iter();
            scripts.extend(of_folder.map(|name| format!("{path}/{name}")));
        } else {
            scripts.push(path.to_owned());
        }
    }
    scripts.iter().take(64).any(|path| {
        let lines = read_lines(roots, path);
        let is_script = lines.first().is_some_and(|it| it.starts_with("#!"));
        let code = lines.iter().filter(|it| !it.trim_start().starts_with('#'));
        is_script && code.into_iter().any(|it| mentions_cookie_program(it))
    })
}

fn names(roots: &Roots, folder: &str) -> Vec<String> {
    let names = roots.read_names(folder).into_iter().take(MAX_FILES);
    names
        .filter_map(|it: PathBuf| it.into_os_string().into_string().ok())
        .filter(|it| !it.starts_with('.'))
        .collect()
}

fn read_lines(roots: &Roots, path: &str) -> Vec<String> {
    match Tail::read(roots, path, MAX_FILE) {
        Ok(Some(tail)) => tail.lines().collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_systemd() {
        for (text, minutes) in [
            ("900", 15),
            ("1h 30min", 90),
            ("12h", 720),
            ("1h30m", 90),
            ("30s", 1),
            ("x", 0),
            ("", 0),
            ("99999999999999999999", 0),
        ] {
            assert_eq!(minutes_of(text), minutes, "{text}");
        }
    }
}
