//! Offsets of kernel fields, set by userspace from the running kernel's BTF before load.
//!
//! Rust's eBPF target emits no CO-RE relocations. These are read-only globals in a frozen map, so
//! the verifier folds them into constants: they cost nothing at run time.

use aya_ebpf::Global;

macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        $($(#[$doc])* #[unsafe(no_mangle)] pub(crate) static $name: Global<u32> = Global::new(u32::MAX);)+
    };
}

/// The field does not exist in this kernel.
pub(crate) const ABSENT: u32 = u32::MAX;

offsets! {
    O_TASK_TGID, O_TASK_TID, O_TASK_LEADER, O_TASK_PARENT, O_TASK_START, O_TASK_EXEC_ID, O_TASK_COMM,
    O_TASK_MM, O_TASK_FS, O_TASK_NSPROXY, O_TASK_CGROUPS, O_TASK_SIGNAL, O_TASK_EXIT_CODE,
    O_TASK_PID,
    O_SIGNAL_LIVE,
    O_NSPROXY_IPC, O_NSPROXY_MNT,
    O_IPCNS_INUM, O_PIDNS_INUM, O_MNTNS_INUM,
    O_PID_LEVEL, O_PID_NUMBERS, O_UPID_NR, O_UPID_NS,
    /// Size of `struct upid`, the stride of `pid.numbers`.
    O_UPID_SIZE,
    O_MM_ARG_START, O_MM_ARG_END, O_MM_EXE,
    O_FILE_PATH, O_PATH_MNT, O_PATH_DENTRY,
    O_DENTRY_PARENT, O_DENTRY_NAME, O_DENTRY_INODE, O_INODE_NLINK,
    O_VFSMOUNT_ROOT, O_MOUNT_MNT, O_MOUNT_PARENT, O_MOUNT_POINT,
    O_FS_ROOT,
    O_CSSSET_DFL, O_CSSSET_SUBSYS, O_CSS_CGROUP, O_CGROUP_KN, O_KN_NAME, O_KN_PARENT,
    /// Indexes into `css_set.subsys` of two controllers that container runtimes use (cgroup v1).
    O_SUBSYS_FIRST, O_SUBSYS_SECOND,
    O_PERM_ID, O_PERM_KEY, O_PERM_MODE,
    O_SEMARRAY_NSEMS,
    O_SEMQUEUE_LIST, O_SEMQUEUE_SOPS, O_SEMQUEUE_NSOPS, O_SEMQUEUE_PID, O_SEMQUEUE_SLEEPER,
    O_PARAMS_KEY, O_PARAMS_FLG, O_PARAMS_NSEMS,
    O_DISK_MAJOR, O_DISK_MINOR,
    O_TASK_STACK, O_TASK_FSBASE, O_MM_AUXV,
    /// Number of the helper that finds a thread's registers, since 5.15.
    F_TASK_PT_REGS,
}

/// Process number of dmtrace itself: whose descendants `dmtrace exec` watches.
#[unsafe(no_mangle)]
pub(crate) static SELF_TGID: Global<u32> = Global::new(0);

/// How many records of removed sets may wait for userspace.
#[unsafe(no_mangle)]
pub(crate) static TOMBSTONES_MAX: Global<u64> = Global::new(16_384);

/// How many records of ended processes may wait for userspace.
#[unsafe(no_mangle)]
pub(crate) static PROC_TOMBS_MAX: Global<u64> = Global::new(2048);
