//! Call sites of leaked cookies for other tools: folded stacks, and a flame graph.

use std::{collections::BTreeMap, io::Write as _, path::Path};

use anyhow::{Context as _, Result};

use crate::{cli::report::flame, host::regular_file::create_output, render::row::Row};

const TITLE: &str = "Leaked device-mapper cookies by call site";

/// What stands for the calls of a cookie whose creation was not seen.
const UNKNOWN: &str = "[unknown]";

/// One line for each distinct stack: `program;outermost;...;innermost COUNT`, sorted.
pub(super) fn folded_stacks(rows: &[&Row<'_>]) -> Vec<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for row in rows {
        let program = match row.comm() {
            "" => UNKNOWN,
            comm => comm,
        };
        let mut names = vec![plain_name(program)];
        match row.call_site() {
            Some(site) => names.extend(site.folded_stack().iter().map(|name| plain_name(name))),
            None => names.push(UNKNOWN.to_owned()),
        }
        *counts.entry(names.join(";")).or_default() += 1;
    }
    let line = |(stack, count)| format!("{stack} {count}");
    counts.into_iter().map(line).collect()
}

/// Separators have a meaning in the format.
fn plain_name(name: &str) -> String {
    name.replace(';', ":").replace(['\n', '\r'], " ")
}

/// Draws folded stacks.
///
/// # Errors
/// The file cannot be written.
pub(super) fn flame_graph(lines: &[String], path: &Path) -> Result<()> {
    let stacks: Vec<_> = lines.iter().filter_map(|line| parse_folded(line)).collect();
    let title = if stacks.is_empty() {
        "no leaked cookie"
    } else {
        TITLE
    };
    let written = create_output(path)
        .and_then(|mut file| file.write_all(flame::draw_svg(title, &stacks).as_bytes()));
    written.with_context(|| path.display().to_string())
}

/// A line of [`folded_stacks`].
fn parse_folded(line: &str) -> Option<(Vec<&str>, usize)> {
    let (stack, count) = line.rsplit_once(' ')?;
    Some((stack.split(';').collect(), count.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_flame_graph_waits_for_no_reader_and_its_errors_name_the_file() {
        let error = |path: &Path| {
            let error = flame_graph(&[], path).unwrap_err();
            crate::wording::chain_text(&error)
        };
        assert_eq!(
            error("/dev/full".as_ref()),
            "/dev/full: No space left on device"
        );
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        crate::host::regular_file::make_fifo(&fifo);
        let refused = error(&fifo);
        assert!(
            refused.contains("fifo: nobody reads this pipe"),
            "{refused}"
        );
    }

    #[test]
    fn a_flame_graph_has_every_function_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.svg");
        let lines = ["lvm;main;create_lv 3", "lvm;main;remove<lv> 1"].map(str::to_owned);
        flame_graph(&lines, &file).unwrap();
        let svg = fs::read_to_string(&file).unwrap();
        for wanted in [
            "create_lv (3 cookies",
            "remove&lt;lv&gt; (1 cookie,",
            "</svg>",
        ] {
            assert!(svg.contains(wanted), "{wanted}: {svg}");
        }
        flame_graph(&[], &file).unwrap();
        assert!(
            fs::read_to_string(&file)
                .unwrap()
                .contains("no leaked cookie")
        );
    }

    #[test]
    fn separators_of_the_format_are_replaced() {
        assert_eq!(plain_name("a;b\nc"), "a:b c");
    }
}
