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
        && bytes.iter().all(|byte| (b' '..=b'~').contains(byte))
    {
        return plain.to_owned();
    }
    escape_controls(&String::from_utf8_lossy(bytes))
}

/// Text that others chose, with control characters made visible.
pub fn escape_controls(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}
