//! The user stack of the current thread, and where its programs are in memory.
//!
//! The list of libraries comes from the dynamic linker's own list in user memory (`DT_DEBUG`,
//! `struct link_map`): it is the same in every kernel, which the kernel's list of mappings is not,
//! and it is complete also for a process that has ended before anybody could read its maps.

use core::mem::offset_of;

use aya_ebpf::helpers::generated::{
    bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_probe_read_user, bpf_probe_read_user_str,
    bpf_task_pt_regs,
};
use dmtrace_common::{
    AUXV_WORDS, CS_64, GoroutineSample, Header, Kind, MODULE_HEAD, MODULE_PATH, MODULES, PAGE,
    STACK_MODULES_CUT, STACK_MORE_MODULES, STACK_NO_REGS, STACK_PAGES, StackSample, UserRegs,
};

use crate::{
    emit, goroutine,
    offsets::{
        ABSENT, F_TASK_PT_REGS, O_MM_AUXV, O_MNTNS_INUM, O_NSPROXY_MNT, O_TASK_MM, O_TASK_NSPROXY,
        O_TASK_STACK,
    },
    process::{current_task, current_thread},
    read::{Addr, u32_at, u64_at},
};

/// Bytes of a kernel stack on x86-64.
const THREAD_SIZE: u64 = 16 << 10;
/// Program headers that are looked at.
const HEADERS: u64 = 16;
/// Entries of the dynamic section that are looked at.
const DYNAMIC: u64 = 48;

const AT_PHDR: u64 = 3;
const AT_PHNUM: u64 = 5;
const PT_DYNAMIC: u64 = 2;
const PT_PHDR: u64 = 6;
const DT_DEBUG: u64 = 21;

/// Arguments of the system call that the current thread is in.
pub(crate) struct UserCall {
    /// `rdi`.
    pub first: u32,
    /// `rdx`.
    pub third: u32,
}

/// Where the user's registers are saved.
#[inline(always)]
fn user_regs() -> Addr {
    if F_TASK_PT_REGS.load() != ABSENT {
        // SAFETY: takes no pointers.
        let task = unsafe { bpf_get_current_task_btf() };
        // SAFETY: the current task, as the kernel's type.
        return unsafe { bpf_task_pt_regs(task) } as u64;
    }
    // The verifier never sees the helpers above on a kernel without them. There the registers are
    // at the very top of the kernel's stack.
    let stack = u64_at(current_task(), &O_TASK_STACK);
    if stack == 0 {
        0
    } else {
        stack + THREAD_SIZE - size_of::<UserRegs>() as u64
    }
}

#[inline(always)]
fn kernel_into<T>(into: *mut T, from: Addr) -> bool {
    // SAFETY: the helper checks the address and writes one T; the verifier checks the room.
    from != 0
        && unsafe { bpf_probe_read_kernel(into.cast(), size_of::<T>() as u32, from as *const _) }
            == 0
}

#[inline(always)]
pub(crate) fn user_into<T>(into: *mut T, from: Addr) -> bool {
    // SAFETY: as above.
    unsafe { bpf_probe_read_user(into.cast(), size_of::<T>() as u32, from as *const _) == 0 }
}

/// The system call of the current thread; `None` for 32-bit callers.
#[inline(always)]
pub(crate) fn user_call() -> Option<UserCall> {
    let regs = user_regs();
    // One by one: see `goroutine::g`.
    let word = |offset: usize| {
        let mut word = 0u64;
        kernel_into(&raw mut word, regs + offset as u64).then_some(word)
    };
    let general = |index: usize| word(offset_of!(UserRegs, general) + 8 * index);
    (regs != 0 && word(offset_of!(UserRegs, cs))? == CS_64).then_some(UserCall {
        first: general(14)? as u32,
        third: general(12)? as u32,
    })
}

/// Sends the stack of the current thread, which has just made a cookie.
///
/// Exported: see `process::dmtrace_capture`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn dmtrace_stack(ns: u32, semid: u32, key: u32) -> u64 {
    let who = current_thread();
    emit::send_stack(|sample| {
        // SAFETY: the reserved space is large and aligned enough, and ours until submitted. Every
        // bit pattern is valid.
        let sample = unsafe { &mut *sample };
        sample.header = Header {
            kind: Kind::Stack as u16,
            flags: 0,
            tid: who.tid,
            ts: who.now,
            actor: who.key,
        };
        sample.ns = ns;
        sample.semid = semid as i32;
        sample.key = key;
        sample.state = 0;
        let nsproxy = u64_at(who.task, &O_TASK_NSPROXY);
        sample.mnt_ns = u32_at(u64_at(nsproxy, &O_NSPROXY_MNT), &O_MNTNS_INUM);
        copy_stack(sample);
        read_modules(sample, u64_at(who.task, &O_TASK_MM));
    });
    0
}

#[inline(always)]
fn copy_stack(sample: &mut StackSample) {
    sample.pages = 0;
    sample.start = 0;
    sample.thread_pages = STACK_PAGES as u32;
    sample.goroutine = GoroutineSample::default();
    if !kernel_into(&raw mut sample.regs, user_regs()) {
        sample.state |= STACK_NO_REGS;
        return;
    }
    let start = page_of(sample.regs.sp);
    sample.start = start;
    let entered = goroutine::find_waiting(sample.regs.sp, &mut sample.goroutine);
    if entered > start {
        // All frames of C are below.
        let used = (entered - start).div_ceil(PAGE as u64);
        sample.thread_pages = used.min(STACK_PAGES as u64) as u32;
    }
    let base = (&raw mut sample.stack).cast::<[u8; PAGE]>();
    let mut from = start;
    for page in 0..STACK_PAGES {
        if page as u32 == sample.thread_pages {
            from = page_of(sample.goroutine.sp);
        }
        if page as u32 > sample.thread_pages && from >= sample.goroutine.end {
            break;
        }
        // SAFETY: inside the array.
        let into = unsafe { base.add(page) };
        if !user_into(into, from) {
            break;
        }
        sample.pages = page as u32 + 1;
        from += PAGE as u64;
    }
}

/// Address of the page that an address is in.
const fn page_of(address: Addr) -> Addr {
    address & !(PAGE as u64 - 1)
}

/// The program itself, then what the dynamic linker has loaded.
#[inline(always)]
fn read_modules(sample: &mut StackSample, mm: Addr) {
    sample.modules_len = 0;
    let auxv = O_MM_AUXV.load();
    let from = if mm == 0 || auxv == ABSENT {
        0
    } else {
        mm + u64::from(auxv)
    };
    if !kernel_into(&raw mut sample.auxv, from) {
        sample.auxv = [0; AUXV_WORDS];
        return;
    }
    let (mut headers, mut count) = (0u64, 0u64);
    for pair in 0..AUXV_WORDS / 2 {
        match sample.auxv[pair * 2] {
            0 => break,
            AT_PHDR => headers = sample.auxv[pair * 2 + 1],
            AT_PHNUM => count = sample.auxv[pair * 2 + 1],
            _ => {}
        }
    }
    if headers == 0 {
        return;
    }
    let (bias, dynamic) = read_program(headers, count);
    let module = &mut sample.modules[0];
    module.bias = bias;
    module.dynamic = 0;
    module.path_len = 0;
    // The headers are in the first page with all linkers.
    module.head_read = u32::from(user_into(
        &raw mut module.head,
        headers & !(PAGE as u64 - 1),
    ));
    sample.modules_len = 1;
    if dynamic != 0 {
        read_libraries(sample, dynamic);
    }
}

/// Bias of the program, and the address of its dynamic section; 0 if it has none.
#[inline(always)]
fn read_program(headers: Addr, count: u64) -> (u64, Addr) {
    let (mut bias, mut dynamic) = (0u64, 0u64);
    for index in 0..HEADERS {
        if index >= count {
            break;
        }
        // p_type and p_flags, p_offset, p_vaddr.
        let mut header = [0u64; 3];
        if !user_into(&raw mut header, headers + index * 56) {
            break;
        }
        match header[0] & 0xffff_ffff {
            PT_PHDR => bias = headers.wrapping_sub(header[2]),
            PT_DYNAMIC => dynamic = header[2],
            _ => {}
        }
    }
    if dynamic != 0 {
        dynamic = dynamic.wrapping_add(bias);
    }
    (bias, dynamic)
}

#[inline(always)]
fn read_libraries(sample: &mut StackSample, dynamic: Addr) {
    let mut debug = 0u64;
    for index in 0..DYNAMIC {
        let mut entry = [0u64; 2];
        if !user_into(&raw mut entry, dynamic + index * 16) || entry[0] == 0 {
            break;
        }
        if entry[0] == DT_DEBUG {
            debug = entry[1];
            break;
        }
    }
    // struct r_debug: version, then the list, whose first entry is the program itself.
    let mut map = 0u64;
    let mut next = 0u64;
    if debug == 0 || !user_into(&raw mut map, debug + 8) || !user_into(&raw mut next, map + 24) {
        // A static program, which lists nothing.
        return;
    }
    for index in 1..MODULES {
        if next == 0 {
            return;
        }
        // struct link_map: l_addr, l_name, l_ld, l_next.
        let mut entry = [0u64; 4];
        if !user_into(&raw mut entry, next) {
            sample.state |= STACK_MODULES_CUT;
            return;
        }
        let module = &mut sample.modules[index];
        module.bias = entry[0];
        module.dynamic = entry[2];
        // SAFETY: the helper checks the address and writes no more than the length.
        module.path_len = unsafe {
            bpf_probe_read_user_str(
                (&raw mut module.path).cast(),
                MODULE_PATH as u32,
                entry[1] as *const _,
            )
        } as i32;
        module.head_read = u32::from(user_into(&raw mut module.head, entry[0]));
        sample.modules_len = index as u32 + 1;
        next = entry[3];
    }
    if next != 0 {
        sample.state |= STACK_MORE_MODULES;
    }
}

const _: () = assert!(MODULE_HEAD <= PAGE);
