//! One format of times and one of durations, in the zone that `TZ` names.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use dmtrace_tests::harness::{Trial, dmtrace_bin, in_private_ns, new_trial, ns_of, start_actor};
use serde_json::Value;

use crate::NEEDS;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial(
            "tz_is_honoured_in_all_its_forms",
            NEEDS,
            tz_is_honoured_in_all_its_forms,
        ),
        new_trial(
            "every_verb_has_one_format_of_times_and_durations",
            NEEDS,
            every_verb_has_one_format_of_times_and_durations,
        ),
    ]
}

fn run_in_zone(zone: &str, words: &[&str]) -> Result<(String, String)> {
    let output = Command::new(dmtrace_bin()?)
        .args(words)
        .env("TZ", zone)
        .output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((text(&output.stdout), text(&output.stderr)))
}

/// `2026-11-20 17:34:15 +01:00` in seconds since 1970, and its offset in seconds.
fn parse_moment(text: &str) -> Option<(i64, i64)> {
    let mut words = text.split(' ');
    let (date, time, zone) = (words.next()?, words.next()?, words.next()?);
    let number = |text: Option<&str>| text?.parse::<i64>().ok();
    let mut parts = date.split('-');
    let (year, month, day) = (
        number(parts.next())?,
        number(parts.next())?,
        number(parts.next())?,
    );
    let mut parts = time.split(':');
    let (hour, minute, second) = (
        number(parts.next())?,
        number(parts.next())?,
        number(parts.next())?,
    );
    let offset = match zone {
        "UTC" => 0,
        zone => {
            let (hours, minutes) = zone[1..].split_once(':')?;
            let seconds = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
            if zone.starts_with('-') {
                -seconds
            } else {
                seconds
            }
        }
    };
    // Days from civil, with years that begin in March.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let of_era = shifted.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some((
        days * 86_400 + hour * 3600 + minute * 60 + second - offset,
        offset,
    ))
}

fn tz_is_honoured_in_all_its_forms() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?.to_string();
        let mut there = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "hold"])?;
        there.read_until("armed")?;
        let list = [
            "list",
            "--ipc-ns",
            &ns,
            "-o",
            "ctime",
            "--no-headers",
            "--no-trace",
        ];
        let utc = [&["--utc"], &list[..]].concat();
        let (expected, _) = run_in_zone("America/New_York", &utc)?;
        ensure!(expected.trim_end().ends_with(" UTC"), "{expected}");
        let (at, _) = parse_moment(expected.trim()).with_context(|| expected.clone())?;
        for (zone, offset) in [
            ("Asia/Kolkata", 19_800),
            (":Asia/Kolkata", 19_800),
            (":/usr/share/zoneinfo/Asia/Kolkata", 19_800),
            ("IST-5:30", 19_800),
            ("<+0545>-5:45", 20_700),
            ("UTC", 0),
            ("", 0),
        ] {
            let (text, errors) = run_in_zone(zone, &list)?;
            let found = parse_moment(text.trim()).with_context(|| text.clone())?;
            ensure!(
                found == (at, offset),
                "TZ={zone}: {text}, {expected} expected"
            );
            ensure!(!errors.contains("time zone"), "{errors}");
        }
        let (text, _) = run_in_zone("America/New_York", &list)?;
        let (found, offset) = parse_moment(text.trim()).with_context(|| text.clone())?;
        ensure!(
            found == at && (offset == -18_000 || offset == -14_400),
            "{text}"
        );
        // What is not known is said, and UTC has its name.
        let (text, errors) = run_in_zone("Nowhere/Land", &list)?;
        ensure!(text == expected, "{text}");
        ensure!(
            errors
                .lines()
                .filter(|it| it.contains("times are in UTC"))
                .count()
                == 1,
            "{errors}"
        );
        // JSON is in UTC wherever one is.
        let (text, _) = run_in_zone(
            "Asia/Kolkata",
            &["--json", "list", "--ipc-ns", &ns, "--no-trace"],
        )?;
        let value: Value = serde_json::from_str(&text)?;
        let ctime = value["semaphores"][0]["ctime"]
            .as_str()
            .context("no ctime")?;
        let plain = expected.trim().trim_end_matches(" UTC").replace(' ', "T");
        ensure!(ctime == format!("{plain}Z"), "{ctime}");
        Ok(())
    })?
}

/// Every way to write a time or a duration that is not the one of dmtrace.
fn stray_format(text: &str) -> Option<String> {
    let is_number = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_digit());
    let is_date = |word: &str| {
        let parts: Vec<&str> = word.split('-').collect();
        parts.len() == 3 && parts[0].len() == 4 && parts.iter().all(|part| is_number(part))
    };
    let units = [
        "s", "sec", "seconds", "ms", "min", "minutes", "h", "hours", "d", "days",
    ];
    for line in text.lines() {
        let words: Vec<&str> = line
            .split([' ', ',', ';', '(', ')'])
            .filter(|word| !word.is_empty())
            .collect();
        for (at, word) in words.iter().enumerate() {
            let next = |step: usize| words.get(at + step).copied().unwrap_or_default();
            let rfc3339 = word.split_once('T').is_some_and(|(date, _)| is_date(date));
            let unit = is_number(word) && units.contains(&next(1));
            // The heading of a story has a date and a zone, and its lines have times of day.
            let zone = |word: &str| word == "UTC" || word.starts_with(['+', '-']);
            let date = is_date(word) && !zone(next(1)) && !zone(next(2));
            if rfc3339 || unit || date {
                return Some(line.to_owned());
            }
        }
    }
    None
}

fn every_verb_has_one_format_of_times_and_durations() -> Result<()> {
    ensure!(
        stray_format("made 2026-11-20T17:34:15Z").is_some()
            && stray_format("5 min 3 s ago").is_some()
    );
    ensure!(stray_format("on 2026-11-20 17:34:15 +01:00, 4m12s ago").is_none());
    in_private_ns(|| {
        let ns = ns_of("thread-self")?.to_string();
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("a.dmt").display().to_string();
        let mut recorder = Command::new(dmtrace_bin()?)
            .args(["record", "-d", "6s", &file])
            .spawn()?;
        while !std::path::Path::new(&file).exists() && recorder.try_wait()?.is_none() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let mut there = start_actor(&["cycle", "--stop-at", "after-inc"])?;
        there.read_to_end()?;
        let mut waits = start_actor(&["cycle", "--stop-at", "in-wait", "--how", "hold"])?;
        waits.read_until("armed")?;
        let columns = "key,age,state,verdict,ctime,otime";
        recorder.wait()?;
        for words in [
            &["list", "--ipc-ns", &ns, "-o", columns][..],
            &["report"],
            &["report", &file],
            &["report", "--bug", &file],
            &["explain"],
            &["explain", &file],
            &["clean"],
            &["doctor", "--no-attach"],
        ] {
            let (text, errors) = run_in_zone("Asia/Kolkata", words)?;
            let all = format!("{text}\n{errors}");
            if let Some(line) = stray_format(&all) {
                anyhow::bail!("{words:?}: {line}");
            }
            ensure!(
                !all.contains(" UTC"),
                "{words:?} mixes UTC with local times: {all}"
            );
        }
        Ok(())
    })?
}
