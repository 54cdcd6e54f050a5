//! Call sites of leaked cookies for other tools: folded stacks, and a flame graph.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
};

use anyhow::{Context as _, Result};
use inferno::flamegraph::{Options, from_lines};

use super::row::Row;

/// What stands for the calls of a cookie whose creation was not seen.
const UNKNOWN: &str = "[unknown]";

/// One line for each distinct stack: `program;outermost;...;innermost COUNT`, sorted.
pub fn folded(rows: &[&Row<'_>]) -> Vec<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for row in rows {
        let program = match row.comm() {
            "" => UNKNOWN,
            comm => comm,
        };
        let mut names = vec![plain(program)];
        match row.call_site() {
            Some(site) => names.extend(site.folded().iter().map(|name| plain(name))),
            None => names.push(UNKNOWN.to_owned()),
        }
        *counts.entry(names.join(";")).or_default() += 1;
    }
    let line = |(stack, count)| format!("{stack} {count}");
    counts.into_iter().map(line).collect()
}

/// Separators have a meaning in the format.
fn plain(name: &str) -> String {
    name.replace(';', ":").replace(['\n', '\r'], " ")
}

/// Draws folded stacks; a width of one cookie for each.
///
/// # Errors
/// The file cannot be written.
pub fn flame_graph(lines: &[String], path: &Path) -> Result<()> {
    let shown = || path.display().to_string();
    let mut options = Options::default();
    options.title = "Leaked device-mapper cookies by call site".to_owned();
    options.count_name = "cookies".to_owned();
    options.deterministic = true;
    let file = File::create(path).with_context(shown)?;
    let mut out = BufWriter::new(file);
    let lines = if lines.is_empty() {
        // The library refuses to draw nothing.
        vec!["no leaked cookie 1".to_owned()]
    } else {
        lines.to_vec()
    };
    from_lines(&mut options, lines.iter().map(String::as_str), &mut out).with_context(shown)?;
    out.flush().with_context(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flame_graph_has_every_function_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.svg");
        let lines = ["lvm;main;create_lv 3", "lvm;main;remove<lv> 1"].map(str::to_owned);
        flame_graph(&lines, &file).unwrap();
        let svg = std::fs::read_to_string(&file).unwrap();
        for wanted in [
            "create_lv (3 cookies",
            "remove&lt;lv&gt; (1 cookies",
            "</svg>",
        ] {
            assert!(svg.contains(wanted), "{wanted}: {svg}");
        }
        flame_graph(&[], &file).unwrap();
        assert!(
            std::fs::read_to_string(&file)
                .unwrap()
                .contains("no leaked cookie")
        );
    }

    #[test]
    fn separators_of_the_format_are_replaced() {
        assert_eq!(plain("a;b\nc"), "a:b c");
    }
}
