//! Names from `/proc` as text for terminals.

use dmtrace_core::event::text::escape_controls;

/// Bytes that an unprivileged process chose, with control characters made visible.
pub(super) fn printable(bytes: &[u8]) -> String {
    escape_controls(&String::from_utf8_lossy(bytes))
}

/// A number in decimal, from bytes.
pub(super) fn parse_number<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// Bytes of a command line that are kept.
const CMDLINE_MAX: usize = 4096;

/// Arguments, and whether some are missing. `None` for a kernel thread.
pub(super) fn parse_arguments(block: &[u8]) -> (Option<Vec<String>>, bool) {
    if block.is_empty() {
        return (None, false);
    }
    let cut = block.len() > CMDLINE_MAX;
    let block = &block[..block.len().min(CMDLINE_MAX)];
    let block = block.strip_suffix(&[0]).unwrap_or(block);
    let arguments = block.split(|&byte| byte == 0).map(printable).collect();
    (Some(arguments), cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_visible() {
        assert_eq!(printable(b"a\x1b[31m\n\xff"), "a\\u{1b}[31m\\n\u{fffd}");
    }
}
