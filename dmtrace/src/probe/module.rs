//! Trampolines into a kernel module. Types of a module continue those of the kernel in a BTF
//! object of their own, which aya 0.16 cannot attach by: the programs are taken from the same
//! object, use the same maps, and are loaded here with `bpf(2)`.

use std::{
    collections::HashMap,
    ffi::CString,
    io, mem,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use aya_obj::generated::bpf_insn;

use super::{
    attach::last_words,
    bpf::{bpf_call, bpf_fd, pointer_address},
};

use crate::wording::cause_text;

const BPF_PROG_LOAD: u32 = 5;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_RAW_TRACEPOINT_OPEN: u32 = 17;
const BPF_BTF_GET_FD_BY_ID: u32 = 19;
const BPF_BTF_GET_NEXT_ID: u32 = 23;

const BPF_PROG_TYPE_TRACING: u32 = 26;

/// On which side of a function.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum AttachSide {
    /// `BPF_TRACE_FENTRY`.
    Entry = 24,
    /// `BPF_TRACE_FEXIT`.
    Exit = 25,
}

/// The maps of a loaded object, by name.
pub(super) struct MapFds(Vec<(String, OwnedFd)>);

impl MapFds {
    /// Own descriptors of all maps: the loaded object may close its own.
    ///
    /// # Errors
    /// No more descriptors.
    pub(super) fn from_ebpf(ebpf: &Ebpf) -> io::Result<Self> {
        let mut fds = Vec::new();
        for (name, map) in ebpf.maps() {
            if let Some(data) = map_data(map) {
                fds.push((name.to_owned(), data.fd().as_fd().try_clone_to_owned()?));
            }
        }
        Ok(Self(fds))
    }
}

/// The kinds of maps that our object has.
const fn map_data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}

/// Programs with their maps in place, not loaded yet.
pub(super) struct ModulePrograms {
    code: HashMap<String, Code>,
    /// The code names them by number.
    _maps: MapFds,
}

struct Code {
    instructions: Vec<bpf_insn>,
    license: CString,
}

impl ModulePrograms {
    /// Reads the object again, and puts the maps of the loaded one in place.
    ///
    /// # Errors
    /// The object and the maps do not fit.
    pub(super) fn new(object: &[u8], maps: MapFds) -> Result<Self, String> {
        let mut object = aya_obj::Object::parse(object).map_err(|error| cause_text(&error))?;
        let sections = object.functions.keys().map(|(section, _)| *section);
        let sections = sections.collect();
        let defined = mem::take(&mut object.maps);
        let placed = maps.0.iter().filter_map(|(name, fd)| {
            let map = defined.get(name)?;
            Some((name.as_str(), fd.as_raw_fd(), map))
        });
        object
            .relocate_maps(placed, &sections)
            .map_err(|error| cause_text(&error))?;
        object
            .relocate_calls(&sections)
            .map_err(|error| cause_text(&error))?;
        let mut code = HashMap::new();
        for (name, program) in object.programs {
            if let Some(function) = object.functions.get(&program.function_key()) {
                let entry = Code {
                    instructions: function.instructions.clone(),
                    license: program.license,
                };
                code.insert(name, entry);
            }
        }
        Ok(Self { code, _maps: maps })
    }

    /// Loads a program for one function of a module, or of the kernel without `module`, and
    /// attaches it. It stays as long as the descriptor of its link, the second one.
    ///
    /// # Errors
    /// The kernel refuses it; in words.
    pub(super) fn attach_program(
        &self,
        name: &str,
        side: AttachSide,
        function: u32,
        module: Option<&OwnedFd>,
    ) -> Result<(OwnedFd, OwnedFd), String> {
        let code = self
            .code
            .get(name)
            .ok_or_else(|| format!("the object has no program {name}"))?;
        let mut attr = ProgLoad {
            prog_type: BPF_PROG_TYPE_TRACING,
            insn_cnt: u32::try_from(code.instructions.len()).map_err(|error| error.to_string())?,
            insns: pointer_address(code.instructions.as_ptr()),
            license: pointer_address(code.license.as_ptr()),
            prog_name: kernel_name(name),
            expected_attach_type: side as u32,
            attach_btf_id: function,
            attach_btf_obj_fd: module.map_or(0, |fd| fd.as_raw_fd() as u32),
            ..ProgLoad::default()
        };
        // SAFETY: the attribute points to instructions and a C string that outlive the call.
        let program = match unsafe { bpf_fd(BPF_PROG_LOAD, &mut attr) } {
            Ok(program) => program,
            Err(error) => return Err(verifier_text(attr, &error)),
        };
        let mut attr = RawTracepointOpen {
            prog_fd: program.as_raw_fd() as u32,
            ..RawTracepointOpen::default()
        };
        // SAFETY: the attribute has no pointers.
        let link = unsafe { bpf_fd(BPF_RAW_TRACEPOINT_OPEN, &mut attr) }
            .map_err(|error| format!("cannot be attached: {}", cause_text(&error)))?;
        Ok((program, link))
    }
}

/// Loads once more for the verifier's words: a log costs time, so the first attempt has none.
fn verifier_text(mut attr: ProgLoad, error: &io::Error) -> String {
    let mut log = vec![0u8; 1 << 16];
    attr.log_level = 1;
    attr.log_size = log.len() as u32;
    attr.log_buf = pointer_address(log.as_mut_ptr());
    // SAFETY: as in the first attempt; the log buffer outlives the call and has this size.
    let _refused_again = unsafe { bpf_fd(BPF_PROG_LOAD, &mut attr) };
    let end = log.iter().position(|&byte| byte == 0).unwrap_or(0);
    let log = String::from_utf8_lossy(&log[..end]);
    match last_words(&log) {
        Some(last) => format!("the verifier says: {last} ({})", cause_text(error)),
        None => format!("the kernel refuses to load it ({})", cause_text(error)),
    }
}

/// The BTF object of a module, by the module's name.
///
/// # Errors
/// There is none, or this process may not open it.
pub(super) fn btf_of(module: &str) -> io::Result<OwnedFd> {
    let mut id = 0;
    loop {
        let mut attr = GetId {
            id,
            ..GetId::default()
        };
        // SAFETY: the attribute has no pointers; the kernel writes inside it.
        unsafe { bpf_call(BPF_BTF_GET_NEXT_ID, &mut attr) }?;
        id = attr.next_id;
        let mut attr = GetId {
            id,
            ..GetId::default()
        };
        // SAFETY: as above.
        let Ok(fd) = (unsafe { bpf_fd(BPF_BTF_GET_FD_BY_ID, &mut attr) }) else {
            // A module that goes away at this moment.
            continue;
        };
        if name_of(&fd)?.as_deref() == Some(module.as_bytes()) {
            return Ok(fd);
        }
    }
}

/// Name of a BTF object of the kernel; programs have theirs, too, without a name.
fn name_of(fd: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
    let mut name = [0u8; 64];
    let mut info = BtfInfo {
        name: pointer_address(name.as_mut_ptr()),
        name_len: name.len() as u32,
        ..BtfInfo::default()
    };
    let mut attr = GetInfo {
        bpf_fd: fd.as_raw_fd() as u32,
        info_len: size_of::<BtfInfo>() as u32,
        info: pointer_address(&raw mut info),
    };
    // SAFETY: the attribute points to an info struct of this size, and that to a buffer for the
    // name of this size; both outlive the call.
    match unsafe { bpf_call(BPF_OBJ_GET_INFO_BY_FD, &mut attr) } {
        Ok(_) => {}
        // A name that does not fit is not ours.
        Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => return Ok(None),
        Err(error) => return Err(error),
    }
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(0);
    Ok((info.kernel_btf != 0).then(|| name[..end].to_vec()))
}

/// A program's name, as far as the kernel keeps it, NUL included.
fn kernel_name(name: &str) -> [u8; 16] {
    let mut out = [0; 16];
    for (to, from) in out.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    out
}

/// Members of `union bpf_attr` (include/uapi/linux/bpf.h), as far as they are used: the kernel
/// takes a shorter attribute as one that ends in zeros.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
    attach_btf_obj_fd: u32,
    _pad: u32,
}

#[repr(C)]
#[derive(Default)]
struct RawTracepointOpen {
    name: u64,
    prog_fd: u32,
    _pad: u32,
}

#[repr(C)]
#[derive(Default)]
struct GetId {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

#[repr(C)]
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// `struct bpf_btf_info`.
#[repr(C)]
#[derive(Default)]
struct BtfInfo {
    btf: u64,
    btf_size: u32,
    id: u32,
    name: u64,
    name_len: u32,
    kernel_btf: u32,
}

const _: () = assert!(size_of::<ProgLoad>() == 120);
const _: () = assert!(size_of::<BtfInfo>() == 32);
