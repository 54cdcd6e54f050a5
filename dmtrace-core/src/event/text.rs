//! Text from the kernel and from other processes.

/// A C string, with control characters made visible: names come from unprivileged processes and
/// end up on terminals.
pub fn decode_c_string(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(bytes.len());
    let bytes = &bytes[..end];
    if let Ok(plain) = std::str::from_utf8(bytes)
        && is_printable_ascii(plain)
    {
        return plain.to_owned();
    }
    escape_controls(&String::from_utf8_lossy(bytes))
}

/// Whether a text is of letters, digits and signs that any terminal shows, each in one column: nearly
/// all are, and that is told much faster than by [`steers_terminal`].
pub fn is_printable_ascii(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// Whether a character changes how a terminal shows others: control characters, those that turn the
/// direction of writing around (Trojan Source), and Unicode's ends of a line.
pub const fn steers_terminal(letter: char) -> bool {
    letter.is_control()
        || matches!(
            letter,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Text that others chose, with what steers a terminal made visible.
pub fn escape_controls(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if steers_terminal(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}
