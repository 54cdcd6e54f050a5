//! Go's own tables (`.gopclntab`): size of the frame at every instruction, names, lines. They are
//! in every Go program, stripped or not; `.eh_frame` is not, and `.debug_frame` seldom.

mod elf;

use std::cmp::Ordering;

use dmtrace_core::event::Symbol;
pub(super) use elf::find_pclntab;

/// The table of Go 1.2 and later.
#[derive(Debug)]
pub(crate) struct Pclntab {
    bytes: Vec<u8>,
    layout: PclntabLayout,
    /// Address that the table's offsets count from.
    text: u64,
    functions: usize,
    names: usize,
    units: usize,
    files: usize,
    values: usize,
    table: usize,
    /// What the offsets of the functions' records count from.
    records: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum PclntabLayout {
    /// To 1.15: no parts; addresses as 64-bit words.
    Whole,
    /// 1.16 and 1.17: addresses as 64-bit words.
    Absolute,
    /// Since 1.18: addresses as 32-bit distances from the text.
    Relative,
}

/// A function in the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function<'a> {
    table: &'a Pclntab,
    /// Offset of its record.
    record: usize,
    /// Its first instruction.
    pub entry: u64,
}

impl Pclntab {
    /// Reads the header; `text` is the address of the code if the header does not have it.
    pub(crate) fn parse(bytes: Vec<u8>, text: u64) -> Option<Self> {
        let layout = match u32_at(&bytes, 0)? {
            0xffff_fffb => PclntabLayout::Whole,
            0xffff_fffa => PclntabLayout::Absolute,
            0xffff_fff0 | 0xffff_fff1 => PclntabLayout::Relative,
            _ => return None,
        };
        // x86-64: instructions of one byte, pointers of eight.
        if bytes.get(4..8)? != [0, 0, 1, 8] {
            return None;
        }
        let word = |index: usize| usize::try_from(u64_at(&bytes, 8 + index * 8)?).ok();
        if layout == PclntabLayout::Whole {
            return Self::from_whole(word(0)?, bytes);
        }
        let mut at = 2;
        let mut start = 0;
        if layout == PclntabLayout::Relative {
            start = u64_at(&bytes, 8 + 16)?;
            at = 3;
        }
        let parsed = Self {
            functions: word(0)?,
            names: word(at)?,
            units: word(at + 1)?,
            files: word(at + 2)?,
            values: word(at + 3)?,
            table: word(at + 4)?,
            records: word(at + 4)?,
            layout,
            text: if start == 0 { text } else { start },
            bytes,
        };
        let entry = if layout == PclntabLayout::Absolute {
            16
        } else {
            8
        };
        let end = parsed
            .table
            .checked_add(parsed.functions.checked_mul(entry)?)?;
        (end <= parsed.bytes.len()).then_some(parsed)
    }

    /// All offsets count from the beginning; behind the functions is where the files are.
    fn from_whole(functions: usize, bytes: Vec<u8>) -> Option<Self> {
        let table = 16usize;
        let end = table.checked_add(functions.checked_mul(16)?)?;
        let files = u32_at(&bytes, end.checked_add(8)?)? as usize;
        Some(Self {
            bytes,
            layout: PclntabLayout::Whole,
            text: 0,
            functions,
            names: 0,
            units: files,
            files: 0,
            values: 0,
            table,
            records: 0,
        })
    }

    /// Whether its first and its last function are code.
    fn matches_code(&self, is_code: impl Fn(u64) -> bool) -> bool {
        let last = self.functions.checked_sub(1);
        let ends = [Some(0), last].map(|index| self.function_entry(index?));
        matches!(ends, [Some(first), Some(last)] if first <= last && is_code(first) && is_code(last))
    }

    /// The function of an instruction.
    pub(crate) fn function_at(&self, address: u64) -> Option<Function<'_>> {
        let (mut low, mut high) = (0, self.functions);
        while low < high {
            let middle = usize::midpoint(low, high);
            match self.function_entry(middle)?.cmp(&address) {
                Ordering::Greater => high = middle,
                _ => low = middle + 1,
            }
        }
        let index = low.checked_sub(1)?;
        // After the last function stands its end.
        if address >= self.function_entry(index + 1)? {
            return None;
        }
        let record = match self.layout {
            PclntabLayout::Whole | PclntabLayout::Absolute => {
                usize::try_from(u64_at(&self.bytes, self.table + index * 16 + 8)?).ok()?
            }
            PclntabLayout::Relative => u32_at(&self.bytes, self.table + index * 8 + 4)? as usize,
        };
        Some(Function {
            table: self,
            record: self.records.checked_add(record)?,
            entry: self.function_entry(index)?,
        })
    }

    fn function_entry(&self, index: usize) -> Option<u64> {
        match self.layout {
            PclntabLayout::Whole | PclntabLayout::Absolute => {
                u64_at(&self.bytes, self.table + index * 16)
            }
            PclntabLayout::Relative => {
                let distance = u32_at(&self.bytes, self.table + index * 8)?;
                Some(self.text.wrapping_add(distance.into()))
            }
        }
    }

    fn text_at(&self, at: usize) -> Option<String> {
        let bytes = self.bytes.get(at..)?;
        let len = bytes.iter().take(4096).position(|&byte| byte == 0)?;
        Some(String::from_utf8_lossy(&bytes[..len]).into_owned())
    }
}

impl Function<'_> {
    fn read_field(&self, index: usize) -> Option<u32> {
        let first = match self.table.layout {
            PclntabLayout::Whole | PclntabLayout::Absolute => 8,
            PclntabLayout::Relative => 4,
        };
        u32_at(&self.table.bytes, self.record + first + index * 4)
    }

    pub(crate) fn name(&self) -> Option<String> {
        let offset = self.read_field(0)? as usize;
        self.table.text_at(self.table.names.checked_add(offset)?)
    }

    /// Bytes between the stack pointer and the return address at an instruction.
    pub(crate) fn frame_size(&self, address: u64) -> Option<u64> {
        u64::try_from(self.value_at(self.read_field(3)?, address)?).ok()
    }

    /// Name, file and line at an instruction.
    pub(crate) fn symbol_at(&self, address: u64) -> Option<Symbol> {
        let line = self.value_at(self.read_field(5)?, address);
        Some(Symbol {
            function: self.name()?,
            file: self.file_at(address),
            line: line.and_then(|line| u32::try_from(line).ok()),
        })
    }

    fn file_at(&self, address: u64) -> Option<String> {
        let number = u32::try_from(self.value_at(self.read_field(4)?, address)?).ok()?;
        // Numbers count in the whole table, or in those of the unit.
        let first = match self.table.layout {
            PclntabLayout::Whole => 0,
            _ => self.read_field(7)?,
        };
        let unit = first.checked_add(number)? as usize;
        let offset = u32_at(&self.table.bytes, self.table.units.checked_add(unit * 4)?)?;
        let at = self.table.files.checked_add(offset as usize)?;
        (offset != u32::MAX).then(|| self.table.text_at(at))?
    }

    /// Value of a table of steps: pairs of a difference of the value and of the address.
    fn value_at(&self, offset: u32, address: u64) -> Option<i64> {
        if offset == 0 {
            return None;
        }
        let start = self.table.values.checked_add(offset as usize)?;
        let mut bytes = self.table.bytes.get(start..)?.iter().copied();
        let mut value = -1i64;
        let mut at = self.entry;
        let mut first = true;
        loop {
            let step = read_varint(&mut bytes)?;
            if step == 0 && !first {
                return None;
            }
            first = false;
            let difference = (step >> 1) as i64 ^ -((step & 1) as i64);
            value = value.wrapping_add(difference);
            at = at.wrapping_add(read_varint(&mut bytes)?.into());
            if address < at {
                return Some(value);
            }
        }
    }
}

fn read_varint(bytes: &mut impl Iterator<Item = u8>) -> Option<u32> {
    let mut value = 0u32;
    for shift in (0..35).step_by(7) {
        let byte = bytes.next()?;
        value |= u32::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}
