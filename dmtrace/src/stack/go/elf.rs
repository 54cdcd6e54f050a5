//! Where Go's tables are in a file.

use object::{LittleEndian, Object as _, ReadRef, elf::R_X86_64_RELATIVE, read::elf::ElfFile64};

use super::Pclntab;
use crate::stack::binary::{EhSection, Headers, table_of};

/// What the table begins with is found at a multiple of this.
const PCLNTAB_ALIGN: usize = 32;
/// Number of the word in `runtime.moduledata` that has the address of the code: behind the address
/// of the table, six slices, and three words.
const MODULE_TEXT: usize = 22;

/// Go's tables, in a program of Go; `code` is the address of its `.text`.
pub(crate) fn find_pclntab<'d, R: ReadRef<'d>>(
    elf: &ElfFile64<'d, LittleEndian, R>,
    headers: &Headers,
    code: u64,
) -> Option<Pclntab> {
    let is_go = [".go.buildinfo", ".note.go.buildid", ".gopclntab"];
    if !is_go.iter().any(|name| elf.section_by_name(name).is_some()) {
        return None;
    }
    // A position-independent program has its addresses there.
    let relocations = table_of(elf, ".rela.dyn");
    let section = |name: &str| {
        let mut table = table_of(elf, name)?;
        if let Some(relocations) = &relocations {
            relocate_table(&mut table, relocations);
        }
        Some(table)
    };
    let own = [".gopclntab", ".data.rel.ro.gopclntab"];
    let Some(table) = own.into_iter().find_map(section) else {
        return find_merged(&section(".data.rel.ro")?, headers);
    };
    let text = section(".go.module").and_then(|module| text_address(&module, table.address));
    Pclntab::parse(table.bytes, text.unwrap_or(code))
}

/// The table somewhere in a section: where linkers put it in a position-independent program.
fn find_merged(section: &EhSection, headers: &Headers) -> Option<Pclntab> {
    let starts = (0..section.bytes.len()).step_by(PCLNTAB_ALIGN);
    starts
        .filter_map(|start| {
            let bytes = section.bytes.get(start..)?;
            // Most of it is something else: not copied before this fits.
            (bytes.get(1..8)? == [0xff, 0xff, 0xff, 0, 0, 1, 8])
                .then(|| Pclntab::parse(bytes.to_vec(), 0))?
        })
        .find(|table| table.matches_code(|address| headers.is_code(address)))
}

/// The address of the code, where the table does not have it: since Go 1.26.
fn text_address(module: &EhSection, table: u64) -> Option<u64> {
    let word = |index: usize| super::u64_at(&module.bytes, index * 8);
    (word(0)? == table).then(|| word(MODULE_TEXT))?
}

/// Puts in what the linker has left to relocations relative to the program.
fn relocate_table(table: &mut EhSection, relocations: &EhSection) {
    for entry in relocations.bytes.as_chunks::<24>().0 {
        let word = |index: usize| super::u64_at(entry, index * 8);
        let place = word(0).and_then(|place| place.checked_sub(table.address));
        let place = place.and_then(|place| usize::try_from(place).ok());
        if word(1) == Some(R_X86_64_RELATIVE.0.into())
            && let Some(start) = place
            && let Some(slot) = start
                .checked_add(8)
                .and_then(|end| table.bytes.get_mut(start..end))
        {
            slot.copy_from_slice(&entry[16..]);
        }
    }
}
