//! Texts that are kept beside the tests.

use std::{fs, path::Path};

/// That a text is the one in a file below `src`. `DMTRACE_WRITE_GOLDEN=1` writes the file instead:
/// what is different then, readers of JSON have to be told.
pub(crate) fn assert_golden(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file);
    if std::env::var_os("DMTRACE_WRITE_GOLDEN").is_some() {
        return fs::write(&path, text).unwrap();
    }
    let wanted = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
    for (number, (wanted, line)) in wanted.lines().zip(text.lines()).enumerate() {
        assert_eq!(line, wanted, "{file}, line {}", number + 1);
    }
    assert!(
        wanted == text,
        "{file}: {} lines, not {}",
        text.lines().count(),
        wanted.lines().count()
    );
}
