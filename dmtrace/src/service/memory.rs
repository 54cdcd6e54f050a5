//! Memory that is not needed any more goes back to the system: a service lives for months.

use std::fs;

use crate::host::heap;

/// No huge pages: the kernel would fill up in them what was given back.
pub(super) fn keep_small() {
    // SAFETY: numbers. Fails on kernels without huge pages, which need no such word.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// Gives back what the allocator keeps for later, and the code and constants that are not used
/// now: starting up takes far more of them than waiting.
pub(super) fn give_back() {
    heap::trim_heap();
    let maps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    for (start, length) in of_files(&maps) {
        let start = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: a part of a file that nobody can write to, and nobody has. A page that is not
        // there is mapped again from the page cache when it is needed, with the same content.
        unsafe { libc::madvise(start, length, libc::MADV_DONTNEED) };
    }
}

/// Addresses and lengths of the mappings of files, by `/proc/PID/smaps`, that are as the files
/// are: constants among which the dynamic linker has written are not.
fn of_files(maps: &str) -> impl Iterator<Item = (usize, usize)> {
    let mut mapping = None;
    maps.lines()
        .filter_map(move |line| match line.strip_prefix("Anonymous:") {
            Some(written) => mapping.take().filter(|_| written.trim() == "0 kB"),
            None => {
                if is_head(line) {
                    mapping = of_file(line);
                }
                None
            }
        })
}

/// Whether this is the first line on a mapping; the others begin with a word and a colon.
fn is_head(line: &str) -> bool {
    let first = line.split_ascii_whitespace().next();
    first.is_some_and(|first| !first.ends_with(':'))
}

/// Address and length, if this is the first line of a private mapping of a file that is not to be
/// written to.
fn of_file(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (start, end) = (parse_limit(start)?, parse_limit(end)?);
    let (rights, inode) = (words.next()?, words.nth(2)?);
    let constant = matches!(rights, "r-xp" | "r--p") && inode != "0";
    constant.then_some((start, end.checked_sub(start)?))
}

fn parse_limit(address: &str) -> Option<usize> {
    usize::from_str_radix(address, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_as_in_its_file_is_given_back() {
        let of = |rights: &str, inode: &str, written: &str| {
            let maps = format!(
                "1000-3000 {rights} 00001000 fe:00 {inode}   /x\nSize:  8 kB\nAnonymous:   {written} \
                 kB\nVmFlags: rd mr\n"
            );
            of_files(&maps).collect::<Vec<_>>()
        };
        assert_eq!(of("r-xp", "77", "0"), [(0x1000, 0x2000)]);
        assert_eq!(of("r--p", "77", "0"), [(0x1000, 0x2000)]);
        assert_eq!(of("r--p", "77", "4"), []);
        assert_eq!(of("r-xp", "77", "8"), []);
        assert_eq!(of("rw-p", "77", "0"), []);
        assert_eq!(of("r--s", "77", "0"), []);
        assert_eq!(of("r-xp", "0", "0"), []);
        assert_eq!(of_files("").count(), 0);
        // The word of one mapping says nothing on another.
        let two = "1000-3000 r--p 0 fe:00 7 /x\n3000-4000 rw-p 0 fe:00 7 /x\nAnonymous: 0 kB\n";
        assert_eq!(of_files(two).count(), 0);
    }

    #[test]
    fn the_program_goes_on() {
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        assert!(of_files(&maps).count() > 1, "nothing to give back");
        give_back();
    }
}
