//! `dmtrace list`: a snapshot of all IPC namespaces, with what a trace knows of it.

mod summary;

use std::{collections::BTreeMap, mem::ManuallyDrop, process::ExitCode};

use anyhow::Result;
use dmtrace_core::{
    event::{CallSite, ProcessImage},
    facts::SetSnapshot,
    ids::{IpcNs, SemId, UnixTime},
};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::{
    args::ListArgs,
    columns::COLUMNS,
    failure::{Failure, exit},
    filter::Filters,
};
use crate::{
    case::{Case, SearchDepth, TraceUse},
    finding::Known,
    host::namespaces::own_ns,
    output::{
        Out, json, print_remark,
        table::{self, TableCell, TableLayout},
        time,
    },
    render::{
        doubt::DoubtCounts,
        pending::PendingCounts,
        row::{Row, confidence_word},
        searched::files_line,
    },
    wording::{count_noun, of_number},
};

const DEFAULT: &[&str] = &["key", "semid", "value", "wait", "age", "state", "owner"];
const DEFAULT_NS: &[&str] = &[
    "key", "semid", "ns", "value", "wait", "age", "state", "owner",
];

pub(super) fn run(args: &ListArgs, as_json: bool, out: &mut Out) -> Result<ExitCode> {
    if args.table.output.iter().any(|name| name == "help") {
        for column in COLUMNS {
            out.print_hanging(&format!("{:<11} {}", column.name, column.about), 12)?;
        }
        return Ok(exit::CLEAN);
    }
    let shown = args.table.output.iter().chain(&args.table.sort);
    let join = match args.source.no_trace {
        true => TraceUse::No,
        false if as_json || shown.into_iter().any(|name| name.ends_with("site")) => TraceUse::Maps,
        false => TraceUse::MapsWithoutStacks,
    };
    let wish = args.search.to_wish(SearchDepth::Kept);
    let case = Case::of_searched_host(args.source.trace.as_deref(), join, &wish)?;
    // Neither is dropped: the process ends, and taking a full table apart takes as long as judging it.
    let case = ManuallyDrop::new(case);
    let rows = ManuallyDrop::new(matching_rows(&case, args.all, &args.filters));
    if as_json {
        out.print_json(&as_object(&case, &rows, &args.filters))?;
    } else {
        print_rows(args, &case, &rows, out)?;
    }
    let one = args.filters.key.is_some() || args.filters.semid.is_some();
    if rows.is_empty() && one && !as_json {
        let spaces = case.snapshot.namespaces.len();
        print_remark(&format!(
            "no such cookie{} in the {} that {} read{}",
            args.filters.scope_text(),
            count_noun(spaces, "IPC namespace", "IPC namespaces"),
            of_number(&spaces, "was", "were"),
            if args.all {
                ""
            } else {
                "; --all shows other sets"
            }
        ));
    }
    let missing = args.filters.missing_ns_text(&case.snapshot.namespaces);
    if let Some(missing) = missing.filter(|_| !as_json) {
        print_remark(&missing);
    }
    let hidden = args.filters.unknown_makers_text(&case);
    if let Some(hidden) = hidden.filter(|_| !as_json) {
        print_remark(&hidden);
    }
    for note in case.notes.iter().filter(|_| !as_json) {
        print_remark(note);
    }
    Ok(if rows.iter().any(Row::is_finding) {
        exit::findings_code()
    } else if case.incomplete || rows.iter().any(|row| row.doubt().is_some()) {
        exit::incomplete_code()
    } else {
        exit::CLEAN
    })
}

/// The rows that the filters let pass.
pub(super) fn matching_rows<'a>(case: &'a Case, all: bool, filters: &Filters) -> Vec<Row<'a>> {
    let mut rows = all_rows(case, all);
    if !filters.is_empty() {
        rows.retain(|row| filters.passes(&row.candidate()));
    }
    rows
}

/// Every cookie judged, and with `all` every other set.
pub(super) fn all_rows<'a>(case: &'a Case, all: bool) -> Vec<Row<'a>> {
    let mut rows: Vec<Row<'a>> = case
        .judge_all()
        .into_iter()
        .map(|judged| case.row_of(judged))
        .collect();
    if all {
        let sets: BTreeMap<SemId, &SetSnapshot> = case.snapshot.sets().collect();
        rows.extend(
            case.ledger
                .live_sets()
                .filter(|set| !set.is_cookie())
                .map(|semaphore| {
                    let set = sets.get(&semaphore.id).copied();
                    let mut row = Row::from_books(&case.ledger, semaphore, set, case.facts.now);
                    row.age = row.age.or_else(|| row.stamp_age(&case.facts));
                    row
                }),
        );
    }
    rows.sort_by_key(|row| row.semaphore.id);
    rows
}

fn print_rows(args: &ListArgs, case: &Case, rows: &[Row<'_>], out: &mut Out) -> Result<()> {
    let spaces = rows.iter().map(|row| row.semaphore.id.ns);
    let mut names: Vec<&str> = match args.table.output.as_slice() {
        [] if shows_ns(spaces, own_ns(), &args.filters) => DEFAULT_NS.to_vec(),
        [] => DEFAULT.to_vec(),
        chosen => chosen.iter().map(String::as_str).collect(),
    };
    // A column of zeros tells nothing.
    if args.table.output.is_empty() && !rows.iter().any(|row| row.waiting_threads() > Some(0)) {
        names.retain(|&name| name != "wait");
    }
    // Last: it is what a narrow terminal wraps.
    if args.table.output.is_empty() && rows.iter().any(|row| !row.devices().is_empty()) {
        names.push("device");
    }
    let find = |name: &str| table::find_columns(COLUMNS, name).map_err(Failure::Usage);
    let columns = names
        .iter()
        .map(|name| find(name))
        .collect::<Result<Vec<_>, _>>()?;
    let sort = match args.table.sort.as_deref() {
        None => None,
        Some(name) => match name.strip_prefix('-') {
            Some(name) => Some((find(name)?, true)),
            None => Some((find(name)?, false)),
        },
    };
    let layout = TableLayout {
        columns,
        sort,
        headers: !args.table.no_headers,
        wrap: !args.table.no_trunc,
        state: table::find_columns(COLUMNS, "state").ok(),
    };
    if !rows.is_empty() || args.table.no_headers {
        table::print_table(
            out,
            COLUMNS,
            rows,
            |row, column| cell_of(row, column.name),
            &layout,
        )?;
    }
    if !args.table.no_headers {
        print_summary(case, rows, &args.filters, out)?;
    }
    Ok(())
}

/// Whether the namespaces of the rows must be told: who reads it takes them to be in their own, or
/// in the one that they asked for.
fn shows_ns(spaces: impl Iterator<Item = IpcNs>, own: Option<IpcNs>, filters: &Filters) -> bool {
    let expected = filters.ipc_ns.or(own).unwrap_or(IpcNs::HOST);
    spaces.into_iter().any(|ns| ns != expected)
}

fn cell_of(row: &Row<'_>, column: &str) -> TableCell {
    let number = |value: Option<i64>| match value {
        Some(value) => TableCell::ranked(value.to_string(), value as f64),
        None => TableCell::text("-"),
    };
    let words = |text: Option<String>| {
        TableCell::text(
            text.filter(|text| !text.is_empty())
                .unwrap_or_else(|| "-".into()),
        )
    };
    // Sorted by its number: as text it would go by the offset.
    let moment = |at: Option<UnixTime>| match at.and_then(time::Moment::of_unix) {
        Some(at) => TableCell::ranked(at.to_string(), at.as_millis() as f64),
        None => TableCell::text("-"),
    };
    let set = row.set;
    let image = row.image;
    let verdict = row.verdict.as_ref();
    match column {
        "key" => TableCell::ranked(
            row.semaphore.key.to_string(),
            f64::from(row.semaphore.key.0),
        ),
        "semid" => number(Some(row.semaphore.id.semid.into())),
        "ns" => TableCell::text(row.semaphore.id.ns.to_string()),
        "value" => number(row.value().map(i64::from)),
        "wait" => number(row.waiting_threads().map(i64::from)),
        "age" => row.age.map_or_else(
            || TableCell::text("-"),
            |age| TableCell::ranked(time::age_text(age), age.as_secs_f64()),
        ),
        "state" => TableCell::text(row.state()),
        "owner" => TableCell::text(row.owner_text()),
        "confidence" => words(verdict.map(|verdict| confidence_word(verdict).to_owned())),
        "verdict" => words(verdict.map(|verdict| verdict.class.to_string())),
        "nsems" => number(Some(
            set.map_or(row.semaphore.nsems, |set| set.nsems).into(),
        )),
        "mode" => words(set.map(|set| format!("{:04o}", set.mode & 0o7777))),
        "uid" => number(set.map(|set| set.uid.into())),
        "ctime" => moment(set.map(|set| set.ctime)),
        "otime" => moment(set.map(|set| set.otime)),
        "lastpid" => number(set.and_then(|set| set.first).map(|first| first.pid.into())),
        "pid" => number(row.pid().map(i64::from)),
        "nspid" => number(image.map(|image| image.ns_pid.into())),
        "comm" => words(Some(row.comm().to_owned())),
        "exe" => words(image.and_then(|image| image.exe.clone())),
        "container" => TableCell::text(row.workload().to_string()),
        "cgroup" => words(image.map(|image| image.cgroup.clone())),
        "parents" => words(image.map(|image| {
            let names: Vec<String> = image
                .parents
                .iter()
                .map(|parent| format!("{}[{}]", parent.comm, parent.id.tgid))
                .collect();
            names.join(" < ")
        })),
        "cmdline" => words(image.map(ProcessImage::command_line)),
        "device" => words(Some(row.device_names())),
        "site" => words(row.call_site().map(CallSite::chain_line)),
        _ => TableCell::default(),
    }
}

fn print_summary(case: &Case, rows: &[Row<'_>], filters: &Filters, out: &mut Out) -> Result<()> {
    let kinds: Vec<(bool, &str)> = rows
        .iter()
        .map(|row| (row.semaphore.is_cookie(), row.state()))
        .collect();
    let used = summary::use_text(&case.snapshot.namespaces, own_ns(), filters);
    out.print_line(&format!(
        "{}.{}",
        summary::counts_text(&kinds, filters.scope_text(), case.incomplete),
        used.map_or_else(String::new, |used| format!(" {used}.")),
    ))?;
    let doubts: DoubtCounts = rows.iter().filter_map(Row::doubt).collect();
    let more = format!("dmtrace report{}", filters.args_text());
    if let Some(line) = doubts.line("", &more) {
        out.print_hanging(&line, 0)?;
    }
    if let Some(line) = files_line(rows.iter().filter_map(|row| row.verdict.as_ref())) {
        out.print_hanging(&line, 0)?;
    }
    let pending: PendingCounts = rows.iter().filter_map(|row| row.pending).collect();
    for line in pending.lines() {
        out.print_line(&line)?;
    }
    let owners = rows
        .iter()
        .any(|row| row.creator_ended() == Some(true) && row.known == Known::Observed);
    let inferred = rows.iter().any(|row| row.known == Known::Inferred);
    match (owners, inferred) {
        (true, true) => out.print_line("+ has ended  ? inferred from the set's fields")?,
        (true, false) => out.print_line("+ has ended")?,
        (false, true) => out.print_line("? inferred from the set's fields")?,
        (false, false) => {}
    }
    let unowned = rows
        .iter()
        .filter(|row| row.known == Known::Unknown)
        .count();
    if unowned > 0 && case.since.is_none() && case.trace_unread.is_none() {
        out.print_line(&format!(
            "{unowned} without an owner: the kernel does not keep who made a semaphore; run dmtrace \
             watch while they are made."
        ))?;
    }
    Ok(())
}

/// What `--json` prints. The rows become JSON one by one: as one object they would take half a GiB.
#[derive(Serialize)]
struct ListObject<'a> {
    complete: bool,
    namespaces: Vec<Value>,
    notes: &'a [String],
    schema_version: &'static str,
    /// Cookies of which nobody can tell whether they are leaked.
    doubts: DoubtCounts,
    #[serde(serialize_with = "one_by_one")]
    semaphores: &'a [Row<'a>],
    r#type: &'static str,
}

fn one_by_one<S: Serializer>(rows: &&[Row<'_>], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(rows.iter().map(Row::to_json))
}

fn as_object<'a>(case: &'a Case, rows: &'a [Row<'a>], filters: &Filters) -> ListObject<'a> {
    let namespaces = case
        .snapshot
        .namespaces
        .iter()
        .filter(|ns| filters.wants_ns(ns.ns))
        .map(|ns| {
            json!({
                "ipc_ns": ns.ns,
                "holder": ns.holder,
                "sets": ns.sets.len(),
                "limits": ns.limits,
            })
        })
        .collect();
    ListObject {
        complete: !case.incomplete,
        namespaces,
        notes: &case.notes,
        schema_version: json::SCHEMA_VERSION,
        doubts: rows.iter().filter_map(Row::doubt).collect(),
        semaphores: rows,
        r#type: "list",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmtrace_core::{
        event::{Actor, Event, EventKind, Quality},
        ids::{BootTime, Key},
        ledger::Ledger,
    };

    #[test]
    fn the_namespace_is_shown_where_it_is_not_the_callers() {
        let host = Some(IpcNs::HOST);
        let all = Filters::default();
        let shown = |spaces: &[u32], own| shows_ns(spaces.iter().map(|&ns| IpcNs(ns)), own, &all);
        let here = IpcNs::HOST.0;
        assert!(!shown(&[], host) && !shown(&[here, here], host) && !shown(&[here], None));
        assert!(shown(&[7, 7], host) && shown(&[here, 7], host) && shown(&[7], None));
        assert!(!shown(&[7], Some(IpcNs(7))) && shown(&[here], Some(IpcNs(7))));
        let asked = Filters {
            ipc_ns: Some(IpcNs(7)),
            ..Filters::default()
        };
        assert!(!shows_ns([IpcNs(7)].into_iter(), host, &asked));
    }

    #[test]
    fn every_column_has_a_cell() {
        let mut ledger = Ledger::new();
        ledger.apply(&Event {
            at: BootTime(1),
            began: None,
            actor: Actor::default(),
            quality: Quality::default(),
            what: EventKind::Created {
                sem: SemId::default(),
                key: Key(0x0d4d_1234),
                nsems: 1,
                semflg: 0o600,
            },
        });
        let set = ledger.live_sets().next().expect("one set");
        let row = Row::from_books(&ledger, set, None, BootTime(2));
        for column in COLUMNS {
            assert!(
                !cell_of(&row, column.name).text.is_empty(),
                "{}",
                column.name
            );
        }
    }
}
