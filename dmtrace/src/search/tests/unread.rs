//! What is hard to reach is read, and what cannot be read is said to be so.

use std::{os::unix::fs::symlink, path::Path};

use dmtrace_core::search::Window;

use super::*;
use crate::{
    host::Roots,
    search::{
        descriptors::{copy_pipe, search_descriptors},
        files::search_files,
        mounts::MountTables,
        pages::page_size,
        report::Found,
        shelf::{PIECE, ProgramCache, Shelf, Slot},
        target::Target,
    },
};

/// Does something with what a worker has, and a `/proc` of its own in a folder.
fn with_shelf<T>(dir: &Path, act: impl FnOnce(&mut Shelf<'_>) -> T) -> T {
    let roots = Roots::below(dir);
    let (needles, options) = (Needles::new([Key(0x0d4d_1300)]), SearchOptions::default());
    let slot = Slot::default();
    let mut shelf = Shelf {
        mounts: MountTables::new(&roots),
        roots,
        needles: &needles,
        options: &options,
        programs: ProgramCache::new(),
        own_program: None,
        page: page_size(),
        window: Window::new(PIECE),
        slot: &slot,
    };
    act(&mut shelf)
}

/// A page that was swapped out, or that somebody else wrote, is in no page table of the process.
#[test]
fn a_large_shared_memory_is_read_from_its_file() {
    const LENGTH: usize = 256 << 20;
    const MAPPED: usize = 128 << 20;
    let holder = Holder::start(0x1301, |secret| {
        // SAFETY: a C string.
        let fd = unsafe { libc::memfd_create(c"x".as_ptr(), 0) };
        let number = secret.reveal().to_le_bytes();
        // SAFETY: our descriptor.
        unsafe { libc::ftruncate(fd, LENGTH as libc::off_t) };
        // SAFETY: a descriptor of ours, and a buffer with its length.
        unsafe { libc::pwrite(fd, number.as_ptr().cast(), 4, (200 << 20) + 64) };
        let (rights, begin) = (libc::PROT_READ, (LENGTH - MAPPED) as libc::off_t);
        // SAFETY: a new mapping.
        let at = unsafe {
            let flags = libc::MAP_SHARED;
            libc::mmap(std::ptr::null_mut(), MAPPED, rights, flags, fd, begin)
        };
        assert_ne!(at, libc::MAP_FAILED);
        // SAFETY: a descriptor of ours.
        unsafe { libc::close(fd) };
    });
    // As another user than root it is not opened.
    // SAFETY: a number.
    if unsafe { libc::geteuid() } != 0 {
        println!("not root: not tested");
        return;
    }
    let search = holder.search();
    let key = holder.secret.key();
    assert!(
        has(&search, key, Form::Aligned4, Place::Memfd),
        "{search:?}"
    );
    let own = holder.status("VmRSS") << 10;
    let read = search.bytes.saturating_sub(own);
    assert!(read < 64 << 20, "holes are not read: {read}, {own}");
}

/// Where the copy may not be as large as the pipe.
#[test]
fn what_is_left_out_of_a_pipe_is_told() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let bytes: Vec<u8> = (0..20_000_u32).map(|it| (it % 251) as u8).collect();
    writer.write_all(&bytes).unwrap();
    let pipe = File::from(std::os::fd::OwnedFd::from(reader));
    assert!(copy_pipe(&pipe, 1).is_err());
    assert_eq!(copy_pipe(&pipe, 64 << 10).unwrap(), bytes);
}

#[test]
fn all_of_a_large_pipe_is_read() {
    const SIZE: usize = 2 << 20;
    let (reader, mut writer) = std::io::pipe().unwrap();
    // SAFETY: a descriptor of ours, and a number.
    let size = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, SIZE) };
    if size < SIZE as libc::c_int {
        println!("no such pipe here: not tested");
        return;
    }
    let secret = Secret::new(0x1302);
    writer.write_all(&vec![b'x'; SIZE - (64 << 10)]).unwrap();
    writeln!(writer, " {:#x}", secret.reveal()).unwrap();
    let other = writer.as_raw_fd();
    let holder = Holder::start(0x1302, |_| {
        // SAFETY: the child's copy of the end that writes.
        unsafe { libc::close(other) };
    });
    assert_found(&holder, Form::Hex, Place::Pipe);
    drop(reader);
}

#[test]
fn a_fifo_without_a_name_is_a_pipe() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    crate::host::regular_file::make_fifo(&path);
    let mut options = File::options();
    let mut fifo = options.read(true).write(true).open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let secret = Secret::new(0x1303);
    writeln!(fifo, "{:#x}", secret.reveal()).unwrap();
    let holder = Holder::start(0x1303, |_| ());
    assert_found(&holder, Form::Hex, Place::Pipe);
}

#[test]
fn a_descriptor_that_cannot_be_read_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let process = dir.path().join("proc/5");
    for folder in ["fd", "fdinfo"] {
        fs::create_dir_all(process.join(folder)).unwrap();
    }
    let info = "pos:\t0\nflags:\t0100000\nmnt_id:\t15\n";
    let search = |number: u32, link: &Path, info: &str| {
        let fd = process.join(format!("fd/{number}"));
        symlink(link, &fd).unwrap();
        fs::write(process.join(format!("fdinfo/{number}")), info).unwrap();
        let mut target = Target {
            task: "5".to_owned(),
            tid: 5,
            class: HolderClass::Actor,
            swapped: 0,
            found: Found::default(),
            problems: Vec::new(),
        };
        with_shelf(dir.path(), |shelf| search_descriptors(shelf, &mut target)).unwrap();
        fs::remove_file(&fd).unwrap();
        target.problems
    };
    let gone = dir.path().join("gone (deleted)");
    assert_eq!(
        search(3, Path::new("pipe:[7]"), info),
        [],
        "closed just now"
    );
    assert_eq!(search(4, &gone, info), [], "closed just now");
    // Whatever opens it fails.
    symlink("pipe:[8]", process.join("fd/pipe:[8]")).unwrap();
    let round = dir.path().join("round (deleted)");
    symlink(&round, &round).unwrap();
    for (number, link, info) in [
        (5, Path::new("pipe:[8]"), info),
        (6, Path::new("pipe:[8]"), "junk"),
        (7, &round, info),
    ] {
        let problems = search(number, link, info);
        assert!(
            matches!(problems[..], [UnsearchedReason::Failed { .. }]),
            "{number}: {problems:?}"
        );
    }
}

#[test]
fn files_for_which_there_was_no_time() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    let files = FileSearch {
        below: vec![dir.path().to_owned()],
        limit: Duration::ZERO,
        ..FileSearch::since(UnixTime(0))
    };
    let options = SearchOptions {
        only: [u32::MAX].into(),
        files: Some(files),
        ..SearchOptions::default()
    };
    let search = run(&Needles::new([Key(0x0d4d_1304)]), &options, &mut |_| ());
    assert_eq!(search.coverage.files_since, None);
    let why = search.coverage.files_failed.as_deref();
    assert_eq!(why, Some("it took longer than 0s"));
}

/// Another file system below a folder is searched by itself if it is known to be mounted there. If
/// not, its files were not searched.
#[test]
fn a_file_system_that_nobody_knows_is_told() {
    use std::os::unix::fs::MetadataExt as _;
    let device = |path: &str| fs::metadata(path).map(|it| it.dev()).ok();
    let mounted = ["/dev/shm", "/dev/pts"].map(device);
    if mounted
        .iter()
        .all(|it| it.is_none() || *it == device("/dev"))
    {
        println!("nothing is mounted in /dev: not tested");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("proc/self");
    fs::create_dir_all(own.join("ns")).unwrap();
    symlink("mnt:[1]", own.join("ns/mnt")).unwrap();
    let mut files = FileSearch::since(UnixTime(i64::MAX));
    files.below = vec!["/dev".into()];
    let search = |mounts: &[u8]| {
        fs::write(own.join("mountinfo"), mounts).unwrap();
        with_shelf(dir.path(), |shelf| search_files(shelf, &files))
    };
    let report = search(b"");
    let why = report.files_failed.unwrap();
    assert!(why.starts_with("/dev/") && !report.files_done, "{why}");
    let report = search(&fs::read("/proc/self/mountinfo").unwrap());
    assert_eq!((report.files_failed, report.files_done), (None, true));
}
