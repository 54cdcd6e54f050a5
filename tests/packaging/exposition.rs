//! Metrics that exist, and those that a query asks for.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};

/// Labels of each sample, by its name.
pub(crate) struct Exposition(BTreeMap<String, Vec<BTreeMap<String, String>>>);

impl Exposition {
    /// The text that the program's own tests compare with what it writes.
    pub(crate) fn read_golden() -> Result<Self> {
        let mut samples = BTreeMap::<_, Vec<_>>::new();
        for line in crate::read_file("dmtrace/src/metrics/golden.prom")?.lines() {
            if line.starts_with('#') {
                continue;
            }
            let (sample, _) = line.rsplit_once(' ').context("no value")?;
            let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
            let labels = labels.trim_end_matches('}').split(',');
            let pairs = labels.filter_map(|label| label.split_once('='));
            let pairs = pairs.map(|(name, value)| (name.to_owned(), unquote_value(value)));
            let all = samples.entry(name.to_owned()).or_default();
            all.push(pairs.collect());
        }
        ensure!(samples.len() > 20, "{} metrics only", samples.len());
        Ok(Self(samples))
    }

    /// Names of the metrics, a histogram's as one.
    pub(crate) fn metric_names(&self) -> BTreeSet<String> {
        let names = self.0.keys().map(|name| {
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix));
            family.unwrap_or(name).to_owned()
        });
        names.collect()
    }

    /// Whether each metric of a query exists, with the labels and values that it selects.
    pub(crate) fn check_query(&self, query: &str) -> Result<()> {
        let mut rest = query;
        let mut found = 0;
        while let Some(start) = rest.find("dmtrace_") {
            rest = &rest[start..];
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let (name, after) = rest.split_at(end.unwrap_or(rest.len()));
            let samples = self.0.get(name);
            let samples = samples.with_context(|| format!("{name} does not exist: {query}"))?;
            if let Some(selector) = after.strip_prefix('{') {
                let (selector, _) = selector.split_once('}').context("no end of the selector")?;
                for matcher in selector.split(", ").flat_map(|part| part.split("\",")) {
                    check_matcher(matcher.trim(), samples)
                        .with_context(|| format!("{name}: {query}"))?;
                }
            }
            rest = after;
            found += 1;
        }
        ensure!(found > 0, "no metric of dmtrace: {query}");
        Ok(())
    }
}

fn unquote_value(value: &str) -> String {
    value.trim_matches('"').to_owned()
}

/// Labels that Prometheus adds.
const ADDED: [&str; 2] = ["instance", "job"];

fn check_matcher(matcher: &str, samples: &[BTreeMap<String, String>]) -> Result<()> {
    let at = matcher.find(['=', '!']).context("no operator")?;
    let (label, rest) = matcher.split_at(at);
    if ADDED.contains(&label) {
        return Ok(());
    }
    let values: BTreeSet<_> = samples
        .iter()
        .filter_map(|sample| sample.get(label))
        .collect();
    ensure!(!values.is_empty(), "no label {label}");
    let operator = rest.find('"').context("no value")?;
    let (operator, value) = rest.split_at(operator);
    let value = unquote_value(value);
    // Probes are many; the golden text has some of them.
    if label == "probe" {
        return Ok(());
    }
    let wanted: Vec<_> = match operator {
        "=" | "!=" => vec![value],
        "=~" | "!~" => value.split('|').map(str::to_owned).collect(),
        _ => bail!("operator {operator}"),
    };
    for value in wanted {
        ensure!(values.contains(&value), "{label} is never {value}");
    }
    Ok(())
}

pub(crate) fn refuses_what_does_not_exist() -> Result<()> {
    let exposition = Exposition::read_golden()?;
    exposition.check_query("sum(dmtrace_cookies{state=\"stuck\"}) / dmtrace_semaphore_sets")?;
    for query in [
        "dmtrace_cookies_total",
        "dmtrace_cookies{status=\"stuck\"}",
        "dmtrace_cookies{state=\"orphan\"}",
        "dmtrace_cookies{state=~\"stuck|orphan\"}",
        "up",
    ] {
        ensure!(
            exposition.check_query(query).is_err(),
            "{query} was accepted"
        );
    }
    Ok(())
}
