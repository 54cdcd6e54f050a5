//! Generated histories: whoever is named has done it.

use std::collections::BTreeMap;

use super::*;
use crate::{
    facts::{HostFacts, LiveProcess},
    ids::{BootTime, IpcNs, Key, SemId, UnixTime},
    wall_clock::{ClockHistory, ClockOffset},
};

const SECOND: u64 = 1_000_000_000;
const BOOT: i64 = 1_795_132_800;
const NOW: u64 = 1_000_000;
const WORKER: u32 = 600;

/// A generator of numbers: the same seed gives the same history.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn one_in(&mut self, limit: u64) -> bool {
        self.below(limit) == 0
    }
}

/// What happens in a few seconds on a host, and what is left of it. Times are milliseconds since boot.
struct World {
    dice: Dice,
    accounting: bool,
    next_pid: u32,
    facts: HostFacts,
    testimonies: Vec<Testimony>,
    moments: Vec<CookieMoment>,
    truth: BTreeMap<SemId, u32>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let accounting = dice.one_in(2);
        let now = BootTime(NOW * SECOND);
        let wall = UnixTime(BOOT + NOW.cast_signed());
        let mut facts = HostFacts {
            now,
            wall,
            clock: ClockHistory::steady(now, ClockOffset::between(now, wall, 0)),
            ..HostFacts::default()
        };
        let worker = LiveProcess {
            start_ticks: 100,
            comm: "(udev-worker)".to_owned(),
            ..LiveProcess::default()
        };
        facts.processes.insert(WORKER, worker);
        Self {
            dice,
            accounting,
            next_pid: 1000,
            facts,
            testimonies: Vec::new(),
            moments: Vec::new(),
            truth: BTreeMap::new(),
        }
    }

    fn pid(&mut self) -> u32 {
        self.next_pid += 1;
        self.next_pid
    }

    fn runs(&mut self, pid: u32, name: &str, start: i64) {
        let live = LiveProcess {
            start_ticks: (start / 10).unsigned_abs(),
            comm: name.to_owned(),
            ..LiveProcess::default()
        };
        self.facts.processes.insert(pid, live);
    }

    fn ends(&mut self, (pid, parent): (u32, u32), name: &str, (from, to): (i64, i64), signal: u8) {
        let killed = Ending::Killed { signal };
        if self.accounting {
            // As the kernel computes it: whole seconds, then whole seconds less.
            let began = to / 1000 - (to - from) / 1000;
            let ended = BOOT + began + (to - from) / 1000;
            self.testimonies.push(Testimony {
                when: When::Life {
                    ended: UnixTime(ended),
                    lasted_ms: (to - from).unsigned_abs(),
                },
                pid: Some(pid),
                parent: Some(parent),
                name: Some(name.to_owned()),
                uid: Some(0),
                ending: Some(if signal == 0 {
                    Ending::Exited { code: 0 }
                } else {
                    killed
                }),
                ..Testimony::of_line(Witness::Accounting, "/pacct", UnixTime(0), name)
            });
        }
        if signal != 0 && self.dice.one_in(2) {
            let late = i64::try_from(self.dice.below(900)).unwrap();
            let at = UnixTime(BOOT + (to + late) / 1000);
            self.testimonies.push(Testimony {
                pid: Some(pid),
                name: Some(name.to_owned()),
                ending: Some(killed),
                ..Testimony::of_line(Witness::Journal, "journal", at, "Killed")
            });
        }
        // Somebody else has the number by now.
        if self.dice.one_in(4) {
            let later = to + 20_000 + i64::try_from(self.dice.below(900_000)).unwrap();
            let name =
                ["nginx", "dockerd", "dmsetup"][usize::try_from(self.dice.below(3)).unwrap()];
            self.runs(pid, name, later);
        } else if self.dice.one_in(6) {
            let at_once = to + i64::try_from(self.dice.below(900)).unwrap();
            self.runs(pid, "sleep", at_once);
        }
        // systemd says of a unit's main process only that it was killed.
        if signal != 0 && self.accounting && self.dice.one_in(2) {
            let said = |at: i64, line: &str, ending| Testimony {
                unit: Some(format!("u{pid}.service")),
                ending,
                ..Testimony::of_line(
                    Witness::Journal,
                    "journal",
                    UnixTime(BOOT + at / 1000),
                    line,
                )
            };
            let started = format!("Started u{pid}.service - /usr/sbin/{name} -n x vg.");
            self.testimonies.push(said(from, &started, None));
            self.testimonies
                .push(said(to, "Main process exited", Some(killed)));
        }
    }

    /// udev completes: its `dmsetup` is the last operator.
    fn completes(&mut self, at: i64) -> u32 {
        let pid = self.pid();
        self.ends((pid, WORKER), "dmsetup", (at - 4, at + 3), 0);
        pid
    }

    fn leaves(&mut self, owner: u32, made: i64, touched: Option<i64>, value: i32, last: u32) {
        let semid = i32::try_from(self.moments.len()).unwrap();
        let sem = SemId {
            ns: IpcNs::HOST,
            semid,
        };
        self.moments.push(CookieMoment {
            sem,
            key: Key(0x0d4d_0001 + semid.cast_unsigned()),
            ctime: UnixTime(BOOT + made / 1000),
            otime: UnixTime(touched.map_or(0, |at| BOOT + at / 1000)),
            value: Some(value),
            last_pid: last,
        });
        self.truth.insert(sem, owner);
    }

    fn play(&mut self) {
        for _ in 0..1 + self.dice.below(4) {
            let begun = 100_000 + i64::try_from(self.dice.below(4000)).unwrap();
            let made = begun + 5 + i64::try_from(self.dice.below(1500)).unwrap();
            let death = made + 5 + i64::try_from(self.dice.below(1500)).unwrap();
            let pid = self.pid();
            let name = ["lvcreate", "dmsetup", "cryptsetup"];
            let name = name[usize::try_from(self.dice.below(3)).unwrap()];
            match self.dice.below(9) {
                0 => {
                    self.ends((pid, 900), name, (begun, death), 9);
                    let done = death + i64::try_from(self.dice.below(3000)).unwrap();
                    let last = self.completes(done);
                    self.leaves(pid, made, Some(done), 0, last);
                }
                1 => {
                    self.ends((pid, 900), name, (begun, death), 9);
                    let done = death + i64::try_from(self.dice.below(900)).unwrap();
                    let last = self.completes(done);
                    self.leaves(pid, made, Some(done), 1, last);
                }
                2 => {
                    self.ends((pid, 900), name, (begun, death), 9);
                    self.leaves(pid, made, Some(made + 3), 1, pid);
                }
                3 => self.ends((pid, 900), name, (begun, death), 0),
                // What else is killed leaves nothing in a log that does not know all.
                4 if self.accounting => self.ends((pid, 900), name, (begun, death), 9),
                4 => {}
                5 => {
                    self.runs(pid, "dockerd", begun - 50_000);
                    for _ in 0..1 + self.dice.below(3) {
                        self.leaves(pid, made, Some(made + 2), 1, pid);
                    }
                }
                6 => {
                    self.ends((pid, 1), "storaged", (begun - 50_000, death + 90_000), 0);
                    self.leaves(pid, made, Some(made + 2), 1, pid);
                }
                7 => {
                    let child = self.pid();
                    self.ends((child, pid), "dmsetup", (made - 4, made + 3), 0);
                    self.ends((pid, 900), "bash", (begun, death + 2000), 9);
                    self.leaves(pid, made, None, 1, child);
                }
                _ => {
                    let (first, second) = (self.pid(), self.pid());
                    self.ends((first, pid), "dmsetup", (made - 4, made + 3), 0);
                    self.ends((second, pid), "dmsetup", (death - 4, death + 3), 0);
                    self.runs(pid, "bash", begun);
                    self.leaves(pid, made, Some(death), 2, second);
                }
            }
        }
    }
}

#[test]
fn whoever_is_named_has_done_it() {
    let mut named = [0_u32; 2];
    let mut asked = [0_u32; 2];
    for seed in 0..6000 {
        let mut world = World::new(seed);
        world.play();
        let inquiry = Inquiry::new(&world.testimonies, &world.facts);
        let answers = inquiry.weigh_all(&world.moments);
        for (sem, answer) in &answers {
            let with = usize::from(world.accounting);
            asked[with] += 1;
            if let Some(suspect) = answer.suspect() {
                named[with] += 1;
                assert_eq!(suspect.grade, Grade::Inferred);
                assert!(!suspect.grounds.is_empty());
                assert_eq!(
                    suspect.who.pid,
                    world.truth.get(sem).copied(),
                    "seed {seed}: {sem:?} {suspect:#?}\n{:#?}\n{:#?}",
                    world.moments,
                    world.testimonies
                );
            }
        }
    }
    // Three quarters with accounting, a third without.
    assert!(named[1] * 100 > asked[1] * 77, "{named:?} of {asked:?}");
    assert!(named[0] * 10 > asked[0] * 3, "{named:?} of {asked:?}");
}

#[test]
fn records_of_either_byte_order() {
    let mut record = [0_u8; ACCOUNTING_RECORD];
    record[0] = 0x10;
    record[1] = 0x83;
    record[4..8].copy_from_slice(&9_u32.to_be_bytes());
    record[16..20].copy_from_slice(&812_u32.to_be_bytes());
    record[24..28].copy_from_slice(&1_795_000_000_u32.to_be_bytes());
    record[28..32].copy_from_slice(&171_f32.to_bits().to_be_bytes());
    record[48..53].copy_from_slice(b"sleep");
    let AccountingRecord::Read(testimony) = read_accounting_record("/pacct", &record) else {
        panic!("it is one");
    };
    assert_eq!(
        testimony.line,
        "sleep[812], parent 0, ran 1.710 s, killed by signal 9"
    );
    assert_eq!(
        testimony.when,
        When::Life {
            ended: UnixTime(1_795_000_001),
            lasted_ms: 1710
        }
    );
    for lasted in [f32::NAN, f32::INFINITY, -1.0] {
        record[28..32].copy_from_slice(&lasted.to_bits().to_be_bytes());
        let read = read_accounting_record("/pacct", &record);
        assert_eq!(read, AccountingRecord::Damaged);
    }
    record[1] = 6;
    let read = read_accounting_record("/pacct", &record);
    assert_eq!(read, AccountingRecord::OtherVersion(6));
}

#[test]
fn entries_of_cron_and_calendars() {
    let cron = |line| Schedule::from_cron("/etc/crontab", line, true);
    for line in [
        "0 3 * * * root x",
        "*/5 1-3,7 1 jan mon-fri root x",
        "@daily root x",
        "  30 2 * * 7 root x y z",
    ] {
        assert!(cron(line).is_some(), "{line}");
    }
    for line in [
        "",
        "# 0 3 * * * root x",
        "MAILTO=root",
        "@reboot root x",
        "0 3 * * * root",
        "61 3 * * * root x",
        "0 3 * * 5-1 root x",
        "0/99999 3 * * * root x",
    ] {
        assert!(cron(line).is_none(), "{line}");
    }
    let timer = |value| Schedule::from_calendar("/t.timer", value, "t.service");
    for value in [
        "daily",
        "*-*-* 03:00:00",
        "Mon..Fri *-*-* 03:00",
        "Sun 03:00",
        "*:0/15",
        "03:00 ",
    ] {
        assert!(timer(value).is_some(), "{value}");
    }
    for value in ["03:00 Europe/Berlin", "2026", "*-*-* x:00", ""] {
        let found = timer(value).filter(|_| !value.is_empty());
        assert!(found.is_none(), "{value}");
    }
}

#[test]
fn answers_survive_json() {
    let mut world = World::new(7);
    world.play();
    let moments = [CookieMoment {
        ctime: UnixTime(BOOT + 100),
        last_pid: 7,
        value: Some(1),
        ..CookieMoment::default()
    }];
    for moment in world.moments.iter().chain(&moments) {
        let answer = weigh(moment, &world.testimonies, &world.facts);
        let text = serde_json::to_string(&answer).unwrap();
        let back: Answer = serde_json::from_str(&text).unwrap();
        assert_eq!(back, answer);
        for suspect in answer.suspects() {
            for ground in &suspect.grounds {
                assert!(!ground.to_string().is_empty());
            }
        }
    }
}
