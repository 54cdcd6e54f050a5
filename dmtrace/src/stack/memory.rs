//! The copied parts of stacks.

use dmtrace_common::GoroutineSample;

/// A part of a stack, from an address on.
#[derive(Clone, Copy, Debug)]
struct StackPart<'a> {
    start: u64,
    bytes: &'a [u8],
    /// Whether the copy ended because enough was copied, not because memory ended.
    full: bool,
}

impl StackPart<'_> {
    fn read_word(&self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(self.start)?).ok()?;
        let bytes = self.bytes.get(at..at.checked_add(8)?)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    fn end(&self) -> u64 {
        self.start.saturating_add(self.bytes.len() as u64)
    }
}

/// Bytes of user memory at their address: of the stack in use, and of the goroutine's that waits
/// for the code on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory<'a> {
    thread: StackPart<'a>,
    goroutine: Option<(GoroutineSample, StackPart<'a>)>,
}

impl<'a> Memory<'a> {
    /// Bytes from `start` on. `full`: there may be more behind them, which was not copied.
    pub(crate) const fn new(start: u64, bytes: &'a [u8], full: bool) -> Self {
        let thread = StackPart { start, bytes, full };
        Self {
            thread,
            goroutine: None,
        }
    }

    /// With the stack of a goroutine, of which these bytes from `start` on are copied.
    #[must_use]
    pub(crate) const fn with_goroutine(
        self,
        goroutine: GoroutineSample,
        start: u64,
        bytes: &'a [u8],
        full: bool,
    ) -> Self {
        let part = StackPart { start, bytes, full };
        Self {
            thread: self.thread,
            goroutine: Some((goroutine, part)),
        }
    }

    /// The goroutine that waits for the code on the stack in use.
    pub(crate) fn waiting_goroutine(&self) -> Option<GoroutineSample> {
        self.goroutine.map(|(goroutine, _)| goroutine)
    }

    /// A word of 64 bits.
    pub(crate) fn read_word(&self, address: u64) -> Option<u64> {
        let of_goroutine = || self.goroutine.and_then(|(_, part)| part.read_word(address));
        self.thread.read_word(address).or_else(of_goroutine)
    }

    /// Why a word is not there.
    pub(crate) fn missing_reason(&self, address: u64) -> String {
        if let Some((goroutine, part)) = &self.goroutine
            && (part.start..goroutine.end).contains(&address)
        {
            let kib = part.bytes.len() >> 10;
            return if kib == 0 {
                "nothing of the goroutine's stack could be copied".to_owned()
            } else if part.full {
                format!("the copied {kib} KiB of the goroutine's stack are used up")
            } else {
                format!("memory of the goroutine's stack at {address:#x} could not be copied")
            };
        }
        let part = &self.thread;
        if part.bytes.is_empty() {
            "the stack could not be read".to_owned()
        } else if address < part.start {
            format!("the next frame is said to be at {address:#x}, which is not on the stack")
        } else if part.full && address < part.end().saturating_add(64 << 20) {
            let kib = part.bytes.len() >> 10;
            format!("the copied {kib} KiB of the stack are used up")
        } else {
            format!("stack memory at {address:#x} was not there to be copied")
        }
    }
}
