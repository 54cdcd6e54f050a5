//! Tables in the manner of `lsipc`: chosen columns, no lines, cut to the terminal.

use std::{borrow::Cow, cmp::Ordering, io};

use unicode_width::UnicodeWidthStr;

use super::Out;

/// A column that a verb offers.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Name for `-o` and `--sort`.
    pub name: &'static str,
    /// Header.
    pub header: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// Numbers go right.
    pub right: bool,
}

/// One cell.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cell {
    /// What is printed.
    pub text: String,
    /// What it is sorted by, where that is not the text.
    pub rank: Option<f64>,
}

impl Cell {
    /// A cell that is sorted by its text.
    pub fn text(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            rank: None,
        }
    }

    /// A cell that is sorted by a number.
    pub fn ranked(text: impl Into<String>, rank: f64) -> Self {
        Self {
            text: text.into(),
            rank: Some(rank),
        }
    }

    fn order(&self, other: &Self) -> Ordering {
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
pub struct Layout {
    /// Columns, as indexes into the offered ones.
    pub columns: Vec<usize>,
    /// Column to sort by, and whether in reverse.
    pub sort: Option<(usize, bool)>,
    /// Print the header line.
    pub headers: bool,
    /// Cut the last column to the width of the terminal.
    pub cut: bool,
    /// Column whose words are coloured as states.
    pub state: Option<usize>,
}

/// Finds columns by name.
///
/// # Errors
/// The first unknown name, with all known ones.
pub fn find(offered: &[Column], name: &str) -> Result<usize, String> {
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
pub fn print<R>(
    out: &mut Out,
    offered: &[Column],
    rows: &[R],
    cell: impl Fn(&R, &Column) -> Cell,
    layout: &Layout,
) -> io::Result<()> {
    let mut order: Vec<&R> = rows.iter().collect();
    if let Some((column, reverse)) = layout.sort {
        let mut ranked: Vec<(Cell, &R)> = rows
            .iter()
            .map(|row| (cell(row, &offered[column]), row))
            .collect();
        ranked.sort_by(|(a, _), (b, _)| {
            let order = a.order(b);
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
    let width = if layout.cut { out.width() } else { None };
    let mut line = String::new();
    for number in 0..order.len() + usize::from(layout.headers) {
        line.clear();
        let mut word = String::new();
        for (position, (column, texts)) in columns.iter().zip(&mut texts).enumerate() {
            let width = texts.width;
            let (text, columns) = texts.next();
            let blanks = width - columns;
            let before = if column.right { blanks } else { 0 };
            line.extend(std::iter::repeat_n(' ', before));
            line.push_str(text);
            line.extend(std::iter::repeat_n(' ', blanks - before + 2));
            if Some(position) == state && !(layout.headers && number == 0) {
                text.clone_into(&mut word);
            }
        }
        let shown = cut(line.trim_end(), width);
        if word.is_empty() {
            out.line(&shown)?;
        } else {
            out.line(&shown.replacen(&word, &out.state(&word), 1))?;
        }
    }
    Ok(())
}

/// The texts of a column.
#[derive(Default)]
struct Texts {
    all: String,
    /// Ends of the texts, and how many columns of the terminal each takes.
    ends: Vec<(u32, u32)>,
    /// The widest.
    width: usize,
    next: usize,
    begin: usize,
}

impl Texts {
    fn push(&mut self, text: &str) {
        let columns = text.width();
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

/// Cuts a line to a width, with a mark at the end.
pub fn cut(line: &str, width: Option<usize>) -> Cow<'_, str> {
    match width {
        Some(width) if line.chars().count() > width && width > 1 => {
            let mut short: String = line.chars().take(width - 1).collect();
            short.push('+');
            short.into()
        }
        _ => line.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_with_a_mark() {
        assert_eq!(cut("abcdef", Some(4)), "abc+");
        assert_eq!(cut("abcd", Some(4)), "abcd");
        assert_eq!(cut("abcdef", None), "abcdef");
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
            Cell::text("-"),
            Cell::ranked("10", 10.0),
            Cell::ranked("9", 9.0),
        ];
        cells.sort_by(Cell::order);
        assert_eq!(cells.map(|cell| cell.text), ["9", "10", "-"]);
    }
}
