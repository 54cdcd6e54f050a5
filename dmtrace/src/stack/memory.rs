//! The copied part of a stack.

/// Bytes of user memory at their address.
#[derive(Clone, Copy, Debug)]
pub struct Memory<'a> {
    /// Address of the first byte.
    start: u64,
    bytes: &'a [u8],
    /// Whether the copy ended because enough was copied, not because memory ended.
    full: bool,
}

impl<'a> Memory<'a> {
    /// Bytes from `start` on. `full`: there may be more behind them, which was not copied.
    pub const fn new(start: u64, bytes: &'a [u8], full: bool) -> Self {
        Self { start, bytes, full }
    }

    /// A word of 64 bits.
    pub fn word(&self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(self.start)?).ok()?;
        let bytes = self.bytes.get(at..at.checked_add(8)?)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    /// Why a word is not there.
    pub fn missing(&self, address: u64) -> String {
        let end = self.start.saturating_add(self.bytes.len() as u64);
        if self.bytes.is_empty() {
            "the stack could not be read".to_owned()
        } else if address < self.start {
            format!("the next frame is said to be at {address:#x}, which is not on the stack")
        } else if self.full && address < end.saturating_add(64 << 20) {
            let kib = self.bytes.len() >> 10;
            format!("the copied {kib} KiB of the stack are used up")
        } else {
            format!("stack memory at {address:#x} was not there to be copied")
        }
    }
}
