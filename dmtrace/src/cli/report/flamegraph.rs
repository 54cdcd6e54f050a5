//! Call sites of leaked cookies for other tools: folded stacks, and a flame graph.

use std::{collections::BTreeMap, io::Write as _, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    cli::{args::ReportArgs, report::flame},
    host::regular_file::create_output,
    output::{Out, print_remark},
    render::{
        culprits::{Leak, LeakCounts},
        removal::removed_text,
    },
    wording::count_noun,
};

const TITLE: &str = "Leaked device-mapper cookies by call site";

/// What stands for the calls of a cookie whose creation was not seen.
const UNKNOWN: &str = "[unknown]";

/// Writes the stacks as the options ask for: as lines, as a picture, or both.
pub(super) fn write_stacks(leaks: &[Leak], args: &ReportArgs, out: &mut Out) -> Result<()> {
    let lines = folded_stacks(leaks);
    if let Some(path) = &args.flamegraph {
        flame_graph(&lines, path)?;
        print_remark(&format!("{}: flame graph written", path.display()));
    }
    for line in lines.iter().filter(|_| args.folded) {
        out.whole_line(line)?;
    }
    if let Some(text) = removed_remark(leaks) {
        print_remark(&text);
    }
    Ok(())
}

/// That some of the cookies in the stacks are there no longer.
fn removed_remark(leaks: &[Leak]) -> Option<String> {
    let mut counts = LeakCounts::default();
    leaks.iter().for_each(|leak| counts.add_leak(leak));
    let text = removed_text(&counts)?;
    let cookies = count_noun(leaks.len(), "cookie", "cookies");
    Some(format!("stacks of {cookies}; removed since then: {text}"))
}

/// One line for each distinct stack: `program;outermost;...;innermost COUNT`, sorted.
fn folded_stacks(leaks: &[Leak]) -> Vec<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for leak in leaks {
        let program = match leak.comm.as_str() {
            "" => UNKNOWN,
            comm => comm,
        };
        let mut names = vec![plain_name(program)];
        match &leak.site {
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
fn flame_graph(lines: &[String], path: &Path) -> Result<()> {
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
