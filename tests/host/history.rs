//! The history on a disk that is full, and on one that cannot be written.

use std::{
    ffi::CString,
    fs,
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use dmtrace::{
    finding::Story,
    history::{
        History, HistoryNote, HistoryOptions, HistoryQuery, HistoryRecord, Stamp, StoredFinding,
        read_file,
    },
};
use dmtrace_core::ids::{IpcNs, Key, SemId};
use dmtrace_tests::harness::{TestNeed, Trial, new_trial};

const NEEDS: &[TestNeed] = &[TestNeed::Root];

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial("history_on_a_full_disk", NEEDS, history_on_a_full_disk),
        new_trial("history_on_a_read_only_disk", NEEDS, read_only),
    ]
}

/// Mounts in a mount namespace of this thread, which vanishes with it.
fn mount_fs(source: &str, target: &Path, flags: libc::c_ulong, data: &str) -> anyhow::Result<()> {
    let (source, data) = (CString::new(source)?, CString::new(data)?);
    let path = CString::new(target.to_str().context("path")?)?;
    // SAFETY: strings that live as long as the call.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            path.as_ptr(),
            c"tmpfs".as_ptr(),
            flags,
            data.as_ptr().cast(),
        )
    };
    let error = std::io::Error::last_os_error();
    ensure!(result == 0, "mount {}: {error}", target.display());
    Ok(())
}

/// Runs with a small file system of its own.
fn on_tmpfs(body: impl FnOnce(&Path) -> anyhow::Result<()> + Send) -> anyhow::Result<()> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: a number; only this thread and those that it starts are concerned.
            let result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
            ensure!(result == 0, "unshare: {}", std::io::Error::last_os_error());
            mount_fs("none", Path::new("/"), libc::MS_REC | libc::MS_PRIVATE, "")?;
            let dir = tempfile::tempdir()?;
            mount_fs("history", dir.path(), 0, "size=1m")?;
            let result = body(dir.path());
            let path = CString::new(dir.path().to_str().context("path")?)?;
            // SAFETY: a string that lives as long as the call.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
            result
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

type Warned = Arc<Mutex<Vec<String>>>;

fn open_history(path: &Path) -> (History, Warned) {
    let warned = Warned::default();
    let theirs = Arc::clone(&warned);
    let options = HistoryOptions {
        path: path.to_owned(),
        limit: 64 << 20,
        retention: Duration::from_secs(90 * 86_400),
        boot_id: "boot".to_owned(),
    };
    let history = History::open(options, move |text| {
        if let Ok(mut warned) = theirs.lock() {
            warned.push(text.to_owned());
        }
    });
    (history, warned)
}

fn note_finding(history: &History, semid: i32) {
    history.send_note(HistoryNote::Found(Box::new(StoredFinding {
        version: StoredFinding::VERSION,
        sem: SemId {
            ns: IpcNs::HOST,
            semid,
        },
        key: Key(0x0d4d_0001),
        state: "leaked".to_owned(),
        program: "/usr/sbin/lvm".to_owned(),
        found: Stamp::now(),
        gone: None,
        calls: None,
        story: Story {
            evidence: (0..20).map(|_| fastrand::u64(..).to_string()).collect(),
            ..Story::default()
        },
    })));
}

/// Waits until it is on the disk, or is not.
fn wait_until(history: &History, on_disk: bool) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let status = history.status();
        let there = if on_disk {
            status.on_disk && status.pending == 0
        } else {
            status.trouble.is_some()
        };
        if there {
            return Ok(());
        }
        ensure!(began.elapsed() < Duration::from_secs(60), "{status:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn read_semids(path: &Path) -> anyhow::Result<Vec<i32>> {
    let (_, entries) = read_file(path, &HistoryQuery::default())?;
    let semid = |record| match record {
        HistoryRecord::Finding(finding) => Some(finding.sem.semid),
        _ => None,
    };
    let mut semids: Vec<i32> = entries
        .into_iter()
        .filter_map(|it| semid(it.record))
        .collect();
    semids.sort_unstable();
    Ok(semids)
}

fn history_on_a_full_disk() -> anyhow::Result<()> {
    on_tmpfs(|dir| {
        let path = dir.join("history.redb");
        let (history, warned) = open_history(&path);
        note_finding(&history, 1);
        wait_until(&history, true)?;
        // Somebody else fills the disk to its last byte.
        let ballast = dir.join("ballast");
        let filled = fs::write(&ballast, vec![7; 2 << 20]);
        ensure!(filled.is_err(), "not full");
        for semid in 2..500 {
            note_finding(&history, semid);
            if semid % 50 == 0 {
                thread::sleep(Duration::from_millis(20));
            }
        }
        wait_until(&history, false)?;
        fs::remove_file(&ballast)?;
        wait_until(&history, true)?;
        note_finding(&history, 500);
        ensure!(history.finish(Duration::from_secs(60)), "not closed");
        let warned = warned
            .lock()
            .map_or_else(|_| Vec::new(), |warned| warned.clone());
        ensure!(warned.len() == 2, "{warned:?}");
        ensure!(warned[0].contains("No space left"), "{warned:?}");
        ensure!(warned[1].contains("can be written again"), "{warned:?}");
        let kept = read_semids(&path)?;
        ensure!(kept == (1..=500).collect::<Vec<_>>(), "{kept:?}");
        Ok(())
    })
}

fn read_only() -> anyhow::Result<()> {
    on_tmpfs(|dir| {
        let path = dir.join("new/history.redb");
        let remount = |flags| mount_fs("history", dir, libc::MS_REMOUNT | flags, "size=1m");
        remount(libc::MS_RDONLY)?;
        let (history, warned) = open_history(&path);
        note_finding(&history, 1);
        wait_until(&history, false)?;
        remount(0)?;
        wait_until(&history, true)?;
        ensure!(history.finish(Duration::from_secs(60)), "not closed");
        let warned = warned
            .lock()
            .map_or_else(|_| Vec::new(), |warned| warned.clone());
        ensure!(warned.len() == 2, "{warned:?}");
        ensure!(warned[0].contains("Read-only"), "{warned:?}");
        let kept = read_semids(&path)?;
        ensure!(kept == [1], "{kept:?}");
        Ok(())
    })
}
