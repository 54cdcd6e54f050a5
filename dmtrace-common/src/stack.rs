//! What is copied of a thread that makes a cookie, so that its call chain can be found afterwards:
//! registers, stack, and where its programs are in memory.
//!
//! The message has a ring of its own and is worked off at once; neither it nor these layouts are in
//! a recording.

use crate::Header;

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Pages of stacks that are copied, the one with the stack pointer in front.
pub const STACK_PAGES: usize = 8;
/// Words of the auxiliary vector that are copied: pairs of type and value.
pub const AUXV_WORDS: usize = 48;
/// Programs and libraries that are told.
pub const MODULES: usize = 32;
/// Bytes kept of the path of a library, its NUL included.
pub const MODULE_PATH: usize = 160;
/// Bytes kept of the beginning of a program: the ELF header, the program headers, and with all
/// common linkers the build-id.
pub const MODULE_HEAD: usize = 1024;

/// `struct pt_regs` of x86-64, the same in every kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct UserRegs {
    /// r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, `orig_rax`.
    pub general: [u64; 16],
    /// Address of the next instruction.
    pub ip: u64,
    /// Code segment: [`CS_64`] in 64-bit programs.
    pub cs: u64,
    /// Flags.
    pub flags: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Stack segment.
    pub ss: u64,
}

/// Code segment of 64-bit programs (`__USER_CS`).
pub const CS_64: u64 = 0x33;

/// A program or library in memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ModuleSample {
    /// Difference between addresses in memory and in the file (`link_map.l_addr`).
    pub bias: u64,
    /// Its dynamic section in memory (`link_map.l_ld`); 0 for the program itself.
    pub dynamic: u64,
    /// Used bytes of the path with its NUL, or a negative errno.
    pub path_len: i32,
    /// 1 if the head could be read.
    pub head_read: u32,
    /// Path as the dynamic linker knows it; empty for the program itself.
    pub path: [u8; MODULE_PATH],
    /// First bytes in memory.
    pub head: [u8; MODULE_HEAD],
}

/// A goroutine that waits for C code, which runs on another stack (`runtime.asmcgocall`). Zeros
/// without one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct GoroutineSample {
    /// Address of its `runtime.g`.
    pub g: u64,
    /// End of its stack (`g.stack.hi`).
    pub end: u64,
    /// Stack pointer of the function that has switched stacks (`g.sched.sp`).
    pub sp: u64,
    /// An address in a function with the same frame (`g.sched.pc`).
    pub pc: u64,
}

/// The thread that has just made a cookie.
///
/// Only what the counts say is filled in; the rest is whatever was in the ring before.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StackSample {
    /// `kind` is [`Kind::Stack`](crate::Kind::Stack); the actor is the maker.
    pub header: Header,
    /// IPC namespace.
    pub ns: u32,
    /// Semaphore set.
    pub semid: i32,
    /// System V key.
    pub key: u32,
    /// Used pages of `stack`.
    pub pages: u32,
    /// Used modules.
    pub modules_len: u32,
    /// `STACK_*` bits.
    pub state: u32,
    /// Inode number of the mount namespace.
    pub mnt_ns: u32,
    /// How many of the pages, at most, are of the thread's stack; then come the goroutine's, from
    /// the page with its stack pointer on.
    pub thread_pages: u32,
    /// Address of the first copied page.
    pub start: u64,
    /// The goroutine whose C code it is.
    pub goroutine: GoroutineSample,
    /// Registers at the system call.
    pub regs: UserRegs,
    /// Auxiliary vector, as the kernel has passed it to the program.
    pub auxv: [u64; AUXV_WORDS],
    /// The program, then its libraries in the order of the dynamic linker.
    pub modules: [ModuleSample; MODULES],
    /// Copied pages.
    pub stack: [u8; STACK_PAGES * PAGE],
}

/// There were more libraries than are kept.
pub const STACK_MORE_MODULES: u32 = 1 << 0;
/// The registers could not be read.
pub const STACK_NO_REGS: u32 = 1 << 1;
/// The list of libraries could not be followed to its end.
pub const STACK_MODULES_CUT: u32 = 1 << 2;

/// Call sites that other processes can read.
pub const SITES_MAX: u32 = 16_384;
/// Bytes of a call site's text.
pub const SITE_LEN: usize = 4080;

/// A call site as JSON: value of the map keyed by [`SemKey`](crate::SemKey), written and read by
/// userspace only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SiteText {
    /// Creation of the set, as its record says.
    pub created: u64,
    /// Used bytes.
    pub len: u32,
    /// Padding.
    pub _pad: u32,
    /// JSON.
    pub text: [u8; SITE_LEN],
}

const _: () = assert!(size_of::<SiteText>() == 4096);
const _: () = assert!(size_of::<UserRegs>() == 168);
const _: () = assert!(size_of::<ModuleSample>() == 24 + MODULE_PATH + MODULE_HEAD);
const _: () = assert!(
    size_of::<StackSample>()
        == 32
            + 32
            + 8
            + size_of::<GoroutineSample>()
            + 168
            + 8 * AUXV_WORDS
            + MODULES * size_of::<ModuleSample>()
            + STACK_PAGES * PAGE
);
