//! A plan in a file: made now, looked at by a person, carried out later as it is.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use dmtrace_core::cleanup::plan::{Plan, VERSION};
use serde::{Deserialize, Serialize};

use crate::{
    host::regular_file::{open_regular, rename_new},
    render::doubt::DoubtCounts,
    wording::cause_text,
};

/// A plan, and what it is valid for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanFile {
    /// Boot in which it was made: semids, process numbers and times mean nothing in another.
    pub boot_id: Option<String>,
    /// The plan.
    pub plan: Plan,
    /// What it keeps and nobody can tell of; none in a plan of an older version.
    #[serde(default)]
    pub(crate) doubts: DoubtCounts,
    /// Everything that it rests on could be read.
    #[serde(default = "is_assumed_complete")]
    pub(crate) complete: bool,
}

/// Plans of older versions do not say.
const fn is_assumed_complete() -> bool {
    true
}

/// `type` in the envelope.
pub const KIND: &str = "clean_plan";

/// More than any plan: 65,535 cookies in some namespaces.
const SIZE_MAX: u64 = 1 << 30;

/// Why a plan in a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlanFileError {
    /// Input or output.
    #[error("{}: {}", path.display(), cause_text(source))]
    Io {
        /// Absolute path.
        path: PathBuf,
        /// What the system call returned.
        source: io::Error,
    },
    /// Somebody else could have written it.
    #[error(
        "{}: not a file that only you or root can write; check it and run: chmod go-w {}",
        path.display(), path.display()
    )]
    Untrusted {
        /// Absolute path.
        path: PathBuf,
    },
    /// It is no plan.
    #[error("{}: not a plan: {why}; make one with: dmtrace clean --plan FILE", path.display())]
    NotAPlan {
        /// Absolute path.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A plan is to be written where something is.
    #[error("{}: {}", path.display(), if *plan {
        "there is a plan already; carry it out with --apply, remove it, or give another name"
    } else {
        "is no plan, and is not replaced; give another name"
    })]
    Taken {
        /// Absolute path.
        path: PathBuf,
        /// It is a plan: it may have been looked at, and be wanted as it is.
        plan: bool,
    },
    /// It is of another boot.
    #[error(
        "{}: made in another boot or on another machine; make a new one with: dmtrace clean --plan \
         NEW-FILE",
        path.display()
    )]
    OtherBoot {
        /// Absolute path.
        path: PathBuf,
    },
}

impl PlanFile {
    /// Looks whether a plan may be written there: nothing is there, or an empty file.
    ///
    /// # Errors
    /// Something is there.
    pub fn check_free(path: &Path) -> Result<(), PlanFileError> {
        let taken = |plan| PlanFileError::Taken {
            path: path.to_owned(),
            plan,
        };
        match fs::symlink_metadata(path) {
            Err(_) => Ok(()),
            Ok(meta) if is_empty_file(&meta) => Ok(()),
            Ok(meta) if meta.is_file() => Err(taken(is_plan(path))),
            Ok(_) => Err(PlanFileError::Io {
                path: path.to_owned(),
                source: io::Error::other("not a regular file"),
            }),
        }
    }

    /// Writes `text`, the JSON of a plan in its envelope, in one step.
    ///
    /// # Errors
    /// Something is there, or the file cannot be written.
    pub fn write(path: &Path, text: &str) -> Result<(), PlanFileError> {
        let failed = |source| PlanFileError::Io {
            path: path.to_owned(),
            source,
        };
        Self::check_free(path)?;
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}", std::process::id()));
        let draft = PathBuf::from(name);
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)
            .map_err(failed)?;
        let done = file
            .write_all(text.as_bytes())
            .and_then(|()| file.write_all(b"\n"))
            .and_then(|()| file.sync_all())
            .and_then(|()| match path.symlink_metadata() {
                Ok(meta) if is_empty_file(&meta) => fs::rename(&draft, path),
                _ => rename_new(&draft, path),
            });
        done.map_err(|source| {
            let _best_effort = fs::remove_file(&draft);
            match Self::check_free(path) {
                Err(taken) if source.kind() == io::ErrorKind::AlreadyExists => taken,
                _ => failed(source),
            }
        })
    }

    /// Reads a plan of this boot.
    ///
    /// # Errors
    /// See [`PlanFileError`].
    pub fn read(path: &Path, boot_id: Option<&str>) -> Result<Self, PlanFileError> {
        let failed = |source| PlanFileError::Io {
            path: path.to_owned(),
            source,
        };
        let not_a_plan = |why: String| PlanFileError::NotAPlan {
            path: path.to_owned(),
            why,
        };
        let file = open_regular(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        if !is_trusted(&meta) {
            return Err(PlanFileError::Untrusted {
                path: path.to_owned(),
            });
        }
        let mut text = String::new();
        let read = file.take(SIZE_MAX).read_to_string(&mut text);
        read.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => not_a_plan("it is no text".to_owned()),
            _ => failed(error),
        })?;
        if text.trim().is_empty() {
            return Err(not_a_plan("it is empty".to_owned()));
        }
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| not_a_plan(error.to_string()))?;
        if value["type"] != KIND {
            return Err(not_a_plan(format!("its type is not {KIND}")));
        }
        let version = &value["plan"]["version"];
        if version.as_u64() != Some(VERSION.into()) {
            return Err(not_a_plan(format!(
                "its version is {version}, not {VERSION}"
            )));
        }
        let file: Self =
            serde_json::from_value(value).map_err(|error| not_a_plan(error.to_string()))?;
        if file.boot_id.is_none() || file.boot_id.as_deref() != boot_id {
            return Err(PlanFileError::OtherBoot {
                path: path.to_owned(),
            });
        }
        Ok(file)
    }
}

/// As `mktemp` makes it.
fn is_empty_file(meta: &fs::Metadata) -> bool {
    meta.is_file() && meta.len() == 0
}

/// Whether a file is a plan, of any version and boot.
fn is_plan(path: &Path) -> bool {
    #[derive(Deserialize)]
    struct Envelope {
        #[serde(rename = "type")]
        kind: String,
    }
    let file = open_regular(path).map(|file| file.take(SIZE_MAX));
    file.is_ok_and(|file| {
        let envelope = serde_json::from_reader(io::BufReader::new(file));
        envelope.is_ok_and(|it: Envelope| it.kind == KIND)
    })
}

/// Whether nobody but this user and root can have written a file.
pub(super) fn is_trusted(meta: &fs::Metadata) -> bool {
    let own = rustix::process::geteuid().as_raw();
    (meta.uid() == 0 || meta.uid() == own) && meta.mode() & 0o022 == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;
    use crate::output::json::json_envelope;
    use dmtrace_core::{
        cleanup::plan::PlanOptions,
        ids::{BootTime, UnixTime},
        verdict::Doubt,
    };

    fn sample_plan() -> PlanFile {
        PlanFile {
            boot_id: Some("b".to_owned()),
            plan: Plan {
                version: VERSION,
                made: UnixTime(1),
                made_boot: BootTime(2),
                options: PlanOptions::default(),
                over_limit: false,
                excess: None,
                entries: Vec::new(),
            },
            doubts: [Doubt::OlderThanTrace; 3].into_iter().collect(),
            complete: false,
        }
    }

    fn read_text(text: &str) -> Result<PlanFile, PlanFileError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan");
        PlanFile::write(&path, text).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        PlanFile::read(&path, Some("b"))
    }

    #[test]
    fn a_plan_comes_back_with_its_doubts() {
        let text = json_envelope(KIND, &sample_plan()).to_string();
        assert_eq!(read_text(&text).unwrap(), sample_plan());
    }

    #[test]
    fn a_plan_replaces_nothing_that_somebody_may_want() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.json");
        let text = json_envelope(KIND, &sample_plan()).to_string();
        fs::write(&path, "").unwrap();
        PlanFile::write(&path, &text).unwrap();
        let refusal = || PlanFile::write(&path, "{}").unwrap_err().to_string();
        let said = refusal();
        assert!(said.contains("there is a plan already; carry it"), "{said}");
        assert_eq!(PlanFile::read(&path, Some("b")).unwrap(), sample_plan());
        for notes in ["what I must not forget", "{}", &text[..40]] {
            fs::write(&path, notes).unwrap();
            let said = refusal();
            assert!(said.contains("is no plan, and is not replaced"), "{said}");
            assert_eq!(fs::read_to_string(&path).unwrap(), notes);
        }
        fs::remove_file(&path).unwrap();
        // A link is the user's, wherever it leads.
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        let said = refusal();
        assert!(said.ends_with("plan.json: not a regular file"), "{said}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn other_boots_and_other_files_are_refused() {
        let mut other = sample_plan();
        other.boot_id = Some("c".to_owned());
        let text = json_envelope(KIND, &other).to_string();
        assert!(matches!(
            read_text(&text),
            Err(PlanFileError::OtherBoot { .. })
        ));
        other.boot_id = None;
        let text = json_envelope(KIND, &other).to_string();
        assert!(matches!(
            read_text(&text),
            Err(PlanFileError::OtherBoot { .. })
        ));
        let mut newer = sample_plan();
        newer.plan.version += 1;
        for text in [
            "",
            "{}",
            "[1]",
            "\u{0}",
            &json_envelope("list", &sample_plan()).to_string(),
            &json_envelope(KIND, &newer).to_string(),
            &json_envelope(KIND, &json!({"plan": {"version": 1}})).to_string(),
        ] {
            assert!(
                matches!(read_text(text), Err(PlanFileError::NotAPlan { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn a_file_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan");
        PlanFile::write(&path, &json_envelope(KIND, &sample_plan()).to_string()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).unwrap();
        let read = |path: &Path| PlanFile::read(path, Some("b"));
        assert!(matches!(read(&path), Err(PlanFileError::Untrusted { .. })));
        // No permission makes a plan of these.
        for path in [dir.path(), Path::new("/dev/zero")] {
            let error = read(path).unwrap_err().to_string();
            let expected = format!("{}: not a regular file", path.display());
            assert_eq!(error, expected);
        }
        let none = dir.path().join("none");
        assert!(matches!(read(&none), Err(PlanFileError::Io { .. })));
    }
}
