//! Where the programs of a process are in its memory, by what was copied when it made a cookie.

use std::{fs, rc::Rc};

use dmtrace_common::{
    AUXV_WORDS, MODULE_PATH, ModuleSample, STACK_MODULES_CUT, STACK_MORE_MODULES, StackSample,
};
use dmtrace_core::{event::text::decode_c_string, ids::ProcId};

use super::{Binary, BinaryLocation, Finder, binary::Headers, find::is_alive};

/// `AT_ENTRY`, `AT_EXECFN` is not used: it is what the caller of `execve` has said.
const AT_ENTRY: u64 = 9;

/// A program or library in memory.
pub(crate) struct MappedModule {
    /// What is known of its file.
    pub place: BinaryLocation,
    /// Address in memory less address in the file.
    pub bias: u64,
    headers: Option<Headers>,
    /// `link_map.l_ld`; 0 if not known.
    dynamic: u64,
    binary: Option<Result<Rc<Binary>, String>>,
}

/// All programs in the memory of a process.
#[derive(Default)]
pub(crate) struct AddressSpace {
    modules: Vec<MappedModule>,
    process: Option<ProcId>,
    mnt_ns: u32,
    /// Why libraries may be missing.
    incomplete: Option<&'static str>,
}

impl AddressSpace {
    /// From what the kernel side has copied. `program` is the path of the executable.
    pub(crate) fn of_sample(sample: &StackSample, program: Option<&str>) -> Self {
        let process = ProcId::from(sample.header.actor);
        let mut space = Self {
            modules: Vec::new(),
            process: Some(process),
            mnt_ns: sample.mnt_ns,
            incomplete: if sample.state & STACK_MORE_MODULES != 0 {
                Some("it has more libraries than are kept")
            } else if sample.state & STACK_MODULES_CUT != 0 {
                Some("its list of libraries could not be read to the end")
            } else {
                None
            },
        };
        let used = sample.modules.iter().take(sample.modules_len as usize);
        for (index, module) in used.enumerate() {
            let is_program = index == 0;
            let path = if is_program {
                program.unwrap_or_default().to_owned()
            } else {
                module_path(module)
            };
            space.add_module(module, path, is_program, &sample.auxv);
        }
        space
    }

    fn add_module(
        &mut self,
        sample: &ModuleSample,
        path: String,
        program: bool,
        auxv: &[u64; AUXV_WORDS],
    ) {
        let headers = (sample.head_read == 1)
            .then(|| Headers::parse(&sample.head[..]))
            .flatten();
        let mut bias = sample.bias;
        if program && let Some(headers) = &headers {
            let entry = auxv
                .as_chunks::<2>()
                .0
                .iter()
                .find(|pair| pair[0] == AT_ENTRY);
            bias = entry.map_or(bias, |pair| pair[1].wrapping_sub(headers.entry));
        }
        self.modules.push(MappedModule {
            place: BinaryLocation {
                path,
                build_id: headers.as_ref().and_then(|it| it.build_id.clone()),
                mnt_ns: self.mnt_ns,
                process: self.process,
                program,
            },
            bias,
            headers,
            dynamic: sample.dynamic,
            binary: None,
        });
    }

    /// Adds a program whose place in memory is known otherwise.
    #[cfg(test)]
    pub(crate) fn add_file(&mut self, place: BinaryLocation, bias: u64) {
        self.modules.push(MappedModule {
            place,
            bias,
            headers: None,
            dynamic: 0,
            binary: None,
        });
    }

    /// The module at an address, by number.
    pub(crate) fn locate_module(&mut self, address: u64, finder: &mut Finder) -> Option<usize> {
        let found = (0..self.modules.len()).find(|index| self.has_code(*index, address, finder));
        found.or_else(|| self.learn_module(address, finder))
    }

    /// A module by number.
    pub(crate) fn module_at(&self, index: usize) -> &MappedModule {
        &self.modules[index]
    }

    /// Why an address may be in no module.
    pub(crate) fn why_nowhere(&self, address: u64) -> String {
        match self.incomplete {
            Some(why) => format!("{address:#x} is in no known file of the process: {why}"),
            None if self.modules.is_empty() => {
                "where its programs are in memory could not be read".to_owned()
            }
            None => format!("{address:#x} is in no file of the process"),
        }
    }

    /// The binary of a module.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub(crate) fn module_binary(
        &mut self,
        index: usize,
        finder: &mut Finder,
    ) -> Result<Rc<Binary>, String> {
        let module = &mut self.modules[index];
        if let Some(known) = &module.binary {
            return known.clone();
        }
        let found = finder.find_binary(&module.place).and_then(|binary| {
            // Without a build-id, the dynamic section tells most other builds apart.
            let moved = module.dynamic != 0
                && binary.headers.dynamic != Some(module.dynamic.wrapping_sub(module.bias));
            if moved {
                return Err(format!("{} has changed since", module.place.path));
            }
            Ok(binary)
        });
        if let Ok(binary) = &found {
            module.place.build_id = module
                .place
                .build_id
                .take()
                .or_else(|| binary.headers.build_id.clone());
            if module.headers.is_none() {
                module.headers = Some(binary.headers.clone());
            }
        }
        module.binary = Some(found.clone());
        found
    }

    fn has_code(&mut self, index: usize, address: u64, finder: &mut Finder) -> bool {
        if self.modules[index].headers.is_none() {
            let _headers_from_file = self.module_binary(index, finder);
        }
        let module = &self.modules[index];
        let inside = address.wrapping_sub(module.bias);
        module
            .headers
            .as_ref()
            .is_some_and(|headers| headers.load_range().contains(&inside))
    }

    /// Asks the process itself, if it is still there.
    fn learn_module(&mut self, address: u64, finder: &mut Finder) -> Option<usize> {
        let process = self.process.filter(|process| is_alive(*process))?;
        let maps = fs::read_to_string(format!("/proc/{}/maps", process.tgid)).ok()?;
        let mapping = maps
            .lines()
            .filter_map(Mapping::parse)
            .find(|mapping| mapping.start <= address && address < mapping.end)?;
        let place = BinaryLocation {
            path: mapping.path.to_owned(),
            build_id: None,
            mnt_ns: self.mnt_ns,
            process: Some(process),
            program: false,
        };
        let binary = finder.find_binary(&place).ok()?;
        let load = binary.headers.loads.iter().find(|load| {
            let end = load.offset + (load.addresses.end - load.addresses.start);
            (load.offset..end).contains(&mapping.offset) || load.offset & !0xfff == mapping.offset
        })?;
        let in_file = load
            .addresses
            .start
            .wrapping_add(mapping.offset)
            .wrapping_sub(load.offset);
        self.modules.push(MappedModule {
            place,
            bias: mapping.start.wrapping_sub(in_file),
            headers: Some(binary.headers.clone()),
            dynamic: 0,
            binary: Some(Ok(binary)),
        });
        Some(self.modules.len() - 1)
    }
}

fn module_path(module: &ModuleSample) -> String {
    match usize::try_from(module.path_len) {
        Ok(len) => decode_c_string(&module.path[..len.min(MODULE_PATH)]),
        Err(_) => String::new(),
    }
}

/// A line of `/proc/PID/maps` that is of a file.
struct Mapping<'a> {
    start: u64,
    end: u64,
    offset: u64,
    path: &'a str,
}

impl<'a> Mapping<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let offset = rest.split(' ').nth(1)?;
        let path = &line[line.find('/')?..];
        Some(Self {
            start: hex(start)?,
            end: hex(end)?,
            offset: hex(offset)?,
            path,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_maps_are_read() {
        let line = "7f1200-7f1400 r-xp 00028000 fe:00 123   /usr/lib/a b.so (deleted)";
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!((mapping.start, mapping.end), (0x7f_1200, 0x7f_1400));
        assert_eq!(mapping.offset, 0x28000);
        assert_eq!(mapping.path, "/usr/lib/a b.so (deleted)");
        assert!(Mapping::parse("7f1200-7f1400 rw-p 00000000 00:00 0   [heap]").is_none());
    }
}
