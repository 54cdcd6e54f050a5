//! Tables in the manner of `lsipc`: chosen columns, no lines, cut to the terminal.

use std::{cmp::Ordering, io};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

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

/// Prints rows; each row has a cell for every offered column.
///
/// # Errors
/// Writing fails.
pub fn print(
    out: &mut Out,
    offered: &[Column],
    mut rows: Vec<Vec<Cell>>,
    layout: &Layout,
) -> io::Result<()> {
    if let Some((column, reverse)) = layout.sort {
        rows.sort_by(|a, b| {
            let order = a[column].order(&b[column]);
            if reverse { order.reverse() } else { order }
        });
    }
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    if layout.headers {
        table.set_header(layout.columns.iter().map(|&index| offered[index].header));
    }
    for row in &rows {
        table.add_row(layout.columns.iter().map(|&index| row[index].text.clone()));
    }
    let last = layout.columns.len().saturating_sub(1);
    for (position, &index) in layout.columns.iter().enumerate() {
        if let Some(column) = table.column_mut(position) {
            column.set_padding((0, if position == last { 0 } else { 2 }));
            if offered[index].right {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    let width = if layout.cut { out.width() } else { None };
    let states: Vec<&str> = match layout.state {
        Some(index) if layout.columns.contains(&index) => {
            rows.iter().map(|row| row[index].text.as_str()).collect()
        }
        _ => Vec::new(),
    };
    let text = table.trim_fmt();
    for (number, line) in text.lines().enumerate() {
        let line = cut(line, width);
        let row = number.checked_sub(usize::from(layout.headers));
        let line = match row.and_then(|row| states.get(row)) {
            Some(state) if !state.is_empty() => line.replacen(state, &out.state(state), 1),
            _ => line,
        };
        out.line(&line)?;
    }
    Ok(())
}

/// Cuts a line to a width, with a mark at the end.
pub fn cut(line: &str, width: Option<usize>) -> String {
    match width {
        Some(width) if line.chars().count() > width && width > 1 => {
            let mut short: String = line.chars().take(width - 1).collect();
            short.push('+');
            short
        }
        _ => line.to_owned(),
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
