//! Tables in the manner of `lsipc`: chosen columns, no lines. On a narrow terminal, columns that
//! have no room go into a second line of the same row, and a long last one is wrapped; nothing is
//! cut off.

use std::{cmp::Ordering, io};

use dmtrace_core::event::text::is_printable_ascii;
use unicode_width::UnicodeWidthStr;

use super::{Out, wrap_hanging};

/// Indentation of the columns that have no room in the first line of a row.
const INDENT: usize = 4;
/// A column of words is wrapped in its place only if it has this room there.
const MIN_WRAP_ROOM: usize = 24;

/// A column that a verb offers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    /// Name for `-o` and `--sort`.
    pub name: &'static str,
    pub header: &'static str,
    pub about: &'static str,
    pub right: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TableCell {
    pub text: String,
    /// What it is sorted by, where that is not the text.
    pub rank: Option<f64>,
}

impl TableCell {
    /// A cell that is sorted by its text.
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            rank: None,
        }
    }

    /// A cell that is sorted by a number.
    pub(crate) fn ranked(text: impl Into<String>, rank: f64) -> Self {
        Self {
            text: text.into(),
            rank: Some(rank),
        }
    }

    fn compare(&self, other: &Self) -> Ordering {
        match (self.rank, other.rank) {
            (Some(a), Some(b)) => a.total_cmp(&b),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => self.text.cmp(&other.text),
        }
    }
}

/// How to print a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct TableLayout {
    /// Columns, as indexes into the offered ones.
    pub columns: Vec<usize>,
    /// Column to sort by, and whether in reverse.
    pub sort: Option<(usize, bool)>,
    /// Print the header line.
    pub headers: bool,
    /// Fit it to the width of the terminal; else each row is one line.
    pub wrap: bool,
    /// Column whose words are coloured as states.
    pub state: Option<usize>,
}

/// Finds columns by name.
///
/// # Errors
/// The first unknown name, with all known ones.
pub(crate) fn find_columns(offered: &[Column], name: &str) -> Result<usize, String> {
    offered
        .iter()
        .position(|column| column.name == name)
        .ok_or_else(|| {
            let known: Vec<&str> = offered.iter().map(|column| column.name).collect();
            format!("unknown column '{name}'; known are: {}", known.join(", "))
        })
}

/// Prints rows. `cell` makes the cell of a row in an offered column: only of columns that are
/// shown or sorted by, because all cells of a full table take longer than the rest.
///
/// # Errors
/// Writing fails.
pub(crate) fn print_table<R>(
    out: &mut Out,
    offered: &[Column],
    rows: &[R],
    cell: impl Fn(&R, &Column) -> TableCell,
    layout: &TableLayout,
) -> io::Result<()> {
    let mut order: Vec<&R> = rows.iter().collect();
    if let Some((column, reverse)) = layout.sort {
        let mut ranked: Vec<(TableCell, &R)> = rows
            .iter()
            .map(|row| (cell(row, &offered[column]), row))
            .collect();
        ranked.sort_by(|(a, _), (b, _)| {
            let order = a.compare(b);
            if reverse { order.reverse() } else { order }
        });
        order = ranked.into_iter().map(|(_, row)| row).collect();
    }
    let columns: Vec<&Column> = layout
        .columns
        .iter()
        .map(|&index| &offered[index])
        .collect();
    // By column, one text behind the other: a string for each cell would take most of the memory.
    let mut texts: Vec<Texts> = columns
        .iter()
        .map(|column| {
            let mut texts = Texts::default();
            if layout.headers {
                texts.push(column.header);
            }
            for row in &order {
                texts.push(&cell(row, column).text);
            }
            texts
        })
        .collect();
    let state = layout.state.and_then(|state| {
        let shown = layout.columns.iter();
        shown.clone().position(|&column| column == state)
    });
    let width = out.width().filter(|_| layout.wrap).unwrap_or(usize::MAX);
    let widths: Vec<usize> = texts.iter().map(|texts| texts.width).collect();
    let breaks = row_breaks(&widths, width);
    let mut line = String::new();
    for number in 0..order.len() + usize::from(layout.headers) {
        line.clear();
        let mut word = String::new();
        let mut begin = 0;
        let mut end = 0;
        for (position, (column, texts)) in columns.iter().zip(&mut texts).enumerate() {
            let widest = texts.width;
            let (text, columns) = texts.next();
            if breaks.contains(&position) {
                print_row(out, line.trim_end(), begin, width, &word)?;
                line.clear();
                line.extend(std::iter::repeat_n(' ', INDENT));
                word.clear();
                end = INDENT;
            }
            begin = end;
            end += widest + 2;
            let blanks = widest - columns;
            let before = if column.right { blanks } else { 0 };
            line.extend(std::iter::repeat_n(' ', before));
            line.push_str(text);
            line.extend(std::iter::repeat_n(' ', blanks - before + 2));
            if Some(position) == state && !(layout.headers && number == 0) {
                text.clone_into(&mut word);
            }
        }
        print_row(out, line.trim_end(), begin, width, &word)?;
    }
    Ok(())
}

/// Prints a line of a row, whose last column begins at `begin`. `state` is a word to colour.
fn print_row(out: &mut Out, line: &str, begin: usize, width: usize, state: &str) -> io::Result<()> {
    // Of thousands of rows nearly all fit.
    if line.len() <= width && state.is_empty() {
        return out.whole_line(line);
    }
    for (number, part) in wrap_hanging(line, begin, width).iter().enumerate() {
        if number == 0 && !state.is_empty() {
            out.whole_line(&part.replacen(state, &out.paint_state(state), 1))?;
        } else {
            out.whole_line(part)?;
        }
    }
    Ok(())
}

/// Before which columns a row is broken, so that each line fits. The last column need not: it is
/// wrapped where it is, if that leaves it room.
fn row_breaks(widths: &[usize], width: usize) -> Vec<usize> {
    let mut breaks = Vec::new();
    let mut used = 0;
    for (position, &column) in widths.iter().enumerate() {
        let last = position + 1 == widths.len();
        let room = width.saturating_sub(used);
        let fits = column <= room || (last && room >= MIN_WRAP_ROOM);
        if !fits && used > INDENT {
            breaks.push(position);
            used = INDENT;
        }
        used = used.saturating_add(column).saturating_add(2);
    }
    breaks
}

/// The texts of a column.
#[derive(Default)]
struct Texts {
    all: String,
    /// Ends of the texts, and how many columns of the terminal each takes.
    ends: Vec<(u32, u32)>,
    width: usize,
    next: usize,
    begin: usize,
}

impl Texts {
    fn push(&mut self, text: &str) {
        let columns = if is_printable_ascii(text) {
            text.len()
        } else {
            text.width()
        };
        self.width = self.width.max(columns);
        self.all.push_str(text);
        self.ends.push((self.all.len() as u32, columns as u32));
    }

    /// The next text with its columns; empty after the last one.
    fn next(&mut self) -> (&str, usize) {
        let (end, columns) = self
            .ends
            .get(self.next)
            .copied()
            .unwrap_or((self.begin as u32, 0));
        let text = &self.all[self.begin..end as usize];
        self.next += 1;
        self.begin = end as usize;
        (text, columns as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 3] = [
        Column {
            name: "a",
            header: "KEY",
            about: "",
            right: false,
        },
        Column {
            name: "b",
            header: "SEMID",
            about: "",
            right: true,
        },
        Column {
            name: "c",
            header: "WHY",
            about: "",
            right: false,
        },
    ];

    fn print_sample(width: Option<usize>, wrap: bool) -> String {
        let rows = [
            ["0x0d4d1234", "7", "open"],
            [
                "0x0d4d1235",
                "8",
                "leaked: its owner was killed while it waited",
            ],
        ];
        let layout = TableLayout {
            columns: vec![0, 1, 2],
            headers: true,
            wrap,
            ..TableLayout::default()
        };
        crate::output::testing::capture_output(width, |out| {
            let cell = |row: &[&str; 3], column: &Column| {
                let position = COLUMNS.iter().position(|it| it.name == column.name);
                TableCell::text(row[position.unwrap_or_default()])
            };
            Ok(print_table(out, &COLUMNS, &rows, cell, &layout)?)
        })
    }

    #[test]
    fn nothing_is_cut_off_at_any_width() {
        let whole = print_sample(None, true);
        assert_eq!(whole.lines().count(), 3, "{whole}");
        assert_eq!(
            print_sample(Some(30), false),
            whole,
            "one line each if asked"
        );
        for width in 20..100 {
            let text = print_sample(Some(width), true);
            assert!(text.lines().all(|line| line.width() <= width), "{text}");
            let words = |text: &str| {
                let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
                words.sort();
                words
            };
            assert_eq!(words(&text), words(&whole), "{text}");
        }
    }

    #[test]
    fn a_long_last_column_is_wrapped_in_its_place_or_below() {
        assert_eq!(
            print_sample(Some(50), true),
            "KEY         SEMID  WHY\n\
             0x0d4d1234      7  open\n\
             0x0d4d1235      8  leaked: its owner was killed\n\
             \x20                  while it waited\n"
        );
        assert_eq!(
            print_sample(Some(40), true),
            "KEY         SEMID\n\
             \x20   WHY\n\
             0x0d4d1234      7\n\
             \x20   open\n\
             0x0d4d1235      8\n\
             \x20   leaked: its owner was killed while\n\
             \x20   it waited\n"
        );
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_text() {
        let mut texts = Texts::default();
        for text in ["a", "", "日本"] {
            texts.push(text);
        }
        assert_eq!(texts.width, 4);
        assert_eq!(texts.next(), ("a", 1));
        assert_eq!(texts.next(), ("", 0));
        assert_eq!(texts.next(), ("日本", 4));
        assert_eq!(texts.next(), ("", 0));
    }

    #[test]
    fn numbers_sort_as_numbers_and_unknown_last() {
        let mut cells = [
            TableCell::text("-"),
            TableCell::ranked("10", 10.0),
            TableCell::ranked("9", 9.0),
        ];
        cells.sort_by(TableCell::compare);
        assert_eq!(cells.map(|cell| cell.text), ["9", "10", "-"]);
    }
}
