//! Lines of a width.

/// Breaks a text at blanks into lines of at most `width` columns; a longer word is broken itself.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut columns = 0;
    for word in text.split_whitespace() {
        let mut word: Vec<char> = word.chars().collect();
        if columns > 0 && columns + 1 + word.len() > width {
            lines.push(std::mem::take(&mut line));
            columns = 0;
        }
        while word.len() > width {
            let rest = word.split_off(width);
            lines.push(word.into_iter().collect());
            word = rest;
        }
        if columns > 0 {
            line.push(' ');
            columns += 1;
        }
        columns += word.len();
        line.extend(word);
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_are_broken_at_blanks() {
        assert_eq!(wrap("a bc def", 4), ["a bc", "def"]);
        assert_eq!(wrap("abcdefgh i", 3), ["abc", "def", "gh", "i"]);
        assert_eq!(wrap("", 3), [""]);
    }

    proptest! {
        #[test]
        fn lines_are_never_too_long_and_nothing_is_lost(text: String, width in 1usize..90) {
            let lines = wrap(&text, width);
            prop_assert!(lines.iter().all(|line| line.chars().count() <= width));
            let letters = |text: &str| -> String {
                text.chars().filter(|letter| !letter.is_whitespace()).collect()
            };
            prop_assert_eq!(letters(&lines.concat()), letters(&text));
        }
    }
}
