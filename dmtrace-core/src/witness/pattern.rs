//! When cookies were made: together, at the same time each day, in the same minute of each hour.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{LocalMoment, calendar::DAY};

/// Cookies that are no further apart belong to one burst.
const MAX_GAP_SECONDS: i64 = 120;

/// What happens at the same time each day does so within so many minutes.
const DAILY_WINDOW: u16 = 15;

/// What happens in the same minute of each hour does so within so many.
const HOURLY_WINDOW: u16 = 4;

/// Less often than so it may be chance.
const MIN_DAYS: usize = 2;
const MIN_HOURS: usize = 3;

/// Cookies that were made together.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Burst {
    /// The first.
    pub from: LocalMoment,
    /// The last.
    pub to: LocalMoment,
    /// How many.
    pub count: usize,
}

/// What the bursts have in common.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "rhythm")]
pub enum Rhythm {
    /// All at the same time of day.
    Daily {
        /// First minute of the day.
        from: u16,
        /// Last minute; smaller than the first if midnight is between them.
        to: u16,
        /// On so many days.
        days: usize,
    },
    /// All at the same minutes of an hour.
    Hourly {
        /// First minute of the hour.
        from: u16,
        /// Last minute.
        to: u16,
        /// In so many hours.
        hours: usize,
    },
}

/// When cookies were made.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct TimePattern {
    /// How many, by minute of the local day.
    pub by_minute: BTreeMap<u16, usize>,
    /// Those that were made together, oldest first.
    pub bursts: Vec<Burst>,
    /// What the bursts have in common.
    pub rhythm: Option<Rhythm>,
}

impl TimePattern {
    /// Groups moments, in any order.
    pub fn find(moments: &[LocalMoment]) -> Self {
        let mut moments: Vec<LocalMoment> =
            moments.iter().copied().filter(|it| it.at.0 != 0).collect();
        moments.sort();
        let mut by_minute = BTreeMap::new();
        let mut bursts: Vec<Burst> = Vec::new();
        for moment in moments {
            *by_minute.entry(moment.minute()).or_default() += 1;
            match bursts.last_mut() {
                Some(burst) if moment.at.0.saturating_sub(burst.to.at.0) <= MAX_GAP_SECONDS => {
                    burst.to = moment;
                    burst.count += 1;
                }
                _ => bursts.push(Burst {
                    from: moment,
                    to: moment,
                    count: 1,
                }),
            }
        }
        let rhythm = find_rhythm(&bursts);
        Self {
            by_minute,
            bursts,
            rhythm,
        }
    }
}

fn find_rhythm(bursts: &[Burst]) -> Option<Rhythm> {
    let days: BTreeSet<i64> = bursts.iter().map(|it| it.from.day()).collect();
    let minutes = || {
        bursts
            .iter()
            .flat_map(|it| [it.from.minute(), it.to.minute()])
    };
    if days.len() >= MIN_DAYS
        && let Some((from, to)) = window(minutes(), DAY, DAILY_WINDOW)
    {
        return Some(Rhythm::Daily {
            from,
            to,
            days: days.len(),
        });
    }
    let hours: BTreeSet<(i64, u16)> = bursts
        .iter()
        .map(|it| (it.from.day(), it.from.minute() / 60))
        .collect();
    let (from, to) = window(minutes().map(|it| it % 60), 60, HOURLY_WINDOW)?;
    (hours.len() >= MIN_HOURS).then_some(Rhythm::Hourly {
        from,
        to,
        hours: hours.len(),
    })
}

/// The shortest part of a circle that has all points, if it is no longer than allowed.
fn window(points: impl Iterator<Item = u16>, circle: u16, longest: u16) -> Option<(u16, u16)> {
    let points: Vec<u16> = points.collect::<BTreeSet<u16>>().into_iter().collect();
    let (&first, &last) = (points.first()?, points.last()?);
    // Between which two neighbours the circle is cut: where they are furthest apart.
    let mut best = (circle - (last - first), first, last);
    for pair in points.windows(2) {
        if let [before, after] = *pair
            && after - before > best.0
        {
            best = (after - before, after, before);
        }
    }
    (circle - best.0 <= longest).then_some((best.1, best.2))
}
