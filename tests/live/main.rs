//! Tier `live`: the real binary on the running kernel and real semaphores, as root.

mod accounting;
mod agree;
mod call_site;
mod clean;
mod clean_complete;
mod clean_instant;
mod clean_kill;
mod clean_model;
mod clean_plans;
mod clean_random;
mod clean_scene;
mod demo;
mod doctor;
mod doubts;
mod endings;
mod exec;
mod explain;
mod filters;
mod fresh;
mod hostile;
mod one_truth;
mod pins;
mod recordings;
mod seed;
mod serve;
mod serve_access;
mod serve_export;
mod serve_kept;
mod serve_memory;
mod serve_quiet;
mod service;
mod steps;
mod times;
mod tracer;
mod unmounted;
mod unread;
mod wording;

use std::process::ExitCode;

use dmtrace_tests::harness::{TestNeed, run_serially};

/// What every test of this tier needs.
const NEEDS: &[TestNeed] = &[TestNeed::Root];

fn main() -> ExitCode {
    // First: what fails on a machine that nobody has prepared fails at once.
    let mut tests = fresh::tests();
    tests.extend(accounting::tests());
    tests.extend(call_site::tests());
    tests.extend(clean::tests());
    tests.extend(clean_complete::tests());
    tests.extend(clean_instant::tests());
    tests.extend(clean_kill::tests());
    tests.extend(clean_model::tests());
    tests.extend(clean_plans::tests());
    tests.extend(clean_random::tests());
    tests.extend(demo::tests());
    tests.extend(doctor::tests());
    tests.extend(doubts::tests());
    tests.extend(endings::tests());
    tests.extend(exec::tests());
    tests.extend(explain::tests());
    tests.extend(hostile::tests());
    tests.extend(unmounted::tests());
    tests.extend(one_truth::tests());
    tests.extend(recordings::tests());
    tests.extend(filters::tests());
    tests.extend(seed::tests());
    tests.extend(serve::tests());
    tests.extend(serve_access::tests());
    tests.extend(serve_kept::tests());
    tests.extend(serve_memory::tests());
    tests.extend(serve_quiet::tests());
    tests.extend(serve_export::tests());
    tests.extend(agree::tests());
    tests.extend(times::tests());
    tests.extend(unread::tests());
    tests.extend(wording::tests());
    tests.extend(steps::tests());
    run_serially("live", tests)
}
