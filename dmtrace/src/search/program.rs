//! What a process could do with a number: its program, its libraries, its files, its rights.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
};

use dmtrace_core::search::{HolderTrait, ProgramKind, identify_program};

use super::{
    mappings::Mapping,
    mounts::{FsKind, mount_of_own},
    shelf::Shelf,
};

/// Larger programs are not read.
const PROGRAM_MAX: u64 = 512 << 20;

/// Programs whose words are remembered.
const MAX_CACHED: usize = 512;

/// Words that only a user of cookies has in its program.
const WORDS: [&[u8]; 7] = [
    b"/dev/mapper/control",
    b"DM_UDEV_COOKIE",
    b"udevcomplete",
    b"dm_task_set_cookie",
    b"udevcookie",
    b"udevcreatecookie",
    b"udevreleasecookie",
];

/// Libraries of interpreters.
const INTERPRETERS: [&str; 7] = [
    "libpython",
    "libperl",
    "libruby",
    "libjvm",
    "liblua",
    "libguile",
    "libnode",
];

/// What a task (`PID` or `PID/task/TID`) is and has.
pub(super) fn read_traits(
    shelf: &mut Shelf<'_>,
    task: &str,
) -> io::Result<(ProgramKind, String, BTreeSet<HolderTrait>)> {
    let mut traits = BTreeSet::new();
    let status = shelf.roots.read_proc(format!("{task}/status"))?;
    read_rights(&String::from_utf8_lossy(&status), &mut traits);
    let exe = fs::read_link(shelf.roots.proc_path(format!("{task}/exe")))
        .map(|path| path.to_string_lossy().into_owned())
        .unwrap_or_default();
    let mut kind = identify_program(&exe);
    let maps = File::open(shelf.roots.proc_path(format!("{task}/maps")))?;
    for line in BufReader::new(maps).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let Some(mapping) = Mapping::parse(&line).filter(|it| it.inode != 0) else {
            continue;
        };
        let file = mapping.name.rsplit('/').next().unwrap_or("");
        if file.starts_with("libdevmapper") {
            traits.insert(HolderTrait::MapsLibdevmapper);
        }
        if INTERPRETERS.iter().any(|it| file.starts_with(it)) {
            traits.insert(HolderTrait::MapsInterpreter);
        }
    }
    // Whoever is an actor already is none the more for what its program says.
    let reading =
        match kind == ProgramKind::Interpreter || traits.contains(&HolderTrait::MapsLibdevmapper) {
            true => ProgramReading::Spared,
            false => ProgramReading::Needed,
        };
    match knows_cookies(shelf, task, reading) {
        Some(Program::Own) => kind = ProgramKind::Dmtrace,
        Some(Program::Knows) => {
            traits.insert(HolderTrait::ProgramKnowsCookies);
        }
        Some(Program::KnowsNothing) => {}
        None => {
            traits.insert(HolderTrait::ProgramUnread);
        }
    }
    read_descriptors(shelf, task, &mut traits);
    Ok((kind, exe, traits))
}

fn read_rights(status: &str, traits: &mut BTreeSet<HolderTrait>) {
    const CAP_IPC_OWNER: u32 = 15;
    const CAP_SYS_ADMIN: u32 = 21;
    for line in status.lines() {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        match name {
            "Uid" if value.split_whitespace().any(|uid| uid == "0") => {
                traits.insert(HolderTrait::Root);
            }
            "CapEff" | "CapPrm" => {
                let caps = u64::from_str_radix(value.trim(), 16).unwrap_or(u64::MAX);
                if caps & (1 << CAP_IPC_OWNER | 1 << CAP_SYS_ADMIN) != 0 {
                    traits.insert(HolderTrait::Capability);
                }
            }
            _ => {}
        }
    }
}

fn read_descriptors(shelf: &Shelf<'_>, task: &str, traits: &mut BTreeSet<HolderTrait>) {
    let Ok(entries) = fs::read_dir(shelf.roots.proc_path(format!("{task}/fd"))) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(link) = fs::read_link(entry.path()) else {
            continue;
        };
        let link = link.as_os_str().as_encoded_bytes();
        if link.ends_with(b"/mapper/control") {
            traits.insert(HolderTrait::ControlOpen);
        } else if link == b"anon_inode:kvm-vm" {
            traits.insert(HolderTrait::RunsGuest);
        }
    }
}

enum Program {
    Own,
    Knows,
    KnowsNothing,
}

/// Whether anything rests on the words in a program: reading it takes longer than its memory does.
#[derive(Clone, Copy, Eq, PartialEq)]
enum ProgramReading {
    Needed,
    Spared,
}

/// Whether a program has device-mapper's words in it; `None` if it could not be read.
fn knows_cookies(shelf: &mut Shelf<'_>, task: &str, reading: ProgramReading) -> Option<Program> {
    let path = shelf.roots.proc_path(format!("{task}/exe"));
    // Nothing is asked of the file system before it is known which one it is.
    let mut options = File::options();
    let seen = options.read(true).custom_flags(libc::O_PATH);
    let seen = seen.open(&path).ok()?;
    let fd = seen.as_raw_fd();
    let kind = mount_of_own(fd).and_then(|id| shelf.mounts.kind_of_mount(task, id));
    // What is on no mount that anybody shows may be anything, but for the kernel's own memory.
    let memfd = || {
        let link = fs::read_link(&path);
        link.is_ok_and(|it| it.as_os_str().as_encoded_bytes().starts_with(b"/memfd:"))
    };
    match kind {
        Some(FsKind::Local | FsKind::Memory) => {}
        None if memfd() => {}
        _ => return None,
    }
    let meta = seen.metadata().ok().filter(fs::Metadata::is_file)?;
    if shelf.own_program == Some((meta.dev(), meta.ino())) {
        return Some(Program::Own);
    }
    if reading == ProgramReading::Spared {
        return Some(Program::KnowsNothing);
    }
    let identity = (meta.dev(), meta.ino(), meta.ctime());
    let known = shelf.programs.get(&identity).copied();
    let known = known.unwrap_or_else(|| {
        let known = (meta.len() <= PROGRAM_MAX)
            .then(|| File::open(format!("/proc/self/fd/{fd}")).ok())
            .flatten()
            .and_then(|file| has_words(shelf, file).ok());
        if shelf.programs.len() >= MAX_CACHED {
            shelf.programs.clear();
        }
        shelf.programs.insert(identity, known);
        known
    })?;
    Some(if known {
        Program::Knows
    } else {
        Program::KnowsNothing
    })
}

fn has_words(shelf: &Shelf<'_>, mut file: File) -> io::Result<bool> {
    const OVERLAP: usize = 32;
    let mut buffer = vec![0; (64 << 10) + OVERLAP];
    let mut kept = 0;
    loop {
        let read = match file.read(&mut buffer[kept..]) {
            Ok(0) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        let held = kept + read;
        if contains_word(&buffer[..held]) {
            return Ok(true);
        }
        shelf.count_bytes(read);
        kept = held.min(OVERLAP);
        buffer.copy_within(held - kept..held, 0);
    }
}

/// Looks for a rare letter pair of each word first, in a way that the compiler makes vector code of.
fn contains_word(bytes: &[u8]) -> bool {
    const BLOCK: usize = 64;
    let mut at = 0;
    while at < bytes.len() {
        let end = (at + BLOCK + 1).min(bytes.len());
        let block = &bytes[at..end];
        let any = block.windows(2).fold(0_u8, |any, pair| {
            let (a, b) = (pair[0], pair[1]);
            any | u8::from(a == b'/') & u8::from(b == b'd')
                | u8::from(a == b'D') & u8::from(b == b'M')
                | u8::from(a == b'u') & u8::from(b == b'd')
                | u8::from(a == b'd') & u8::from(b == b'm')
        });
        if any != 0 {
            for begin in at..end {
                if WORDS.iter().any(|word| bytes[begin..].starts_with(word)) {
                    return true;
                }
            }
        }
        at += BLOCK;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights() {
        let traits = |status: &str| {
            let mut traits = BTreeSet::new();
            read_rights(status, &mut traits);
            traits.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(traits("Uid:\t1000\t1000\t0\t1000\n"), [HolderTrait::Root]);
        assert_eq!(traits("Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0\n"), []);
        assert_eq!(
            traits("CapPrm:\t0000000000200000\n"),
            [HolderTrait::Capability]
        );
        assert_eq!(
            traits("CapEff:\t0000000000008000\n"),
            [HolderTrait::Capability]
        );
        assert_eq!(traits("CapBnd:\t000001ffffffffff\n"), []);
    }

    #[test]
    fn words_are_found_anywhere() {
        for word in WORDS {
            for before in 0..140 {
                let mut bytes = vec![b'x'; before];
                bytes.extend_from_slice(word);
                assert!(contains_word(&bytes), "{before}");
                assert!(!contains_word(&bytes[..bytes.len() - 1]), "{before}");
            }
        }
    }
}
