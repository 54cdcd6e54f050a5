//! Lines of a width.

use textwrap::{Options, WordSeparator, WordSplitter, WrapAlgorithm, core::display_width};

/// A continuation is never narrower than this: words in a narrower column cannot be read.
const MIN_WIDTH: usize = 16;

/// Breaks a text at blanks into lines of at most `width` columns; a longer word is broken itself.
/// `usize::MAX` for no limit.
pub(crate) fn wrap_text(text: &str, width: usize) -> Vec<String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    wrap_hanging(&words.join(" "), 0, width)
}

/// Breaks a line into lines of at most `width` columns. Blanks between words stay as they are;
/// the lines after the first one are indented.
pub(crate) fn wrap_hanging(line: &str, indent: usize, width: usize) -> Vec<String> {
    if width == usize::MAX || display_width(line) <= width {
        return vec![line.to_owned()];
    }
    let indent = " ".repeat(indent.min(width.saturating_sub(MIN_WIDTH)));
    let options = Options::new(width)
        .word_separator(WordSeparator::AsciiSpace)
        .word_splitter(WordSplitter::NoHyphenation)
        .wrap_algorithm(WrapAlgorithm::FirstFit)
        .subsequent_indent(&indent);
    textwrap::wrap(line, options)
        .into_iter()
        .map(std::borrow::Cow::into_owned)
        .collect()
}

/// Where the continuation of a line goes: behind its own indentation.
pub(super) fn own_indent(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len() + 4
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use unicode_width::UnicodeWidthStr;

    use super::*;

    #[test]
    fn texts_are_broken_at_blanks() {
        assert_eq!(wrap_text("a bc def", 4), ["a bc", "def"]);
        assert_eq!(wrap_text("abcdefgh i", 3), ["abc", "def", "gh", "i"]);
        assert_eq!(wrap_text("", 3), [""]);
        assert_eq!(wrap_text("a  b", usize::MAX), ["a b"]);
    }

    #[test]
    fn columns_are_counted_not_letters() {
        assert_eq!(wrap_text("日本 日本", 5), ["日本", "日本"]);
        // Colour takes no room.
        assert_eq!(
            wrap_hanging("\x1b[31mleaked\x1b[0m a", 0, 8),
            ["\x1b[31mleaked\x1b[0m a"]
        );
    }

    #[test]
    fn continuations_are_indented_and_columns_stay() {
        assert_eq!(
            wrap_hanging("  a    b of many words, which go on", 6, 22),
            ["  a    b of many", "      words, which go", "      on"]
        );
        // Too narrow for the indentation.
        assert_eq!(wrap_hanging("aaaa bbbb cccc dddd", 40, 17).len(), 2);
    }

    proptest! {
        #[test]
        fn lines_are_never_too_long_and_nothing_is_lost(text: String, width in 2usize..90) {
            let lines = wrap_text(&text, width);
            prop_assert!(lines.iter().all(|line| line.width() <= width));
            let letters = |text: &str| -> String {
                text.chars().filter(|letter| !letter.is_whitespace()).collect()
            };
            prop_assert_eq!(letters(&lines.concat()), letters(&text));
        }
    }
}
