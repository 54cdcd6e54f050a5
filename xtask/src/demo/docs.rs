//! The samples of README.md are what the demo prints. Each stands after a mark with the name of
//! its section, in a block of its own.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::screen::{DOCS_COLUMNS, Screen};

/// What stands for lines that are left out.
const CUT: &str = "...";

/// Details with these labels are left out: they are long, and differ on each machine.
const SHORTENED: [&str; 5] = [
    "calls ",
    "call site ",
    "below ",
    "runs as ",
    "LEAKED COOKIES BY CONTAINER",
];

/// Remarks on how dmtrace traces here and what it read.
const REMARKS: [&str; 7] = [
    "dmtrace: tracing ",
    "dmtrace: this backend ",
    "dmtrace:   ",
    "dmtrace: this kernel ",
    "dmtrace: device-mapper ",
    "dmtrace: not traced ",
    "dmtrace: owners are known from ",
];

/// A control group that stands for that of the machine on which the README was written.
const GROUP: &str = "/user.slice/user-0.slice/session-3.scope";

/// The samples of a README after marks of one kind.
pub(super) struct ReadmeSamples {
    pub path: PathBuf,
    /// What a mark begins with.
    pub mark: &'static str,
}

impl ReadmeSamples {
    /// Writes what was printed into the README.
    ///
    /// # Errors
    /// It cannot be read or written, or has no place for it.
    pub(super) fn write(&self, screen: &Screen) -> Result<()> {
        let mut text = self.read()?;
        for name in self.names(&text)? {
            let (start, end) = self.range(&text, &name)?;
            let lines = printed_lines(screen, &name)?;
            text.replace_range(start..end, &format!("{}\n", lines.join("\n")));
        }
        fs::write(&self.path, text).with_context(|| self.path.display().to_string())
    }

    /// Compares what was printed with the README, but for what is different each time.
    ///
    /// # Errors
    /// They differ, or a line is too long for a terminal.
    pub(super) fn check(&self, screen: &Screen) -> Result<()> {
        let text = self.read()?;
        let (mut says, mut prints) = (Varying::default(), Varying::default());
        for name in self.names(&text)? {
            let (start, end) = self.range(&text, &name)?;
            let (readme, printed) = (&text[start..end], printed_lines(screen, &name)?);
            let wide = |line: &&String| line.chars().count() > usize::from(DOCS_COLUMNS);
            if let Some(line) = printed.iter().find(wide) {
                bail!("{name}: more than {DOCS_COLUMNS} columns: {line}");
            }
            compare_words(
                &says.varied_words(readme),
                &prints.varied_words(&printed.join("\n")),
            )
            .with_context(|| {
                format!(
                    "README.md, sample `{name}`; if that is meant, run the same with --write-docs"
                )
            })?;
        }
        Ok(())
    }

    fn read(&self) -> Result<String> {
        fs::read_to_string(&self.path).with_context(|| self.path.display().to_string())
    }

    /// Names of the samples.
    fn names(&self, text: &str) -> Result<Vec<String>> {
        let mark = format!("<!-- {}: ", self.mark);
        let names = text.split(&mark).skip(1);
        let names = names.filter_map(|rest| Some(rest.split_once(" -->")?.0.to_owned()));
        let names: Vec<String> = names.collect();
        ensure!(!names.is_empty(), "README.md: its marks are gone");
        Ok(names)
    }

    /// Where the text of a sample begins and ends.
    fn range(&self, text: &str, name: &str) -> Result<(usize, usize)> {
        let mark = format!("<!-- {}: {name} -->\n```console\n", self.mark);
        let start = text.find(&mark).map(|at| at + mark.len());
        let found = start.and_then(|start| Some((start, start + text[start..].find("```\n")?)));
        found.with_context(|| format!("README.md: no block after the mark of {name}"))
    }
}

/// What the demo has printed in a section, as the README shows it.
fn printed_lines(screen: &Screen, name: &str) -> Result<Vec<String>> {
    let lines = screen.section_lines(name);
    let lines =
        lines.with_context(|| format!("README.md: {name}: the demo has no such section"))?;
    Ok(shorten_lines(lines, &own_group()))
}

/// Leaves out details, the lines that continue them included.
fn shorten_lines(lines: &[String], group: &str) -> Vec<String> {
    let mut shown: Vec<String> = Vec::new();
    let mut cut_at = None;
    let mut remark = false;
    for line in lines {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        // With the lines that it goes on in.
        remark = REMARKS.iter().any(|remark| line.starts_with(remark)) || remark && indent > 0;
        let cut = remark
            || SHORTENED.iter().any(|label| text.starts_with(label))
            || cut_at.is_some_and(|at| indent > at && !text.is_empty());
        if !cut {
            cut_at = None;
            shown.push(group_replaced(line, group));
            continue;
        }
        let at = *cut_at.get_or_insert(indent);
        let mark = format!("{:at$}{CUT}", "");
        if remark || shown.last() == Some(&mark) {
            continue;
        }
        shown.push(mark);
    }
    shown
}

/// The control group that processes of the demo are in.
fn own_group() -> String {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    // With the old hierarchies the others are often "/".
    let paths = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths
        .max_by_key(|path| path.len())
        .unwrap_or("/")
        .to_owned()
}

fn group_replaced(line: &str, group: &str) -> String {
    if group.len() < 2 {
        return line.to_owned();
    }
    let last = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    line.replace(group, GROUP)
        .replace(&last(group), &last(GROUP))
}

/// A word, and the line it stands in.
type Word = (String, String);

fn compare_words(says: &[Word], prints: &[Word]) -> Result<()> {
    let (mut says, mut prints) = (says.iter(), prints.iter());
    loop {
        let (readme, printed) = (says.next(), prints.next());
        if readme.map(|word| &word.0) != printed.map(|word| &word.0) {
            let line =
                |word: Option<&Word>| word.map_or("nothing more", |word| &*word.1).to_owned();
            bail!(
                "the program prints\n  {}\nthe README says\n  {}",
                line(printed),
                line(readme)
            );
        }
        if readme.is_none() {
            return Ok(());
        }
    }
}

/// Replaces what is different each time: cookies by their order, and numbers of processes, times,
/// durations and namespaces. Small counts stay. Words, because lines break elsewhere where a number
/// is longer.
#[derive(Default)]
struct Varying {
    cookies: Vec<String>,
}

impl Varying {
    fn varied_words(&mut self, text: &str) -> Vec<Word> {
        let mut words = Vec::new();
        for line in text.lines() {
            let all: Vec<&str> = line.split_whitespace().collect();
            // The sums of `watch` count whatever happens on the host.
            let sums = line.starts_with("accounting:")
                || line.contains(" sets made ")
                || line.contains(" sets in use");
            for (at, word) in all.iter().enumerate() {
                let before = at.checked_sub(1).and_then(|at| all.get(at)).copied();
                let after = all.get(at + 1).copied();
                let varies = sums || is_number_of_something(before) || is_unit(after);
                words.push((self.varied_word(word, varies), line.to_owned()));
            }
        }
        words
    }

    fn varied_word(&mut self, word: &str, varies: bool) -> String {
        if let Some(at) = word.find("0x0d4d")
            && let Some(cookie) = word.get(at..at + 10)
        {
            let known = self.cookies.iter().position(|known| known == cookie);
            let number = known.unwrap_or_else(|| {
                self.cookies.push(cookie.to_owned());
                self.cookies.len() - 1
            });
            return format!("{}cookie-{number}{}", &word[..at], &word[at + 10..]);
        }
        let times = word.bytes().filter(|&byte| byte == b':').count() > 1 || is_date(word);
        let mut shown = String::new();
        let mut rest = word;
        while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
            let (before, digits) = rest.split_at(start);
            let end = digits.find(|c: char| !c.is_ascii_digit() && !(times || c == '.'));
            let (digits, after) = digits.split_at(end.unwrap_or(digits.len()));
            let unit = after.split(|c: char| !c.is_ascii_alphabetic()).next();
            let varies =
                varies || times || digits.len() > 2 || before.ends_with('[') || is_unit(unit);
            shown.push_str(before);
            shown.push_str(if varies { "#" } else { digits });
            rest = after;
        }
        shown + rest
    }
}

/// Whether numbers after this word are those of processes and the like.
fn is_number_of_something(word: Option<&str>) -> bool {
    matches!(word, Some("process" | "thread" | "pid" | "namespace"))
}

/// Whether this is a date as dmtrace prints it: year, month and day.
fn is_date(word: &str) -> bool {
    let mut numbers = word.trim_matches(|c: char| !c.is_ascii_digit()).split('-');
    let mut is_number = |digits: usize| {
        numbers.next().is_some_and(|number| {
            number.len() == digits && number.bytes().all(|byte| byte.is_ascii_digit())
        })
    };
    is_number(4) && is_number(2) && is_number(2)
}

fn is_unit(word: Option<&str>) -> bool {
    let word = word.map(|word| word.trim_end_matches(|c: char| !c.is_ascii_alphabetic()));
    matches!(word, Some("us" | "ms" | "s" | "m" | "min" | "h"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal_text(text: &str) -> String {
        let words = Varying::default().varied_words(text);
        let words: Vec<_> = words.into_iter().map(|(word, _)| word).collect();
        words.join(" ")
    }

    #[test]
    fn only_what_varies_is_replaced() {
        for (one, other) in [
            ("0x0d4d50b2 524344 2", "0x0d4dffff 99999 2"),
            ("actor[32456]+, oldest 11s", "actor[7]+, oldest 9s"),
            ("19:19:18.064  exit", "07:00:00.000  exit"),
            ("touched 6 s ago", "touched 12 s ago"),
            ("thread 7 waits", "thread 4194304 waits"),
            ("for 1.2s: x", "for 300ms: x"),
            (
                "accounting: seen 106 = submitted 106",
                "accounting: seen 7 = submitted 7",
            ),
            ("semid 3 [4026532178]:", "semid 3 [4026531839]:"),
            (
                "since 2026-11-30 23:22:31 UTC",
                "since 2027-01-01 00:00:49 UTC",
            ),
            ("(2026-11-30)", "(2026-12-01)"),
        ] {
            let unit = |text: &str| normal_text(text).replace("#ms", "#s");
            assert_eq!(unit(one), unit(other));
        }
        for (one, other) in [
            ("semid 3", "semid 4"),
            ("3 leaked", "4 leaked"),
            ("0x0d4d0001 0x0d4d0002", "0x0d4d0001 0x0d4d0001"),
            ("leaked", "stuck"),
            ("--older-than 1s", "--older 1s"),
        ] {
            assert_ne!(normal_text(one), normal_text(other));
        }
    }

    #[test]
    fn says_which_lines_differ() {
        let says = Varying::default().varied_words("a\nstuck: no udevd\nb");
        let prints = Varying::default().varied_words("a\nstuck: udevd lost it");
        let error = compare_words(&says, &prints).unwrap_err().to_string();
        assert!(error.contains("stuck: udevd lost it\nthe README says\n  stuck: no udevd"));
        assert!(compare_words(&says, &says).is_ok());
        assert!(compare_words(&says, &says[..2]).is_err());
    }

    #[test]
    fn details_are_left_out_with_their_continuation() {
        let lines = [
            "dmtrace: owners are known from the running trace (process 7)",
            "1  x",
            "    runs as  uid 0",
            "      in y",
            "    below a",
            "",
            "in /a/b-c",
        ];
        let lines = lines.map(str::to_owned);
        assert_eq!(
            shorten_lines(&lines, "/a/b-c"),
            ["1  x", "    ...", "", &format!("in {GROUP}")]
        );
    }

    #[test]
    fn finds_the_samples() -> Result<()> {
        let text = "x\n<!-- demo: list -->\n```console\n$ a\nb\n```\ny\n";
        let samples = |mark| ReadmeSamples {
            path: PathBuf::new(),
            mark,
        };
        let demo = samples("demo");
        assert_eq!(demo.names(text)?, ["list"]);
        let (start, end) = demo.range(text, "list")?;
        assert_eq!(&text[start..end], "$ a\nb\n");
        assert!(demo.range(text, "clean").is_err());
        assert!(samples("broken").names(text).is_err());
        Ok(())
    }
}
