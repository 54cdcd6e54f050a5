//! The maps. Sizes marked "resized" are set by userspace at load.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use dmtrace_common::{
    COUNTERS, CookieKey, DM_NAME_LEN, DmEvent, LookupKey, PREFILTER_SLOTS, ProcKey, ProcRecord,
    SITES_MAX, SemBuf, SemEvent, SemKey, SemRecord, SiteText, control,
};

/// `BPF_F_MMAPABLE`: userspace changes the same words atomically through shared memory.
const MMAPABLE: u32 = 1 << 10;

/// The truth about semaphore sets. Resized.
#[map]
pub(crate) static SEMS: HashMap<SemKey, SemRecord> = HashMap::with_max_entries(65_536, 0);

/// Semids of live cookies by key: device-mapper is told the key only. What does not fit is joined
/// by userspace.
#[map]
pub(crate) static KEYS: HashMap<CookieKey, i32> = HashMap::with_max_entries(16_384, 0);

/// The truth about processes that made semaphores or touched cookies. Resized.
#[map]
pub(crate) static PROCS: HashMap<ProcKey, ProcRecord> = HashMap::with_max_entries(8192, 0);

/// A record of zeros: too large for the 512-byte stack, copied from here.
#[map]
pub(crate) static ZERO: Array<ProcRecord> = Array::with_max_entries(1, 0);

/// Notifications. Resized.
#[map]
pub(crate) static RING: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// Stacks of those who make cookies ([`StackSample`](dmtrace_common::StackSample)): apart from
/// [`RING`], because one is as large as a thousand notifications. Resized.
#[map]
pub(crate) static STACKS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// Call sites as userspace has made them out of the stacks, for other processes to read. The
/// programs do not use it.
#[map]
pub(crate) static SITES: HashMap<SemKey, SiteText> =
    HashMap::with_max_entries(SITES_MAX, BPF_F_NO_PREALLOC);

/// Live cookies by slot of their semid (`semid & 0x7fff`): the first question of every hot hook.
#[map]
pub(crate) static PREFILTER: Array<u32> = Array::with_max_entries(PREFILTER_SLOTS, MMAPABLE);

/// See `dmtrace_common::control`.
#[map]
pub(crate) static CONTROL: Array<u64> = Array::with_max_entries(control::SLOTS, MMAPABLE);

/// See `dmtrace_common::Counter`.
#[map]
pub(crate) static COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS, 0);

/// Calls between their entry and their return, by `pid_tgid`: where the return probe does not see
/// the arguments (kprobes and syscall tracepoints), and when an operation on a cookie was entered.
#[map]
pub(crate) static CALLS: HashMap<u64, PendingCall> = HashMap::with_max_entries(16_384, 0);

/// Threads with an entry in [`CALLS`], by `tid & 0x7fff`: spares a hash lookup at each return. With
/// the programs for kernels that preempt: threads in a call whose first program has run.
#[map]
pub(crate) static IN_CALL: Array<u32> = Array::with_max_entries(PREFILTER_SLOTS, 0);

/// What one program knows of a thread's call and a later one of the same call takes up, by
/// `pid_tgid`; only with the programs for kernels that preempt. Resized.
#[map]
pub(crate) static PENDING: HashMap<u64, Pending> = HashMap::with_max_entries(16_384, 0);

/// Device-mapper ioctls between their entry and their return, by `pid_tgid`. LRU: a return that a
/// kretprobe has lost leaves its entry behind.
#[map]
pub(crate) static DM_CALLS: LruHashMap<u64, DmCall> = LruHashMap::with_max_entries(4096, 0);

/// The last device-mapper ioctl with each cookie: names the device for whoever joins later, or
/// has lost the message. LRU: an enrichment, whose place newer ones may take.
#[map]
pub(crate) static DEVICES: LruHashMap<SemKey, DmEvent> = LruHashMap::with_max_entries(4096, 0);

/// The last failed lookup of a cookie's key by each thread: tells whoever joins later that udev
/// completes in another namespace. LRU, as [`DEVICES`].
#[map]
pub(crate) static LOOKUPS: LruHashMap<LookupKey, SemEvent> = LruHashMap::with_max_entries(1024, 0);

/// Zeros, as [`ZERO`].
#[map]
pub(crate) static ZERO_DM: Array<DmEvent> = Array::with_max_entries(1, 0);

/// The thread sleeps in a `semop` on this set.
pub(crate) const WAITS: u32 = 1;
/// A failed `semget` with this key was told.
pub(crate) const TOLD: u32 = 2;
/// The thread is in SETVAL on this set.
pub(crate) const SETS: u32 = 3;
/// The same, and it was told.
pub(crate) const SET: u32 = 4;

/// See [`PENDING`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Pending {
    /// [`WAITS`], [`TOLD`], [`SETS`] or [`SET`].
    pub what: u32,
    /// semid or key.
    pub target: u32,
    /// Result of what was told, or value to set.
    pub number: i32,
    pub ns: u32,
}

/// A device-mapper ioctl in flight.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct DmCall {
    /// `struct dm_ioctl *`, in kernel memory.
    pub param: u64,
    /// When it was entered.
    pub began: u64,
    pub ns: u32,
    pub key: u32,
    /// Its set, or -1.
    pub semid: i32,
    /// `event_nr` at entry.
    pub word: u32,
    /// Number of the ioctl.
    pub command: u32,
    /// `flags` at entry.
    pub flags: u32,
    /// Device as a `dev_t` of the kernel; 0 where it is not known yet.
    pub dev: u32,
    pub uevents: u32,
    /// Of these, seen by the trampoline and by the kprobe, where both are attached.
    pub seen: [u32; 2],
    /// Which of the two has seen the entry.
    pub entered: [u32; 2],
    /// Name of the device at entry, for a return that is not seen.
    pub name: [u8; DM_NAME_LEN],
}

/// Arguments of a call in flight.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct PendingCall {
    pub ns: u32,
    /// semid, or key for `semget`.
    pub target: u32,
    /// `nsems` (semget), `cmd` (semctl), number of operations (semop).
    pub count: u32,
    /// `semflg` (semget), value (SETVAL), key of the cookie or 0 (semop).
    pub value: u32,
    /// First operations (semop).
    pub ops: [SemBuf; dmtrace_common::OPS_KEPT],
    /// `struct task_struct *` of the thread that the operation belongs to, if it is not the
    /// current one.
    pub sleeper: u64,
    /// When it was entered, nanoseconds since boot.
    pub began: u64,
}
