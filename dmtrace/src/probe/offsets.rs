//! Which kernel fields the programs read, and what is lost where one is missing.

use super::btf::Btf;

/// How an offset is found.
enum OffsetSource {
    /// Offset of the first of these members that exists.
    Member(&'static [&'static str]),
    /// Size of a struct.
    Size(&'static str),
    /// Value of an enumerator.
    Enumerator(&'static [&'static str]),
}

/// What depends on a field.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum FieldNeed {
    /// Without it no backend that reads kernel structures works.
    Core,
    /// Without it something is not captured.
    Detail(&'static str),
    /// Without it the programs for kernels that preempt do not work.
    Preempted,
    /// One of several ways; its absence is normal.
    Optional,
}

struct Field {
    global: &'static str,
    source: OffsetSource,
    need: FieldNeed,
}

const fn member_field(
    global: &'static str,
    names: &'static [&'static str],
    need: FieldNeed,
) -> Field {
    Field {
        global,
        source: OffsetSource::Member(names),
        need,
    }
}

use FieldNeed::{Core, Detail, Optional, Preempted};

const EXE: FieldNeed = Detail("path of executables");
const CGROUP: FieldNeed = Detail("cgroup paths");
const NSPID: FieldNeed = Detail("process numbers inside PID namespaces");
const STACK: FieldNeed = Detail("call sites");
const SLEEPER: FieldNeed = Detail("results of semop with the kprobe backend");

const FIELDS: &[Field] = &[
    member_field("O_TASK_TGID", &["task_struct.tgid"], Core),
    member_field("O_TASK_TID", &["task_struct.pid"], SLEEPER),
    member_field("O_TASK_LEADER", &["task_struct.group_leader"], Core),
    member_field("O_TASK_PARENT", &["task_struct.real_parent"], Core),
    // Renamed in 5.5 from real_start_time.
    member_field(
        "O_TASK_START",
        &["task_struct.start_boottime", "task_struct.real_start_time"],
        Core,
    ),
    member_field(
        "O_TASK_EXEC_ID",
        &["task_struct.self_exec_id"],
        Detail("programs run one after the other by one process"),
    ),
    member_field("O_TASK_COMM", &["task_struct.comm"], Core),
    member_field("O_TASK_MM", &["task_struct.mm"], Core),
    member_field("O_TASK_FS", &["task_struct.fs"], EXE),
    member_field("O_TASK_NSPROXY", &["task_struct.nsproxy"], Core),
    member_field("O_TASK_CGROUPS", &["task_struct.cgroups"], CGROUP),
    member_field("O_TASK_SIGNAL", &["task_struct.signal"], Core),
    member_field("O_TASK_EXIT_CODE", &["task_struct.exit_code"], Core),
    member_field("O_TASK_PID", &["task_struct.thread_pid"], NSPID),
    member_field("O_SIGNAL_LIVE", &["signal_struct.live"], Core),
    member_field("O_NSPROXY_IPC", &["nsproxy.ipc_ns"], Core),
    member_field(
        "O_NSPROXY_MNT",
        &["nsproxy.mnt_ns"],
        Detail("mount namespaces"),
    ),
    member_field("O_IPCNS_INUM", &["ipc_namespace.ns.inum"], Core),
    member_field("O_PIDNS_INUM", &["pid_namespace.ns.inum"], NSPID),
    member_field(
        "O_MNTNS_INUM",
        &["mnt_namespace.ns.inum"],
        Detail("mount namespaces"),
    ),
    member_field("O_PID_LEVEL", &["pid.level"], NSPID),
    member_field("O_PID_NUMBERS", &["pid.numbers"], NSPID),
    member_field("O_UPID_NR", &["upid.nr"], NSPID),
    member_field("O_UPID_NS", &["upid.ns"], NSPID),
    Field {
        global: "O_UPID_SIZE",
        source: OffsetSource::Size("upid"),
        need: NSPID,
    },
    member_field(
        "O_MM_ARG_START",
        &["mm_struct.arg_start"],
        Detail("command lines"),
    ),
    member_field(
        "O_MM_ARG_END",
        &["mm_struct.arg_end"],
        Detail("command lines"),
    ),
    member_field("O_MM_EXE", &["mm_struct.exe_file"], EXE),
    // `f_path` became a member of an anonymous union with `__f_path` in 6.18.
    member_field("O_FILE_PATH", &["file.f_path", "file.__f_path"], EXE),
    member_field("O_PATH_MNT", &["path.mnt"], EXE),
    member_field("O_PATH_DENTRY", &["path.dentry"], EXE),
    member_field("O_DENTRY_PARENT", &["dentry.d_parent"], EXE),
    // `d_name` moved into a union with `__d_name` in 6.15.
    member_field(
        "O_DENTRY_NAME",
        &["dentry.d_name.name", "dentry.__d_name.name"],
        EXE,
    ),
    member_field("O_DENTRY_INODE", &["dentry.d_inode"], EXE),
    member_field(
        "O_INODE_NLINK",
        &["inode.i_nlink", "inode.__i_nlink"],
        Optional,
    ),
    member_field("O_VFSMOUNT_ROOT", &["vfsmount.mnt_root"], EXE),
    member_field("O_MOUNT_MNT", &["mount.mnt"], EXE),
    member_field("O_MOUNT_PARENT", &["mount.mnt_parent"], EXE),
    member_field("O_MOUNT_POINT", &["mount.mnt_mountpoint"], EXE),
    member_field("O_FS_ROOT", &["fs_struct.root"], EXE),
    member_field("O_CSSSET_DFL", &["css_set.dfl_cgrp"], CGROUP),
    member_field("O_CSSSET_SUBSYS", &["css_set.subsys"], CGROUP),
    member_field("O_CSS_CGROUP", &["cgroup_subsys_state.cgroup"], CGROUP),
    member_field("O_CGROUP_KN", &["cgroup.kn"], CGROUP),
    member_field("O_KN_NAME", &["kernfs_node.name"], CGROUP),
    // Renamed in 6.15.
    member_field(
        "O_KN_PARENT",
        &["kernfs_node.__parent", "kernfs_node.parent"],
        CGROUP,
    ),
    Field {
        global: "O_SUBSYS_FIRST",
        source: OffsetSource::Enumerator(&["pids_cgrp_id", "cpu_cgrp_id"]),
        need: Optional,
    },
    Field {
        global: "O_SUBSYS_SECOND",
        source: OffsetSource::Enumerator(&["memory_cgrp_id", "devices_cgrp_id"]),
        need: Optional,
    },
    member_field("O_PERM_ID", &["kern_ipc_perm.id"], Core),
    member_field("O_PERM_KEY", &["kern_ipc_perm.key"], Core),
    member_field("O_PERM_MODE", &["kern_ipc_perm.mode"], Preempted),
    member_field("O_SEMARRAY_NSEMS", &["sem_array.sem_nsems"], Preempted),
    member_field("O_SEMQUEUE_LIST", &["sem_queue.list"], Preempted),
    member_field("O_SEMQUEUE_SOPS", &["sem_queue.sops"], SLEEPER),
    member_field("O_SEMQUEUE_NSOPS", &["sem_queue.nsops"], SLEEPER),
    member_field("O_SEMQUEUE_PID", &["sem_queue.pid"], SLEEPER),
    member_field("O_SEMQUEUE_SLEEPER", &["sem_queue.sleeper"], SLEEPER),
    member_field("O_PARAMS_KEY", &["ipc_params.key"], Core),
    member_field("O_PARAMS_FLG", &["ipc_params.flg"], Core),
    member_field("O_PARAMS_NSEMS", &["ipc_params.u.nsems"], Core),
    member_field("O_TASK_STACK", &["task_struct.stack"], STACK),
    member_field(
        "O_TASK_FSBASE",
        &["task_struct.thread.fsbase"],
        Detail("call sites of Go programs beyond their C code"),
    ),
    member_field("O_MM_AUXV", &["mm_struct.saved_auxv"], STACK),
    Field {
        global: "F_TASK_PT_REGS",
        source: OffsetSource::Enumerator(&["BPF_FUNC_task_pt_regs"]),
        need: Optional,
    },
    member_field("O_DISK_MAJOR", &["gendisk.major"], Optional),
    member_field("O_DISK_MINOR", &["gendisk.first_minor"], Optional),
];

/// Offsets for the programs, and what this kernel does not have.
pub(crate) struct Offsets {
    /// Name of the global in the object, and its value.
    pub globals: Vec<(&'static str, u32)>,
    /// Fields without which the programs cannot work.
    pub missing_core: Vec<&'static str>,
    /// What will not be captured.
    pub missing_detail: Vec<&'static str>,
    /// Fields without which the programs for kernels that preempt cannot work.
    pub missing_preempted: Vec<&'static str>,
}

/// Looks every field up.
pub(crate) fn resolve_offsets(btf: &Btf) -> Offsets {
    let mut found = Offsets {
        globals: Vec::new(),
        missing_core: Vec::new(),
        missing_detail: Vec::new(),
        missing_preempted: Vec::new(),
    };
    for field in FIELDS {
        let value = match field.source {
            OffsetSource::Member(names) => names.iter().find_map(|name| btf.member_offset(name)),
            OffsetSource::Size(name) => btf.size_of(name),
            OffsetSource::Enumerator(names) => {
                names.iter().find_map(|name| btf.enumerator_value(name))
            }
        };
        match (value, field.need) {
            (Some(value), _) => found.globals.push((field.global, value)),
            (None, Core) => found.missing_core.push(field.global),
            (None, Preempted) => found.missing_preempted.push(field.global),
            (None, Detail(what)) if !found.missing_detail.contains(&what) => {
                found.missing_detail.push(what);
            }
            (None, Detail(_) | Optional) => {}
        }
    }
    found
}
