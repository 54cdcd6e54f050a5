//! Runs of programs that the kernel has skipped.
//!
//! A program does not run on a processor on which it (a trampoline's or a raw tracepoint's), or
//! any other one (a kprobe's or a tracepoint's), is running already. Kernels that preempt, as
//! most since Linux 7.0, may put another task there meanwhile. What it does is then not seen by
//! anybody, and only this counter tells.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::Ebpf;

/// All skipped runs of the loaded programs since they were loaded. Kernels before 5.12 do not
/// count them, and those before 6.7 not all.
pub fn skipped_runs(ebpf: &Ebpf) -> u64 {
    ebpf.programs()
        .filter_map(|(_, program)| {
            let fd = program.fd().ok()?.as_fd().as_raw_fd();
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
            misses(&info)
        })
        .sum()
}

fn misses(info: &str) -> Option<u64> {
    info.lines()
        .find_map(|line| line.strip_prefix("recursion_misses:"))
        .and_then(|count| count.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fdinfo_of_a_program() {
        let info =
            "pos:\t0\nflags:\t02000002\nprog_type:\t26\nrun_cnt:\t0\nrecursion_misses:\t35\n";
        assert_eq!(misses(info), Some(35));
        assert_eq!(misses("pos:\t0\nprog_type:\t26\n"), None);
    }
}
