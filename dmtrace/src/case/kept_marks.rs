//! The last searches, kept for the next command of this boot: a proof needs two of them, some time
//! apart, and they are seldom made by one command.

use std::{fs, io::Write as _, path::Path};

use dmtrace_core::search::orphan::Marks;
use serde::{Deserialize, Serialize};

use crate::host::{
    Roots, clock,
    run_dir::{RUN_DIR, create_private_dir, create_private_file, read_private_file},
};

/// Its name in [`RUN_DIR`].
const NAME: &str = "search.json";
/// More is not read.
const MAX_BYTES: u64 = 64 << 20;
/// Version of the form.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct KeptMarks {
    version: u32,
    boot_id: Option<String>,
    marks: Marks,
}

/// What was kept in this boot; nothing if that cannot be read or trusted.
pub(crate) fn read_marks() -> Marks {
    read_from(
        &Path::new(RUN_DIR).join(NAME),
        clock::boot_id(&Roots::host()).as_deref(),
    )
    .unwrap_or_default()
}

fn read_from(path: &Path, boot_id: Option<&str>) -> Option<Marks> {
    let text = read_private_file(path, MAX_BYTES)?;
    let kept: KeptMarks = serde_json::from_str(&text).ok()?;
    let same_boot = kept.boot_id.is_some() && kept.boot_id.as_deref() == boot_id;
    (kept.version == VERSION && same_boot).then_some(kept.marks)
}

/// Keeps them. That it fails only means that the next command searches twice.
pub(super) fn write_marks(marks: &Marks) {
    let _lost = write_to(
        &Path::new(RUN_DIR).join(NAME),
        marks,
        clock::boot_id(&Roots::host()),
    );
}

fn write_to(path: &Path, marks: &Marks, boot_id: Option<String>) -> Option<()> {
    create_private_dir(path.parent()?).ok()?;
    let kept = KeptMarks {
        version: VERSION,
        boot_id,
        marks: marks.clone(),
    };
    let text = serde_json::to_vec(&kept).ok()?;
    let draft = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = create_private_file(&draft)
        .and_then(|mut file| file.write_all(&text))
        .and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        let _gone = fs::remove_file(&draft);
    }
    written.ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use dmtrace_core::search::{Search, orphan::Mark};

    use super::*;

    #[test]
    fn they_are_kept_for_this_boot_and_this_user() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("below").join("search.json");
        let boot = || Some("a".to_owned());
        let marks = Marks {
            first: Some(Mark {
                search: Search {
                    rounds: 7,
                    ..Search::default()
                },
                ..Mark::default()
            }),
            second: None,
        };
        assert!(read_from(&path, Some("a")).is_none());
        write_to(&path, &marks, boot()).unwrap();
        let folder = fs::metadata(path.parent().unwrap()).unwrap();
        assert_eq!(folder.mode() & 0o777, 0o700, "as a tracer makes it");
        assert_eq!(read_from(&path, Some("a")), Some(marks.clone()));
        assert!(read_from(&path, Some("b")).is_none());
        assert!(read_from(&path, None).is_none());
        // Whoever may write into it may say that nobody holds a cookie.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(read_from(&path, Some("a")).is_none());
        write_to(&path, &marks, boot()).unwrap();
        assert_eq!(read_from(&path, Some("a")), Some(marks));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(read_from(&path, Some("a")).is_none());
    }
}
