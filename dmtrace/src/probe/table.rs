//! The table of probes.

use dmtrace_common::{CallEnd, Counter, SemCall};

use super::spec::{Attachment, Hook, Skip, Subject, Weight};

use CallEnd::{Entry, Return};
use Hook::{Fentry, Fexit, Kprobe, Kretprobe, RawTracepoint, Tracepoint};
use SemCall::{Semctl, Semget, Semop, Semtimedop};
use Weight::{Optional, Required};

const fn at(program: &'static str, hook: Hook) -> Attachment {
    Attachment {
        program,
        hook,
        skip: Skip::Lost,
    }
}

/// A program beside one that sees the same.
const fn made_good(program: &'static str, hook: Hook, by: &'static [&'static str]) -> Attachment {
    Attachment {
        program,
        hook,
        skip: Skip::MadeGoodBy(by),
    }
}

/// A program before one of the same call, which does what the first was kept from.
const fn noticed(
    program: &'static str,
    hook: Hook,
    by: &'static str,
    counter: Counter,
) -> Attachment {
    Attachment {
        program,
        hook,
        skip: Skip::NoticedBy(by, counter),
    }
}

/// A program of which no run is missed.
const fn spare(program: &'static str, hook: Hook) -> Attachment {
    Attachment {
        program,
        hook,
        skip: Skip::Harmless,
    }
}

const CREATE: &str = "creation of semaphores, and creations that failed";
const DESTROY: &str = "removal of semaphores, also with their namespace";
const OPERATE: &str = "semop on cookies: +1, -1, waits";
const SETVAL: &str = "SETVAL on cookies";
const EXIT: &str = "end of processes, and execve";
const CALL_SITE: &str = "user stacks of those who make cookies";
const LOOKUP: &str = "look-ups of cookies that are not there";

/// The end of processes, the same for every backend.
pub(super) const END: Subject = end(&[END_PLAIN]);

/// Raw tracepoints can be preempted since 7.0. Those of the perf kind cannot, but are skipped where
/// a task was preempted in a system call on a map (`bpf_prog_active`); they need tracefs.
pub(super) const END_PREEMPTED: Subject = end(&[
    &[
        made_good(
            "exit_e",
            RawTracepoint("sched_process_exit"),
            &["exit_f", "exit_t"],
        ),
        spare("exit_f", RawTracepoint("sched_process_exit")),
        spare("exit_t", Tracepoint("sched", "sched_process_exit")),
        // Tells userspace nothing: the record of an image that was replaced unseen leaves the map
        // with its process, at the latest.
        spare("exec_e", RawTracepoint("sched_process_exec")),
        spare("exec_f", RawTracepoint("sched_process_exec")),
        spare("exec_t", Tracepoint("sched", "sched_process_exec")),
    ],
    END_PLAIN,
]);

const END_PLAIN: &[Attachment] = &[
    at("exit_e", RawTracepoint("sched_process_exit")),
    at("exec_e", RawTracepoint("sched_process_exec")),
];

const fn end(ways: &'static [&'static [Attachment]]) -> Subject {
    Subject {
        name: "exit",
        provides: EXIT,
        weight: Required,
        ways,
    }
}

/// Programs beside those of "create", so that these work whatever becomes of them.
const fn call_site(ways: &'static [&'static [Attachment]]) -> Subject {
    Subject {
        name: "call-site",
        provides: CALL_SITE,
        weight: Optional,
        ways,
    }
}

pub(super) const TRAMPOLINE: &[Subject] = &[
    Subject {
        name: "create",
        provides: CREATE,
        weight: Required,
        ways: &[&[at("newary_x", Fexit("newary"))]],
    },
    Subject {
        name: "destroy",
        provides: DESTROY,
        weight: Required,
        ways: &[&[at("freeary_e", Fentry("freeary"))]],
    },
    Subject {
        name: "setval",
        provides: SETVAL,
        weight: Required,
        ways: &[&[at("setval_x", Fexit("semctl_setval"))]],
    },
    Subject {
        name: "operate",
        provides: OPERATE,
        weight: Required,
        ways: &[
            &[
                at("semop_e", Fentry("__do_semtimedop")),
                at("semop_x", Fexit("__do_semtimedop")),
            ],
            &[
                at("semop_old_e", Fentry("do_semtimedop")),
                at("semop_old_x", Fexit("do_semtimedop")),
            ],
        ],
    },
    Subject {
        name: "lookup",
        provides: LOOKUP,
        weight: Optional,
        ways: &[&[at("ipcget_x", Fexit("ipcget"))]],
    },
    call_site(&[&[at("stack_x", Fexit("newary"))]]),
];

/// For a kernel that preempts. `ipc_addid`, `freeary`, `update_queue` and `perform_atomic_semop`
/// run, or return, with the set locked by a spinlock: nobody is preempted there. Where one of them cannot be traced, [`TRAMPOLINE`] is taken.
pub(super) const TRAMPOLINE_PREEMPTED: &[Subject] = &[
    Subject {
        name: "create",
        provides: "creation of semaphores",
        weight: Required,
        ways: &[&[at("addid_x", Fexit("ipc_addid"))]],
    },
    Subject {
        name: "destroy",
        provides: DESTROY,
        weight: Required,
        ways: &[&[at("freeary_e", Fentry("freeary"))]],
    },
    Subject {
        name: "setval",
        provides: SETVAL,
        weight: Required,
        ways: &[&[
            noticed(
                "setval_pe",
                Kprobe("semctl_setval"),
                "setval_px",
                Counter::NOTICED_SETVAL,
            ),
            at("setval_pu", Fentry("update_queue")),
            spare("setval_px", Fexit("semctl_setval")),
            spare("setval_pk", Kretprobe("semctl_setval")),
        ]],
    },
    Subject {
        name: "operate",
        provides: OPERATE,
        weight: Required,
        // What was attached last runs first (kernel/bpf/trampoline.c:bpf_trampoline_link_prog);
        // `order.rs` asks the kernel.
        ways: &[&[
            at("atomic_x", Fexit("perform_atomic_semop")),
            spare("semend_b", Fexit("__do_semtimedop")),
            spare("semend_a", Fexit("__do_semtimedop")),
        ]],
    },
    Subject {
        name: "lookup",
        provides: "creations that failed, look-ups of cookies that are not there",
        weight: Required,
        ways: &[&[
            spare("ipcget_b", Fexit("ipcget")),
            noticed(
                "ipcget_a",
                Fexit("ipcget"),
                "ipcget_b",
                Counter::NOTICED_LOOKUP,
            ),
        ]],
    },
    call_site(&[&[at("stack_ax", Fexit("ipc_addid"))]]),
];

pub(super) const KPROBE: &[Subject] = &[
    Subject {
        name: "create",
        provides: CREATE,
        weight: Required,
        ways: &[&[
            at("newary_ke", Kprobe("newary")),
            at("newary_kx", Kretprobe("newary")),
        ]],
    },
    Subject {
        name: "destroy",
        provides: DESTROY,
        weight: Required,
        ways: &[&[at("freeary_ke", Kprobe("freeary"))]],
    },
    Subject {
        name: "setval",
        provides: SETVAL,
        weight: Required,
        ways: &[&[
            at("setval_ke", Kprobe("semctl_setval")),
            at("setval_kx", Kretprobe("semctl_setval")),
        ]],
    },
    Subject {
        name: "operate",
        provides: OPERATE,
        weight: Required,
        ways: &[
            &[
                at("semop_ke", Kprobe("__do_semtimedop")),
                at("semop_do_ke", Kprobe("perform_atomic_semop")),
                at("semop_do_kx", Kretprobe("perform_atomic_semop")),
            ],
            &[
                at("semop_old_ke", Kprobe("do_semtimedop")),
                at("semop_do_ke", Kprobe("perform_atomic_semop")),
                at("semop_do_kx", Kretprobe("perform_atomic_semop")),
            ],
        ],
    },
    call_site(&[&[at("stack_kx", Kretprobe("newary"))]]),
];

/// The programs of system calls, in their places by `$at`, and what else there is.
macro_rules! syscalls {
    ($at:ident $(, $more:expr)?) => {
        &[
            Subject {
                name: "create",
                provides: "creation of semaphores, creations that failed, failed look-ups",
                weight: Required,
                ways: &[&[
                    $at("semget_te", Semget, Entry),
                    $at("semget_tx", Semget, Return),
                ]],
            },
            Subject {
                name: "destroy",
                provides: "IPC_RMID of semaphores, SETVAL on cookies",
                weight: Required,
                ways: &[&[
                    $at("semctl_te", Semctl, Entry),
                    $at("semctl_tx", Semctl, Return),
                ]],
            },
            Subject {
                name: "operate",
                provides: OPERATE,
                weight: Required,
                ways: &[&[
                    $at("semop_te", Semop, Entry),
                    $at("semop_tx", Semop, Return),
                    $at("semtimedop_te", Semtimedop, Entry),
                    $at("semtimedop_tx", Semtimedop, Return),
                ]],
            },
            call_site(&[&[at("stack_tx", syscall(Semget, Return))]]),
            $($more)?
        ]
    };
}

pub(super) const TRACEPOINT: &[Subject] = syscalls!(alone);

/// For a kernel that preempts: programs of the perf kind are skipped where a task was preempted in
/// a system call on a map, and a raw program at the same place makes that good. It must come after
/// them, so it is attached last (`kernel/tracepoint.c:func_add`).
pub(super) const TRACEPOINT_PREEMPTED: &[Subject] = syscalls!(
    before_raw,
    Subject {
        name: "skipped",
        provides: "system calls on semaphores of which another program was skipped",
        weight: Required,
        ways: &[&[
            spare(RAW_ENTRY, RawTracepoint("sys_enter")),
            spare(RAW_RETURN, RawTracepoint("sys_exit")),
            spare(RAW_SEMGET_RETURN, RawTracepoint("sys_exit")),
        ]],
    }
);

const RAW_ENTRY: &str = "sys_re";
const RAW_RETURN: &str = "sys_rx";
const RAW_SEMGET_RETURN: &str = "semget_rx";

const fn alone(program: &'static str, call: SemCall, end: CallEnd) -> Attachment {
    at(program, syscall(call, end))
}

const fn before_raw(program: &'static str, call: SemCall, end: CallEnd) -> Attachment {
    let raw = match (call, end) {
        (_, Entry) => RAW_ENTRY,
        (Semget, Return) => RAW_SEMGET_RETURN,
        (_, Return) => RAW_RETURN,
    };
    let counter = Counter::noticed_syscall(call, end);
    noticed(program, syscall(call, end), raw, counter)
}

const fn syscall(call: SemCall, end: CallEnd) -> Hook {
    let name = match (call, end) {
        (Semget, Entry) => "sys_enter_semget",
        (Semget, Return) => "sys_exit_semget",
        (Semop, Entry) => "sys_enter_semop",
        (Semop, Return) => "sys_exit_semop",
        (Semctl, Entry) => "sys_enter_semctl",
        (Semctl, Return) => "sys_exit_semctl",
        (Semtimedop, Entry) => "sys_enter_semtimedop",
        (Semtimedop, Return) => "sys_exit_semtimedop",
    };
    Tracepoint("syscalls", name)
}

const DM_IOCTL: &str = "device-mapper's resume, remove and rename, their devices and results";
const DM_UEVENT: &str = "uevents that carry a cookie";

/// kprobes in device-mapper, whose functions have this before their names.
macro_rules! dm_kprobe {
    ($module:literal) => {
        &[
            at("dm_suspend_ke", Kprobe(concat!($module, "dev_suspend"))),
            at("dm_kx", Kretprobe(concat!($module, "dev_suspend"))),
            at("dm_remove_ke", Kprobe(concat!($module, "dev_remove"))),
            at("dm_kx", Kretprobe(concat!($module, "dev_remove"))),
            at("dm_rename_ke", Kprobe(concat!($module, "dev_rename"))),
            at("dm_kx", Kretprobe(concat!($module, "dev_rename"))),
        ]
    };
}

/// Trampolines and kprobes at once.
macro_rules! dm_twice {
    ($module:literal) => {
        &[
            made_good("dm_suspend_e", Fentry("dev_suspend"), &["dm_suspend_ke"]),
            made_good("dm_remove_e", Fentry("dev_remove"), &["dm_remove_ke"]),
            made_good("dm_rename_e", Fentry("dev_rename"), &["dm_rename_ke"]),
            spare("dm_suspend_ke", Kprobe(concat!($module, "dev_suspend"))),
            spare("dm_remove_ke", Kprobe(concat!($module, "dev_remove"))),
            spare("dm_rename_ke", Kprobe(concat!($module, "dev_rename"))),
            spare("dm_x", Fexit("dev_suspend")),
            spare("dm_y", Fexit("dev_suspend")),
            spare("dm_kx", Kretprobe(concat!($module, "dev_suspend"))),
            spare("dm_x", Fexit("dev_remove")),
            spare("dm_y", Fexit("dev_remove")),
            spare("dm_kx", Kretprobe(concat!($module, "dev_remove"))),
            spare("dm_x", Fexit("dev_rename")),
            spare("dm_y", Fexit("dev_rename")),
            spare("dm_kx", Kretprobe(concat!($module, "dev_rename"))),
        ]
    };
}

/// See [`dm_twice`].
macro_rules! uevent_twice {
    ($module:literal) => {
        &[
            made_good(
                "dm_uevent_e",
                Fentry("dm_kobject_uevent"),
                &["dm_uevent_ke"],
            ),
            spare(
                "dm_uevent_ke",
                Kprobe(concat!($module, "dm_kobject_uevent")),
            ),
        ]
    };
}

/// device-mapper, apart from the backend of the semaphores: dm_mod may be a module that is loaded
/// later, and its types are not the kernel's.
pub(super) const DEVICE_MAPPER: &[Subject] = &[
    dm(&[DM_FENTRY, DM_KPROBE, DM_KPROBE_BUILT_IN]),
    uevent(&[UEVENT_FENTRY, UEVENT_KPROBE, UEVENT_KPROBE_BUILT_IN]),
];

/// For a kernel that preempts: no lock is held here, but the programs of kprobes run with
/// preemption off. A return has two trampolines besides, because a kretprobe loses returns of
/// functions that sleep; one that all have missed is settled, and told without a result.
pub(super) const DEVICE_MAPPER_PREEMPTED: &[Subject] = &[
    dm(&[
        dm_twice!("dm_mod:"),
        dm_twice!(""),
        DM_FENTRY,
        DM_KPROBE,
        DM_KPROBE_BUILT_IN,
    ]),
    uevent(&[
        uevent_twice!("dm_mod:"),
        uevent_twice!(""),
        UEVENT_FENTRY,
        UEVENT_KPROBE,
        UEVENT_KPROBE_BUILT_IN,
    ]),
];

const fn dm(ways: &'static [&'static [Attachment]]) -> Subject {
    Subject {
        name: "dm",
        provides: DM_IOCTL,
        weight: Optional,
        ways,
    }
}

const fn uevent(ways: &'static [&'static [Attachment]]) -> Subject {
    Subject {
        name: "uevent",
        provides: DM_UEVENT,
        weight: Optional,
        ways,
    }
}

const DM_FENTRY: &[Attachment] = &[
    at("dm_suspend_e", Fentry("dev_suspend")),
    at("dm_x", Fexit("dev_suspend")),
    at("dm_remove_e", Fentry("dev_remove")),
    at("dm_x", Fexit("dev_remove")),
    at("dm_rename_e", Fentry("dev_rename")),
    at("dm_x", Fexit("dev_rename")),
];

const DM_KPROBE: &[Attachment] = dm_kprobe!("dm_mod:");

/// Built in; or a kernel that counts symbols of this name without the module's. Those refuse a
/// name that is not unique.
const DM_KPROBE_BUILT_IN: &[Attachment] = dm_kprobe!("");

const UEVENT_FENTRY: &[Attachment] = &[at("dm_uevent_e", Fentry("dm_kobject_uevent"))];
const UEVENT_KPROBE: &[Attachment] = &[at("dm_uevent_ke", Kprobe("dm_mod:dm_kobject_uevent"))];
const UEVENT_KPROBE_BUILT_IN: &[Attachment] = &[at("dm_uevent_ke", Kprobe("dm_kobject_uevent"))];
