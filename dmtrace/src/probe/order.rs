//! In which order the kernel runs two programs on the same function.
//!
//! Where one program does what another was kept from, it has to be the later one.
//! bpf_trampoline_link_prog (kernel/bpf/trampoline.c) puts a new program before those that are
//! there; nobody has promised that, so the kernel is asked.

use aya::{Ebpf, maps::Array};
use dmtrace_common::control;

/// Looked up in vain; no cookie has this key, its base is 0. The programs answer by writing their
/// digits into the control array.
const QUESTION: i32 = 0x0d4d_0000;
/// First program `a`, then `b`.
const RIGHT: u64 = 12;
/// One of the two may be skipped, in which case there is one digit only.
const TRIES: u32 = 20;

/// Whether the programs at the end of `ipcget` run in the right order; then those of other
/// functions do, too, which are attached in the same way.
///
/// # Errors
/// They do not, or do not run; in words.
pub(super) fn check(ebpf: &mut Ebpf) -> Result<(), String> {
    let map = ebpf
        .map_mut("CONTROL")
        .ok_or("the object has no map CONTROL")?;
    let mut control: Array<_, u64> = Array::try_from(map).map_err(|error| error.to_string())?;
    let mut answer = 0;
    for _ in 0..TRIES {
        control
            .set(control::ORDER, &0, 0)
            .map_err(|error| error.to_string())?;
        // SAFETY: three numbers. Makes nothing.
        unsafe { libc::semget(QUESTION, 0, 0) };
        answer = control
            .get(&control::ORDER, 0)
            .map_err(|error| error.to_string())?;
        if answer > 9 {
            break;
        }
    }
    match answer {
        RIGHT => Ok(()),
        0 => Err("fexit:ipcget: the programs do not run".to_owned()),
        other => Err(format!(
            "fexit:ipcget: the kernel runs two programs in another order ({other})"
        )),
    }
}
