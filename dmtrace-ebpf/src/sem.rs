//! What happens to semaphore sets: the handlers behind all backends.

use core::mem::MaybeUninit;

use dmtrace_common::{
    COMM_LEN, CookieKey, Counter, EVENT_NS_TEARDOWN, EVENT_UNTRACKED, Header, Kind, LookupKey,
    OPS_KEPT, SEM_ANNOUNCED, SEM_COOKIE, SEM_DM_DROPPED, SEM_NS_TEARDOWN, SEM_OPS_DROPPED,
    SEM_RELEASED, SEM_TOMBSTONE, SemBuf, SemEvent, SemKey, SemRecord, control, has_cookie_magic,
};

use crate::{
    atomic::add32,
    emit,
    maps::{DEVICES, KEYS, LOOKUPS, PREFILTER, PROCS, PendingCall, SEMS},
    offsets::TOMBSTONES_MAX,
    operate::note_operator,
    process::{
        Current, add_signed, control_add, control_get, current_thread, intern_process,
        release_record, task_comm,
    },
};

const ENOSPC: i32 = -28;
const IPC_NOWAIT: i16 = 0o4000;

/// A call of `semget` that was to make a set.
#[derive(Clone, Copy)]
pub(crate) struct Creation {
    pub ns: u32,
    pub key: u32,
    /// Semaphores in the set.
    pub nsems: u32,
    /// `semflg`.
    pub semflg: u32,
    /// semid, or a negative errno.
    pub ret: i32,
    /// `EVENT_*`: how it was observed.
    pub quality: u16,
    /// The call may have found an existing set: `SEM_MAYBE_FOUND`, else 0.
    pub doubt: u32,
}

/// Operations of a `semop` call, the first few of them.
#[derive(Clone, Copy, Default)]
pub(crate) struct Ops {
    /// Elements in the call.
    pub count: u32,
    /// The first ones.
    pub list: [SemBuf; OPS_KEPT],
}

impl Ops {
    /// Whether the call can sleep.
    #[inline(always)]
    pub(crate) fn can_sleep(&self) -> bool {
        self.list[0].op <= 0 && self.list[0].flg & IPC_NOWAIT == 0
    }

    /// Whether it waits for zero, as libdm does with a plain `{0, 0, 0}`. A decrement that may
    /// sleep is none.
    #[inline(always)]
    pub(crate) fn waits_for_zero(&self) -> bool {
        self.list[0].op == 0 && self.can_sleep()
    }

    /// Whether one of the operations forbids to sleep.
    #[inline(always)]
    pub(crate) fn any_nowait(&self) -> bool {
        self.list.iter().any(|op| op.flg & IPC_NOWAIT != 0)
    }
}

/// What the entry of an operation has left for its return.
#[derive(Clone, Copy, Default)]
pub(crate) struct Entered {
    /// When that was, nanoseconds since boot; 0 if it was not seen, or the set is locked.
    pub began: u64,
    /// Key of the cookie that the set was then, or 0.
    pub key: u32,
}

impl Entered {
    /// Of a `semop`.
    #[inline(always)]
    pub(crate) fn of_call(call: &PendingCall) -> Self {
        Self {
            began: call.began,
            key: call.value,
        }
    }
}

/// Slot of a semid in the prefilter (ipc/util.h:ipcid_to_idx).
#[inline(always)]
pub(crate) fn prefilter_slot(semid: i32) -> u32 {
    semid as u32 & 0x7fff
}

/// Whether a live cookie may have this semid: the question that every operation on any semaphore
/// of the host is asked first.
#[inline(always)]
pub(crate) fn maybe_cookie(semid: i32) -> bool {
    PREFILTER
        .get(prefilter_slot(semid))
        .is_some_and(|&count| count != 0)
}

/// Changes how many reasons there are to let operations on this slot pass.
#[inline(always)]
pub(crate) fn prefilter_add(semid: i32, by: u32) {
    if let Some(count) = PREFILTER.get_ptr_mut(prefilter_slot(semid)) {
        // SAFETY: a live, aligned map value.
        unsafe { add32(count, by) };
    }
}

/// Adds one to a field of a live map value.
#[inline(always)]
pub(crate) fn increment_field(field: *mut u32) {
    // SAFETY: the callers pass an aligned field of a live map value.
    unsafe { add32(field, 1) };
}

#[inline(always)]
pub(crate) fn event_header(kind: Kind, flags: u16, who: &Current) -> Header {
    Header {
        kind: kind as u16,
        flags,
        tid: who.tid,
        ts: who.now,
        actor: who.key,
    }
}

/// `newary` returned, or `semget` did.
#[inline(always)]
pub(crate) fn set_created(call: &Creation) {
    let who = current_thread();
    let failed = call.ret < 0;
    emit::count_event(Counter::seen(kind_of_creation(call)));
    let owner = intern_process(&who);
    let name = task_comm(who.task);
    if !owner.is_null() {
        // SAFETY: a live map value; this field is only counted in.
        let live = unsafe { &raw mut (*owner).live };
        // SAFETY: as above.
        let created = unsafe { &raw mut (*owner).created };
        // SAFETY: as above.
        let failures = unsafe { &raw mut (*owner).enospc_failures };
        if !failed {
            add_signed(live, 1);
            add_signed(created, 1);
        } else if call.ret == ENOSPC {
            add_signed(failures, 1);
        }
    }
    let sent = dmtrace_announce(call, &who, &name) != 0;
    if failed {
        return;
    }
    let cookie = has_cookie_magic(call.key);
    let state =
        call.doubt | if sent { SEM_ANNOUNCED } else { 0 } | if cookie { SEM_COOKIE } else { 0 };
    if dmtrace_enter(call, &who, &name, state) != 0 {
        emit::count_event(Counter::SEM_MAP_FULL);
        if !owner.is_null() {
            // SAFETY: as above.
            add_signed(unsafe { &raw mut (*owner).live }, -1);
        }
    } else if cookie {
        prefilter_add(call.ret, 1);
        let name = CookieKey {
            ns: call.ns,
            key: call.key,
        };
        // Full: device-mapper's events carry the key all the same.
        let _joined_later = KEYS.insert(&name, &call.ret, 0);
    }
}

#[inline(always)]
const fn kind_of_creation(call: &Creation) -> Kind {
    if call.ret < 0 {
        Kind::CreateFailed
    } else {
        Kind::Created
    }
}

/// Sends the message of a creation; 0 if there was no room. A function of its own, as
/// [`dmtrace_enter`]: record and message together do not fit on a stack of 512 bytes.
#[inline(never)]
extern "C" fn dmtrace_announce(call: &Creation, who: &Current, name: &[u8; COMM_LEN]) -> u64 {
    let kind = kind_of_creation(call);
    let event = SemEvent {
        header: event_header(kind, call.quality, who),
        ns: call.ns,
        semid: call.ret.max(-1),
        key: call.key,
        ret: call.ret,
        arg: call.nsems as i32,
        extra: call.semflg,
        comm: *name,
        ..SemEvent::default()
    };
    u64::from(emit::send_event(kind, &event))
}

/// Enters a new set into the map; 0 if there was room.
#[inline(never)]
extern "C" fn dmtrace_enter(
    call: &Creation,
    who: &Current,
    name: &[u8; COMM_LEN],
    state: u32,
) -> u64 {
    // Field by field: the compiler would make an expression with `..` beside the record.
    let mut record = MaybeUninit::uninit();
    let record = zero_record(&mut record);
    record.created = who.now;
    record.creator = who.key;
    record.key = call.key;
    record.nsems = call.nsems;
    record.semflg = call.semflg;
    record.state = state;
    record.tid = who.tid;
    record.uid = aya_ebpf::helpers::bpf_get_current_uid_gid() as u32;
    record.comm = *name;
    let sem = SemKey {
        ns: call.ns,
        semid: call.ret,
    };
    // Overwrites: the kernel says that this set is new, so an older record of the same semid is
    // of a set whose removal went unseen.
    u64::from(SEMS.insert(&sem, record, 0).is_err())
}

/// Fills a record with zeros, word by word: `memset` would be a function with a frame of its own.
#[inline(always)]
fn zero_record(record: &mut MaybeUninit<SemRecord>) -> &mut SemRecord {
    const WORDS: usize = size_of::<SemRecord>() / size_of::<u64>();
    const { assert!(WORDS * size_of::<u64>() == size_of::<SemRecord>()) };
    let words = record.as_mut_ptr().cast::<u64>();
    for index in 0..WORDS {
        // SAFETY: within the record, which is aligned for its words.
        let word = unsafe { words.add(index) };
        // SAFETY: as above. Volatile, so that no `memset` is made of it.
        unsafe { word.write_volatile(0) };
    }
    // SAFETY: integers only; all zeros are a valid record.
    unsafe { record.assume_init_mut() }
}

/// Whether a set is known: tells a `semget` that created from one that found.
#[inline(always)]
pub(crate) fn is_known(ns: u32, semid: i32) -> bool {
    SEMS.get_ptr(&SemKey { ns, semid }).is_some()
}

/// The set of a live cookie, or -1.
#[inline(always)]
pub(crate) fn known_semid(name: CookieKey) -> i32 {
    // SAFETY: a value of four bytes, read at once.
    unsafe { KEYS.get(&name) }.copied().unwrap_or(-1)
}

/// A key with the cookie magic was looked up in vain.
#[inline(always)]
pub(crate) fn lookup_failed(ns: u32, key: u32, ret: i32, quality: u16) {
    if !has_cookie_magic(key) {
        return;
    }
    let who = current_thread();
    emit::count_event(Counter::seen(Kind::LookupFailed));
    intern_process(&who);
    let event = SemEvent {
        header: event_header(Kind::LookupFailed, quality, &who),
        ns,
        semid: -1,
        key,
        ret,
        comm: task_comm(who.task),
        ..SemEvent::default()
    };
    let _room_is_made = LOOKUPS.insert(
        &LookupKey {
            key,
            tid: event.header.tid,
        },
        &event,
        0,
    );
    emit::send_event(Kind::LookupFailed, &event);
}

/// `SETVAL` returned. `began` as [`Entered::began`].
#[inline(always)]
pub(crate) fn value_set(ns: u32, semid: i32, value: i32, ret: i32, quality: u16, began: u64) {
    if !maybe_cookie(semid) {
        return;
    }
    let Some(record) = SEMS.get_ptr_mut(&SemKey { ns, semid }) else {
        return;
    };
    // SAFETY: a live map value.
    let record = unsafe { &mut *record };
    if record.state & SEM_COOKIE == 0 {
        return;
    }
    let who = current_thread();
    if ret == 0 {
        record.value = value;
        note_operator(SemKey { ns, semid }, record, &who, began);
        record.state &= !SEM_RELEASED;
        increment_field(&raw mut record.setvals);
    }
    emit::count_event(Counter::seen(Kind::SetVal));
    intern_process(&who);
    let event = SemEvent {
        header: event_header(Kind::SetVal, quality, &who),
        ns,
        semid,
        key: record.key,
        ret,
        arg: value,
        comm: task_comm(who.task),
        began,
        ..SemEvent::default()
    };
    if !emit::send_event(Kind::SetVal, &event) {
        record.state |= SEM_OPS_DROPPED;
    }
}

/// The record of a cookie.
#[inline(always)]
pub(crate) fn tracked_cookie(ns: u32, semid: i32) -> Option<&'static mut SemRecord> {
    let record = SEMS.get_ptr_mut(&SemKey { ns, semid })?;
    // SAFETY: a live map value.
    let record = unsafe { &mut *record };
    (record.state & SEM_COOKIE != 0).then_some(record)
}

/// How a set ended.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) enum SetEnd {
    /// `semctl(IPC_RMID)` by the current process.
    Removed,
    /// Its IPC namespace ended; the current process is a kernel worker or the last one to leave.
    NsTeardown,
}

/// `freeary` runs, or `semctl(IPC_RMID)` returned. `key` is 0 where the backend does not see it.
#[inline(always)]
pub(crate) fn set_destroyed(ns: u32, semid: i32, key: u32, end: SetEnd, quality: u16) {
    let sem = SemKey { ns, semid };
    let who = current_thread();
    emit::count_event(Counter::seen(Kind::Destroyed));
    let mut event = SemEvent {
        header: event_header(Kind::Destroyed, quality, &who),
        ns,
        semid,
        key,
        comm: task_comm(who.task),
        ..SemEvent::default()
    };
    if end == SetEnd::NsTeardown {
        event.header.flags |= EVENT_NS_TEARDOWN;
    } else {
        intern_process(&who);
    }
    let Some(record) = SEMS.get_ptr_mut(&sem) else {
        event.header.flags |= EVENT_UNTRACKED;
        emit::send_event(Kind::Destroyed, &event);
        return;
    };
    // SAFETY: a live map value.
    let record = unsafe { &mut *record };
    event.key = record.key;
    let owner = record.creator;
    let sent = emit::send_event(Kind::Destroyed, &event);
    if record.state & SEM_COOKIE != 0 {
        prefilter_add(semid, u32::MAX);
        let name = CookieKey {
            ns,
            key: record.key,
        };
        // The key may have been used again by the time the syscall backend hears of the removal.
        if known_semid(name) == semid {
            let _gone_already = KEYS.remove(&name);
        }
    }
    let whole = SEM_ANNOUNCED | SEM_OPS_DROPPED | SEM_DM_DROPPED;
    let known = record.state & whole == SEM_ANNOUNCED;
    if sent && known {
        let _gone_already = SEMS.remove(&sem);
        if record.ioctls != 0 {
            let _gone_already = DEVICES.remove(&sem);
        }
    } else if control_get(control::TOMBSTONES) < TOMBSTONES_MAX.load() {
        control_add(control::TOMBSTONES, 1);
        record.closed = who.now;
        record.closer = who.key;
        record.state |= SEM_TOMBSTONE
            | if end == SetEnd::NsTeardown {
                SEM_NS_TEARDOWN
            } else {
                0
            };
    } else {
        let _gone_already = SEMS.remove(&sem);
        emit::count_event(Counter::HISTORY_LOST);
    }
    if let Some(owner_record) = PROCS.get_ptr_mut(&owner) {
        // SAFETY: a live map value.
        let owner_record = unsafe { &mut *owner_record };
        add_signed(&raw mut owner_record.live, -1);
        release_record(owner, owner_record);
    }
}
