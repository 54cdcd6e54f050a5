//! Stacks of this very process, copied and unwound as those of others are.

use std::arch::asm;

use dmtrace_core::{
    event::{BuildId, CallFrame, CallSite, ChainEnd, FrameSource, Module, Symbol},
    ids::{BootTime, ProcId},
};

use super::*;

/// A copy of the own stack, and the registers at that moment.
struct Copied {
    registers: Registers,
    start: u64,
    bytes: Vec<u8>,
}

/// Copies at most `most` bytes from here outwards.
#[inline(never)]
fn copy_stack(most: usize) -> Copied {
    let (ip, sp, bp): (u64, u64, u64);
    // SAFETY: reads three registers.
    unsafe {
        asm!("lea {}, [rip]", "mov {}, rsp", "mov {}, rbp", out(reg) ip, out(reg) sp, out(reg) bp);
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let end = maps.lines().find_map(|line| {
        let (range, _) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = (hex(start)?, hex(end)?);
        (start <= sp && sp < end).then_some(end)
    });
    let len = usize::try_from(end.unwrap() - sp).unwrap().min(most);
    // SAFETY: from the stack pointer to the end of the mapping, which is readable.
    let bytes = unsafe { std::slice::from_raw_parts(sp as *const u8, len) }.to_vec();
    Copied {
        registers: Registers::of_frame(ip, sp, bp),
        start: sp,
        bytes,
    }
}

#[inline(never)]
fn call_third(most: usize) -> Copied {
    let copied = copy_stack(most);
    std::hint::black_box(copied)
}

#[inline(never)]
fn call_second(most: usize) -> Copied {
    // Makes a frame that is larger than a red zone.
    let room = std::hint::black_box([0u8; 700]);
    let copied = call_third(most);
    std::hint::black_box(room);
    copied
}

#[inline(never)]
fn call_first(most: usize) -> Copied {
    let copied = call_second(most);
    std::hint::black_box(copied)
}

/// Bias of the test program, by a function whose address in the file the symbol table tells.
fn own_space() -> AddressSpace {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let exe = std::env::current_exe().unwrap().display().to_string();
    let line = maps.lines().find(|line| line.ends_with(&exe)).unwrap();
    let start = line.split('-').next().unwrap();
    let mut space = AddressSpace::default();
    let place = BinaryLocation {
        path: exe,
        program: true,
        ..BinaryLocation::default()
    };
    space.add_file(place, u64::from_str_radix(start, 16).unwrap());
    space
}

/// Names of the functions, and why the walk ended.
fn walk_copied(copied: &Copied, most: usize) -> (Vec<String>, ChainEnd) {
    let full = copied.bytes.len() == most;
    let memory = Memory::new(copied.start, &copied.bytes, full);
    let mut finder = Finder::default();
    let mut site = unwind_stack(&mut own_space(), &mut finder, copied.registers, &memory);
    Symbolizer::default().resolve_site(&mut site);
    (site.folded_stack(), site.end)
}

fn has_function(names: &[String], function: &str) -> bool {
    names.iter().any(|name| name.ends_with(function))
}

#[test]
fn a_copied_stack_is_unwound_without_frame_pointers() {
    // rustc keeps no frame pointers unless it is told to.
    let copied = call_first(1 << 20);
    let (names, end) = walk_copied(&copied, 1 << 20);
    let position = |function: &str| names.iter().position(|name| name.ends_with(function));
    let order = [
        position("::call_first"),
        position("::call_second"),
        position("::call_third"),
    ];
    assert!(
        order.iter().all(Option::is_some) && order.is_sorted(),
        "{names:?}"
    );
    // The test's thread begins in libc, which the address space above does not have.
    assert!(
        matches!(&end, ChainEnd::Truncated(why) if why.contains("in no file")),
        "{end:?}"
    );
}

#[test]
fn a_copy_that_is_too_short_says_so() {
    let copied = call_first(1024);
    let (names, end) = walk_copied(&copied, 1024);
    assert!(has_function(&names, "::call_third"), "{names:?}");
    assert!(!has_function(&names, "::call_first"), "{names:?}");
    assert_eq!(names[0], "[truncated]");
    assert_eq!(
        end,
        ChainEnd::Truncated("the copied 1 KiB of the stack are used up".to_owned())
    );
}

#[test]
fn a_binary_that_is_another_build_is_not_taken() {
    let place = BinaryLocation {
        path: std::env::current_exe().unwrap().display().to_string(),
        build_id: BuildId::from_bytes(&[0xab; 20]),
        ..BinaryLocation::default()
    };
    let why = Finder::default().find_binary(&place).err().unwrap();
    assert!(
        why.contains(&"ab".repeat(20)) && why.contains("not found"),
        "{why}"
    );
    let copied = call_first(1 << 20);
    let memory = Memory::new(copied.start, &copied.bytes, false);
    let mut space = AddressSpace::default();
    space.add_file(place, 0);
    let site = unwind_stack(
        &mut space,
        &mut Finder::default(),
        copied.registers,
        &memory,
    );
    assert_eq!(site.frames.len(), 1);
    assert!(
        site.chain_line().ends_with("< ..."),
        "{}",
        site.chain_line()
    );
}

#[test]
fn a_path_that_leads_to_a_device_is_not_opened() {
    let place = BinaryLocation {
        path: "/dev/zero".to_owned(),
        process: Some(ProcId {
            tgid: 1,
            start: BootTime(1),
        }),
        ..BinaryLocation::default()
    };
    assert!(Finder::default().find_binary(&place).is_err());
}

#[test]
fn a_call_site_survives_json() {
    let site = CallSite {
        frames: vec![CallFrame {
            module: Some(0),
            address: 0x1234,
            how: FrameSource::Inferred,
            symbols: vec![Symbol {
                function: "make_cookie".into(),
                file: Some("a.c".into()),
                line: Some(7),
            }],
        }],
        modules: vec![Module {
            path: "/usr/sbin/dmsetup".into(),
            build_id: BuildId::from_bytes(&[1, 2, 3]),
        }],
        end: ChainEnd::Truncated("why".into()),
        mnt_ns: 7,
    };
    let json = serde_json::to_string(&site).unwrap();
    assert_eq!(serde_json::from_str::<CallSite>(&json).unwrap(), site);
    assert_eq!(
        site.chain_lines(),
        ["make_cookie  a.c:7  dmsetup  (inferred)", "truncated: why"]
    );
    assert_eq!(site.folded_stack(), ["[truncated]", "make_cookie"]);
    assert_eq!(site.chain_line(), "make_cookie < ...");
}

#[test]
fn a_damaged_table_of_go_is_no_table() {
    assert!(go::Pclntab::parse(Vec::new(), 0).is_none());
    let mut header = vec![0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8];
    // More functions than there are bytes.
    header.extend([0xff; 64]);
    assert!(go::Pclntab::parse(header, 0).is_none());
}
