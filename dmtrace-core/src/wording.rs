//! Words that many messages share: a number with its noun.

use std::fmt::Display;

/// A number with its noun: `0 cookies`, `1 cookie`, `2 cookies`.
pub fn count_noun<N: Copy + Display + PartialEq + From<u8>>(
    number: N,
    one: &str,
    many: &str,
) -> String {
    let noun = of_number(&number, one, many);
    format!("{number} {noun}")
}

/// The word that goes with a number, where other words are between them.
pub fn of_number<'a, N: PartialEq + From<u8>>(number: &N, one: &'a str, many: &'a str) -> &'a str {
    if *number == N::from(1) { one } else { many }
}

/// How often: `once`, `3 times`.
pub fn times_text<N: Copy + Display + PartialEq + From<u8>>(number: N) -> String {
    if number == N::from(1) {
        "once".to_owned()
    } else {
        format!("{number} times")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_noun_follows_its_number() {
        assert_eq!(count_noun(0_usize, "cookie", "cookies"), "0 cookies");
        assert_eq!(count_noun(1_u64, "cookie", "cookies"), "1 cookie");
        assert_eq!(count_noun(2_u32, "cookie", "cookies"), "2 cookies");
        assert_eq!(times_text(1_u64), "once");
        assert_eq!(times_text(0_u64), "0 times");
    }
}
