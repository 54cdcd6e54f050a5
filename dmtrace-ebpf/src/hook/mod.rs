//! The programs, by backend. A program's name is `<hook>_<e|x>` (entry, exit), with a letter in
//! front for the backend where two have the same hook. The kernel cuts names at 15 bytes.
#![expect(
    clippy::needless_pass_by_value,
    reason = "aya's macros hand the context over by value"
)]

mod dm;
mod kprobe;
mod locked;
mod process;
mod stack;
mod syscall;
mod trampoline;

use dmtrace_common::{OPS_KEPT, SemBuf};

use crate::{
    read::{Addr, kernel_bytes, user_bytes},
    sem::Ops,
};

/// Where the elements of a `semop` call are.
#[derive(Clone, Copy, Eq, PartialEq)]
enum OpsMemory {
    Kernel,
    User,
}

/// Reads the first elements of a `semop` call. One, in every implementation of the cookie
/// protocol; the others are read one by one because the count is not known to the verifier.
#[inline(always)]
fn read_ops(address: Addr, count: u32, memory: OpsMemory) -> Ops {
    let mut list = [SemBuf::default(); OPS_KEPT];
    for (index, buf) in list.iter_mut().enumerate() {
        if index as u32 >= count {
            break;
        }
        let mut bytes = [0u8; size_of::<SemBuf>()];
        let from = address + (index * size_of::<SemBuf>()) as u64;
        match memory {
            OpsMemory::Kernel => kernel_bytes(from, &mut bytes),
            OpsMemory::User => user_bytes(from, &mut bytes),
        };
        *buf = SemBuf {
            num: u16::from_ne_bytes([bytes[0], bytes[1]]),
            op: i16::from_ne_bytes([bytes[2], bytes[3]]),
            flg: i16::from_ne_bytes([bytes[4], bytes[5]]),
        };
    }
    Ops { count, list }
}
