//! Memory that is not needed any more goes back to the system: a service lives for months.

use std::fs;

/// No huge pages: the kernel would fill up in them what was given back.
pub fn keep_small() {
    // SAFETY: numbers. Fails on kernels without huge pages, which need no such word.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// Gives back what the allocator keeps for later, and the code that is not used now.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a number; glibc locks its own arenas.
    unsafe {
        libc::malloc_trim(0);
    }
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, length) in maps.lines().filter_map(code) {
        let start = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: code of a file, which nobody writes to. A page that is not there is mapped
        // again from the page cache when it is needed, with the same content.
        unsafe { libc::madvise(start, length, libc::MADV_DONTNEED) };
    }
}

/// Address and length of a mapping of code, if that is what this line of `/proc/PID/maps` is about.
/// Starting up takes far more of it than waiting. Constants are left alone: among them are pages
/// that the dynamic linker has written to.
fn code(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (start, end) = (parse(start)?, parse(end)?);
    let (rights, inode) = (words.next()?, words.nth(2)?);
    (rights == "r-xp" && inode != "0").then_some((start, end.checked_sub(start)?))
}

fn parse(address: &str) -> Option<usize> {
    usize::from_str_radix(address, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_given_back() {
        let of = |rights, inode| code(&format!("1000-3000 {rights} 00001000 fe:00 {inode}   /x"));
        assert_eq!(of("r-xp", "77"), Some((0x1000, 0x2000)));
        assert_eq!(of("r--p", "77"), None);
        assert_eq!(of("rw-p", "77"), None);
        assert_eq!(of("r-xp", "0"), None);
        assert_eq!(
            code("7ffd1000-7ffd3000 r-xp 00000000 00:00 0  [vdso]"),
            None
        );
        assert_eq!(code(""), None);
    }

    #[test]
    fn the_program_goes_on() {
        give_back();
        assert_eq!(code("1-2 r-xp 0 0 3"), Some((1, 1)));
    }
}
