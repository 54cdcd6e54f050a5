//! Counts of checks and tests, and what runners say about theirs.

use std::{fmt, ops::AddAssign};

/// How many checks ended how.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct TestTally {
    /// They did what they should.
    pub passed: u64,
    /// They did not.
    pub failed: u64,
    /// They could not run here.
    pub skipped: u64,
}

impl TestTally {
    pub(crate) const PASSED: Self = Self {
        passed: 1,
        failed: 0,
        skipped: 0,
    };
    pub(crate) const FAILED: Self = Self {
        passed: 0,
        failed: 1,
        skipped: 0,
    };
    /// One that could not run.
    pub(crate) const SKIPPED: Self = Self {
        passed: 0,
        failed: 0,
        skipped: 1,
    };

    /// The closing line of a test runner: libtest and libtest-mimic write it alike.
    pub(crate) fn of_line(line: &str) -> Option<Self> {
        let rest = line.strip_prefix("test result: ")?;
        let (_, counts) = rest.split_once(". ")?;
        let mut tally = Self::default();
        for count in counts.split(';') {
            match count.trim().split_once(' ') {
                Some((number, "passed")) => tally.passed = number.parse().ok()?,
                Some((number, "failed")) => tally.failed = number.parse().ok()?,
                Some((number, "ignored")) => tally.skipped = number.parse().ok()?,
                _ => {}
            }
        }
        Some(tally)
    }
}

impl AddAssign for TestTally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for TestTally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_closing_lines() {
        let line = "test result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; 3 filtered \
                    out; finished in 0.01s";
        let tally = TestTally {
            passed: 12,
            failed: 2,
            skipped: 1,
        };
        assert_eq!(TestTally::of_line(line), Some(tally));
        assert_eq!(tally.to_string(), "12 passed, 2 failed, 1 skipped");
        assert_eq!(TestTally::of_line("test result of nothing"), None);
        assert_eq!(TestTally::of_line("test a::b ... ok"), None);
    }
}
