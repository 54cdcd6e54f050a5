//! Tables in the documentation that are written by a command.

use std::fs;

use anyhow::{Context as _, Result};

use crate::host;

const END: &str = "<!-- end -->\n";

/// Writes `body` into `docs/FILE`, between the mark of `cargo xtask COMMAND --write-docs` and the
/// end.
pub(super) fn write_generated(file: &str, command: &str, body: &str) -> Result<()> {
    let begin = format!("<!-- begin: written by cargo xtask {command} --write-docs -->\n");
    let path = host::workspace_root().join("docs").join(file);
    let shown = path.display().to_string();
    let text = fs::read_to_string(&path).with_context(|| shown.clone())?;
    let marks = text
        .split_once(&begin)
        .and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
    let (head, tail) = marks.with_context(|| format!("{shown}: its marks are gone"))?;
    fs::write(&path, format!("{head}{begin}{body}{END}{tail}")).context(shown)
}
