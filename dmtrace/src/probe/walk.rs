//! All records of a hash map, many with each system call.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{
    Pod,
    maps::{HashMap, IterableMap as _, MapData},
};

use super::{
    bpf::{bpf_call, pointer_address},
    undisturbed::call_undisturbed,
};

const BPF_MAP_LOOKUP_BATCH: u32 = 24;

/// Records taken at once; the kernel asks for more where one bucket has more.
const BATCH_LEN: usize = 512;

/// All records of a map. What comes or goes meanwhile may be missed, or taken twice.
pub(super) fn all_records<K: Pod, V: Pod>(map: &HashMap<MapData, K, V>) -> Vec<(K, V)> {
    let mut records = Vec::new();
    for_each_record(map, |key, value| records.push((*key, *value)));
    records
}

/// As [`all_records`], one by one.
pub(super) fn for_each_record<K: Pod, V: Pod>(
    map: &HashMap<MapData, K, V>,
    mut take: impl FnMut(&K, &V),
) {
    // Some kinds of maps of some kernels lack batches, and a bucket may need more memory than there
    // is. Then all of it again: better twice than not at all.
    if walk_batches(map, &mut take).is_err() {
        for (key, value) in map.iter().filter_map(Result::ok) {
            take(&key, &value);
        }
    }
}

fn walk_batches<K: Pod, V: Pod>(
    map: &HashMap<MapData, K, V>,
    take: &mut impl FnMut(&K, &V),
) -> io::Result<()> {
    let fd = map.map().fd().as_fd().as_raw_fd() as u32;
    let (mut keys, mut values): (Vec<K>, Vec<V>) = (Vec::new(), Vec::new());
    let mut room = BATCH_LEN;
    // The kernel's place in the map: the number of a bucket.
    let mut place: Option<u32> = None;
    loop {
        keys.clear();
        values.clear();
        keys.reserve(room);
        values.reserve(room);
        let mut next = 0_u32;
        let mut attr = BatchAttr {
            in_batch: place.as_ref().map_or(0, |place| pointer_address(place)),
            out_batch: pointer_address(&raw mut next),
            keys: pointer_address(keys.as_ptr()),
            values: pointer_address(values.as_ptr()),
            count: room as u32,
            map_fd: fd,
            ..BatchAttr::default()
        };
        // SAFETY: all buffers outlive the call, and have room for `count` keys and values.
        let result = call_undisturbed(|| unsafe { bpf_call(BPF_MAP_LOOKUP_BATCH, &mut attr) });
        let end = match result {
            Ok(_) => false,
            // `__htab_map_lookup_and_delete_batch`: that was the last bucket.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // A bucket has more than there is room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && attr.count == 0 => {
                room *= 2;
                continue;
            }
            Err(error) => return Err(error),
        };
        let got = (attr.count as usize).min(room);
        // SAFETY: the kernel has written so many keys, for which there was room.
        unsafe { keys.set_len(got) };
        // SAFETY: and as many values.
        unsafe { values.set_len(got) };
        for (key, value) in keys.iter().zip(&values) {
            take(key, value);
        }
        if end {
            return Ok(());
        }
        place = Some(next);
    }
}

/// Members of `union bpf_attr` for batches.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}
