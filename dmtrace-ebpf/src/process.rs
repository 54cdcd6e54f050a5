//! Who acts: identity of the current process, and its capture in full.

use core::ptr;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_task,
        bpf_get_current_uid_gid, bpf_ktime_get_boot_ns,
    },
};
use dmtrace_common::{
    CMDLINE_LEN, COMM_LEN, COMPONENT_LEN, Counter, Header, Kind, PATH_LEN, PROC_ANNOUNCED,
    PROC_CGROUP_CUT, PROC_CMDLINE_CUT, PROC_CMDLINE_UNREAD, PROC_DESCENDANT, PROC_EXE_CUT,
    PROC_EXE_DELETED, PROC_EXIT_DROPPED, PROC_READY, PROC_REPLACED, PROC_TOMBSTONE, ProcKey,
    ProcRecord, SemEvent, control,
};

use crate::{
    atomic::add64,
    emit,
    maps::{CONTROL, PROCS, ZERO},
    offsets::*,
    pending::moves_on,
    read::{Addr, bounded_index, kernel_bytes, kernel_string, u32_at, u64_at, u64_from, user_some},
};

/// Images of a process whose end is told: the last one, and those before it.
const IMAGES: usize = 4;
/// Path components followed to the root of an executable's path.
const EXE_DEPTH: usize = 16;
/// Generations searched for the tracer itself; the first `PARENTS` are kept.
const ANCESTRY: usize = 20;
/// Path components followed to the root of a cgroup's path.
const CGROUP_DEPTH: usize = 8;

/// The current thread, as events name it.
#[derive(Clone, Copy)]
pub(crate) struct Current {
    /// `struct task_struct *`.
    pub task: Addr,
    pub key: ProcKey,
    pub tid: u32,
    /// Now, nanoseconds since boot.
    pub now: u64,
}

/// `struct task_struct *` of the current thread.
#[inline(always)]
pub(crate) fn current_task() -> Addr {
    // SAFETY: takes no pointers.
    unsafe { bpf_get_current_task() }
}

/// Identifies the current thread.
#[inline(always)]
pub(crate) fn current_thread() -> Current {
    let task = current_task();
    let pid_tgid = bpf_get_current_pid_tgid();
    identify_thread(task, (pid_tgid >> 32) as u32, pid_tgid as u32)
}

/// Identifies a thread that is not the current one.
#[inline(always)]
pub(crate) fn other_thread(task: Addr) -> Current {
    identify_thread(task, u32_at(task, &O_TASK_TGID), u32_at(task, &O_TASK_TID))
}

#[inline(always)]
fn identify_thread(task: Addr, tgid: u32, tid: u32) -> Current {
    let start = u64_at(u64_at(task, &O_TASK_LEADER), &O_TASK_START);
    let exec = u32_at(task, &O_TASK_EXEC_ID);
    // SAFETY: takes no pointers.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    Current {
        task,
        key: ProcKey { start, tgid, exec },
        tid,
        now,
    }
}

/// IPC namespace of the current thread: the object, and its inode number.
#[inline(always)]
pub(crate) fn ipc_ns(task: Addr) -> (Addr, u32) {
    // NULL late in the exit of a task (kernel/nsproxy.c:exit_task_namespaces): reads give 0.
    let ns = u64_at(u64_at(task, &O_TASK_NSPROXY), &O_NSPROXY_IPC);
    (ns, u32_at(ns, &O_IPCNS_INUM))
}

/// Name of a task.
#[inline(always)]
pub(crate) fn task_comm(task: Addr) -> [u8; COMM_LEN] {
    let mut name = [0; COMM_LEN];
    let offset = O_TASK_COMM.load();
    if task != 0 && offset != ABSENT {
        kernel_bytes(task + u64::from(offset), &mut name);
    }
    name
}

/// The record of the current process, captured now if this is the first time.
///
/// Null when the process map is full (counted): events still carry pid, start time and comm.
#[inline(always)]
pub(crate) fn intern_process(who: &Current) -> *mut ProcRecord {
    if let Some(record) = PROCS.get_ptr_mut(&who.key) {
        return record;
    }
    dmtrace_capture(who.now);
    PROCS.get_ptr_mut(&who.key).unwrap_or_else(|| {
        emit::count_event(Counter::PROC_MAP_FULL);
        ptr::null_mut()
    })
}

/// Adds the current process to the map and sends its record.
///
/// Exported, which makes it a global function in the kernel's eyes: the verifier looks at it once
/// for each program, not once for each state in which it is called.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn dmtrace_capture(now: u64) -> u64 {
    let mut who = current_thread();
    who.now = now;
    let Some(zero) = ZERO.get_ptr(0) else {
        return 0;
    };
    // SAFETY: slot 0 of ZERO always exists and is never written.
    let zero = unsafe { &*zero };
    // Fails if another thread of the same process was faster, or the map is full.
    if PROCS.insert(&who.key, zero, u64::from(BPF_NOEXIST)).is_ok()
        && let Some(pointer) = PROCS.get_ptr_mut(&who.key)
    {
        // SAFETY: a live map value; until PROC_READY others only count in its atomics.
        let record = unsafe { &mut *pointer };
        fill_record(record, &who);
        emit::send_process(record);
    }
    0
}

#[inline(always)]
fn fill_record(record: &mut ProcRecord, who: &Current) {
    let task = who.task;
    let leader = u64_at(task, &O_TASK_LEADER);
    // Field by field: a whole one would be made on the stack first.
    record.header.kind = Kind::Proc as u16;
    record.header.flags = 0;
    record.header.tid = who.tid;
    record.header.ts = who.now;
    record.header.actor = who.key;
    // SAFETY: takes no pointers.
    record.cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    let uid_gid = bpf_get_current_uid_gid();
    record.uid = uid_gid as u32;
    record.gid = (uid_gid >> 32) as u32;
    record.comm = task_comm(leader);
    record.ipc_ns = ipc_ns(task).1;
    let nsproxy = u64_at(task, &O_TASK_NSPROXY);
    record.mnt_ns = u32_at(u64_at(nsproxy, &O_NSPROXY_MNT), &O_MNTNS_INUM);
    own_pid(record, leader);
    fill_parents(record, leader);
    let mm = u64_at(task, &O_TASK_MM);
    command_line(record, mm);
    fill_executable(record, mm, u64_at(task, &O_TASK_FS));
    fill_cgroup(record, task);
    record.state |= PROC_READY;
}

/// Process number in its own PID namespace (`pid_nr_ns` at the deepest level).
#[inline(always)]
fn own_pid(record: &mut ProcRecord, leader: Addr) {
    let pid = u64_at(leader, &O_TASK_PID);
    let numbers = O_PID_NUMBERS.load();
    let size = O_UPID_SIZE.load();
    if pid == 0 || numbers == ABSENT || size == ABSENT {
        return;
    }
    // MAX_PID_NS_LEVEL is 32.
    let level = u64::from(u32_at(pid, &O_PID_LEVEL)) & 31;
    let upid = pid + u64::from(numbers) + level * u64::from(size);
    record.ns_pid = u32_at(upid, &O_UPID_NR);
    record.pid_ns = u32_at(u64_at(upid, &O_UPID_NS), &O_PIDNS_INUM);
}

#[inline(always)]
fn fill_parents(record: &mut ProcRecord, leader: Addr) {
    let mut task = leader;
    for index in 0..ANCESTRY {
        // real_parent is the thread that forked, not necessarily a leader.
        task = u64_at(u64_at(task, &O_TASK_PARENT), &O_TASK_LEADER);
        let tgid = u32_at(task, &O_TASK_TGID);
        if tgid == 0 {
            break;
        }
        if tgid == SELF_TGID.load() {
            record.state |= PROC_DESCENDANT;
        }
        if let Some(parent) = record.parents.get_mut(index) {
            parent.start = u64_at(task, &O_TASK_START);
            parent.tgid = tgid;
            parent.comm = task_comm(task);
        }
    }
}

#[inline(always)]
fn command_line(record: &mut ProcRecord, mm: Addr) {
    let start = u64_at(mm, &O_MM_ARG_START);
    let len = u64_at(mm, &O_MM_ARG_END).wrapping_sub(start);
    let into = record.cmdline.as_mut_ptr();
    let read = if start == 0 || len == 0 {
        false
    } else if len >= CMDLINE_LEN as u64 {
        if len > CMDLINE_LEN as u64 {
            record.state |= PROC_CMDLINE_CUT;
        }
        record.cmdline_len = CMDLINE_LEN as u32;
        user_some(start, into, CMDLINE_LEN as u32)
    } else {
        record.cmdline_len = len as u32;
        user_some(
            start,
            into,
            bounded_index(len, CMDLINE_LEN as u64 - 1) as u32,
        )
    };
    if !read {
        record.cmdline_len = 0;
        record.state |= PROC_CMDLINE_UNREAD;
    }
}

/// Walks from the executable's dentry to the root of the process, crossing mounts, as `d_path`
/// does (fs/d_path.c:prepend_path); that helper is not allowed in these programs.
#[inline(always)]
fn fill_executable(record: &mut ProcRecord, mm: Addr, fs: Addr) {
    let file = u64_at(mm, &O_MM_EXE);
    let path_offset = O_FILE_PATH.load();
    let root_offset = O_FS_ROOT.load();
    let mount_mnt = O_MOUNT_MNT.load();
    if file == 0 || path_offset == ABSENT || mount_mnt == ABSENT || root_offset == ABSENT {
        return;
    }
    let path = file + u64::from(path_offset);
    let mut mnt = u64_at(path, &O_PATH_MNT);
    let mut dentry = u64_at(path, &O_PATH_DENTRY);
    let inode = u64_at(dentry, &O_DENTRY_INODE);
    if inode != 0 && u32_at(inode, &O_INODE_NLINK) == 0 {
        record.state |= PROC_EXE_DELETED;
    }
    let (root_mnt, root_dentry) = if fs == 0 {
        (0, 0)
    } else {
        let root = fs + u64::from(root_offset);
        (u64_at(root, &O_PATH_MNT), u64_at(root, &O_PATH_DENTRY))
    };
    for step in 0..EXE_DEPTH {
        if dentry == 0 || (dentry == root_dentry && mnt == root_mnt) {
            break;
        }
        let parent = u64_at(dentry, &O_DENTRY_PARENT);
        if dentry == u64_at(mnt, &O_VFSMOUNT_ROOT) || dentry == parent {
            // The root of a mounted filesystem: go on where it is mounted.
            let mount = mnt - u64::from(mount_mnt);
            let above = u64_at(mount, &O_MOUNT_PARENT);
            if above == mount || above == 0 {
                break;
            }
            dentry = u64_at(mount, &O_MOUNT_POINT);
            mnt = above + u64::from(mount_mnt);
            continue;
        }
        // The length so far lives in the record, not in a register: the verifier then sees the
        // same state in every round and looks at the loop's body once.
        let used = u64::from(record.exe_len);
        if used > (PATH_LEN - COMPONENT_LEN) as u64 || step == EXE_DEPTH - 1 {
            record.state |= PROC_EXE_CUT;
            break;
        }
        let name = u64_at(dentry, &O_DENTRY_NAME);
        // SAFETY: 511 + COMPONENT_LEN stays inside the record, see `ProcRecord::exe`.
        let into = unsafe {
            record
                .exe
                .as_mut_ptr()
                .add(bounded_index(used, 511) as usize)
        };
        let len = kernel_string(name, into, COMPONENT_LEN as u32);
        if len <= 0 {
            break;
        }
        record.exe_len = (used + bounded_index(len as u64, 255)) as u32;
        dentry = parent;
    }
}

/// Path of the unified cgroup; where that is the root (cgroup v1 hosts), of a v1 controller.
#[inline(always)]
fn fill_cgroup(record: &mut ProcRecord, task: Addr) {
    let set = u64_at(task, &O_TASK_CGROUPS);
    let mut node = u64_at(u64_at(set, &O_CSSSET_DFL), &O_CGROUP_KN);
    if u64_at(node, &O_KN_PARENT) == 0 {
        let first = v1_node(set, O_SUBSYS_FIRST.load());
        let second = v1_node(set, O_SUBSYS_SECOND.load());
        if u64_at(first, &O_KN_PARENT) != 0 {
            node = first;
        } else if u64_at(second, &O_KN_PARENT) != 0 {
            node = second;
        }
    }
    for _ in 0..CGROUP_DEPTH {
        let parent = u64_at(node, &O_KN_PARENT);
        if node == 0 || parent == 0 {
            break;
        }
        let used = u64::from(record.cgroup_len);
        if used > (PATH_LEN - COMPONENT_LEN) as u64 {
            record.state |= PROC_CGROUP_CUT;
            break;
        }
        let name = u64_at(node, &O_KN_NAME);
        // SAFETY: 511 + COMPONENT_LEN stays inside the record, see `ProcRecord::exe`.
        let into = unsafe {
            record
                .cgroup
                .as_mut_ptr()
                .add(bounded_index(used, 511) as usize)
        };
        let len = kernel_string(name, into, COMPONENT_LEN as u32);
        if len <= 0 {
            break;
        }
        record.cgroup_len = (used + bounded_index(len as u64, 255)) as u32;
        node = parent;
    }
}

#[inline(always)]
fn v1_node(set: Addr, subsys: u32) -> Addr {
    let offset = O_CSSSET_SUBSYS.load();
    if set == 0 || subsys == ABSENT || offset == ABSENT {
        return 0;
    }
    let css = u64_from(set + u64::from(offset) + 8 * u64::from(subsys));
    u64_at(u64_at(css, &O_CSS_CGROUP), &O_CGROUP_KN)
}

/// Counts in a process record, atomically: threads of one process race.
#[inline(always)]
pub(crate) fn add_signed(field: *mut u64, by: i64) {
    // SAFETY: the callers pass an aligned field of a live map value.
    unsafe { add64(field, by as u64) };
}

/// Adds to a word of the control array.
#[inline(always)]
pub(crate) fn control_add(slot: u32, by: i64) {
    if let Some(word) = CONTROL.get_ptr_mut(slot) {
        add_signed(word, by);
    }
}

/// Reads a word of the control array.
#[inline(always)]
pub(crate) fn control_get(slot: u32) -> u64 {
    CONTROL.get(slot).copied().unwrap_or(u64::MAX)
}

/// `sched_process_exit`: runs for each thread; the last one of a process in the map counts.
#[inline(always)]
pub(crate) fn process_exited() {
    let task = current_task();
    moves_on(bpf_get_current_pid_tgid());
    // do_exit decrements `live` before it fires the tracepoint. Two last threads may both see 0;
    // `exited` below makes the second one a no-op.
    if u32_at(u64_at(task, &O_TASK_SIGNAL), &O_SIGNAL_LIVE) != 0 {
        return;
    }
    let mut who = current_thread();
    if who.key.tgid == SELF_TGID.load() {
        tracer_ended(who.now);
    }
    // The images before the last `execve` end with the process, too.
    for _ in 0..IMAGES {
        image_exited(&who, task);
        who.key.exec = who.key.exec.wrapping_sub(1);
    }
}

/// Links that are not pinned are closed after this (kernel/exit.c:do_exit), so that nothing is
/// unseen before it. Once: the number may be used again.
#[inline(always)]
fn tracer_ended(now: u64) {
    if let Some(word) = CONTROL.get_ptr_mut(control::TRACER_ENDED) {
        // SAFETY: a live, aligned map value; one process of this number at a time ends.
        let word = unsafe { &mut *word };
        if *word == 0 {
            *word = now;
        }
    }
}

#[inline(always)]
fn image_exited(who: &Current, task: Addr) {
    let Some(pointer) = PROCS.get_ptr_mut(&who.key) else {
        return;
    };
    // SAFETY: a live map value.
    let record = unsafe { &mut *pointer };
    if record.exited != 0 {
        return;
    }
    record.exited = who.now;
    record.exit_code = u32_at(task, &O_TASK_EXIT_CODE) as i32;
    emit::count_event(Counter::seen(Kind::Exit));
    let sent = emit::send_event(
        Kind::Exit,
        &SemEvent {
            header: Header {
                kind: Kind::Exit as u16,
                flags: 0,
                tid: who.tid,
                ts: who.now,
                actor: who.key,
            },
            semid: -1,
            ns: record.ipc_ns,
            arg: record.exit_code,
            comm: record.comm,
            ..SemEvent::default()
        },
    );
    if !sent {
        record.state |= PROC_EXIT_DROPPED;
    }
    release_record(who.key, record);
}

/// `sched_process_exec`: the image before it can own sets, and can do nothing more.
#[inline(always)]
pub(crate) fn image_replaced() {
    let mut key = current_thread().key;
    // begin_new_exec has counted up before the tracepoint fires.
    key.exec = key.exec.wrapping_sub(1);
    let Some(pointer) = PROCS.get_ptr_mut(&key) else {
        return;
    };
    // SAFETY: a live map value.
    let record = unsafe { &mut *pointer };
    record.state |= PROC_REPLACED;
    release_record(key, record);
}

/// Drops the record of an ended or replaced image once nothing needs it: no set of its own is left, and
/// userspace has been told of it. What userspace has not been told stays, up to a limit.
#[inline(always)]
pub(crate) fn release_record(key: ProcKey, record: &mut ProcRecord) {
    let over = record.exited != 0 || record.state & PROC_REPLACED != 0;
    if !over || record.live != 0 || record.state & PROC_TOMBSTONE != 0 {
        return;
    }
    let told = record.state & (PROC_ANNOUNCED | PROC_EXIT_DROPPED) == PROC_ANNOUNCED;
    // A victim of ENOSPC stays while there is room: `dmtrace report` reads it from the map.
    if told && record.enospc_failures == 0 {
        let _gone_already = PROCS.remove(&key);
    } else if control_get(control::PROC_TOMBSTONES) < PROC_TOMBS_MAX.load() {
        record.state |= PROC_TOMBSTONE;
        control_add(control::PROC_TOMBSTONES, 1);
    } else {
        let _gone_already = PROCS.remove(&key);
        if !told {
            emit::count_event(Counter::HISTORY_LOST);
        }
    }
}
