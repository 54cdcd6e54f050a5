//! What the kernel says of single mappings (`/proc/PID/smaps`).

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
};

use super::{shelf::Shelf, target::Target};

/// What the kernel says of the mapping that begins there.
pub(super) fn smaps_field(
    shelf: &Shelf<'_>,
    target: &Target,
    start: u64,
    name: &str,
) -> Option<String> {
    let file = File::open(shelf.roots.proc_path(target.path("smaps"))).ok()?;
    let begin = format!("{start:08x}-");
    let lines = BufReader::new(file).lines().map_while(Result::ok);
    lines
        .skip_while(|line| !line.starts_with(&begin))
        .find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
}
