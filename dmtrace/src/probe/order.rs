//! In which order the kernel runs two programs on the same function.
//!
//! Where one program does what another was kept from, it has to be the later one.
//! bpf_trampoline_link_prog (kernel/bpf/trampoline.c) puts a new program before those that are
//! there; nobody has promised that, so the kernel is asked.

use aya::{
    Ebpf,
    maps::{Array, PerCpuArray},
};
use dmtrace_common::{Counter, control};

use crate::wording::cause_text;

/// Looked up in vain; no cookie has this key, its base is 0. The programs answer by writing their
/// digits into the control array.
const QUESTION: i32 = 0x0d4d_0000;
/// First program `a`, then `b`.
const RIGHT_ORDER: u64 = 12;
/// One of the two may be skipped, in which case there is one digit only.
const MAX_TRIES: u32 = 20;

/// Whether the programs at the end of `ipcget` run in the right order; then those of other
/// functions do, too, which are attached in the same way.
///
/// # Errors
/// They do not, or do not run; in words.
pub(super) fn check_order(ebpf: &mut Ebpf) -> Result<(), String> {
    let map = ebpf
        .map_mut("CONTROL")
        .ok_or("the object has no map CONTROL")?;
    let mut control: Array<_, u64> = Array::try_from(map).map_err(|error| cause_text(&error))?;
    let mut answer = 0;
    for _ in 0..MAX_TRIES {
        control
            .set(control::ORDER, &0, 0)
            .map_err(|error| cause_text(&error))?;
        // SAFETY: three numbers. Makes nothing.
        unsafe { libc::semget(QUESTION, 0, 0) };
        answer = control
            .get(&control::ORDER, 0)
            .map_err(|error| cause_text(&error))?;
        if answer > 9 {
            break;
        }
    }
    match answer {
        RIGHT_ORDER => set_base(ebpf),
        0 => Err("fexit:ipcget: the programs do not run".to_owned()),
        other => Err(format!(
            "fexit:ipcget: the kernel runs two programs in another order ({other})"
        )),
    }
}

/// From here on a look-up whose first program does not run was one that the kernel skipped: before,
/// the later program was attached alone.
fn set_base(ebpf: &mut Ebpf) -> Result<(), String> {
    let map = ebpf.map("COUNTS").ok_or("the object has no map COUNTS")?;
    let counts: PerCpuArray<_, u64> =
        PerCpuArray::try_from(map).map_err(|error| error.to_string())?;
    let noticed = counts
        .get(&Counter::NOTICED_LOOKUP.0, 0)
        .map_err(|error| error.to_string())?;
    let noticed = noticed.iter().sum::<u64>();
    let map = ebpf
        .map_mut("CONTROL")
        .ok_or("the object has no map CONTROL")?;
    let mut control: Array<_, u64> = Array::try_from(map).map_err(|error| error.to_string())?;
    control
        .set(control::NOTICED_BEFORE, &noticed, 0)
        .map_err(|error| error.to_string())
}
