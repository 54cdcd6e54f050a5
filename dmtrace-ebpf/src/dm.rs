//! What device-mapper does with cookies: the handlers behind all backends.
//!
//! `dev_suspend`, `dev_remove` and `dev_rename` (drivers/md/dm-ioctl.c) get `struct dm_ioctl` in
//! kernel memory, also for 32-bit callers, and run in the caller's thread to the end. Its layout
//! is userspace ABI: offsets are the same in every kernel.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use dmtrace_common::{
    COOKIE_MAGIC, CookieKey, Counter, DM_NAME_LEN, DM_REMOVE, DM_RENAME, DM_UEVENT_GENERATED,
    DM_UUID_FLAG, DM_UUID_LEN, DmEvent, EVENT_NO_RESULT, Header, Kind, SEM_DM_DROPPED, SemKey,
    SemRecord, control,
};

use crate::{
    emit,
    maps::{DEVICES, DM_CALLS, DmCall, ZERO_DM},
    offsets::{O_DISK_MAJOR, O_DISK_MINOR},
    process::{Current, control_get, current_task, current_thread, ipc_ns, task_comm},
    read::{Addr, kernel_string, u32_at, u32_from, u64_from},
    sem::{increment_field, known_semid, tracked_cookie},
};

const DATA_START: u64 = 16;
const FLAGS: u64 = 28;
const EVENT_NR: u64 = 32;
const DEV: u64 = 40;
const NAME: u64 = 48;
const UUID: u64 = 176;

/// Which program sees it: index of [`DmCall::seen`] and [`DmCall::entered`].
#[derive(Clone, Copy)]
pub(crate) enum SeenBy {
    Trampoline,
    Kprobe,
}

/// An ioctl is entered. `event_nr` has to be read now: `__dev_status` overwrites it with the
/// device's event counter on return.
#[inline(always)]
pub(crate) fn ioctl_entered(command: u32, param: Addr, by: SeenBy) {
    let word = u32_from(param + EVENT_NR);
    if word & 0xffff == 0 {
        return;
    }
    let id = bpf_get_current_pid_tgid();
    if let Some(call) = DM_CALLS.get_ptr_mut(&id) {
        // SAFETY: a live map value; only this thread writes it.
        let call = unsafe { &mut *call };
        let same = call.param == param && call.word == word && call.command == command;
        // Whoever has seen this entry already sees another call, and the return was lost.
        if same && call.entered[by as usize] == 0 {
            call.entered[by as usize] = 1;
            return;
        }
    }
    let mut entered = [0; 2];
    entered[by as usize] = 1;
    emit::count_event(Counter::DM_ENTERED);
    let name = CookieKey {
        ns: ipc_ns(current_task()).1,
        key: COOKIE_MAGIC << 16 | word & 0xffff,
    };
    let who = current_thread();
    let mut call = DmCall {
        param,
        began: who.now,
        ns: name.ns,
        key: name.key,
        semid: known_semid(name),
        word,
        command,
        flags: u32_from(param + FLAGS),
        dev: 0,
        uevents: 0,
        seen: [0; 2],
        entered,
        name: [0; DM_NAME_LEN],
    };
    kernel_string(param + NAME, call.name.as_mut_ptr(), DM_NAME_LEN as u32);
    if let Some(record) = cookie_record(&call) {
        increment_field(&raw mut record.ioctls);
        record.last_dm = who.now;
    }
    // Least recently used entries make room: this fails only for lack of memory, and then the
    // return is missing among the seen ones.
    let _counted = DM_CALLS.insert(&id, &call, 0);
}

/// The ioctl returns. Whichever program comes first tells, and takes the call away.
#[inline(always)]
pub(crate) fn ioctl_returned(ret: i32) {
    let id = bpf_get_current_pid_tgid();
    let Some(call) = DM_CALLS.get_ptr_mut(&id) else {
        return;
    };
    // SAFETY: a live map value; only this thread writes it.
    let call = unsafe { &mut *call };
    let flags_out = u32_from(call.param + FLAGS);
    if call.dev == 0 && (ret == 0 && call.command != DM_REMOVE || named_by_number(call)) {
        call.dev = decode_dev(u64_from(call.param + DEV));
    }
    let who = current_thread();
    let record = cookie_record(call);
    let call = &*call;
    let outcome = |event: &mut DmEvent| {
        fill_event(event, Kind::Ioctl, call, &who);
        event.ret = ret;
        event.flags_out = flags_out;
        if ret == 0 && call.command == DM_RENAME && call.flags & DM_UUID_FLAG == 0 {
            let start = u32_from(call.param + DATA_START);
            let from = call.param + u64::from(start);
            kernel_string(from, event.new_name.as_mut_ptr(), DM_NAME_LEN as u32);
        }
    };
    let sent = emit::send_dm_event(Kind::Ioctl, outcome);
    if let Some(record) = record {
        keep_ioctl(call, outcome);
        if ret < 0 {
            increment_field(&raw mut record.ioctls_failed);
            record.ioctl_error = ret;
        } else if flags_out & DM_UEVENT_GENERATED != 0 {
            increment_field(&raw mut record.uevents);
        }
        if call.dev != 0 {
            record.major = call.dev >> 20;
            record.minor = call.dev & 0xf_ffff;
        }
        record.last_dm = who.now;
        if !sent {
            record.state |= SEM_DM_DROPPED;
        }
    }
    let _present = DM_CALLS.remove(&id);
}

/// A thread works on a semaphore while its ioctl has not returned: a kretprobe has lost the
/// return. What was seen until then is told, without a result. `param` is gone by now.
///
/// A global function of its own, so that the verifier looks at it once for each program.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn dmtrace_lost(id: u64) -> u64 {
    let Some(call) = DM_CALLS.get_ptr_mut(&id) else {
        return 0;
    };
    // SAFETY: a live map value; only this thread writes it.
    let call = unsafe { &*call };
    let who = current_thread();
    let sent = emit::send_dm_event(Kind::Ioctl, |event| {
        describe_device(event, Kind::Ioctl, call, &who);
        event.header.flags = EVENT_NO_RESULT;
        event.name = call.name;
        if call.uevents != 0 {
            event.flags_out = DM_UEVENT_GENERATED;
        }
    });
    if let Some(record) = cookie_record(call) {
        if call.uevents != 0 {
            increment_field(&raw mut record.uevents);
        }
        if !sent {
            record.state |= SEM_DM_DROPPED;
        }
    }
    let _present = DM_CALLS.remove(&id);
    0
}

/// Whether the current thread's last ioctl was not seen to return, as it must have by now.
#[inline(always)]
pub(crate) fn settle_ioctl() {
    let id = bpf_get_current_pid_tgid();
    if DM_CALLS.get_ptr(&id).is_some() {
        dmtrace_lost(id);
    }
}

/// Keeps what the ioctl was about beside the record of the cookie.
#[inline(always)]
fn keep_ioctl(call: &DmCall, describe: impl FnOnce(&mut DmEvent)) {
    let sem = SemKey {
        ns: call.ns,
        semid: call.semid,
    };
    let Some(zero) = ZERO_DM.get_ptr(0) else {
        return;
    };
    // SAFETY: slot 0 always exists and is never written.
    let zero = unsafe { &*zero };
    if DEVICES.insert(&sem, zero, 0).is_ok()
        && let Some(event) = DEVICES.get_ptr_mut(&sem)
    {
        // SAFETY: a live map value. Two threads in ioctls with the same cookie may mix their
        // devices here; their messages do not.
        describe(unsafe { &mut *event });
    }
}

/// `dm_kobject_uevent` is entered: the uevent is about to be sent. Whether that worked is in the
/// flags of the returning ioctl.
#[inline(always)]
pub(crate) fn uevent_sent(md: Addr, action: u32, word: u32, by: SeenBy) {
    let Some(call) = DM_CALLS.get_ptr_mut(&bpf_get_current_pid_tgid()) else {
        return;
    };
    // SAFETY: a live map value; only this thread writes it.
    let call = unsafe { &mut *call };
    if call.word != word {
        return;
    }
    let seen = &mut call.seen[by as usize];
    *seen += 1;
    if *seen <= call.uevents {
        // The other one has told.
        return;
    }
    call.uevents += 1;
    let dev = device_number(md);
    if dev != 0 {
        call.dev = dev;
    }
    let call = &*call;
    let who = current_thread();
    let sent = emit::send_dm_event(Kind::Uevent, |event| {
        fill_event(event, Kind::Uevent, call, &who);
        event.action = action;
    });
    if !sent && let Some(record) = cookie_record(call) {
        record.state |= SEM_DM_DROPPED;
    }
}

#[inline(always)]
fn fill_event(event: &mut DmEvent, kind: Kind, call: &DmCall, who: &Current) {
    describe_device(event, kind, call, who);
    // __find_device_hash_cell has written both into `param` by now, if the device was found.
    let (name, uuid) = (call.param + NAME, call.param + UUID);
    kernel_string(name, event.name.as_mut_ptr(), DM_NAME_LEN as u32);
    kernel_string(uuid, event.uuid.as_mut_ptr(), DM_UUID_LEN as u32);
}

#[inline(always)]
fn describe_device(event: &mut DmEvent, kind: Kind, call: &DmCall, who: &Current) {
    event.header = Header {
        kind: kind as u16,
        flags: 0,
        tid: who.tid,
        ts: who.now,
        actor: who.key,
    };
    event.began = call.began;
    event.ns = call.ns;
    event.semid = call.semid;
    event.key = call.key;
    event.word = call.word;
    event.command = call.command;
    event.flags = call.flags;
    event.uevents = call.uevents;
    event.major = call.dev >> 20;
    event.minor = call.dev & 0xf_ffff;
    event.comm = task_comm(who.task);
}

#[inline(always)]
fn cookie_record(call: &DmCall) -> Option<&'static mut SemRecord> {
    let sem = SemKey {
        ns: call.ns,
        semid: call.semid,
    };
    let record = tracked_cookie(sem.ns, sem.semid)?;
    (record.key == call.key).then_some(record)
}

/// Whether the caller named the device by its number: `name` and `uuid` are filled in later, but
/// `dev` stays.
#[inline(always)]
fn named_by_number(call: &DmCall) -> bool {
    u64_from(call.param + DEV) != 0
}

/// `huge_decode_dev` and `MKDEV` of the kernel (include/linux/kdev_t.h).
#[inline(always)]
fn decode_dev(dev: u64) -> u32 {
    let dev = dev as u32;
    let (major, minor) = ((dev & 0xf_ff00) >> 8, dev & 0xff | dev >> 12 & 0xf_ff00);
    major << 20 | minor
}

/// Number of the device behind a `struct mapped_device`, whose layout only dm's own BTF tells.
#[inline(always)]
fn device_number(md: Addr) -> u32 {
    let offset = control_get(control::MD_DISK);
    if offset == 0 || offset > 0xffff {
        return 0;
    }
    let disk = u64_from(md + offset);
    u32_at(disk, &O_DISK_MAJOR) << 20 | u32_at(disk, &O_DISK_MINOR) & 0xf_ffff
}
