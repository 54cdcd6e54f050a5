//! A writer that is killed, and a file that is damaged.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use super::{Desk, finding_note, of_file, stamp_at, stored_findings};
use crate::history::{HistoryQuery, ReadError, read_file, store::set_aside_path};

const CHILD: &str = "DMTRACE_TEST_HISTORY_WRITER";

/// Not a test of its own: the writer that the next one kills.
#[test]
fn writer() {
    let Ok(path) = std::env::var(CHILD) else {
        return;
    };
    let mut desk = Desk::open(Path::new(&path), stamp_at(0));
    let first = stored_findings(&desk.read_entries(stamp_at(0))).len() as u64;
    for n in first.. {
        let now = stamp_at(n);
        desk.add_note(now, finding_note(n as i32, "leaked", now));
        desk.book.write_due(now);
        assert!(desk.book.status().on_disk, "{:?}", desk.book.status());
        // What is told here is on the disk.
        println!("wrote {n}");
        std::io::stdout().flush().unwrap();
    }
}

#[test]
fn a_killed_writer_leaves_everything_that_it_has_committed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let mut random = pseudo_random();
    let mut last = 0;
    for round in 0..25 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "history::tests::damage::writer", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut wrote = None;
        for _ in 0..1 + random() % 20 {
            wrote = lines
                .by_ref()
                .map_while(Result::ok)
                .find_map(|line| line.strip_prefix("wrote ")?.parse::<usize>().ok());
            assert!(wrote.is_some(), "round {round}: the writer has ended");
        }
        std::thread::sleep(Duration::from_micros(random() % 3000));
        child.kill().unwrap();
        child.wait().unwrap();
        let wrote = wrote.unwrap();
        // First as a reader, who changes nothing; then the next writer.
        let bytes = fs::read(&path).unwrap();
        let entries = of_file(&path);
        assert_eq!(fs::read(&path).unwrap(), bytes, "a reader has written");
        let found = stored_findings(&entries);
        assert!(found.iter().zip(0..).all(|(it, n)| it.sem.semid == n));
        assert!(
            found.len() > wrote,
            "round {round}: {} of {wrote}",
            found.len()
        );
        assert!(found.len() > last, "it goes on");
        last = found.len();
    }
    assert!(!set_aside_path(&path).exists());
}

#[test]
fn a_damaged_file_is_read_or_set_aside_and_never_ends_the_service() {
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("good");
    let mut desk = Desk::open(&good, stamp_at(0));
    for n in 0..300 {
        desk.add_note(stamp_at(n), finding_note(n as i32, "leaked", stamp_at(n)));
        desk.book.commit_pending(stamp_at(n));
    }
    drop(desk);
    let good = fs::read(&good).unwrap();
    let mut random = pseudo_random();
    let (mut read, mut set_aside) = (0, 0);
    for round in 0..60 {
        let mut bytes = good.clone();
        let place = random() as usize % bytes.len();
        match round % 5 {
            0 => bytes.truncate(place),
            1 => bytes[place] ^= 1 << (random() % 8),
            2 => bytes[place..].fill(0),
            // The header is a small part of the file, and the most delicate.
            3 => bytes[random() as usize % 512] = random() as u8,
            _ => {
                let end = bytes.len().min(place + 4096);
                for byte in &mut bytes[place..end] {
                    *byte = random() as u8;
                }
            }
        }
        let path = dir.path().join("damaged");
        fs::write(&path, &bytes).unwrap();
        let _remains = fs::remove_file(set_aside_path(&path));
        let alone = read_file(&path, &HistoryQuery::default());
        assert!(
            matches!(
                alone,
                Ok(_) | Err(ReadError::Unreadable(_) | ReadError::None)
            ),
            "{alone:?}"
        );
        let mut desk = Desk::open(&path, stamp_at(1000));
        let warned = desk.warnings();
        assert!(warned.len() <= 1 && warned.iter().all(|line| line.lines().count() == 1));
        assert_eq!(
            set_aside_path(&path).exists(),
            !warned.is_empty(),
            "{warned:?}"
        );
        if warned.is_empty() {
            // The end may be missing; what is there is right.
            let entries = desk.read_entries(stamp_at(1000));
            let found = stored_findings(&entries);
            assert!(found.iter().zip(0..).all(|(it, n)| it.sem.semid == n));
            read += 1;
        } else {
            set_aside += 1;
        }
        let before = stored_findings(&desk.read_entries(stamp_at(1000))).len();
        desk.add_note(stamp_at(1000), finding_note(4711, "leaked", stamp_at(1000)));
        desk.book.commit_pending(stamp_at(1000));
        assert!(desk.book.status().on_disk, "{:?}", desk.book.status());
        let entries = desk.read_entries(stamp_at(1000));
        assert_eq!(stored_findings(&entries).len(), before + 1);
        assert_eq!(stored_findings(&entries).last().unwrap().sem.semid, 4711);
    }
    assert!(
        read > 0 && set_aside > 0,
        "{read} read, {set_aside} set aside"
    );
}

#[test]
fn a_file_of_another_layout_is_kept_beside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    for other in ["", "not a database", &"x".repeat(10_000)] {
        fs::write(&path, other).unwrap();
        let _remains = fs::remove_file(set_aside_path(&path));
        let desk = Desk::open(&path, stamp_at(0));
        assert_eq!(
            desk.warnings().len(),
            usize::from(!other.is_empty()),
            "{other}"
        );
        assert!(desk.book.status().on_disk);
        if !other.is_empty() {
            assert_eq!(fs::read_to_string(set_aside_path(&path)).unwrap(), other);
        }
    }
}

/// Numbers that look random, the same in every run.
fn pseudo_random() -> impl FnMut() -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 11
    }
}

#[test]
fn a_file_that_would_not_fit_into_memory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse");
    for (content, reason) in [
        (&b""[..], "not a history of dmtrace"),
        (&b"redb\x1a\x0a\xa9\x0d\x0a"[..], "bytes"),
    ] {
        fs::write(&path, content).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_len(1 << 40).unwrap();
        let error = read_file(&path, &HistoryQuery::default()).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}
