//! What a scenario expects: the lines that `expect` wrote in the guest. `expect.rs` has the kinds.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{
    fields::{self, field_of},
    suspects,
};

/// One line of a scenario's expectations.
#[derive(Clone, Debug)]
pub(super) struct Expectation {
    pub(super) kind: String,
    pub(super) pairs: Vec<(String, String)>,
}

impl Expectation {
    pub(super) fn parse(line: &str) -> Result<Self> {
        let mut parts = line.split('\t');
        let kind = parts.next().unwrap_or_default().to_owned();
        let pairs: Vec<(String, String)> = parts
            .map(|part| {
                let (key, value) = part
                    .split_once('=')
                    .with_context(|| format!("expect {kind}: {part:?} is no KEY=VALUE"))?;
                Ok((key.to_owned(), value.to_owned()))
            })
            .collect::<Result<_>>()?;
        let wanted = Self { kind, pairs };
        // `-` says that there is none.
        let musts: &[&str] = match wanted.kind.as_str() {
            "leaked" => &[
                "culprit",
                "how",
                "confidence",
                "missing",
                "evidence",
                "device",
            ],
            "stuck" => &[
                "cause",
                "confidence",
                "missing",
                "lost",
                "evidence",
                "device",
            ],
            "was" => &["device"],
            "suspect" => &["semid", "pid", "name", "alive", "named"],
            "schedule" => &["unit"],
            _ => &[],
        };
        if let Some(key) = musts.iter().find(|key| wanted.get(key).is_none()) {
            bail!("expect {}: without {key}=", wanted.kind);
        }
        match wanted.kind.as_str() {
            "leaked" | "stuck" | "was" | "row" | "change" | "victim" | "undecided" => {
                if let Some((key, _)) = wanted.pairs.iter().find(|(key, _)| !fields::is_known(key))
                {
                    bail!("expect {}: {key} is no key", wanted.kind);
                }
            }
            "explain" => {
                if let Some((key, _)) = wanted
                    .pairs()
                    .find(|(key, _)| !fields::is_known_of_explain(key))
                {
                    bail!("expect explain: {key} is no key");
                }
            }
            "suspect" => {
                if let Some((key, _)) = wanted.pairs().find(|(key, _)| !suspects::is_known(key)) {
                    bail!("expect suspect: {key} is no key");
                }
            }
            "schedule" | "lives" | "cookies" | "inexact" => {}
            other => bail!("expect {other}: no such kind"),
        }
        Ok(wanted)
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        let found = self.pairs.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str())
    }

    pub(super) fn expected_count(&self) -> usize {
        self.get("count")
            .and_then(|text| text.parse().ok())
            .unwrap_or(1)
    }

    /// Fields of an object that are not as wanted.
    pub(super) fn differences(&self, object: &Value) -> Vec<String> {
        let pairs = self.pairs.iter().filter(|(key, _)| key != "count");
        pairs
            .filter_map(|(key, wanted)| {
                let actual = field_of(object, key);
                let fine = fields::field_fits(key, actual.as_deref(), wanted);
                (!fine).then(|| {
                    format!(
                        "{key} is {}, not {wanted}",
                        actual.as_deref().unwrap_or("-")
                    )
                })
            })
            .collect()
    }

    pub(super) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }

    pub(super) fn text(&self) -> String {
        let pairs = self
            .pairs
            .iter()
            .map(|(key, value)| format!(" {key}={value}"));
        self.kind.clone() + &pairs.collect::<String>()
    }
}
