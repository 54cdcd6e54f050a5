//! Size of the static program.

use anyhow::Result;
use serde_json::{Value, json};

use super::programs::{self, BenchPrograms};

const STATIC: &str = "x86_64-unknown-linux-musl";

pub(super) fn measure_size(programs: &BenchPrograms) -> Result<Value> {
    let path = programs.static_dmtrace()?;
    let target = path.components().any(|part| part.as_os_str() == STATIC);
    Ok(json!({ "bytes": programs::file_size(path)?, "static": target }))
}
