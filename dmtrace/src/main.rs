//! The `dmtrace` command.

fn main() {}
