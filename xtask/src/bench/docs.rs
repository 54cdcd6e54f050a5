//! The tables in `docs/overhead.md`.

use std::fs;

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;
use serde_json::Value;

use super::{part::BenchPart, store::ResultStore, table, target};
use crate::host;

const BEGIN: &str = "<!-- begin: written by cargo xtask bench --write-docs -->\n";
const END: &str = "<!-- end -->\n";

/// Writes the tables between their marks.
pub(super) fn write_tables(store: &ResultStore) -> Result<()> {
    let path = host::workspace_root().join("docs/overhead.md");
    let shown = path.display().to_string();
    let text = fs::read_to_string(&path).with_context(|| shown.clone())?;
    let marks = text
        .split_once(BEGIN)
        .and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
    let (head, tail) = marks.with_context(|| format!("{shown}: its marks are gone"))?;
    fs::write(
        &path,
        format!("{head}{BEGIN}{}{END}{tail}", tables_body(store)),
    )
    .context(shown)
}

fn tables_body(store: &ResultStore) -> String {
    let mut text = format!(
        "\n## Targets\n{}",
        target::targets_text(&target::judge_targets(store))
    );
    let mut section = String::new();
    for &part in BenchPart::value_variants() {
        let (heading, about) = part_heading(part);
        let tables = match store.read_result(part) {
            Some(whole) => {
                let data = &whole["data"];
                let tables = if BenchPart::CALLS.contains(&part) {
                    table::calls_table(part, data)
                } else {
                    table::other_tables(part, data)
                };
                format!("{tables}\n{}\n", circumstances_text(&whole))
            }
            None => "\nNot measured with this version.\n".to_owned(),
        };
        if section != heading {
            heading.clone_into(&mut section);
            text.push_str(&format!("\n## {heading}\n\n{about}\n"));
        }
        text.push_str(&tables);
    }
    text.push('\n');
    text
}

/// Heading and introduction of a part; parts with the same heading are one section.
const fn part_heading(part: BenchPart) -> (&'static str, &'static str) {
    match part {
        BenchPart::Semop
        | BenchPart::Life
        | BenchPart::Paced
        | BenchPart::Syscall
        | BenchPart::Ioctl
        | BenchPart::Exit => (
            "What a call costs more, with syscall tracepoints",
            "On a machine that takes neither trampolines nor kprobes: the worst case. Processor time \
             of the\ncaller; with strace, which stops the caller, the time that passes. *Times as \
             much* is traced\nagainst untraced. Without a pause, rings are full most of the time: what \
             does not fit in is counted as\nlost and costs little, and a tracer that is behind need \
             not be woken. One life each millisecond shows\nwhat a cookie costs that is told. Most of \
             that is the making of the cookie: dmtrace copies up to 32 KiB\nof the stack and the heads \
             of the libraries, so that calls can be named without frame pointers and\nafter the \
             process has ended, and wakes the readers of both its rings.",
        ),
        BenchPart::Pipeline => (
            "How much goes through",
            "A load makes whole lives of cookies at a given rate, and leaves some behind. A message is \
             what\nthe kernel side tells; a life of 7 operations has 8 messages. *Cookies left, known* \
             asks `list`,\nwhich reads the maps, right after the load: whatever was dropped, they know \
             all.",
        ),
        BenchPart::Memory => (
            "Memory",
            "Maps are as large as `--max-semaphores` and `--max-processes` ask for, \
             from the start.",
        ),
        BenchPart::List => (
            "`list`",
            "In pairs with `ipcs -s` in the same IPC namespace, which only prints a table.",
        ),
        BenchPart::Report => (
            "`report`",
            "Of a recording that dmtrace's own writer made: processes with five cookies each, and a\n\
             `dmsetup udevcomplete` for each cookie.",
        ),
        BenchPart::Search => (
            "Search",
            "Of one process that is full of random bytes, by `list --search fast`, less a search without \
             it; in\npairs with a plain copy of the same memory by `process_vm_readv(2)`, which is the \
             limit.",
        ),
        BenchPart::Startup => ("Start", "From the start of the program."),
        BenchPart::Size => ("Size", "Default features."),
        BenchPart::Vm => (
            "Instructions, by backend",
            "In QEMU with `-icount`, where each instruction takes the same time: nearly the same\n\
             numbers in each run, whatever the machine does besides. Instructions are not time; but zero is \
             zero. Numbers are\nwhat is added to the untraced call. The tracer shares the only \
             processor with the load, so that\n`life` and `exit` contain switching to it.",
        ),
    }
}

/// When, where and how it was measured.
fn circumstances_text(whole: &Value) -> String {
    let machine = &whole["machine"];
    let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
    format!(
        "Measured with `{}` on kernel {}, {} processors ({}), load {} at the end.",
        text(&whole["command"]),
        text(&machine["kernel"]),
        machine["cpus"],
        text(&machine["model"]),
        text(&machine["load"]),
    )
}
