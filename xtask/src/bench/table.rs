//! Results as tables, for the terminal and for the documentation alike.

use serde_json::Value;

use super::{part::BenchPart, stat::Spread, tracer::TracerMode};

/// A table of Markdown.
pub(super) struct MarkdownTable {
    text: String,
}

impl MarkdownTable {
    /// With these columns; all but the first are to the right.
    pub(super) fn new(columns: &[&str]) -> Self {
        let line = "--:|".repeat(columns.len().saturating_sub(1));
        Self {
            text: format!("\n| {} |\n|---|{line}\n", columns.join(" | ")),
        }
    }

    pub(super) fn push_row(&mut self, cells: &[String]) {
        self.text.push_str(&format!("| {} |\n", cells.join(" | ")));
    }

    pub(super) fn text(self) -> String {
        self.text
    }
}

/// Numbers of a list.
pub(super) fn json_numbers(list: &Value) -> Vec<f64> {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(Value::as_f64).collect()
}

/// Pairs of cost without and with a tracer, round by round.
pub(super) fn cost_pairs(data: &Value, mode: &str) -> Vec<[f64; 2]> {
    let list = data["pairs"][mode].as_array().map(Vec::as_slice);
    list.unwrap_or_default()
        .iter()
        .filter_map(|pair| json_numbers(pair).try_into().ok())
        .collect()
}

/// What a tracer adds, round by round, nanoseconds.
pub(super) fn added_costs(data: &Value, mode: &str) -> Vec<f64> {
    cost_pairs(data, mode)
        .iter()
        .map(|[off, on]| on - off)
        .collect()
}

/// What a kind of call costs with each tracer.
pub(super) fn calls_table(part: BenchPart, data: &Value) -> String {
    let off = TracerMode::ALL
        .into_iter()
        .filter(|mode| !mode.stops_the_load())
        .flat_map(|mode| cost_pairs(data, mode.name()))
        .map(|[off, _]| off);
    let off = Spread::of_values(off).map_or_else(|| "-".to_owned(), |off| off.text(0));
    let mut table = MarkdownTable::new(&[
        &format!("{}: {off} ns untraced", calls_title(part)),
        "added, ns",
        "times as much",
    ]);
    for mode in TracerMode::ALL {
        let pairs = cost_pairs(data, mode.name());
        let ratio = Spread::of_values(pairs.iter().map(|[off, on]| on / off));
        let text = |spread: Option<Spread>, digits| {
            spread.map_or_else(|| "not installed".to_owned(), |it| it.text(digits))
        };
        table.push_row(&[
            mode.name().to_owned(),
            text(Spread::of_values(added_costs(data, mode.name())), 0),
            text(ratio, 2),
        ]);
    }
    table.text()
}

const fn calls_title(part: BenchPart) -> &'static str {
    match part {
        BenchPart::Semop => "semop on an ordinary semaphore",
        BenchPart::Life => "a cookie's whole life, 7 calls, one after the other without a pause",
        BenchPart::Paced => "a cookie's whole life, one each millisecond",
        BenchPart::Syscall => "an unrelated system call (getppid)",
        BenchPart::Ioctl => "an unrelated ioctl (FIONREAD)",
        BenchPart::Exit => "a process: fork, exit, wait",
        _ => "",
    }
}

/// The tables of the other parts.
pub(super) fn other_tables(part: BenchPart, data: &Value) -> String {
    match part {
        BenchPart::Pipeline => pipeline_table(data),
        BenchPart::Memory => memory_table(data),
        BenchPart::List => list_table(data),
        BenchPart::Report => report_table(data),
        BenchPart::Search => super::search::search_table(data),
        BenchPart::Startup => startup_table(data),
        BenchPart::Size => format!("\n{}\n", size_table(data)),
        BenchPart::Vm => vm_table(data),
        _ => String::new(),
    }
}

fn format_thousands(value: &Value) -> String {
    value
        .as_f64()
        .map_or_else(|| "-".to_owned(), |number| format!("{:.0} k", number / 1e3))
}

const MIB: f64 = (1 << 20) as f64;

fn format_mib(value: &Value) -> String {
    value
        .as_f64()
        .map_or_else(|| "-".to_owned(), |bytes| format!("{:.1} MiB", bytes / MIB))
}

fn pipeline_table(data: &Value) -> String {
    let mut table = MarkdownTable::new(&[
        "tracer, threads, wanted rate",
        "operations a second",
        "messages",
        "dropped",
        "exact",
        "cookies left, known",
        "CPU, ns a message",
        "CPU",
        "peak memory",
    ]);
    for row in data["rows"].as_array().into_iter().flatten() {
        let wanted = match &row["wanted"] {
            Value::Null => "no limit".to_owned(),
            rate => format_thousands(rate),
        };
        let exact = match row["exact"].as_bool() {
            Some(true) => "yes".to_owned(),
            _ => format!("no: {}", row["deficits"]),
        };
        table.push_row(&[
            format!(
                "`{}`, {}, {wanted}",
                row["verb"].as_str().unwrap_or("-"),
                row["threads"]
            ),
            format_thousands(&row["rate"]),
            format_thousands(&row["seen"]),
            row["dropped"].to_string(),
            exact,
            format!("{} of {}", row["left_known"], data["left"]),
            format!("{:.0}", row["cpu_ns_per_event"].as_f64().unwrap_or(0.0)),
            format!("{:.0} %", row["cpu_share"].as_f64().unwrap_or(0.0) * 100.0),
            format_mib(&row["peak_bytes"]),
        ]);
    }
    table.text()
}

fn memory_table(data: &Value) -> String {
    let grown = |what: &str| {
        let number = |when: &str| data[format!("{what}_{when}")].as_f64().unwrap_or(0.0);
        (number("after") - number("before")) / data["cookies"].as_f64().unwrap_or(1.0)
    };
    let mut table = MarkdownTable::new(&["memory", "idle", "with all cookies", "for each cookie"]);
    for (name, what) in [
        ("`dmtrace watch`, anonymous", "resident"),
        ("its BPF maps", "maps"),
    ] {
        table.push_row(&[
            name.to_owned(),
            format_mib(&data[format!("{what}_before")]),
            format_mib(&data[format!("{what}_after")]),
            format!("{:.0} bytes", grown(what)),
        ]);
    }
    format!("{}\nCookies: {}.\n", table.text(), data["cookies"])
}

fn list_table(data: &Value) -> String {
    let mut table = MarkdownTable::new(&[
        "what is there",
        "`dmtrace list`, ms",
        "`ipcs -s`, ms",
        "peak memory",
    ]);
    for case in data["cases"].as_array().into_iter().flatten() {
        let spread = |name: &str| {
            Spread::of_values(json_numbers(&case[name]))
                .map_or_else(|| "-".to_owned(), |it| it.text(0))
        };
        table.push_row(&[
            format!("{} {}", data["sets"], case["case"].as_str().unwrap_or("-")),
            spread("list_ms"),
            spread("ipcs_ms"),
            format_mib(&case["peak_bytes"]),
        ]);
    }
    table.text()
}

fn report_table(data: &Value) -> String {
    let mut table = MarkdownTable::new(&[
        "recording",
        "size",
        "`dmtrace report`, s",
        "CPU, s",
        "peak memory",
    ]);
    let spread = |name: &str| {
        Spread::of_values(json_numbers(&data[name])).map_or_else(|| "-".to_owned(), |it| it.text(2))
    };
    table.push_row(&[
        format!("{} events, {} leaks", data["events"], data["leaks"]),
        format_mib(&data["bytes"]),
        spread("seconds"),
        spread("cpu_seconds"),
        format_mib(&data["peak_bytes"]),
    ]);
    table.text()
}

fn startup_table(data: &Value) -> String {
    let mut table = MarkdownTable::new(&["start", "ms"]);
    for (name, list) in [
        ("`dmtrace watch`, all probes armed", "dmtrace_ms"),
        (
            "bpftrace with one empty probe, start and end",
            "bpftrace_ms",
        ),
    ] {
        let spread = Spread::of_values(json_numbers(&data[list]));
        let text = spread.map_or_else(|| "not installed".to_owned(), |it| it.text(0));
        table.push_row(&[name.to_owned(), text]);
    }
    table.text()
}

fn size_table(data: &Value) -> String {
    let how = match data["static"].as_bool() {
        Some(true) => "static, musl",
        _ => "not static: the toolchain has no target for that",
    };
    format!(
        "The program with everything ({how}): {}.",
        format_mib(&data["bytes"])
    )
}

/// Calls in the tables of the guests.
const GUEST_CALLS: [&str; 5] = ["semop", "life", "syscall", "ioctl", "exit"];
/// Modes of `tests/vm/bench.sh`, except the first.
pub(super) const GUEST_MODES: [&str; 7] = [
    "empty fentry",
    "dmtrace fentry",
    "empty kprobe",
    "dmtrace kprobe",
    "empty tracepoint",
    "dmtrace tracepoint",
    "none again",
];

/// Instructions that a mode adds to a call of a guest.
pub(super) fn guest_added(modes: &Value, mode: &str, call: &str) -> Option<f64> {
    Some(modes[mode][call].as_f64()? - modes["none"][call].as_f64()?)
}

fn vm_table(data: &Value) -> String {
    let mut text = String::new();
    for (kernel, all) in data["kernels"].as_object().into_iter().flatten() {
        let release = all["release"].as_str().unwrap_or("-");
        let modes = &all["modes"];
        let mut columns = vec![format!("{kernel} ({release})")];
        columns.extend(GUEST_CALLS.map(|call| format!("`{call}`")));
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        let mut table = MarkdownTable::new(&columns);
        let cell = |number: Option<f64>, sign: bool| match number {
            Some(number) if sign => format!("{number:+.0}"),
            Some(number) => format!("{number:.0}"),
            None => "-".to_owned(),
        };
        let mut row = vec!["untraced, instructions".to_owned()];
        row.extend(GUEST_CALLS.map(|call| cell(modes["none"][call].as_f64(), false)));
        table.push_row(&row);
        for mode in GUEST_MODES {
            let mut row = vec![match modes[mode]["not_armed"].as_str() {
                Some(why) => format!("{mode}: not possible: {why}"),
                None if mode == "none again" => "untraced, again".to_owned(),
                None => mode.to_owned(),
            }];
            row.extend(GUEST_CALLS.map(|call| cell(guest_added(modes, mode, call), true)));
            table.push_row(&row);
        }
        text.push_str(&table.text());
    }
    text
}
