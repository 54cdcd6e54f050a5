//! Names for addresses: of what is shown only, from the symbol tables, Go's tables and DWARF.

use std::{collections::HashMap, rc::Rc};

use dmtrace_core::event::{BuildId, CallFrame, CallSite, Module, Symbol};
use gimli::{Dwarf, EndianRcSlice, LittleEndian, SectionId};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};

use super::{Binary, BinaryLocation, Finder, go::Pclntab};

type Slice = EndianRcSlice<LittleEndian>;

/// Binaries whose names are kept.
const MAX_CACHED_SYMBOLS: usize = 64;
/// A function without a size is believed to be no longer than this.
const MAX_UNSIZED_LEN: u64 = 64 << 10;

/// Gives names to frames.
#[derive(Default)]
pub(crate) struct Symbolizer {
    finder: Finder,
    names: HashMap<Module, Option<Rc<Names>>>,
    /// The frames are of another machine or boot: a file counts only by its build-id.
    foreign: bool,
}

/// What is known of the addresses of a binary.
struct Names {
    /// Start, end and name, by start.
    symbols: Vec<(u64, u64, String)>,
    go: Option<Rc<Pclntab>>,
    lines: Option<addr2line::Context<Slice>>,
}

impl Symbolizer {
    /// For frames that were taken on another machine, or before the last boot.
    pub(crate) fn for_foreign() -> Self {
        Self {
            foreign: true,
            ..Self::default()
        }
    }

    /// Names all frames that have no name yet, as far as their binaries can be found.
    pub(crate) fn resolve_site(&mut self, site: &mut CallSite) {
        let mnt_ns = site.mnt_ns;
        for frame in &mut site.frames {
            if !frame.symbols.is_empty() {
                continue;
            }
            let module = frame.module.and_then(|index| site.modules.get(index));
            if let Some(module) = module
                && let Some(names) = self.names_of(module, mnt_ns)
            {
                frame.symbols = names.symbols_at(frame);
            }
        }
    }

    fn names_of(&mut self, module: &Module, mnt_ns: u32) -> Option<Rc<Names>> {
        if let Some(known) = self.names.get(module) {
            return known.clone();
        }
        let names = self.read_names(module, mnt_ns).map(Rc::new);
        if self.names.len() >= MAX_CACHED_SYMBOLS {
            self.names.clear();
        }
        self.names.insert(module.clone(), names.clone());
        names
    }

    fn read_names(&mut self, module: &Module, mnt_ns: u32) -> Option<Names> {
        if self.foreign && module.build_id.is_none() {
            return None;
        }
        let binary = self.finder.find_binary(&BinaryLocation {
            path: module.path.clone(),
            build_id: module.build_id.clone(),
            mnt_ns,
            process: None,
            program: false,
        });
        let debug = |build_id: &BuildId| self.finder.debug_file(build_id);
        let debug = module.build_id.as_ref().and_then(debug);
        let binary = binary.ok();
        let sources: Vec<&Binary> = [&binary, &debug]
            .into_iter()
            .flatten()
            .map(Rc::as_ref)
            .collect();
        (!sources.is_empty()).then(|| Names {
            symbols: read_symbols(&sources),
            go: binary.as_ref().and_then(|binary| binary.go.clone()),
            lines: sources.iter().find_map(|binary| line_context(binary)),
        })
    }
}

impl Names {
    /// Functions of a frame, the innermost of inlined ones first.
    fn symbols_at(&self, frame: &CallFrame) -> Vec<Symbol> {
        // The address is that of the next instruction, perhaps of the next function.
        let address = frame.address.saturating_sub(1);
        let go = self
            .go
            .as_ref()
            .and_then(|table| table.function_at(address));
        if let Some(symbol) = go.and_then(|function| function.symbol_at(address)) {
            return vec![symbol];
        }
        let mut found = self.by_lines(address);
        let name = self.by_table(address);
        match (found.last_mut(), name) {
            // The linker's name of the function itself is there even where DWARF's is not.
            (Some(outer), Some(name)) if outer.function.is_empty() => outer.function = name,
            (None, Some(function)) => found.push(Symbol {
                function,
                file: None,
                line: None,
            }),
            _ => {}
        }
        found.retain(|symbol| !symbol.function.is_empty());
        found
    }

    fn by_lines(&self, address: u64) -> Vec<Symbol> {
        let Some(context) = &self.lines else {
            return Vec::new();
        };
        let mut symbols = Vec::new();
        if let Ok(mut frames) = context.find_frames(address).skip_all_loads() {
            while let Ok(Some(frame)) = frames.next() {
                let name = frame.function.as_ref();
                let name =
                    name.and_then(|function| Some(demangle_name(&function.raw_name().ok()?)));
                let place = frame.location;
                symbols.push(Symbol {
                    function: name.unwrap_or_default(),
                    file: place.as_ref().and_then(|it| it.file).map(str::to_owned),
                    line: place.and_then(|it| it.line),
                });
            }
        }
        symbols
    }

    fn by_table(&self, address: u64) -> Option<String> {
        let next = self
            .symbols
            .partition_point(|(start, ..)| *start <= address);
        let (_, end, name) = self.symbols.get(next.checked_sub(1)?)?;
        (address < *end).then(|| name.clone())
    }
}

/// Functions of the symbol tables, one for each address.
fn read_symbols(sources: &[&Binary]) -> Vec<(u64, u64, String)> {
    let mut all: Vec<(u64, u64, u8, String)> = Vec::new();
    for binary in sources {
        let Some(elf) = binary.elf() else { continue };
        for symbol in elf.symbols().chain(elf.dynamic_symbols()) {
            let Ok(name) = symbol.name() else { continue };
            if symbol.kind() != SymbolKind::Text || symbol.is_undefined() || name.is_empty() {
                continue;
            }
            let (start, size) = (symbol.address(), symbol.size());
            // Without the version; of several names the public one.
            let name = name.split('@').next().unwrap_or(name);
            let hidden = u8::from(symbol.is_local()) * 2 + u8::from(name.starts_with('_'));
            all.push((start, start.saturating_add(size), hidden, name.to_owned()));
        }
    }
    all.sort_by(|a, b| (a.0, a.2, &a.3).cmp(&(b.0, b.2, &b.3)));
    all.dedup_by_key(|symbol| symbol.0);
    let starts: Vec<u64> = all.iter().map(|symbol| symbol.0).collect();
    all.into_iter()
        .enumerate()
        .map(|(index, (start, end, _, name))| {
            let next = starts.get(index + 1).copied().unwrap_or(u64::MAX);
            let end = if end > start {
                end
            } else {
                next.min(start.saturating_add(MAX_UNSIZED_LEN))
            };
            (start, end, demangle_name(&name))
        })
        .collect()
}

fn line_context(binary: &Binary) -> Option<addr2line::Context<Slice>> {
    let elf = binary.elf()?;
    elf.section_by_name(".debug_info")?;
    let load = |id: SectionId| -> Result<Slice, gimli::Error> {
        let bytes = elf
            .section_by_name(id.name())
            .and_then(|section| section.uncompressed_data().ok())
            .unwrap_or_default();
        Ok(EndianRcSlice::new(Rc::from(&*bytes), LittleEndian))
    };
    addr2line::Context::from_dwarf(Dwarf::load(load).ok()?).ok()
}

fn demangle_name(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}
