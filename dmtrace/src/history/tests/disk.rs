//! Space: a bounded file, and no file at all.

use std::{fs, thread, time::Duration};

use super::{Desk, at, finding, findings, gone, of_file, options};
use crate::history::{History, HowGone, Query, read_file};

#[test]
fn the_file_stays_below_its_limit_and_the_oldest_goes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let mut desk = Desk::open(&path, at(0));
    let mut largest = 0;
    for n in 0..12_000_u32 {
        let now = at(u64::from(n) / 100);
        desk.note(now, finding(n as i32, "leaked", now));
        if n % 2 == 0 {
            desk.note(now, gone(n as i32, HowGone::Removed));
        }
        desk.book.tick(now);
        if n % 20 == 0 {
            largest = largest.max(fs::metadata(&path).unwrap().len());
        }
    }
    desk.book.commit(at(3000));
    let status = desk.book.status();
    assert!(status.on_disk, "{status:?}");
    assert_eq!(desk.warned(), Vec::<String>::new());
    let limit = options(&path).limit;
    assert!(largest.max(status.file_bytes) <= limit, "{largest}");
    let entries = desk.entries(at(3000));
    let found = findings(&entries);
    assert_eq!(found.len() as u64 + status.dropped_for_space, 12_000);
    assert_eq!(found.last().unwrap().sem.semid, 11_999);
    // Nothing in between is missing, and what is there is a fair part of the limit.
    let first = found[0].sem.semid;
    assert!(found.iter().zip(first..).all(|(it, n)| it.sem.semid == n));
    assert!(found.len() > 1000, "{}", found.len());
    drop(desk);
    let (head, _) = read_file(&path, &Query::default()).unwrap();
    assert_eq!(head.dropped_for_space, status.dropped_for_space);
    assert!(head.complete_since_ms.unwrap() >= at(0).wall_ms);
}

#[test]
fn a_smaller_limit_shrinks_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let mut large = options(&path);
    large.limit = 16 << 20;
    let mut desk = Desk::with(large, at(0));
    for n in 0..6000 {
        desk.note(at(n), finding(n as i32, "leaked", at(n)));
        desk.book.tick(at(n / 100));
    }
    drop(desk);
    assert!(fs::metadata(&path).unwrap().len() > 4 << 20);
    let mut desk = Desk::open(&path, at(7000));
    assert_eq!(desk.warned(), Vec::<String>::new());
    assert!(desk.book.status().file_bytes <= 4 << 20);
    assert!(!findings(&desk.entries(at(7000))).is_empty());
    desk.note(at(7001), finding(9999, "leaked", at(7001)));
    desk.book.commit(at(7001));
    assert!(desk.book.status().on_disk, "{:?}", desk.book.status());
}

#[test]
fn somebody_who_reads_the_file_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let mut desk = Desk::open(&path, at(0));
    desk.note(at(1), finding(7, "leaked", at(1)));
    desk.book.commit(at(1));
    drop(desk);
    let reader = fs::File::open(&path).unwrap();
    reader.lock_shared().unwrap();
    let read = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        drop(reader);
    });
    let mut desk = Desk::open(&path, at(2));
    assert_eq!(desk.warned(), Vec::<String>::new());
    assert!(desk.book.status().on_disk, "{:?}", desk.book.status());
    assert_eq!(findings(&desk.entries(at(2))).len(), 1);
    read.join().unwrap();
}

#[test]
fn without_a_file_memory_must_do_until_there_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let blocked = dir.path().join("blocked");
    fs::write(&blocked, "").unwrap();
    let path = blocked.join("h");
    let mut desk = Desk::open(&path, at(0));
    for n in 0..3000 {
        desk.note(at(1 + n), finding(n as i32, "leaked", at(1 + n)));
        desk.book.tick(at(1 + n));
    }
    assert_eq!(desk.warned().len(), 1, "said once: {:?}", desk.warned());
    let kept = findings(&desk.entries(at(3001))).len();
    let lost = desk.book.status().lost;
    assert!(lost > 0 && kept as u64 + lost == 3000, "{kept} + {lost}");
    assert!(desk.book.head(at(3001)).notes[0].contains("in memory only"));
    fs::remove_file(&blocked).unwrap();
    desk.book.tick(at(4000));
    let status = desk.book.status();
    assert!(status.on_disk);
    assert_eq!(status.dropped_for_space, lost, "{status:?}");
    assert_eq!(desk.warned().len(), 2);
    assert_eq!(desk.book.due(at(4000).boot), None);
    drop(desk);
    let entries = of_file(&path);
    assert_eq!(findings(&entries).len(), kept);
    let (head, _) = read_file(&path, &Query::default()).unwrap();
    assert_eq!(head.dropped_for_space, lost);
}

#[test]
fn what_was_noted_without_a_file_comes_after_what_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let mut desk = Desk::open(&path, at(0));
    desk.note(at(1), finding(1, "leaked", at(1)));
    desk.note(at(1), finding(2, "leaked", at(1)));
    desk.book.commit(at(1));
    // Another process has it open.
    let mut second = Desk::open(&path, at(2));
    assert!(second.warned()[0].contains("another process"));
    second.note(at(3), finding(3, "leaked", at(3)));
    second.note(at(4), finding(1, "leaked", at(4)));
    drop(desk);
    second.book.tick(at(10));
    assert!(second.book.status().on_disk);
    second.note(at(11), gone(3, HowGone::Removed));
    second.book.commit(at(12));
    drop(second);
    let entries = of_file(&path);
    let found = findings(&entries);
    let semids: Vec<i32> = found.iter().map(|it| it.sem.semid).collect();
    assert_eq!(semids, [1, 2, 3, 1]);
    assert!(found[2].gone.is_some());
    // Of the two records of one cookie, one stands.
    assert!(found[0].gone.is_some() && found[3].gone.is_none());
}

#[test]
fn the_thread_writes_and_answers_and_ends() {
    use std::{io, sync::mpsc, time::Duration};
    struct Sink(mpsc::Sender<Vec<u8>>);
    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let history = History::open(options(&path), |text| panic!("{text}"));
    history.note(finding(7, "stuck", at(1)));
    let lives = crate::history::Lives {
        created: 5,
        ..Default::default()
    };
    history.lives("/usr/sbin/lvm", &lives);
    let (send, answer) = mpsc::channel();
    history.asker().ask(Query::default(), Sink(send));
    let text: Vec<u8> = answer.iter().flatten().collect();
    let lines: Vec<serde_json::Value> = text
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let types: Vec<&str> = lines.iter().filter_map(|it| it["type"].as_str()).collect();
    assert_eq!(types, ["history", "finding", "rates", "end"]);
    assert!(history.close(Duration::from_secs(60)));
    assert_eq!(of_file(&path).len(), 2);
}
