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
    Cleanup, Health, HookRun, Lives, Messages, Missed, Origin, Place, Readings, STATES, Tally, Use,
};
use crate::output::json::SCHEMA_VERSION;

/// In which of Prometheus' two text formats.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Format {
    /// The old one, 0.0.4: also what node_exporter reads from files.
    Prometheus,
    OpenMetrics,
}

impl Format {
    /// `Content-Type` of HTTP.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The readings as text.
pub(crate) fn expose(readings: &Readings, format: Format) -> String {
    let mut registry = Registry::with_prefix("dmtrace");
    registry.register_collector(Box::new(Collected(readings.clone())));
    let mut out = String::new();
    let written = match format {
        Format::Prometheus => prometheus_text::encode(&mut out, &registry),
        Format::OpenMetrics => text::encode(&mut out, &registry),
    };
    // A String takes everything, and there is no native histogram, which alone can be refused.
    debug_assert_eq!(written, Ok(()));
    out
}

#[derive(Debug)]
struct Collected(Readings);

impl Collector for Collected {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        page.standing(&self.0)?;
        page.tally(&self.0.tally)?;
        page.messages(&self.0.health)?;
        page.probes(&self.0.health)?;
        page.trace(&self.0.health)
    }
}

/// A value, by the type of its metric.
#[derive(Clone, Copy)]
enum Value {
    Counter(u64),
    CounterSeconds(f64),
    Gauge(u64),
    GaugeShare(f64),
}

impl Value {
    const fn metric_type(self) -> MetricType {
        match self {
            Self::Counter(_) | Self::CounterSeconds(_) => MetricType::Counter,
            Self::Gauge(_) | Self::GaugeShare(_) => MetricType::Gauge,
        }
    }

    fn encode(self, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
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

use Value::{Counter, CounterSeconds, Gauge, GaugeShare};

/// A label: its name and its value.
type Label = (&'static str, &'static str);

struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    /// A metric with one sample for each set of labels. Without samples it is left out.
    fn family<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = ([Label; N], Value)>,
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
                value.encode(&mut metric)?;
            } else {
                value.encode(&mut metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    /// A metric without labels.
    fn single(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: Value) -> fmt::Result {
        self.family(name, help, unit, [([], value)])
    }

    fn standing(&mut self, readings: &Readings) -> fmt::Result {
        let of_state = |value: fn((u64, Duration)) -> Value| {
            let all = STATES.into_iter();
            all.map(move |state| {
                let label = [("state", state.name())];
                (label, value(readings.standing.get(state)))
            })
        };
        self.family(
            "cookies",
            "udev cookies that are there, by what they are",
            None,
            of_state(|(count, _)| Gauge(count)),
        )?;
        self.family(
            "cookie_oldest_age",
            "Age of the oldest cookie in a state, 0 without one",
            Some(&Unit::Seconds),
            of_state(|(_, age)| GaugeShare(age.as_secs_f64())),
        )?;
        let of_place = |value: fn(Use) -> Value| {
            let all = Place::ALL.into_iter();
            all.filter_map(move |place| {
                let used = readings.sets.get(place)?;
                Some(([("ipc_ns", place.name())], value(used)))
            })
        };
        self.family(
            "semaphore_sets",
            "Semaphore sets of any kind in the tables of the kernel",
            None,
            of_place(|used| Gauge(used.sets)),
        )?;
        self.family(
            "semaphore_sets_limit",
            "Sets that these tables can hold (SEMMNI), summed over their namespaces",
            None,
            of_place(|used| Gauge(used.limit)),
        )?;
        self.family(
            "semaphore_sets_used_ratio",
            "Share of SEMMNI in use in the fullest of the namespaces",
            None,
            of_place(|used| GaugeShare(used.fullest)),
        )
    }

    fn tally(&mut self, tally: &Tally) -> fmt::Result {
        let of_origin = |value: fn(&Lives) -> u64| {
            let all = Origin::ALL.into_iter();
            all.map(move |origin| {
                let label = [("origin", origin.name())];
                (label, Counter(value(&tally.lives[origin as usize])))
            })
        };
        self.family(
            "cookies_created",
            "Cookies made",
            None,
            of_origin(|lives| lives.created),
        )?;
        self.family(
            "cookies_completed",
            "Cookies removed by who had made them or waited for them",
            None,
            of_origin(|lives| lives.completed),
        )?;
        self.family(
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
            tally.waits.seconds(),
            tally.waits.count(),
            &tally.waits.buckets(),
            None,
        )?;
        self.family(
            "semaphore_create_failures",
            "Sets of any kind that could not be made; limit: kernel.sem is exhausted",
            None,
            [
                ([("reason", "limit")], Counter(tally.refused_by_limit)),
                ([("reason", "other")], Counter(tally.refused_otherwise)),
            ],
        )?;
        self.family(
            "cleanup",
            "Cookies that the automatic clean-up removed or kept; failed: clean-ups",
            None,
            Cleanup::ALL.map(|result| {
                let count = tally.cleanup[result as usize];
                ([("result", result.name())], Counter(count))
            }),
        )?;
        self.family(
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
    fn messages(&mut self, health: &Health) -> fmt::Result {
        let of_probe = |value: fn(&Messages) -> u64| {
            let all = health.messages.iter();
            all.map(move |(probe, messages)| ([("probe", *probe)], Counter(value(messages))))
        };
        self.family(
            "events_seen",
            "What the probes had to report: submitted and ring_full together",
            None,
            of_probe(|messages| messages.seen),
        )?;
        self.family(
            "events_submitted",
            "What went into the ring",
            None,
            of_probe(|messages| messages.submitted),
        )?;
        self.family(
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
        self.family(
            "events_lost",
            "Losses; the maps make ring_full good, but for call-site",
            None,
            full.chain(others),
        )
    }

    fn probes(&mut self, health: &Health) -> fmt::Result {
        self.family(
            "probe_attached",
            "Whether a probe is attached",
            None,
            health.attached.iter().map(|(probe, attached)| {
                let label = [("probe", *probe)];
                (label, Gauge(u64::from(*attached)))
            }),
        )?;
        self.family(
            "program_missed",
            "Runs of a probe that the kernel skipped; lost: nobody else saw what happened",
            None,
            health.missed.iter().flat_map(|(probe, missed)| {
                let Missed { lost, made_good } = *missed;
                [("lost", lost), ("made_good", made_good)].map(|(effect, count)| {
                    let labels = [("probe", *probe), ("effect", effect)];
                    (labels, Counter(count))
                })
            }),
        )
    }

    /// The trace as a whole.
    fn trace(&mut self, health: &Health) -> fmt::Result {
        self.family(
            "reconcile_drift",
            "Differences between books and kernel at the last comparison",
            None,
            [
                ([("kind", "missing_create")], Gauge(health.missing_create)),
                ([("kind", "missing_remove")], Gauge(health.missing_remove)),
            ],
        )?;
        self.single(
            "reconcile_corrections",
            "Differences between books and kernel that were found and corrected",
            None,
            Counter(health.corrected),
        )?;
        self.single(
            "ipc_namespaces_unreadable",
            "IPC namespaces that the last comparison could not read",
            None,
            Gauge(health.unreadable),
        )?;
        self.single(
            "gaps",
            "Times when nothing was traced",
            None,
            Counter(health.gaps),
        )?;
        self.single(
            "gap",
            "Length in sum of the times when nothing was traced",
            Some(&Unit::Seconds),
            CounterSeconds(health.gap_time.as_secs_f64()),
        )?;
        self.single(
            "history_dropped",
            "Entries that the history could not keep",
            None,
            Counter(health.history_dropped),
        )?;
        self.family(
            "history_on_disk",
            "Whether the history goes to disk, and not into memory only",
            None,
            health
                .history_on_disk
                .map(|on_disk| ([], Gauge(u64::from(on_disk)))),
        )?;
        let tracer = [("backend", health.backend.map_or("none", Backend::name))];
        self.info("tracer", "How semaphores are seen", &tracer)?;
        let build = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("schema", SCHEMA_VERSION),
        ];
        self.info(
            "build",
            "Version of dmtrace, and of its JSON output",
            &build,
        )
    }

    fn info<const N: usize>(&mut self, name: &str, help: &str, labels: &[Label; N]) -> fmt::Result {
        self.0
            .encode_descriptor(name, help, None, MetricType::Info)?
            .encode_info(labels)
    }
}
