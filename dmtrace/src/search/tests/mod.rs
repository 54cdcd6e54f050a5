//! The search, on children that have a number in one place.

mod child;
mod unread;

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
    process::Command,
    sync::atomic::Ordering,
    time::Duration,
};

use child::{ANONYMOUS, Holder, Secret, map, put};
use dmtrace_core::{
    ids::{Key, UnixTime},
    search::{Form, HolderClass, Needles, Place, Search, UnsearchedReason},
};

use super::{FileSearch, SearchOptions, run};

/// Whether the number was found so, with nothing left out.
fn has(search: &Search, key: Key, form: Form, place: Place) -> bool {
    assert_eq!(search.not_searched, [], "{search:?}");
    assert!(search.stable);
    let mut spots = search.holders(key).flat_map(|(_, spots)| spots);
    spots.any(|spot| spot.form == form && spot.place == place)
}

fn assert_found(holder: &Holder, form: Form, place: Place) {
    let search = holder.search();
    let key = holder.secret.key();
    assert!(
        has(&search, key, form, place),
        "{form:?} {place:?}: {search:?}"
    );
}

#[test]
fn forms_in_anonymous_memory() {
    type Write = fn(u32) -> Vec<u8>;
    let writers: [(Write, usize, Form); 8] = [
        (|it| it.to_le_bytes().to_vec(), 64, Form::Aligned4),
        (|it| it.to_le_bytes().to_vec(), 66, Form::Aligned2),
        (|it| it.to_le_bytes().to_vec(), 4093, Form::Unaligned),
        (|it| (it << 1 | 1).to_le_bytes().to_vec(), 64, Form::Tagged),
        (|it| f64::from(it).to_le_bytes().to_vec(), 64, Form::Double),
        (|it| format!("{it:#x}").into_bytes(), 4090, Form::Hex),
        (|it| it.to_string().into_bytes(), 77, Form::Decimal),
        (
            |it| format!("DM_COOKIE={}", 0x40_0000 | it & 0xffff).into_bytes(),
            4095,
            Form::UeventVariable,
        ),
    ];
    for (number, (write, offset, form)) in writers.into_iter().enumerate() {
        let base = 0x1100 + u16::try_from(number).unwrap();
        let holder = Holder::start(base, |secret| {
            put(map(8192, ANONYMOUS, -1), offset, &write(secret.reveal()));
        });
        assert_found(&holder, form, Place::Anonymous);
    }
}

#[test]
fn a_number_on_the_border_of_two_pieces_is_found() {
    const LENGTH: usize = 2 << 20;
    let holder = Holder::start(0x1201, |secret| {
        let at = map(LENGTH, ANONYMOUS, -1);
        put(at, 0, &vec![1; LENGTH]);
        for border in (1..8).map(|it| it * (256 << 10)) {
            put(at, border - 1, &secret.reveal().to_le_bytes());
        }
    });
    let search = holder.search();
    let (_, spots) = search.holders(holder.secret.key()).next().unwrap();
    let spot = spots.iter().find(|it| it.form == Form::Unaligned).unwrap();
    assert!(spot.count >= 7, "{spots:?}");
}

#[test]
fn memory_that_nobody_may_read_is_read() {
    let holder = Holder::start(0x1202, |secret| {
        let at = map(8192, ANONYMOUS, -1);
        put(at, 64, &secret.reveal().to_le_bytes());
        // SAFETY: the mapping is ours.
        unsafe { libc::mprotect(at.cast(), 8192, libc::PROT_NONE) };
    });
    assert_found(&holder, Form::Aligned4, Place::Anonymous);
}

#[test]
fn shared_memory_and_files() {
    let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    let holder = Holder::start(0x1203, |secret| {
        put(map(8192, shared, -1), 4096, &secret.reveal().to_le_bytes());
    });
    assert_found(&holder, Form::Aligned4, Place::SharedMemory);

    let memfd = || {
        // SAFETY: a C string.
        let fd = unsafe { libc::memfd_create(c"x".as_ptr(), 0) };
        assert!(fd >= 0);
        // SAFETY: our descriptor.
        unsafe { libc::ftruncate(fd, 8192) };
        fd
    };
    let holder = Holder::start(0x1204, |secret| {
        let at = map(8192, libc::MAP_SHARED, memfd());
        put(at, 4096, &secret.reveal().to_le_bytes());
    });
    assert_found(&holder, Form::Aligned4, Place::Memfd);

    let holder = Holder::start(0x1205, |secret| {
        let number = secret.reveal().to_le_bytes();
        // SAFETY: a descriptor of ours, and a buffer with its length.
        unsafe { libc::pwrite(memfd(), number.as_ptr().cast(), 4, 4000) };
    });
    assert_found(&holder, Form::Aligned4, Place::Memfd);

    let dir = tempfile::tempdir().unwrap();
    for (flags, base) in [(libc::MAP_PRIVATE, 0x1206), (libc::MAP_SHARED, 0x1207)] {
        let path = dir.path().join("file");
        File::create(&path).unwrap();
        let mut options = File::options();
        let file = options.read(true).write(true).open(&path).unwrap();
        file.set_len(8192).unwrap();
        let holder = Holder::start(base, |secret| {
            put(
                map(8192, flags, file.as_raw_fd()),
                64,
                &secret.reveal().to_le_bytes(),
            );
        });
        let place = if flags == libc::MAP_PRIVATE {
            Place::Data
        } else {
            Place::FileMapping
        };
        let search = holder.search();
        let key = holder.secret.key();
        let any = has(&search, key, Form::Aligned4, place);
        assert!(any, "{place:?} {search:?}");
    }
}

#[test]
fn an_unlinked_file_and_its_place() {
    let holder = Holder::start(0x1208, |secret| {
        let mut file = tempfile::tempfile().unwrap();
        writeln!(file, "{:#x}", secret.reveal()).unwrap();
        std::mem::forget(file);
    });
    assert_found(&holder, Form::Hex, Place::UnlinkedFile);
    let search = holder.search_with(|it| it.descriptors = false);
    assert!(!has(
        &search,
        holder.secret.key(),
        Form::Hex,
        Place::UnlinkedFile
    ));
    assert!(!search.coverage.descriptors);
}

#[test]
fn a_pipe_keeps_what_is_in_it() {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let secret = Secret::new(0x1209);
    let text = format!("cookie {:#x}\n", secret.reveal());
    writer.write_all(text.as_bytes()).unwrap();
    drop(text);
    let (end, other) = (reader.as_raw_fd(), writer.as_raw_fd());
    let holder = Holder::start(0x1209, |_| {
        // SAFETY: the child's copy of the end that writes.
        unsafe { libc::close(other) };
    });
    assert_found(&holder, Form::Hex, Place::Pipe);
    // SAFETY: a descriptor that is open.
    let flags = unsafe { libc::fcntl(end, libc::F_GETFL) };
    assert_eq!(flags & libc::O_NONBLOCK, 0, "the search has its own");
    drop(writer);
    let mut back = String::new();
    reader.read_to_string(&mut back).unwrap();
    assert_eq!(back, format!("cookie {:#x}\n", secret.reveal()));
}

/// Who only writes can do nothing with what is in the pipe, and is no reason to become its reader.
#[test]
fn the_end_that_writes_is_left_alone() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let secret = Secret::new(0x1210);
    writeln!(writer, "{:#x}", secret.reveal()).unwrap();
    let end = reader.as_raw_fd();
    let holder = Holder::start(0x1210, |_| {
        // SAFETY: the child's copy of the end that reads.
        unsafe { libc::close(end) };
    });
    let search = holder.search();
    assert!(
        !has(&search, secret.key(), Form::Hex, Place::Pipe),
        "{search:?}"
    );
}

#[test]
fn an_environment() {
    let secret = Secret::new(0x1211);
    let mut command = Command::new("sleep");
    command
        .arg("60")
        .env("DM_UDEV_COOKIE", secret.reveal().to_string());
    let mut child = command.spawn().unwrap();
    let options = SearchOptions {
        only: [child.id()].into(),
        ..SearchOptions::default()
    };
    let needles = Needles::new([secret.key()]);
    // Between fork and exec it is still this program.
    let found = (0..100).any(|_| {
        let search = run(&needles, &options, &mut |_| ());
        let mut spots = search.found.get(&secret.key()).into_iter().flatten();
        spots.any(|it| {
            let is = |spot: &dmtrace_core::search::Spot| {
                spot.place == Place::Stack && spot.form == Form::CookieVariable
            };
            it.spots.iter().any(is)
        })
    });
    child.kill().unwrap();
    child.wait().unwrap();
    // As another user than root it could do nothing with it.
    // SAFETY: a number.
    assert!(found || unsafe { libc::geteuid() } != 0);
}

/// Its `maps` are empty; those of the other thread are not.
#[test]
fn a_process_whose_first_thread_has_ended() {
    let holder = Holder::start_thread(0x1212, |secret| {
        put(map(4096, ANONYMOUS, -1), 64, &secret.reveal().to_le_bytes());
    });
    let maps = fs::read(format!("/proc/{}/maps", holder.pid)).unwrap();
    assert_eq!(maps, b"");
    assert_found(&holder, Form::Aligned4, Place::Anonymous);
}

#[test]
fn lazy_memory_stays_lazy() {
    const LENGTH: usize = 4 << 30;
    let holder = Holder::start(0x1214, |secret| {
        let at = map(LENGTH, ANONYMOUS | libc::MAP_NORESERVE, -1);
        put(at, LENGTH / 2, &secret.reveal().to_le_bytes());
    });
    let sizes = || ["VmRSS", "VmPTE"].map(|it| holder.status(it));
    let before = sizes();
    let search = holder.search();
    // It still writes to some pages of its own while it begins to wait.
    for (before, after) in before.into_iter().zip(sizes()) {
        assert!(after - before < 1 << 10, "{before} {after}");
    }
    assert!(has(
        &search,
        holder.secret.key(),
        Form::Aligned4,
        Place::Anonymous
    ));
    assert!(search.bytes < 1 << 30, "{}", search.bytes);
}

/// A page that only another process could deliver, which never does.
#[test]
fn a_page_that_nobody_delivers_is_not_asked_for() {
    #[repr(C)]
    struct Api([u64; 3]);
    #[repr(C)]
    struct Register([u64; 4]);
    const UFFDIO_API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
    const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
    const LENGTH: usize = 1 << 20;
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let holder = Holder::start(0x1215, |secret| {
        // SAFETY: a number.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        let fd = i32::try_from(fd).unwrap_or(-1);
        let at = map(LENGTH, ANONYMOUS, -1);
        let mut api = Api([0xaa, 0, 0]);
        let mut register = Register([at.addr() as u64, LENGTH as u64, 1, 0]);
        // SAFETY: the structures are as the kernel has them.
        let failed = unsafe { libc::ioctl(fd, UFFDIO_API, &raw mut api) } != 0
            // SAFETY: as before.
            || unsafe { libc::ioctl(fd, UFFDIO_REGISTER, &raw mut register) } != 0;
        writer.write_all(&[u8::from(failed)]).unwrap();
        put(map(4096, ANONYMOUS, -1), 64, &secret.reveal().to_le_bytes());
    });
    let mut failed = [0];
    reader.read_exact(&mut failed).unwrap();
    if failed[0] != 0 {
        println!("no userfaultfd here: not tested");
        return;
    }
    assert_found(&holder, Form::Aligned4, Place::Anonymous);
}

/// What nobody else can read is said to be so, mapped or only open.
#[test]
fn secret_memory_is_opaque() {
    const MEMFD_SECRET: libc::c_long = 447;
    for (base, mapped) in [(0x1216, true), (0x1223, false)] {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let holder = Holder::start(base, |secret| {
            // SAFETY: a number.
            let fd = unsafe { libc::syscall(MEMFD_SECRET, 0) };
            let fd = i32::try_from(fd).unwrap_or(-1);
            // SAFETY: a number; without the descriptor it fails.
            let made = fd >= 0 && unsafe { libc::ftruncate(fd, 4096) } == 0;
            writer.write_all(&[u8::from(made)]).unwrap();
            if made {
                let at = map(4096, libc::MAP_SHARED, fd);
                put(at, 64, &secret.reveal().to_le_bytes());
                if !mapped {
                    // SAFETY: the whole mapping, which nobody uses any more.
                    unsafe { libc::munmap(at.cast(), 4096) };
                }
            }
        });
        let mut made = [0];
        reader.read_exact(&mut made).unwrap();
        if made[0] == 0 {
            println!("no memfd_secret here: not tested");
            return;
        }
        let search = holder.search();
        let reasons: Vec<_> = search.not_searched.iter().map(|it| &it.reason).collect();
        assert_eq!(reasons, [&UnsearchedReason::Opaque { bytes: 4096 }]);
    }
}

#[test]
fn a_reader_that_takes_too_long_is_given_up() {
    let holder = Holder::start(0x1217, |_| ());
    let search = holder.search_with(|it| it.stall_limit = Duration::ZERO);
    // It may have been done before anybody looked.
    if let Some(missed) = search.not_searched.first() {
        assert_eq!(
            (missed.pid, &missed.reason),
            (holder.pid, &UnsearchedReason::TimedOut)
        );
    }
    let search = holder.search_with(|it| it.total_limit = Duration::ZERO);
    assert_eq!(search.not_searched[0].reason, UnsearchedReason::TimedOut);
    assert!(!search.stable);
}

#[test]
fn it_ends_when_it_is_told_to() {
    let holder = Holder::start(0x1218, |_| ());
    let search = holder.search_with(|it| it.cancel.store(true, Ordering::Relaxed));
    assert!(search.cancelled && !search.stable);
}

#[test]
fn one_that_is_not_there_holds_nothing() {
    let holder = Holder::start(0x1219, |_| ());
    let pid = holder.pid;
    let needles = Needles::new([holder.secret.key()]);
    drop(holder);
    let options = SearchOptions {
        only: [pid].into(),
        ..SearchOptions::default()
    };
    let mut last = None;
    let search = run(&needles, &options, &mut |it| last = Some(it));
    assert_eq!((search.processes.len(), search.not_searched.len()), (0, 0));
    assert!(search.stable && last.is_some());
    assert!(search.hidden.is_some(), "not all were searched");
}

#[test]
fn what_a_process_is() {
    let holder = Holder::start(0x1220, |secret| {
        put(map(4096, ANONYMOUS, -1), 0, &secret.reveal().to_le_bytes());
    });
    let search = holder.search();
    let process = &search.processes[0];
    // The words are in this very program.
    assert_eq!(process.class, HolderClass::Actor);
    assert_eq!(process.id.tgid, holder.pid);
    let exe = std::env::current_exe().unwrap();
    assert_eq!(process.exe, exe.display().to_string());
    assert_eq!(search.searched, 1);
}

#[test]
fn files_that_were_modified() {
    const KEY: Key = Key(0x0d4d_1221);
    let dir = tempfile::tempdir().unwrap();
    let below = dir.path().join("a/b");
    fs::create_dir_all(&below).unwrap();
    for name in ["one", "two", "own"] {
        fs::write(below.join(name), format!("cookie={:#x}\n", KEY.0)).unwrap();
    }
    fs::write(below.join("large"), vec![b'x'; 4096]).unwrap();
    fs::write(below.join("none"), "0xd4d1222").unwrap();
    crate::host::regular_file::make_fifo(&below.join("fifo"));
    std::os::unix::fs::symlink("one", below.join("link")).unwrap();
    let search = |since: i64| {
        let mut files = FileSearch::since(UnixTime(since));
        files.below = vec![dir.path().to_owned()];
        files.except = vec![below.join("own")];
        files.largest = 1000;
        let options = SearchOptions {
            only: [u32::MAX].into(),
            files: Some(files),
            ..SearchOptions::default()
        };
        run(&Needles::new([KEY]), &options, &mut |_| ())
    };
    let now = crate::host::clock::wall_now().0;
    let found = search(now - 100);
    let mut paths = found.files[&KEY].clone();
    paths.sort();
    let expected = ["one", "two"].map(|it| below.join(it).display().to_string());
    assert_eq!(paths, expected);
    assert_eq!(found.coverage.files_since, Some(UnixTime(now - 100)));
    assert!(search(now + 100).files.is_empty());
}

/// `cargo test --release -p dmtrace --lib search::tests::throughput -- --ignored --nocapture`
#[test]
#[ignore = "prints a measurement"]
fn throughput() {
    const LENGTH: usize = 2 << 30;
    let holder = Holder::start(0x1222, |_| {
        let at = map(LENGTH, ANONYMOUS, -1);
        let mut state = 1_u64;
        for offset in (0..LENGTH).step_by(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // SAFETY: inside the mapping.
            unsafe { at.wrapping_add(offset).cast::<u64>().write(state) };
        }
    });
    for _ in 0..3 {
        let begin = std::time::Instant::now();
        let search = holder.search();
        let seconds = begin.elapsed().as_secs_f64();
        let gib = search.bytes as f64 / f64::from(1 << 30);
        println!("{gib:.2} GiB in {seconds:.2}: {:.2} GiB/s", gib / seconds);
    }
}

/// As above, `search::tests::whole_host`: every process of this machine.
#[test]
#[ignore = "prints a measurement"]
fn whole_host() {
    let options = SearchOptions {
        files: Some(FileSearch::since(UnixTime(
            crate::host::clock::wall_now().0 - 3600,
        ))),
        ..SearchOptions::default()
    };
    let begin = std::time::Instant::now();
    let needles = Needles::new((1..=128).map(|it| Key(0x0d4d_0000 | (it * 499))));
    let search = run(&needles, &options, &mut |_| ());
    let seconds = begin.elapsed().as_secs_f64();
    println!("{seconds:.2} s: {search:#?}");
}
