//! The kernel side of dmtrace.

fn main() {}
