//! Readings as text. Names and labels are those that alert rules and dashboards use: to rename one
//! is to break them.

use std::{fmt, time::Duration};

use dmtrace_core::backend::Backend;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use super::{
    CleanupResult, CookieTally, HookRun, MessageCounts, MetricsTally, MissedRuns, Readings, STATES,
    SetPlace, TableUse, TraceHealth, WorkloadOrigin,
};
use crate::output::json::SCHEMA_VERSION;

/// In which of Prometheus' two text formats.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ExpositionFormat {
    /// The old one, 0.0.4: also what node_exporter reads from files.
    Prometheus,
    OpenMetrics,
}

impl ExpositionFormat {
    /// `Content-Type` of HTTP.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The readings as text.
pub(crate) fn expose_readings(readings: &Readings, format: ExpositionFormat) -> String {
    let mut registry = Registry::with_prefix("dmtrace");
    registry.register_collector(Box::new(Collected(readings.clone())));
    let mut out = String::new();
    let written = match format {
        ExpositionFormat::Prometheus => prometheus_text::encode(&mut out, &registry),
        ExpositionFormat::OpenMetrics => text::encode(&mut out, &registry),
    };
    // A String takes everything, and there is no native histogram, which alone can be refused.
    debug_assert_eq!(written, Ok(()));
    out
}

#[derive(Debug)]
struct Collected(Readings);

impl Collector for Collected {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = MetricsPage(encoder);
        page.write_standing(&self.0)?;
        page.write_tally(&self.0.tally)?;
        page.write_messages(&self.0.health)?;
        page.write_probes(&self.0.health)?;
        page.write_trace(&self.0.health)
    }
}

/// A value, by the type of its metric.
#[derive(Clone, Copy)]
enum MetricValue {
    Counter(u64),
    CounterSeconds(f64),
    Gauge(u64),
    GaugeShare(f64),
}

impl MetricValue {
    const fn metric_type(self) -> MetricType {
        match self {
            Self::Counter(_) | Self::CounterSeconds(_) => MetricType::Counter,
            Self::Gauge(_) | Self::GaugeShare(_) => MetricType::Gauge,
        }
    }

    fn encode_value(self, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Counter(value) => encoder.encode_counter::<NoLabelSet, _, u64>(&value, None),
            Self::CounterSeconds(value) => {
                encoder.encode_counter::<NoLabelSet, _, u64>(&value, None)
            }
            Self::Gauge(value) => encoder.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX)),
            Self::GaugeShare(value) => encoder.encode_gauge(&value),
        }
    }
}

use MetricValue::{Counter, CounterSeconds, Gauge, GaugeShare};

/// A label: its name and its value.
type MetricLabel = (&'static str, &'static str);

struct MetricsPage<'a>(DescriptorEncoder<'a>);

impl MetricsPage<'_> {
    /// A metric with one sample for each set of labels. Without samples it is left out.
    fn write_family<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = ([MetricLabel; N], MetricValue)>,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        let Some((_, first)) = samples.peek() else {
            return Ok(());
        };
        let mut metric = self
            .0
            .encode_descriptor(name, help, unit, first.metric_type())?;
        for (labels, value) in samples {
            if N == 0 {
                value.encode_value(&mut metric)?;
            } else {
                value.encode_value(&mut metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    /// A metric without labels.
    fn write_single(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: MetricValue,
    ) -> fmt::Result {
        self.write_family(name, help, unit, [([], value)])
    }

    fn write_standing(&mut self, readings: &Readings) -> fmt::Result {
        let of_state = |value: fn((u64, Duration)) -> MetricValue| {
            let all = STATES.into_iter();
            all.map(move |state| {
                let label = [("state", state.name())];
                (label, value(readings.live_cookies.get(state)))
            })
        };
        self.write_family(
            "cookies",
            "udev cookies that are there, by what they are",
            None,
            of_state(|(count, _)| Gauge(count)),
        )?;
        self.write_family(
            "cookie_oldest_age",
            "Age of the oldest cookie in a state, 0 without one",
            Some(&Unit::Seconds),
            of_state(|(_, age)| GaugeShare(age.as_secs_f64())),
        )?;
        // Without a search nobody knows: there is no sample, which is no 0.
        let search = &readings.search;
        self.write_family(
            "orphaned_cookies",
            "Cookies older than the trace that no process held at the last search, and untouched \
             since; absent before the first",
            None,
            search.orphaned.map(|count| ([], Gauge(count))),
        )?;
        self.write_family(
            "search_age",
            "Time since the last search for who holds cookies older than the trace; absent before the \
             first",
            Some(&Unit::Seconds),
            search.age.map(|age| ([], GaugeShare(age.as_secs_f64()))),
        )?;
        let of_place = |value: fn(TableUse) -> MetricValue| {
            let all = SetPlace::ALL.into_iter();
            all.filter_map(move |place| {
                let used = readings.sets.get(place)?;
                Some(([("ipc_ns", place.name())], value(used)))
            })
        };
        self.write_family(
            "semaphore_sets",
            "Semaphore sets of any kind in the tables of the kernel",
            None,
            of_place(|used| Gauge(used.sets)),
        )?;
        self.write_family(
            "semaphore_sets_limit",
            "Sets that these tables can hold (SEMMNI), summed over their namespaces",
            None,
            of_place(|used| Gauge(used.limit)),
        )?;
        self.write_family(
            "semaphore_sets_used_ratio",
            "Share of SEMMNI in use in the fullest of the namespaces",
            None,
            of_place(|used| GaugeShare(used.fullest)),
        )
    }

    fn write_tally(&mut self, tally: &MetricsTally) -> fmt::Result {
        let of_origin = |value: fn(&CookieTally) -> u64| {
            let all = WorkloadOrigin::ALL.into_iter();
            all.map(move |origin| {
                let label = [("origin", origin.name())];
                (label, Counter(value(&tally.lives[origin as usize])))
            })
        };
        self.write_family(
            "cookies_created",
            "Cookies made",
            None,
            of_origin(|lives| lives.created),
        )?;
        self.write_family(
            "cookies_completed",
            "Cookies removed by who had made them or waited for them",
            None,
            of_origin(|lives| lives.completed),
        )?;
        self.write_family(
            "cookies_leaked",
            "Cookies found leaked, each once",
            None,
            of_origin(|lives| lives.leaked),
        )?;
        let mut waits = self.0.encode_descriptor(
            "cookie_udev_wait",
            "Time that owners waited for udev, of waits that ended well",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        waits.encode_histogram::<NoLabelSet>(
            tally.waits.sum_seconds(),
            tally.waits.count(),
            &tally.waits.bucket_counts(),
            None,
        )?;
        self.write_family(
            "semaphore_create_failures",
            "Sets of any kind that could not be made; limit: kernel.sem is exhausted",
            None,
            [
                ([("reason", "limit")], Counter(tally.refused_by_limit)),
                ([("reason", "other")], Counter(tally.refused_otherwise)),
            ],
        )?;
        self.write_family(
            "cleanup",
            "Cookies that the automatic clean-up removed or kept; failed: clean-ups",
            None,
            CleanupResult::ALL.map(|result| {
                let count = tally.cleanup[result as usize];
                ([("result", result.name())], Counter(count))
            }),
        )?;
        self.write_family(
            "hook_runs",
            "Findings for the hook command",
            None,
            HookRun::ALL.map(|result| {
                let count = tally.hook[result as usize];
                ([("result", result.name())], Counter(count))
            }),
        )
    }

    /// From the probes to the books.
    fn write_messages(&mut self, health: &TraceHealth) -> fmt::Result {
        let of_probe = |value: fn(&MessageCounts) -> u64| {
            let all = health.messages.iter();
            all.map(move |(probe, messages)| ([("probe", *probe)], Counter(value(messages))))
        };
        self.write_family(
            "events_seen",
            "What the probes had to report: submitted and ring_full together",
            None,
            of_probe(|messages| messages.seen),
        )?;
        self.write_family(
            "events_submitted",
            "What went into the ring",
            None,
            of_probe(|messages| messages.submitted),
        )?;
        self.write_family(
            "events_received",
            "What came out of the ring",
            None,
            of_probe(|messages| messages.received),
        )?;
        let full = health.messages.iter().map(|(probe, messages)| {
            let labels = [("probe", *probe), ("reason", "ring_full")];
            (labels, Counter(messages.dropped))
        });
        let unmapped = health.unmapped;
        let others = [
            ("set", "map_full", unmapped.sets),
            ("process", "map_full", unmapped.processes),
            ("call", "map_full", unmapped.calls),
            ("ended", "map_full", unmapped.ended),
            ("any", "decode", health.undecodable),
        ];
        let others = others.map(|(probe, reason, count)| {
            let labels = [("probe", probe), ("reason", reason)];
            (labels, Counter(count))
        });
        self.write_family(
            "events_lost",
            "Losses; the maps make ring_full good, but for call-site",
            None,
            full.chain(others),
        )
    }

    fn write_probes(&mut self, health: &TraceHealth) -> fmt::Result {
        self.write_family(
            "probe_attached",
            "Whether a probe is attached",
            None,
            health.attached.iter().map(|(probe, attached)| {
                let label = [("probe", *probe)];
                (label, Gauge(u64::from(*attached)))
            }),
        )?;
        self.write_family(
            "program_missed",
            "Runs of a probe that the kernel skipped; lost: nobody else saw what happened",
            None,
            health.missed.iter().flat_map(|(probe, missed)| {
                let MissedRuns { lost, made_good } = *missed;
                [("lost", lost), ("made_good", made_good)].map(|(effect, count)| {
                    let labels = [("probe", *probe), ("effect", effect)];
                    (labels, Counter(count))
                })
            }),
        )
    }

    /// The trace as a whole.
    fn write_trace(&mut self, health: &TraceHealth) -> fmt::Result {
        self.write_family(
            "reconcile_drift",
            "Differences between books and kernel at the last comparison",
            None,
            [
                ([("kind", "missing_create")], Gauge(health.missing_create)),
                ([("kind", "missing_remove")], Gauge(health.missing_remove)),
            ],
        )?;
        self.write_single(
            "reconcile_corrections",
            "Differences between books and kernel that were found and corrected",
            None,
            Counter(health.corrected),
        )?;
        self.write_single(
            "ipc_namespaces_unreadable",
            "IPC namespaces that the last comparison could not read",
            None,
            Gauge(health.unreadable),
        )?;
        self.write_single(
            "gaps",
            "Times when nothing was traced",
            None,
            Counter(health.gaps),
        )?;
        self.write_single(
            "gap",
            "Length in sum of the times when nothing was traced",
            Some(&Unit::Seconds),
            CounterSeconds(health.gap_time.as_secs_f64()),
        )?;
        self.write_single(
            "history_dropped",
            "Entries that the history could not keep",
            None,
            Counter(health.history_dropped),
        )?;
        self.write_family(
            "history_on_disk",
            "Whether the history goes to disk, and not into memory only",
            None,
            health
                .history_on_disk
                .map(|on_disk| ([], Gauge(u64::from(on_disk)))),
        )?;
        let tracer = [("backend", health.backend.map_or("none", Backend::name))];
        self.write_info("tracer", "How semaphores are seen", &tracer)?;
        let build = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("schema", SCHEMA_VERSION),
        ];
        self.write_info(
            "build",
            "Version of dmtrace, and of its JSON output",
            &build,
        )
    }

    fn write_info<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        labels: &[MetricLabel; N],
    ) -> fmt::Result {
        self.0
            .encode_descriptor(name, help, None, MetricType::Info)?
            .encode_info(labels)
    }
}
