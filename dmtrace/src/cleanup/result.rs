//! What came of a plan: what `clean --json --apply` prints, and what a service reads of it.

use std::path::PathBuf;

use dmtrace_core::{
    cleanup::plan::{CookieOwner, VerdictSummary},
    facts::SuspendedDevice,
    ids::IpcNs,
};
use serde::{Deserialize, Serialize};

/// `type` of the object.
pub const KIND: &str = "clean_result";

/// What came of a plan.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct CleanResult {
    /// Whether everything that was planned is achieved.
    pub complete: bool,
    /// Whether everything could be read, so that no more can be leaked.
    pub data_complete: bool,
    /// Whether a signal has ended it.
    pub interrupted: bool,
    /// Why it was ended, if not so.
    pub stopped: Option<String>,
    /// Cookies that something was to be done to.
    pub planned: usize,
    /// Where it is written down.
    pub audit: PathBuf,
    /// What else is to be said, one line each.
    pub notes: Vec<String>,
    /// Devices that are suspended.
    pub suspended_devices: Vec<SuspendedDevice>,
    /// What came of each cookie.
    pub cookies: Vec<CleanedCookie>,
}

/// What came of a cookie.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct CleanedCookie {
    /// Where it is.
    pub ipc_ns: IpcNs,
    /// Its number there.
    pub semid: i32,
    /// The cookie, in hexadecimal.
    pub key: String,
    /// What came of it.
    pub outcome: OutcomeKind,
    /// The same in words, where there is more to say.
    pub detail: Option<String>,
    /// Who left it.
    pub owner: Option<CookieOwner>,
    /// What it was.
    pub verdict: VerdictSummary,
}

/// What came of a cookie, in a word.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeKind {
    /// It is removed.
    Removed,
    /// It is removed, and somebody used it at that moment.
    RemovedInUse,
    /// Lost completions are made good.
    Completed,
    /// It had gone by itself.
    Gone,
    /// It is not what it was when the plan was made.
    Moved,
    /// Somebody uses it.
    InUse,
    /// It is out of bounds.
    Forbidden,
    /// It could not be reached, read or removed.
    Failed,
    /// Not tried.
    NotTried,
}

impl OutcomeKind {
    /// As in the audit record and in JSON.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Removed => "removed",
            Self::RemovedInUse => "removed_in_use",
            Self::Completed => "completed",
            Self::Gone => "gone",
            Self::Moved => "moved",
            Self::InUse => "in_use",
            Self::Forbidden => "forbidden",
            Self::Failed => "failed",
            Self::NotTried => "not_tried",
        }
    }

    /// Whether it was removed, by us.
    pub const fn is_removal(self) -> bool {
        matches!(self, Self::Removed | Self::RemovedInUse)
    }

    /// Whether it was looked at and left alone.
    pub const fn is_kept(self) -> bool {
        matches!(
            self,
            Self::Moved | Self::InUse | Self::Forbidden | Self::Failed
        )
    }
}

impl CleanResult {
    /// How many came to such an end.
    pub fn count(&self, wanted: impl Fn(OutcomeKind) -> bool) -> usize {
        let outcomes = self.cookies.iter().map(|it| it.outcome);
        outcomes.filter(|outcome| wanted(*outcome)).count()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_json_object_is_the_same_bytes() {
        let result = CleanResult {
            complete: true,
            data_complete: false,
            planned: 2,
            audit: "/var/log/a".into(),
            notes: vec!["n".to_owned()],
            cookies: vec![CleanedCookie {
                ipc_ns: IpcNs::HOST,
                semid: 4,
                key: "0x0d4d50b2".to_owned(),
                outcome: OutcomeKind::RemovedInUse,
                detail: Some("d".to_owned()),
                owner: None,
                verdict: VerdictSummary {
                    class: "leaked".to_owned(),
                    text: "leaked: t".to_owned(),
                    brief: "b".to_owned(),
                    observed: true,
                    evidence: vec!["e".to_owned()],
                },
            }],
            ..CleanResult::default()
        };
        let text = json!(result).to_string();
        assert_eq!(
            text,
            r#"{"audit":"/var/log/a","complete":true,"cookies":[{"detail":"d","ipc_ns":4026531839,"key":"0x0d4d50b2","outcome":"removed_in_use","owner":null,"semid":4,"verdict":{"brief":"b","class":"leaked","evidence":["e"],"observed":true,"text":"leaked: t"}}],"data_complete":false,"interrupted":false,"notes":["n"],"planned":2,"stopped":null,"suspended_devices":[]}"#
        );
        assert_eq!(serde_json::from_str::<CleanResult>(&text).unwrap(), result);
    }

    #[test]
    fn a_word_is_the_same_in_json_and_in_the_audit_record() {
        for kind in [
            OutcomeKind::Removed,
            OutcomeKind::RemovedInUse,
            OutcomeKind::Completed,
            OutcomeKind::Gone,
            OutcomeKind::Moved,
            OutcomeKind::InUse,
            OutcomeKind::Forbidden,
            OutcomeKind::Failed,
            OutcomeKind::NotTried,
        ] {
            assert_eq!(json!(kind), json!(kind.label()));
        }
    }
}
