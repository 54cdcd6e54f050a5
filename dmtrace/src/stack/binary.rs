//! An ELF file, read piece by piece: what unwinding needs, and no more. Nothing is mapped, because
//! a file that somebody shortens while it is mapped would end this process.

use std::{fs::File, ops::Range, rc::Rc};

use dmtrace_core::event::BuildId;
use object::{
    LittleEndian, Object as _, ObjectSection as _, ReadCache, ReadRef,
    elf::{
        ET_DYN, FileHeader64, NT_GNU_BUILD_ID, PF_X, PT_DYNAMIC, PT_GNU_EH_FRAME, PT_LOAD, PT_NOTE,
    },
    read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _},
};

use super::go::{self, Pclntab};

/// Larger sections are not read.
const SECTION_MAX: u64 = 512 << 20;

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct LoadSegment {
    /// Addresses in the file.
    pub addresses: Range<u64>,
    /// Offset of its bytes.
    pub offset: u64,
    /// Whether it is code.
    pub code: bool,
}

/// The program headers, from a file or from its first bytes in memory.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Headers {
    /// `e_entry`.
    pub entry: u64,
    /// Whether it can be loaded anywhere.
    pub relocatable: bool,
    pub loads: Vec<LoadSegment>,
    /// Where the table of frames is.
    pub eh_frame_hdr: Option<Range<u64>>,
    /// Address of the dynamic section.
    pub dynamic: Option<u64>,
    /// Build-id, where the bytes go that far.
    pub build_id: Option<BuildId>,
}

impl Headers {
    /// Reads them; `None` for what is no ELF file of this kind, or is cut off before its end.
    pub(crate) fn parse<'d, R: ReadRef<'d>>(data: R) -> Option<Self> {
        let header = FileHeader64::<LittleEndian>::parse(data).ok()?;
        let endian = header.endian().ok()?;
        let mut headers = Self {
            entry: header.e_entry(endian),
            relocatable: header.e_type(endian) == ET_DYN,
            ..Self::default()
        };
        for segment in header.program_headers(endian, data).ok()? {
            let start = segment.p_vaddr(endian);
            let range = start..start.saturating_add(segment.p_memsz(endian));
            match segment.p_type(endian) {
                PT_LOAD => headers.loads.push(LoadSegment {
                    addresses: range,
                    offset: segment.p_offset(endian),
                    code: segment.p_flags(endian).contains(PF_X),
                }),
                PT_GNU_EH_FRAME => headers.eh_frame_hdr = Some(range),
                PT_DYNAMIC => headers.dynamic = Some(start),
                PT_NOTE if headers.build_id.is_none() => {
                    headers.build_id =
                        segment
                            .notes(endian, data)
                            .ok()
                            .flatten()
                            .and_then(|mut notes| {
                                while let Ok(Some(note)) = notes.next() {
                                    if note.name() == b"GNU"
                                        && note.n_type(endian) == NT_GNU_BUILD_ID
                                    {
                                        return BuildId::from_bytes(note.desc());
                                    }
                                }
                                None
                            });
                }
                _ => {}
            }
        }
        (!headers.loads.is_empty()).then_some(headers)
    }

    pub(crate) fn load_range(&self) -> Range<u64> {
        let starts = self.loads.iter().map(|load| load.addresses.start);
        let ends = self.loads.iter().map(|load| load.addresses.end);
        starts.min().unwrap_or(0)..ends.max().unwrap_or(0)
    }

    /// Whether an address is code.
    pub(crate) fn is_code(&self, address: u64) -> bool {
        let mut code = self.loads.iter().filter(|load| load.code);
        code.any(|load| load.addresses.contains(&address))
    }
}

/// A section with unwind information, and where it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct EhSection {
    /// Address in the file.
    pub address: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// An ELF file with its unwind information.
pub(crate) struct Binary {
    pub headers: Headers,
    /// `.eh_frame`.
    pub eh_frame: Option<EhSection>,
    /// `.eh_frame_hdr`, its index.
    pub eh_frame_hdr: Option<EhSection>,
    /// `.debug_frame`, where there is no `.eh_frame`.
    pub debug_frame: Option<EhSection>,
    /// Address of `.text`.
    pub text: u64,
    pub go: Option<Rc<Pclntab>>,
    data: ReadCache<File>,
}

impl Binary {
    /// Reads an open file; `None` for what is no 64-bit little-endian ELF file.
    pub(crate) fn open(file: File) -> Option<Self> {
        let data = ReadCache::new(file);
        let headers = Headers::parse(&data)?;
        let elf: ElfFile64<'_, LittleEndian, _> = ElfFile64::parse(&data).ok()?;
        let table = |name: &str| table_of(&elf, name);
        let eh_frame = table(".eh_frame");
        let eh_frame_hdr = table(".eh_frame_hdr");
        let text = elf
            .section_by_name(".text")
            .map_or(0, |section| section.address());
        let go = go::find_pclntab(&elf, &headers, text).map(Rc::new);
        let debug_frame = if eh_frame.is_none() && go.is_none() {
            table(".debug_frame")
        } else {
            None
        };
        Some(Self {
            headers,
            eh_frame,
            eh_frame_hdr,
            debug_frame,
            text,
            go,
            data,
        })
    }

    /// The file as a whole.
    pub(super) fn elf(&self) -> Option<ElfFile64<'_, LittleEndian, &ReadCache<File>>> {
        ElfFile64::parse(&self.data).ok()
    }

    /// Bytes at an address, as they are in the file.
    pub(crate) fn bytes_at(&self, address: u64, len: u64) -> Option<&[u8]> {
        let mut loads = self.headers.loads.iter();
        let load = loads.find(|load| load.addresses.contains(&address))?;
        let offset = load.offset + (address - load.addresses.start);
        (&self.data).read_bytes_at(offset, len).ok()
    }

    /// Whether the instruction before an address is a call: what a return address is behind.
    pub(crate) fn follows_call(&self, address: u64) -> bool {
        let Some(before) = address
            .checked_sub(7)
            .and_then(|start| self.bytes_at(start, 7))
        else {
            return false;
        };
        // call rel32; call r/m64 (FF /2) with 0, 1 and 4 bytes of displacement, SIB, REX.
        let indirect = |at: usize| before[at] == 0xff && before[at + 1] & 0x38 == 0x10;
        before[2] == 0xe8 || indirect(5) || indirect(4) || indirect(1) || indirect(3) || indirect(0)
    }
}

/// A section as it is in the file.
pub(super) fn table_of<'d, R: ReadRef<'d>>(
    elf: &ElfFile64<'d, LittleEndian, R>,
    name: &str,
) -> Option<EhSection> {
    let section = elf.section_by_name(name)?;
    if section.size() > SECTION_MAX {
        return None;
    }
    let bytes = section.data().ok()?.to_vec();
    (!bytes.is_empty()).then(|| EhSection {
        address: section.address(),
        bytes,
    })
}

impl Binary {
    /// The section that rows come from.
    pub(super) const fn unwind_section(&self) -> Option<&EhSection> {
        match &self.eh_frame {
            Some(table) => Some(table),
            None => self.debug_frame.as_ref(),
        }
    }

    /// Whether frames can be found with it; a file of debug information has none.
    pub(crate) fn has_unwind_info(&self) -> bool {
        self.unwind_section().is_some() || self.go.is_some()
    }
}
