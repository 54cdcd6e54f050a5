//! What was promised, and whether it holds.

use serde_json::Value;

use super::{
    part::BenchPart,
    stat::Spread,
    store::ResultStore,
    table::{MarkdownTable, added_costs, cost_pairs, guest_added, json_numbers},
    tracer::TracerMode,
};

/// A promise: at most, or at least, so much.
pub(super) struct BenchTarget {
    what: String,
    limit: f64,
    bound: Bound,
    unit: &'static str,
    /// `None` if it was not measured.
    measured: Option<f64>,
}

/// Which side of the limit is good.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Bound {
    AtMost,
    AtLeast,
}

impl BenchTarget {
    fn at_most(what: impl Into<String>, limit: f64, unit: &'static str, got: Option<f64>) -> Self {
        Self {
            what: what.into(),
            limit,
            bound: Bound::AtMost,
            unit,
            measured: got,
        }
    }

    fn verdict(&self) -> String {
        let Some(measured) = self.measured else {
            return "not measured".to_owned();
        };
        let (holds, times) = match self.bound {
            Bound::AtMost => (measured <= self.limit, measured / self.limit),
            Bound::AtLeast => (measured >= self.limit, self.limit / measured),
        };
        if holds {
            "holds".to_owned()
        } else if times.is_finite() {
            format!("**missed** by a factor of {times:.2}")
        } else {
            "**missed**".to_owned()
        }
    }
}

/// All targets with what was measured of this dmtrace.
pub(super) fn judge_targets(store: &ResultStore) -> Vec<BenchTarget> {
    let mut targets = Vec::new();
    if let Some(data) = store.read_data(BenchPart::Vm) {
        for (kernel, all) in data["kernels"].as_object().into_iter().flatten() {
            judge_guest(kernel, &all["modes"], &mut targets);
        }
    }
    for (part, name) in [
        (BenchPart::Semop, "(a) semop"),
        (BenchPart::Syscall, "(c) a system call"),
    ] {
        let data = store.read_data(part);
        targets.push(BenchTarget::at_most(
            format!("tracepoints, {name}: cost against bpftrace, but for 2 % of noise"),
            1.02,
            "times",
            data.and_then(|data| whole_share(&data, TracerMode::Bpftrace)),
        ));
    }
    for (part, name) in [
        (
            BenchPart::Paced,
            "(b) a cookie's life, one each millisecond",
        ),
        (BenchPart::Life, "(b) cookies' lives without a pause"),
    ] {
        for script in [TracerMode::BpftraceStack, TracerMode::Bpftrace] {
            let share = store
                .read_data(part)
                .and_then(|data| added_share(&data, script));
            let what = format!("tracepoints, {name}: added cost against {}", script.name());
            targets.push(BenchTarget::at_most(what, 0.5, "times", share));
        }
    }
    let pipeline = store.read_data(BenchPart::Pipeline);
    for verb in ["watch", "record"] {
        targets.push(BenchTarget {
            what: format!("`{verb}`: operations a second without loss, accounts exact"),
            limit: 200_000.0,
            bound: Bound::AtLeast,
            unit: "a second",
            measured: pipeline.as_ref().map(|data| sustained_rate(data, verb)),
        });
    }
    let of = |part: BenchPart, get: &dyn Fn(&Value) -> Option<f64>| {
        store.read_data(part).and_then(|data| get(&data))
    };
    let median = |list: &Value| Some(Spread::of_values(json_numbers(list))?.median);
    targets.push(BenchTarget::at_most(
        "armed after the start",
        150.0,
        "ms",
        of(BenchPart::Startup, &|data| median(&data["dmtrace_ms"])),
    ));
    for (place, what) in ["cookies", "cookies that a trace knows", "other sets"]
        .into_iter()
        .enumerate()
    {
        targets.push(BenchTarget::at_most(
            format!("`list` with 32,000 {what}"),
            150.0,
            "ms",
            of(BenchPart::List, &|data| {
                median(&data["cases"][place]["list_ms"])
            }),
        ));
    }
    // Fewer events than promised prove nothing.
    let long = |data: &Value| data["events"].as_f64().is_some_and(|it| it >= 1e7);
    targets.push(BenchTarget::at_most(
        "`report` of 10 million events",
        10.0,
        "s",
        of(BenchPart::Report, &|data| {
            median(&data["seconds"]).filter(|_| long(data))
        }),
    ));
    targets.push(BenchTarget::at_most(
        "`report` of 10 million events, peak memory",
        256.0,
        "MiB",
        of(BenchPart::Report, &|data| {
            let peak = data["peak_bytes"].as_f64().filter(|_| long(data));
            peak.map(|bytes| bytes / f64::from(1 << 20))
        }),
    ));
    targets.push(BenchTarget {
        what: "search of memory, speed against a plain copy".to_owned(),
        limit: 0.7,
        bound: Bound::AtLeast,
        unit: "times",
        measured: of(BenchPart::Search, &super::search::relative_speed),
    });
    targets.push(BenchTarget::at_most(
        "static program",
        6.0,
        "MiB",
        of(BenchPart::Size, &|data| {
            let bytes = data["bytes"].as_f64().filter(|_| data["static"] == true);
            bytes.map(|bytes| bytes / f64::from(1 << 20))
        }),
    ));
    targets
}

/// What a guest says.
fn judge_guest(kernel: &str, modes: &Value, targets: &mut Vec<BenchTarget>) {
    let added = |mode: &str, call: &str| guest_added(modes, mode, call);
    targets.push(BenchTarget::at_most(
        format!("{kernel}, fentry, (a) semop: added instructions against empty programs"),
        1.6,
        "times",
        added("dmtrace fentry", "semop")
            .zip(added("empty fentry", "semop"))
            .map(|(own, floor)| own / floor),
    ));
    for backend in ["fentry", "kprobe"] {
        for (call, name) in [("syscall", "(c) a system call"), ("ioctl", "(d) an ioctl")] {
            // Ticks of the clock fall into one run and not into another.
            let noise = added("none again", call).map_or(1.0, f64::abs).max(2.0);
            targets.push(BenchTarget::at_most(
                format!("{kernel}, {backend}, {name}: added instructions, zero but for noise"),
                noise,
                "instructions",
                added(&format!("dmtrace {backend}"), call),
            ));
        }
    }
}

/// Added cost of dmtrace as part of a script's. Of medians: what a call adds less than the noise
/// makes ratios of single rounds meaningless.
fn added_share(data: &Value, script: TracerMode) -> Option<f64> {
    let median = |mode: TracerMode| Some(Spread::of_values(added_costs(data, mode.name()))?.median);
    Some(median(TracerMode::Dmtrace)? / median(script)?)
}

/// What a call costs with dmtrace as part of what it costs with a script, each against the
/// untraced calls before it.
fn whole_share(data: &Value, script: TracerMode) -> Option<f64> {
    let median = |mode: TracerMode| {
        let ratios = cost_pairs(data, mode.name());
        Some(Spread::of_values(ratios.iter().map(|[off, on]| on / off))?.median)
    };
    Some(median(TracerMode::Dmtrace)? / median(script)?)
}

/// The highest rate at which nothing was dropped and the accounts were exact.
fn sustained_rate(data: &Value, verb: &str) -> f64 {
    let rows = data["rows"].as_array().map(Vec::as_slice);
    rows.unwrap_or_default()
        .iter()
        .filter(|row| row["verb"] == verb && row["dropped"] == 0 && row["exact"] == true)
        .filter_map(|row| row["rate"].as_f64())
        .fold(0.0, f64::max)
}

pub(super) fn targets_text(targets: &[BenchTarget]) -> String {
    let mut table = MarkdownTable::new(&["target", "limit", "measured", "verdict"]);
    for target in targets {
        let digits = if target.limit < 100.0 { 2 } else { 0 };
        let bound = match target.bound {
            Bound::AtMost => "at most",
            Bound::AtLeast => "at least",
        };
        let measured = target.measured;
        table.push_row(&[
            target.what.clone(),
            format!("{bound} {} {}", target.limit, target.unit),
            measured.map_or_else(|| "-".to_owned(), |it| format!("{it:.digits$}")),
            target.verdict(),
        ]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_target_that_was_not_measured_does_not_hold() {
        let target = |got| BenchTarget::at_most("", 150.0, "ms", got).verdict();
        assert_eq!(target(None), "not measured");
        assert_eq!(target(Some(150.0)), "holds");
        assert_eq!(target(Some(300.0)), "**missed** by a factor of 2.00");
    }

    #[test]
    fn only_exact_rates_without_loss_count() {
        let row = |rate: u32, dropped: u32, exact: bool| json!({ "verb": "watch", "rate": rate, "dropped": dropped, "exact": exact });
        let data = json!({ "rows": [row(1, 0, true), row(2, 0, true), row(3, 1, true), row(4, 0, false)] });
        assert_eq!(sustained_rate(&data, "watch"), 2.0);
        assert_eq!(sustained_rate(&data, "record"), 0.0);
    }
}
