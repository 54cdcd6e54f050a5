//! Numbers of cookies in bytes.

use std::{collections::BTreeSet, ops::Range};

use serde::{Deserialize, Serialize};

use super::matcher::{BLOCK, is_anchor, next_candidate};
use crate::ids::Key;

/// How a number was written.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// 32 bits, at an address that is a multiple of 4.
    Aligned4,
    /// 32 bits, at an even address.
    Aligned2,
    /// 32 bits, at an odd address: a packed structure, or chance.
    Unaligned,
    /// Shifted by one bit, with or without a tag: small integers of Ruby, OCaml, V8.
    Tagged,
    /// A double: awk, JavaScript, Lua before 5.3.
    Double,
    /// Hexadecimal text.
    Hex,
    /// Decimal text.
    Decimal,
    /// `DM_UDEV_COOKIE=`, as `dmsetup` takes it from its environment.
    CookieVariable,
    /// `DM_COOKIE=`, as the kernel tells it to udev: flags stand where the magic belongs.
    UeventVariable,
}

impl Form {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Aligned4,
        Self::Aligned2,
        Self::Unaligned,
        Self::Tagged,
        Self::Double,
        Self::Hex,
        Self::Decimal,
        Self::CookieVariable,
        Self::UeventVariable,
    ];

    /// Whether it is text that says the whole number.
    pub const fn is_text(self) -> bool {
        matches!(self, Self::Hex | Self::Decimal | Self::CookieVariable)
    }
}

/// A number that was found.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Match {
    /// The cookie.
    pub key: Key,
    /// How it was written.
    pub form: Form,
    /// Where it begins.
    pub address: u64,
}

/// Before the anchor of a form: leading zeros of a text, the lower half of a number.
const LOOK_BEHIND: usize = 32;

/// Behind the anchor: the longest is a variable with its value.
const LOOK_AHEAD: usize = 32;

const COOKIE_VARIABLE: &[u8] = b"DM_UDEV_COOKIE=";
const UEVENT_VARIABLE: &[u8] = b"DM_COOKIE=";

/// The cookies to look for.
#[derive(Clone, Debug)]
pub struct Needles {
    keys: BTreeSet<Key>,
    /// A bit for each lower half of a key.
    wanted: Box<[u64; 1 << 10]>,
}

impl Needles {
    /// Keys without the magic of cookies are not looked for.
    pub fn new(keys: impl IntoIterator<Item = Key>) -> Self {
        let keys: BTreeSet<Key> = keys
            .into_iter()
            .filter(|key| key.has_cookie_magic())
            .collect();
        let mut wanted = Box::new([0; 1 << 10]);
        for key in &keys {
            let base = usize::from((key.0 & 0xffff) as u16);
            wanted[base / 64] |= 1 << (base % 64);
        }
        Self { keys, wanted }
    }

    /// The cookies.
    pub const fn keys(&self) -> &BTreeSet<Key> {
        &self.keys
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Tells of every number in bytes that stand alone; `address` is that of the first.
    pub fn find_all(&self, bytes: &[u8], address: u64, mut found: impl FnMut(Match)) {
        self.scan(bytes, 0..bytes.len(), address, &mut found);
    }

    /// Tells of every number whose anchor is in a range of the bytes; `address` is that of the first
    /// byte.
    fn scan(
        &self,
        bytes: &[u8],
        anchors: Range<usize>,
        address: u64,
        found: &mut impl FnMut(Match),
    ) {
        let end = anchors.end.min(bytes.len());
        let mut at = next_candidate(bytes, anchors.start);
        while at < end {
            let next = at + BLOCK;
            for anchor in at..next.min(end) {
                let byte = |ahead: usize| bytes.get(anchor + ahead).copied().unwrap_or(0);
                if is_anchor(byte(0), byte(1), byte(2)) {
                    self.examine(bytes, anchor, address, found);
                }
            }
            at = next_candidate(bytes, next);
        }
    }

    /// What stands around an anchor.
    fn examine(&self, bytes: &[u8], anchor: usize, address: u64, found: &mut impl FnMut(Match)) {
        let Some(&first) = bytes.get(anchor) else {
            return;
        };
        let mut tell = |number: u64, form: Form, begin: usize| {
            if let Some(key) = self.wanted_key(number) {
                let address = address.wrapping_add(begin as u64);
                found(Match { key, form, address });
            }
        };
        let binary = |begin: usize| {
            let word = bytes.get(begin..)?.first_chunk()?;
            Some((
                u32::from_le_bytes(*word),
                address.wrapping_add(begin as u64),
            ))
        };
        match first {
            0x4d => {
                if let Some(begin) = anchor.checked_sub(2)
                    && let Some((number, place)) = binary(begin)
                {
                    let form = match place % 4 {
                        0 => Form::Aligned4,
                        2 => Form::Aligned2,
                        _ => Form::Unaligned,
                    };
                    tell(number.into(), form, begin);
                }
            }
            0x9a | 0x9b => {
                if let Some(begin) = anchor.checked_sub(2)
                    && let Some((number, place)) = binary(begin)
                    && place % 4 == 0
                {
                    tell((number >> 1).into(), Form::Tagged, begin);
                }
                if let Some(begin) = anchor.checked_sub(5)
                    && let Some(number) = whole_double(&bytes[begin..])
                {
                    tell(number, Form::Double, begin);
                }
            }
            b'2' => {
                if let Some(number) = decimal_text(bytes, anchor) {
                    tell(number, Form::Decimal, anchor);
                }
            }
            _ => {
                if let Some(number) = hex_text(bytes, anchor) {
                    tell(number, Form::Hex, anchor);
                }
                let text = &bytes[anchor..];
                if let Some(value) = text.strip_prefix(COOKIE_VARIABLE)
                    && let Some(number) = parse_strtoul(value)
                {
                    tell(number, Form::CookieVariable, anchor);
                }
                if let Some(value) = text.strip_prefix(UEVENT_VARIABLE)
                    && let Some(number) = parse_digits(value, 10).filter(|it| !has_magic(*it))
                {
                    let magic = u64::from(dmtrace_common::COOKIE_MAGIC) << 16;
                    tell(magic | number & 0xffff, Form::UeventVariable, anchor);
                }
            }
        }
    }

    fn wanted_key(&self, number: u64) -> Option<Key> {
        let number = u32::try_from(number).ok()?;
        let base = usize::from((number & 0xffff) as u16);
        let wanted = has_magic(number.into()) && self.wanted[base / 64] >> (base % 64) & 1 == 1;
        wanted.then_some(Key(number))
    }
}

const fn has_magic(number: u64) -> bool {
    number >> 16 == dmtrace_common::COOKIE_MAGIC as u64
}

/// A double that is a whole number with the magic of cookies.
fn whole_double(bytes: &[u8]) -> Option<u64> {
    let double = f64::from_le_bytes(*bytes.first_chunk()?);
    let least = f64::from(dmtrace_common::COOKIE_MAGIC << 16);
    let fits = (least..least + 65536.0).contains(&double) && double.fract() == 0.0;
    fits.then_some(double as u64)
}

/// Nine digits that stand alone.
fn decimal_text(bytes: &[u8], at: usize) -> Option<u64> {
    const DIGITS: usize = 9;
    let before = at.checked_sub(1).and_then(|it| bytes.get(it));
    let after = bytes.get(at + DIGITS);
    if before.is_some_and(u8::is_ascii_digit) || after.is_some_and(u8::is_ascii_digit) {
        return None;
    }
    parse_digits(bytes.get(at..at + DIGITS)?, 10)
}

/// Seven digits, `d4d` and four more, that stand alone or behind zeros.
fn hex_text(bytes: &[u8], at: usize) -> Option<u64> {
    const DIGITS: usize = 7;
    if bytes.get(at + DIGITS).is_some_and(u8::is_ascii_hexdigit) {
        return None;
    }
    let before = bytes[..at].iter().rev().take(LOOK_BEHIND);
    let before = before.copied().find(|&byte| byte != b'0');
    if before.is_some_and(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let digits = bytes.get(at..at + DIGITS)?;
    let whole = digits.iter().all(u8::is_ascii_hexdigit);
    whole.then(|| parse_digits(digits, 16)).flatten()
}

/// As `strtoul` with base 0.
fn parse_strtoul(text: &[u8]) -> Option<u64> {
    match text {
        [b'0', b'x' | b'X', digits @ ..] => parse_digits(digits, 16),
        [b'0', digits @ ..] => parse_digits(digits, 8),
        digits => parse_digits(digits, 10),
    }
}

/// The digits at the beginning; `None` without any, or if there are more than a number has.
fn parse_digits(text: &[u8], radix: u32) -> Option<u64> {
    const MOST: usize = 16;
    let digits = text
        .iter()
        .map_while(|&byte| char::from(byte).to_digit(radix));
    let mut number = 0_u64;
    let mut count = 0;
    for digit in digits {
        number = number
            .checked_mul(radix.into())?
            .checked_add(digit.into())?;
        count += 1;
        if count > MOST {
            return None;
        }
    }
    (count > 0).then_some(number)
}

/// A buffer for memory that is read piece by piece: a number on the border of two pieces is found,
/// once. What it holds is wiped when it goes.
#[derive(Debug)]
pub struct Window {
    buffer: Vec<u8>,
    /// So many bytes of the buffer are from memory.
    held: usize,
    /// The first byte that was not examined as an anchor.
    anchor: usize,
    /// Where the first byte is from.
    address: u64,
}

impl Window {
    /// For pieces of so many bytes.
    pub fn new(piece: usize) -> Self {
        Self {
            buffer: vec![0; piece.max(BLOCK) + LOOK_AHEAD + LOOK_BEHIND],
            held: 0,
            anchor: 0,
            address: 0,
        }
    }

    /// Begins anew at an address. What was not finished is forgotten.
    pub const fn start(&mut self, address: u64) {
        self.held = 0;
        self.anchor = 0;
        self.address = address;
    }

    /// Whether what is at an address follows what is in here.
    pub const fn continues_at(&self, address: u64) -> bool {
        self.held > 0 && self.address.wrapping_add(self.held as u64) == address
    }

    /// Where the next piece belongs: never empty.
    pub fn space(&mut self) -> &mut [u8] {
        &mut self.buffer[self.held..]
    }

    /// So many bytes of [`Self::space`] were filled, and more may follow.
    pub fn advance(&mut self, filled: usize, needles: &Needles, mut found: impl FnMut(Match)) {
        self.held = (self.held + filled).min(self.buffer.len());
        let end = self.held.saturating_sub(LOOK_AHEAD);
        if end > self.anchor {
            let bytes = &self.buffer[..self.held];
            needles.scan(bytes, self.anchor..end, self.address, &mut found);
            self.anchor = end;
        }
        let cut = self.anchor.saturating_sub(LOOK_BEHIND);
        self.buffer.copy_within(cut..self.held, 0);
        self.held -= cut;
        self.anchor -= cut;
        self.address = self.address.wrapping_add(cut as u64);
    }

    /// Nothing follows.
    pub fn finish(&mut self, needles: &Needles, mut found: impl FnMut(Match)) {
        let bytes = &self.buffer[..self.held];
        needles.scan(bytes, self.anchor..self.held, self.address, &mut found);
        self.start(0);
    }

    /// Forgets the bytes themselves.
    pub fn wipe(&mut self) {
        self.start(0);
        self.buffer.fill(0);
        // What is never read again need not be written: this is read, as far as anybody knows.
        std::hint::black_box(&mut self.buffer);
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.wipe();
    }
}

#[cfg(test)]
mod tests;
