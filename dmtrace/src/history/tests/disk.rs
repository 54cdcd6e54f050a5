//! Space: a bounded file, and no file at all.

use std::{fs, thread, time::Duration};

use super::{Desk, end_note, finding_note, history_options, of_file, stamp_at, stored_findings};
use crate::history::{History, HistoryQuery, HowGone, read_file};

#[test]
fn the_file_stays_below_its_limit_and_the_oldest_goes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let mut desk = Desk::open(&path, stamp_at(0));
    let mut largest = 0;
    for n in 0..12_000_u32 {
        let now = stamp_at(u64::from(n) / 100);
        desk.add_note(now, finding_note(n as i32, "leaked", now));
        if n % 2 == 0 {
            desk.add_note(now, end_note(n as i32, HowGone::Removed));
        }
        desk.book.write_due(now);
        if n % 20 == 0 {
            largest = largest.max(fs::metadata(&path).unwrap().len());
        }
    }
    desk.book.commit_pending(stamp_at(3000));
    let status = desk.book.status();
    assert!(status.on_disk, "{status:?}");
    assert_eq!(desk.warnings(), Vec::<String>::new());
    let limit = history_options(&path).limit;
    assert!(largest.max(status.file_bytes) <= limit, "{largest}");
    let entries = desk.read_entries(stamp_at(3000));
    let found = stored_findings(&entries);
    assert_eq!(found.len() as u64 + status.dropped_for_space, 12_000);
    assert_eq!(found.last().unwrap().sem.semid, 11_999);
    // Nothing in between is missing, and what is there is a fair part of the limit.
    let first = found[0].sem.semid;
    assert!(found.iter().zip(first..).all(|(it, n)| it.sem.semid == n));
    assert!(found.len() > 1000, "{}", found.len());
    drop(desk);
    let (head, _) = read_file(&path, &HistoryQuery::default()).unwrap();
    assert_eq!(head.dropped_for_space, status.dropped_for_space);
    assert!(head.complete_since_ms.unwrap() >= stamp_at(0).wall_ms);
}

#[test]
fn a_smaller_limit_shrinks_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let mut large = history_options(&path);
    large.limit = 16 << 20;
    let mut desk = Desk::with_options(large, stamp_at(0));
    for n in 0..6000 {
        desk.add_note(stamp_at(n), finding_note(n as i32, "leaked", stamp_at(n)));
        desk.book.write_due(stamp_at(n / 100));
    }
    drop(desk);
    assert!(fs::metadata(&path).unwrap().len() > 4 << 20);
    let mut desk = Desk::open(&path, stamp_at(7000));
    assert_eq!(desk.warnings(), Vec::<String>::new());
    assert!(desk.book.status().file_bytes <= 4 << 20);
    assert!(!stored_findings(&desk.read_entries(stamp_at(7000))).is_empty());
    desk.add_note(stamp_at(7001), finding_note(9999, "leaked", stamp_at(7001)));
    desk.book.commit_pending(stamp_at(7001));
    assert!(desk.book.status().on_disk, "{:?}", desk.book.status());
}

#[test]
fn somebody_who_reads_the_file_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let mut desk = Desk::open(&path, stamp_at(0));
    desk.add_note(stamp_at(1), finding_note(7, "leaked", stamp_at(1)));
    desk.book.commit_pending(stamp_at(1));
    drop(desk);
    let reader = fs::File::open(&path).unwrap();
    reader.lock_shared().unwrap();
    let read = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        drop(reader);
    });
    let mut desk = Desk::open(&path, stamp_at(2));
    assert_eq!(desk.warnings(), Vec::<String>::new());
    assert!(desk.book.status().on_disk, "{:?}", desk.book.status());
    assert_eq!(stored_findings(&desk.read_entries(stamp_at(2))).len(), 1);
    read.join().unwrap();
}

#[test]
fn without_a_file_memory_must_do_until_there_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let blocked = dir.path().join("blocked");
    fs::write(&blocked, "").unwrap();
    let path = blocked.join("h");
    let mut desk = Desk::open(&path, stamp_at(0));
    for n in 0..3000 {
        desk.add_note(
            stamp_at(1 + n),
            finding_note(n as i32, "leaked", stamp_at(1 + n)),
        );
        desk.book.write_due(stamp_at(1 + n));
    }
    assert_eq!(desk.warnings().len(), 1, "said once: {:?}", desk.warnings());
    let kept = stored_findings(&desk.read_entries(stamp_at(3001))).len();
    let lost = desk.book.status().lost;
    assert!(lost > 0 && kept as u64 + lost == 3000, "{kept} + {lost}");
    assert!(desk.book.answer_head(stamp_at(3001)).notes[0].contains("in memory only"));
    fs::remove_file(&blocked).unwrap();
    desk.book.write_due(stamp_at(4000));
    let status = desk.book.status();
    assert!(status.on_disk);
    assert_eq!(status.dropped_for_space, lost, "{status:?}");
    assert_eq!(desk.warnings().len(), 2);
    assert_eq!(desk.book.next_due(stamp_at(4000).boot), None);
    drop(desk);
    let entries = of_file(&path);
    assert_eq!(stored_findings(&entries).len(), kept);
    let (head, _) = read_file(&path, &HistoryQuery::default()).unwrap();
    assert_eq!(head.dropped_for_space, lost);
}

#[test]
fn what_was_noted_without_a_file_comes_after_what_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let mut desk = Desk::open(&path, stamp_at(0));
    desk.add_note(stamp_at(1), finding_note(1, "leaked", stamp_at(1)));
    desk.add_note(stamp_at(1), finding_note(2, "leaked", stamp_at(1)));
    desk.book.commit_pending(stamp_at(1));
    // Another process has it open.
    let mut second = Desk::open(&path, stamp_at(2));
    assert!(second.warnings()[0].contains("another process"));
    second.add_note(stamp_at(3), finding_note(3, "leaked", stamp_at(3)));
    second.add_note(stamp_at(4), finding_note(1, "leaked", stamp_at(4)));
    drop(desk);
    second.book.write_due(stamp_at(10));
    assert!(second.book.status().on_disk);
    second.add_note(stamp_at(11), end_note(3, HowGone::Removed));
    second.book.commit_pending(stamp_at(12));
    drop(second);
    let entries = of_file(&path);
    let found = stored_findings(&entries);
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
    let history = History::open(history_options(&path), |text| panic!("{text}"));
    history.send_note(finding_note(7, "stuck", stamp_at(1)));
    let lives = crate::history::ProgramCounts {
        created: 5,
        ..Default::default()
    };
    history.count_lives("/usr/sbin/lvm", &lives);
    let (send, answer) = mpsc::channel();
    history
        .new_asker()
        .send_query(HistoryQuery::default(), Sink(send));
    let text: Vec<u8> = answer.iter().flatten().collect();
    let lines: Vec<serde_json::Value> = text
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let types: Vec<&str> = lines.iter().filter_map(|it| it["type"].as_str()).collect();
    assert_eq!(types, ["history", "finding", "rates", "end"]);
    assert!(history.finish(Duration::from_secs(60)));
    assert_eq!(of_file(&path).len(), 2);
}
