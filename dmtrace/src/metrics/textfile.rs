//! A file for node_exporter's textfile collector.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};

/// Replaces `dmtrace.prom` in a directory as one step: who reads gets the old text or the new one.
/// Everybody may read it, as node_exporter runs as a user of its own.
///
/// # Errors
/// The directory is not there or cannot be written.
pub(crate) fn write_textfile(dir: &Path, text: &str) -> Result<()> {
    check_textfile_dir(dir)?;
    let path = dir.join("dmtrace.prom");
    // node_exporter reads *.prom only.
    let new = dir.join(".dmtrace.prom.new");
    let written = replace_textfile(&new, text).and_then(|()| fs::rename(&new, &path));
    if written.is_err() {
        let _not_made_at_all = fs::remove_file(&new);
    }
    written.with_context(|| {
        format!(
            "{}: metrics cannot be written; make the directory writable or choose another",
            path.display()
        )
    })
}

/// Whether the directory is there.
///
/// # Errors
/// It is not.
pub(crate) fn check_textfile_dir(dir: &Path) -> Result<()> {
    ensure!(
        dir.is_dir(),
        "{}: no such directory; give the one that node_exporter has in \
         --collector.textfile.directory",
        dir.display()
    );
    Ok(())
}

fn replace_textfile(path: &Path, text: &str) -> io::Result<()> {
    // What lies there is of a run that was killed, or a trap: never written through.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    // Whatever the umask is.
    file.set_permissions(fs::Permissions::from_mode(0o644))
}
