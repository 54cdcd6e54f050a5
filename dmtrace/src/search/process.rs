//! One process: what it is, and whether it has a number.

use std::{fs::File, io, thread, time::Duration};

use dmtrace_core::{
    ids::{BootTime, ProcId},
    search::{HolderClass, ProgramKind, UnsearchedReason, classify_holder},
};

use super::{
    descriptors::search_descriptors,
    memory::search_memory,
    program::read_traits,
    report::{Ending, Found, Report},
    shelf::Shelf,
    target::Target,
};
use crate::{
    host::{
        Roots,
        processes::{self, RunningProcess, Stat},
    },
    wording::cause_text,
};

/// A program that is started meanwhile is searched anew, so often.
const TRIES: usize = 4;

/// Searches a process.
pub(super) fn search_process(shelf: &mut Shelf<'_>, pid: u32) -> Report {
    let mut report = Report::default();
    for tries in 1..=TRIES {
        match try_process(shelf, pid, &mut report) {
            Ok(true) => return report,
            Ok(false) => {
                if tries == TRIES {
                    report.problems = vec![UnsearchedReason::Changing];
                }
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) if processes::is_gone(&error) => {
                // Its leader may have ended meanwhile, and its other threads not.
                let there = processes::read_process(&shelf.roots, pid);
                if !matches!(there, Ok(Some(process)) if !process.live.ending) {
                    return Report::default();
                }
                if tries == TRIES {
                    report.problems = vec![UnsearchedReason::Changing];
                }
            }
            Err(error) => {
                report.problems = vec![match error.kind() {
                    io::ErrorKind::PermissionDenied => UnsearchedReason::Denied,
                    _ => UnsearchedReason::Failed {
                        cause: cause_text(&error),
                    },
                }];
                return report;
            }
        }
    }
    report
}

/// Tells whether it was the same program all the time.
fn try_process(shelf: &mut Shelf<'_>, pid: u32, report: &mut Report) -> io::Result<bool> {
    *report = Report::default();
    let process = match processes::read_process(&shelf.roots, pid)? {
        Some(process) if !process.kernel && !process.live.ending => process,
        _ => return Ok(true),
    };
    report.id = Some(ProcId {
        tgid: pid,
        start: BootTime(process.live.start_ticks.saturating_mul(10_000_000)),
    });
    report.comm = process.live.comm.clone();
    report.ending = Ending::Searched;
    if process.executing {
        // The same is seen of one that may not be looked at.
        File::open(shelf.roots.proc_path(process.proc_file(pid, "maps")))?;
        return Ok(false);
    }
    let before = read_stat(&shelf.roots, pid, &process)?;
    let task = process.proc_file(pid, "");
    let task = task.trim_end_matches('/').to_owned();
    let (kind, exe, traits) = read_traits(shelf, &task)?;
    let class = classify_holder(kind, &traits);
    report.exe = exe;
    report.class = Some(class);
    shelf.set_class(Some(class));
    report.traits = traits;
    // The memory of a guest is not the program's own, and large.
    let guest = kind == ProgramKind::Hypervisor && class == HolderClass::MentionOnly;
    if class == HolderClass::Powerless || guest {
        report.ending = Ending::Powerless;
    } else {
        let mut target = Target {
            task,
            tid: process.instead.unwrap_or(pid),
            class,
            swapped: 0,
            found: Found::default(),
            problems: Vec::new(),
        };
        search_memory(shelf, &mut target)?;
        if shelf.options.descriptors {
            search_descriptors(shelf, &mut target)?;
        }
        report.problems = target.problems;
        report.swapped = target.swapped;
        report.found = target.found;
    }
    let after = read_stat(&shelf.roots, pid, &process)?;
    Ok(before.start_ticks == after.start_ticks && before.is_same_program(&after))
}

/// A thread that is about to end has no memory to tell the program by.
fn read_stat(roots: &Roots, pid: u32, process: &RunningProcess) -> io::Result<Stat> {
    let line = roots.read_proc(process.proc_file(pid, "stat"))?;
    let stat = Stat::parse(&line).filter(|it| !it.is_ending() && !it.is_dead());
    stat.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}
