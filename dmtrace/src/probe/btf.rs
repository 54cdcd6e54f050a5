//! A reader for the kernel's own type information, as far as offsets need it.
//!
//! aya parses BTF too, but offers no look-up of members; Rust's eBPF target emits no CO-RE
//! relocations that would make it unnecessary. Format: Documentation/bpf/btf.rst.

use std::{collections::HashMap, fs, path::Path, rc::Rc};

use crate::wording::cause_text;

/// Why BTF could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BtfError {
    /// The file cannot be read.
    #[error("{path}: {}", cause_text(source))]
    Unreadable {
        path: String,
        source: std::io::Error,
    },
    /// The bytes are not BTF.
    #[error("{0}: not BTF, or cut short")]
    Malformed(String),
}

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FUNC: u32 = 12;

/// Types of the kernel, by name.
pub(crate) struct Btf {
    bytes: Vec<u8>,
    types: usize,
    strings: usize,
    /// The kernel's own types, which those of a module continue: type ids and strings go on where
    /// these end.
    base: Option<Rc<Self>>,
    /// Types and bytes of strings, those of the base included.
    ends: (u32, u32),
    /// Offset of each own type's entry, in the order of the type ids. 0 is `void`, of the kernel.
    entries: Vec<u32>,
    /// Structs and unions that are defined, by name.
    structs: HashMap<Box<[u8]>, u32>,
    /// Functions, by name.
    functions: HashMap<Box<[u8]>, u32>,
    enums: Vec<u32>,
}

impl Btf {
    /// Reads the running kernel's.
    ///
    /// # Errors
    /// The file is missing, not readable, or not BTF.
    pub(crate) fn from_file(path: &Path) -> Result<Self, BtfError> {
        Self::read(path, None)
    }

    /// Reads a module's, which continues the kernel's.
    ///
    /// # Errors
    /// As [`Btf::from_file`].
    pub(crate) fn of_module(path: &Path, kernel: &Rc<Self>) -> Result<Self, BtfError> {
        Self::read(path, Some(Rc::clone(kernel)))
    }

    /// The file as it was read.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn read(path: &Path, base: Option<Rc<Self>>) -> Result<Self, BtfError> {
        let name = path.display().to_string();
        let bytes = fs::read(path).map_err(|source| BtfError::Unreadable {
            path: name.clone(),
            source,
        })?;
        Self::parse(bytes, base).ok_or(BtfError::Malformed(name))
    }

    fn parse(bytes: Vec<u8>, base: Option<Rc<Self>>) -> Option<Self> {
        if u16_at(&bytes, 0)? != MAGIC {
            return None;
        }
        let header = u32_at(&bytes, 4)? as usize;
        let types = header + u32_at(&bytes, 8)? as usize;
        let types_end = types + u32_at(&bytes, 12)? as usize;
        let strings = header + u32_at(&bytes, 16)? as usize;
        let (first, first_string) = base.as_ref().map_or((0, 0), |base| base.ends);
        let end_of_strings = first_string + u32_at(&bytes, 20)?;
        let mut btf = Self {
            bytes,
            types,
            strings,
            // `void` of the kernel.
            entries: if base.is_some() { Vec::new() } else { vec![0] },
            base,
            ends: (first, end_of_strings),
            structs: HashMap::new(),
            functions: HashMap::new(),
            enums: Vec::new(),
        };
        let mut at = types;
        while at < types_end {
            let id = first + btf.entries.len() as u32;
            btf.entries.push((at - types) as u32);
            let info = u32_at(&btf.bytes, at + 4)?;
            let kind = info >> 24 & 0x1f;
            match kind {
                KIND_STRUCT | KIND_UNION => {
                    if let Some(name) = btf.string_at(u32_at(&btf.bytes, at)?) {
                        btf.structs.entry(name.into()).or_insert(id);
                    }
                }
                KIND_FUNC => {
                    if let Some(name) = btf.string_at(u32_at(&btf.bytes, at)?) {
                        btf.functions.entry(name.into()).or_insert(id);
                    }
                }
                KIND_ENUM => btf.enums.push(id),
                _ => {}
            }
            at += 12 + trailer_len(kind, info & 0xffff)?;
        }
        btf.ends.0 = first + btf.entries.len() as u32;
        Some(btf)
    }

    /// Whether a function is there under this very name, so that a trampoline may attach to it.
    pub(crate) fn has_function(&self, name: &str) -> bool {
        self.functions.contains_key(name.as_bytes())
    }

    /// Type id of an own function: what a trampoline attaches to.
    pub(crate) fn function_id(&self, name: &str) -> Option<u32> {
        self.functions.get(name.as_bytes()).copied()
    }

    /// Size of a struct in bytes.
    pub(crate) fn size_of(&self, name: &str) -> Option<u32> {
        self.word_at(*self.structs.get(name.as_bytes())?, 8)
    }

    /// Offset in bytes of a member: `task_struct.group_leader`; `ipc_namespace.ns.inum` goes
    /// through a member that is itself a struct. Members of anonymous structs count as the outer's.
    pub(crate) fn member_offset(&self, path: &str) -> Option<u32> {
        let mut parts = path.split('.');
        let mut id = *self.structs.get(parts.next()?.as_bytes())?;
        let mut offset = 0;
        for part in parts {
            let (member, bits) = self.find_member(self.resolve_type(id)?, part.as_bytes(), 0)?;
            offset += bits / 8;
            id = member;
        }
        Some(offset)
    }

    /// Value of an enumerator.
    pub(crate) fn enumerator_value(&self, name: &str) -> Option<u32> {
        for &id in &self.enums {
            let count = self.word_at(id, 4)? & 0xffff;
            for index in 0..count as usize {
                if self.string_at(self.word_at(id, 12 + index * 8)?) == Some(name.as_bytes()) {
                    return self.word_at(id, 12 + index * 8 + 4);
                }
            }
        }
        None
    }

    /// Through typedefs and qualifiers to the type itself.
    fn resolve_type(&self, mut id: u32) -> Option<u32> {
        // typedef 8, volatile 9, const 10, restrict 11, type_tag 18: all point on in word 2.
        for _ in 0..16 {
            let kind = self.word_at(id, 4)? >> 24 & 0x1f;
            if !matches!(kind, 8..=11 | 18) {
                return Some(id);
            }
            id = self.word_at(id, 8)?;
        }
        None
    }

    /// Type and bit offset of a member.
    fn find_member(&self, id: u32, wanted: &[u8], depth: u32) -> Option<(u32, u32)> {
        let info = self.word_at(id, 4)?;
        if !matches!(info >> 24 & 0x1f, KIND_STRUCT | KIND_UNION) || depth > 8 {
            return None;
        }
        let bitfields = info >> 31 != 0;
        for index in 0..(info & 0xffff) as usize {
            let at = 12 + index * 12;
            let kind = self.word_at(id, at + 4)?;
            let raw = self.word_at(id, at + 8)?;
            let bits = if bitfields { raw & 0xff_ffff } else { raw };
            match self.string_at(self.word_at(id, at)?) {
                Some(name) if name == wanted => return Some((kind, bits)),
                Some(_) => {}
                None => {
                    if let Some((kind, inner)) =
                        self.find_member(self.resolve_type(kind)?, wanted, depth + 1)
                    {
                        return Some((kind, bits + inner));
                    }
                }
            }
        }
        None
    }

    #[cfg(test)]
    fn name_at(&self, name: &str) -> u32 {
        let wanted = |&at: &u32| self.string_at(at) == Some(name.as_bytes());
        (1..self.ends.1).find(wanted).expect("a name of the sample")
    }

    fn word_at(&self, id: u32, offset: usize) -> Option<u32> {
        let first = self.base.as_ref().map_or(0, |base| base.ends.0);
        let Some(own) = id.checked_sub(first) else {
            return self.base.as_ref()?.word_at(id, offset);
        };
        let entry = *self.entries.get(own as usize)? as usize;
        u32_at(&self.bytes, self.types + entry + offset)
    }

    fn string_at(&self, offset: u32) -> Option<&[u8]> {
        if offset == 0 {
            return None;
        }
        let first = self.base.as_ref().map_or(0, |base| base.ends.1);
        let Some(own) = offset.checked_sub(first) else {
            return self.base.as_ref()?.string_at(offset);
        };
        let rest = self.bytes.get(self.strings + own as usize..)?;
        let end = rest.iter().position(|&byte| byte == 0)?;
        (end > 0).then(|| &rest[..end])
    }
}

/// Bytes after the common 12 of an entry.
fn trailer_len(kind: u32, count: u32) -> Option<usize> {
    let count = count as usize;
    Some(match kind {
        1 | 14 | 17 => 4, // int, var, decl_tag
        3 => 12,          // array
        KIND_STRUCT | KIND_UNION => count * 12,
        KIND_ENUM | 13 => count * 8, // enum, func_proto
        15 | 19 => count * 12,       // datasec, enum64
        2 | 7..=12 | 16 | 18 => 0,   // ptr, fwd, typedef .. func, float, type_tag
        _ => return None,
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What follows the kernel's types: a struct with a member of the kernel's type and name.
    fn sample_module(kernel: &Btf) -> Vec<u8> {
        let x = kernel.name_at("x");
        let (_, strings) = kernel.ends;
        let own = b"\0mapped_device\0dev_remove\0";
        let mut types: Vec<u32> = Vec::new();
        types.extend([strings + 1, 4 << 24 | 1, 8, x, 4, 32]);
        types.extend([0, 13 << 24, 0]);
        types.extend([strings + 15, 12 << 24, kernel.ends.0 + 1]);
        btf_blob(&types, own)
    }

    #[test]
    fn a_module_continues_the_kernels_types_and_strings() {
        let kernel = Rc::new(Btf::parse(sample_btf(), None).expect("sample parses"));
        let module =
            Btf::parse(sample_module(&kernel), Some(Rc::clone(&kernel))).expect("module parses");
        assert_eq!(module.member_offset("mapped_device.x"), Some(4));
        assert_eq!(module.member_offset("mapped_device.x.inum"), Some(8));
        assert_eq!(module.function_id("dev_remove"), Some(kernel.ends.0 + 2));
        assert_eq!(module.function_id("newary"), None);
    }

    /// Two structs, one holding the other and an anonymous union; an enum; a function.
    fn sample_btf() -> Vec<u8> {
        let mut strings = vec![0u8];
        let mut name = |text: &str| {
            let at = strings.len() as u32;
            strings.extend(text.as_bytes());
            strings.push(0);
            at
        };
        let mut types: Vec<u32> = Vec::new();
        // 1: int
        types.extend([name("int"), 1 << 24, 4, 32]);
        // 2: struct inner { int a; int inum; }
        types.extend([name("inner"), 4 << 24 | 2, 8]);
        types.extend([name("a"), 1, 0, name("inum"), 1, 32]);
        // 3: union { int nsems; }
        types.extend([0, 5 << 24 | 1, 4, name("nsems"), 1, 0]);
        // 4: typedef inner_t -> 2
        types.extend([name("inner_t"), 8 << 24, 2]);
        // 5: struct outer { int x; <3>; inner_t ns; }
        types.extend([name("outer"), 4 << 24 | 3, 16]);
        types.extend([name("x"), 1, 0, 0, 3, 32, name("ns"), 4, 64]);
        // 6: enum { one_id = 7 }
        types.extend([0, 6 << 24 | 1, 4, name("one_id"), 7]);
        // 7: func_proto, 8: func newary
        types.extend([0, 13 << 24, 0]);
        types.extend([name("newary"), 12 << 24, 7]);
        btf_blob(&types, &strings)
    }

    fn btf_blob(types: &[u32], strings: &[u8]) -> Vec<u8> {
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut out = Vec::new();
        out.extend(MAGIC.to_le_bytes());
        out.extend([1, 0]);
        for word in [
            24,
            0,
            types.len() as u32,
            types.len() as u32,
            strings.len() as u32,
        ] {
            out.extend(word.to_le_bytes());
        }
        out.extend(types);
        out.extend(strings);
        out
    }

    #[test]
    fn offsets_go_through_typedefs_and_anonymous_members() {
        let btf = Btf::parse(sample_btf(), None).expect("sample parses");
        assert_eq!(btf.member_offset("outer.x"), Some(0));
        assert_eq!(btf.member_offset("outer.nsems"), Some(4));
        assert_eq!(btf.member_offset("outer.ns.inum"), Some(12));
        assert_eq!(btf.member_offset("outer.gone"), None);
        assert_eq!(btf.member_offset("nothing.x"), None);
        assert_eq!(btf.size_of("outer"), Some(16));
        assert_eq!(btf.enumerator_value("one_id"), Some(7));
        assert!(btf.has_function("newary"));
        assert!(!btf.has_function("freeary"));
    }

    #[test]
    fn cut_short_at_any_byte_never_panics() {
        let whole = sample_btf();
        for len in 0..whole.len() {
            if let Some(btf) = Btf::parse(whole[..len].to_vec(), None) {
                let _some_or_none = btf.member_offset("outer.ns.inum");
                let _some_or_none = btf.enumerator_value("one_id");
            }
        }
    }
}
