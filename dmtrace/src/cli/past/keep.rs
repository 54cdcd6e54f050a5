//! Where a service keeps its history, and how much of it.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use crate::{
    history::{Options, PATH, SMALLEST},
    host::{Roots, clock},
};

/// Largest limit: who reads a history has it in memory.
const LARGEST: u64 = 1 << 30;

/// The history of a service.
#[derive(Args, Clone, Debug)]
pub struct Keep {
    /// Keep what is found in this file.
    #[arg(long, value_name = "FILE", default_value = PATH)]
    pub history: PathBuf,
    /// Size that it never exceeds, such as 64M; the oldest findings make room.
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = size)]
    pub history_size: u64,
    /// Drop what ended longer ago than this many days.
    #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub history_days: u32,
}

impl Keep {
    /// As the store takes it, for this boot.
    pub fn options(&self) -> Options {
        Options {
            path: self.history.clone(),
            limit: self.history_size,
            retention: Duration::from_secs(u64::from(self.history_days) * 86_400),
            boot_id: clock::boot_id(&Roots::host()).unwrap_or_default(),
        }
    }
}

/// `64M`, `64MiB`, `1G`, or bytes.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        _ => return Err("give a size such as 64M or 1G".to_owned()),
    };
    let number: u64 = digits
        .trim_end()
        .parse()
        .map_err(|_| "give a size such as 64M or 1G".to_owned())?;
    number
        .checked_mul(1 << shift)
        .filter(|size| (SMALLEST..=LARGEST).contains(size))
        .ok_or_else(|| format!("give {}M to {}G", SMALLEST >> 20, LARGEST >> 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(size("64M"), Ok(64 << 20));
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("1g"), Ok(1 << 30));
        assert_eq!(size("8388608"), Ok(8 << 20));
        for wrong in [
            "",
            "M",
            "1M",
            "2G",
            "64X",
            "-4M",
            "99999999999999999999G",
            "64 MM",
            "é",
        ] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
