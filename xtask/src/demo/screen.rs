//! What the demo prints, and what of it the README prints, too.

use std::{
    env,
    io::{IsTerminal as _, Write as _},
};

use super::stage;

/// How wide it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Width {
    /// As the terminal, or 80 columns.
    Own,
    /// As a page of documentation.
    Docs,
}

/// Columns of a page of documentation.
pub(super) const DOCS_COLUMNS: u16 = 80;

/// Standard output, and a copy of what was printed by section.
pub(super) struct Screen {
    width: Width,
    sections: Vec<(&'static str, Vec<String>)>,
}

impl Screen {
    /// Nothing was printed.
    pub(super) fn new(width: Width) -> Self {
        Self {
            width,
            sections: Vec::new(),
        }
    }

    /// Columns of the terminals that programs get.
    pub(super) fn columns(&self) -> u16 {
        match self.width {
            Width::Own => own_columns().unwrap_or(DOCS_COLUMNS),
            Width::Docs => DOCS_COLUMNS,
        }
    }

    /// Whether it is compared with what was printed elsewhere.
    pub(super) fn is_for_docs(&self) -> bool {
        self.width == Width::Docs
    }

    /// Whether programs may use colours.
    pub(super) fn colors(&self) -> bool {
        !self.is_for_docs()
            && std::io::stdout().is_terminal()
            && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
    }

    /// A line of the demo itself.
    pub(super) fn print_note(&self, line: &str) {
        // Whoever reads has gone: no use in going on.
        if writeln!(std::io::stdout(), "{line}").is_err() {
            stage::request_stop();
        }
    }

    /// What follows is the section of this name.
    pub(super) fn begin_section(&mut self, name: &'static str, heading: &str) {
        self.print_note(&format!("\n=== {heading}"));
        self.sections.push((name, Vec::new()));
    }

    /// A line of the section.
    pub(super) fn print_line(&mut self, line: &str) {
        self.print_note(line);
        if let Some((_, lines)) = self.sections.last_mut() {
            lines.push(line.to_owned());
        }
    }

    /// What a section has.
    pub(super) fn section_lines(&self, name: &str) -> Option<&[String]> {
        let found = self.sections.iter().find(|(section, _)| *section == name);
        found.map(|(_, lines)| &**lines)
    }
}

fn own_columns() -> Option<u16> {
    // SAFETY: a winsize is plain data.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ fills a winsize.
    let done = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (done == 0 && size.ws_col > 0).then_some(size.ws_col)
}
