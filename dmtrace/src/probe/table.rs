//! The table of probes.

use dmtrace_common::{CallEnd, Counter, SemCall};

use super::spec::{Attachment, ProbeHook, ProbeSubject, SkipCost, SubjectWeight};

use CallEnd::{Entry, Return};
use ProbeHook::{Fentry, Fexit, Kprobe, Kretprobe, RawTracepoint, Tracepoint};
use SemCall::{Semctl, Semget, Semop, Semtimedop};
use SubjectWeight::{Optional, Required};

const fn program_at(program: &'static str, hook: ProbeHook) -> Attachment {
    Attachment {
        program,
        hook,
        skip: SkipCost::Lost,
    }
}

/// A program beside one that sees the same.
const fn made_good(
    program: &'static str,
    hook: ProbeHook,
    by: &'static [&'static str],
) -> Attachment {
    Attachment {
        program,
        hook,
        skip: SkipCost::MadeGoodBy(by),
    }
}

/// A program before one of the same call, which does what the first was kept from.
const fn noticed_program(
    program: &'static str,
    hook: ProbeHook,
    by: &'static str,
    counter: Counter,
) -> Attachment {
    Attachment {
        program,
        hook,
        skip: SkipCost::NoticedBy(by, counter),
    }
}

/// A program of which no run is missed.
const fn spare_program(program: &'static str, hook: ProbeHook) -> Attachment {
    Attachment {
        program,
        hook,
        skip: SkipCost::Harmless,
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
pub(super) const END: ProbeSubject = end_subject(&[END_PLAIN]);

/// Raw tracepoints can be preempted since 7.0. Those of the perf kind cannot, but are skipped where
/// a task was preempted in a system call on a map (`bpf_prog_active`); they need tracefs.
pub(super) const END_PREEMPTED: ProbeSubject = end_subject(&[
    &[
        made_good(
            "exit_e",
            RawTracepoint("sched_process_exit"),
            &["exit_f", "exit_t"],
        ),
        spare_program("exit_f", RawTracepoint("sched_process_exit")),
        spare_program("exit_t", Tracepoint("sched", "sched_process_exit")),
        // Tells userspace nothing: the record of an image that was replaced unseen leaves the map
        // with its process, at the latest.
        spare_program("exec_e", RawTracepoint("sched_process_exec")),
        spare_program("exec_f", RawTracepoint("sched_process_exec")),
        spare_program("exec_t", Tracepoint("sched", "sched_process_exec")),
    ],
    END_PLAIN,
]);

const END_PLAIN: &[Attachment] = &[
    program_at("exit_e", RawTracepoint("sched_process_exit")),
    program_at("exec_e", RawTracepoint("sched_process_exec")),
];

const fn end_subject(ways: &'static [&'static [Attachment]]) -> ProbeSubject {
    ProbeSubject {
        name: "exit",
        provides: EXIT,
        weight: Required,
        ways,
    }
}

/// Programs beside those of "create", so that these work whatever becomes of them.
const fn call_site(ways: &'static [&'static [Attachment]]) -> ProbeSubject {
    ProbeSubject {
        name: "call-site",
        provides: CALL_SITE,
        weight: Optional,
        ways,
    }
}

pub(super) const TRAMPOLINE: &[ProbeSubject] = &[
    ProbeSubject {
        name: "create",
        provides: CREATE,
        weight: Required,
        ways: &[&[program_at("newary_x", Fexit("newary"))]],
    },
    ProbeSubject {
        name: "destroy",
        provides: DESTROY,
        weight: Required,
        ways: &[&[program_at("freeary_e", Fentry("freeary"))]],
    },
    ProbeSubject {
        name: "setval",
        provides: SETVAL,
        weight: Required,
        ways: &[&[program_at("setval_x", Fexit("semctl_setval"))]],
    },
    ProbeSubject {
        name: "operate",
        provides: OPERATE,
        weight: Required,
        ways: &[
            &[
                program_at("semop_e", Fentry("__do_semtimedop")),
                program_at("semop_x", Fexit("__do_semtimedop")),
            ],
            &[
                program_at("semop_old_e", Fentry("do_semtimedop")),
                program_at("semop_old_x", Fexit("do_semtimedop")),
            ],
        ],
    },
    ProbeSubject {
        name: "lookup",
        provides: LOOKUP,
        weight: Optional,
        ways: &[&[program_at("ipcget_x", Fexit("ipcget"))]],
    },
    call_site(&[&[program_at("stack_x", Fexit("newary"))]]),
];

/// For a kernel that preempts. `ipc_addid`, `freeary`, `update_queue` and `perform_atomic_semop`
/// run, or return, with the set locked by a spinlock: nobody is preempted there. Where one of them cannot be traced, [`TRAMPOLINE`] is taken.
pub(super) const TRAMPOLINE_PREEMPTED: &[ProbeSubject] = &[
    ProbeSubject {
        name: "create",
        provides: "creation of semaphores",
        weight: Required,
        ways: &[&[program_at("addid_x", Fexit("ipc_addid"))]],
    },
    ProbeSubject {
        name: "destroy",
        provides: DESTROY,
        weight: Required,
        ways: &[&[program_at("freeary_e", Fentry("freeary"))]],
    },
    ProbeSubject {
        name: "setval",
        provides: SETVAL,
        weight: Required,
        ways: &[&[
            noticed_program(
                "setval_pe",
                Kprobe("semctl_setval"),
                "setval_px",
                Counter::NOTICED_SETVAL,
            ),
            program_at("setval_pu", Fentry("update_queue")),
            spare_program("setval_px", Fexit("semctl_setval")),
            spare_program("setval_pk", Kretprobe("semctl_setval")),
        ]],
    },
    ProbeSubject {
        name: "operate",
        provides: OPERATE,
        weight: Required,
        // What was attached last runs first (kernel/bpf/trampoline.c:bpf_trampoline_link_prog);
        // `order.rs` asks the kernel.
        ways: &[&[
            program_at("atomic_x", Fexit("perform_atomic_semop")),
            spare_program("semend_b", Fexit("__do_semtimedop")),
            spare_program("semend_a", Fexit("__do_semtimedop")),
        ]],
    },
    ProbeSubject {
        name: "lookup",
        provides: "creations that failed, look-ups of cookies that are not there",
        weight: Required,
        ways: &[&[
            spare_program("ipcget_b", Fexit("ipcget")),
            noticed_program(
                "ipcget_a",
                Fexit("ipcget"),
                "ipcget_b",
                Counter::NOTICED_LOOKUP,
            ),
        ]],
    },
    call_site(&[&[program_at("stack_ax", Fexit("ipc_addid"))]]),
];

pub(super) const KPROBE: &[ProbeSubject] = &[
    ProbeSubject {
        name: "create",
        provides: CREATE,
        weight: Required,
        ways: &[&[
            program_at("newary_ke", Kprobe("newary")),
            program_at("newary_kx", Kretprobe("newary")),
        ]],
    },
    ProbeSubject {
        name: "destroy",
        provides: DESTROY,
        weight: Required,
        ways: &[&[program_at("freeary_ke", Kprobe("freeary"))]],
    },
    ProbeSubject {
        name: "setval",
        provides: SETVAL,
        weight: Required,
        ways: &[&[
            program_at("setval_ke", Kprobe("semctl_setval")),
            program_at("setval_kx", Kretprobe("semctl_setval")),
        ]],
    },
    ProbeSubject {
        name: "operate",
        provides: OPERATE,
        weight: Required,
        ways: &[
            &[
                program_at("semop_ke", Kprobe("__do_semtimedop")),
                program_at("semop_do_ke", Kprobe("perform_atomic_semop")),
                program_at("semop_do_kx", Kretprobe("perform_atomic_semop")),
            ],
            &[
                program_at("semop_old_ke", Kprobe("do_semtimedop")),
                program_at("semop_do_ke", Kprobe("perform_atomic_semop")),
                program_at("semop_do_kx", Kretprobe("perform_atomic_semop")),
            ],
        ],
    },
    call_site(&[&[program_at("stack_kx", Kretprobe("newary"))]]),
];

/// The programs of system calls, in their places by `$place`, and what else there is.
macro_rules! syscalls {
    ($place:ident $(, $more:expr)?) => {
        &[
            ProbeSubject {
                name: "create",
                provides: "creation of semaphores, creations that failed, failed look-ups",
                weight: Required,
                ways: &[&[
                    $place("semget_te", Semget, Entry),
                    $place("semget_tx", Semget, Return),
                ]],
            },
            ProbeSubject {
                name: "destroy",
                provides: "IPC_RMID of semaphores, SETVAL on cookies",
                weight: Required,
                ways: &[&[
                    $place("semctl_te", Semctl, Entry),
                    $place("semctl_tx", Semctl, Return),
                ]],
            },
            ProbeSubject {
                name: "operate",
                provides: OPERATE,
                weight: Required,
                ways: &[&[
                    $place("semop_te", Semop, Entry),
                    $place("semop_tx", Semop, Return),
                    $place("semtimedop_te", Semtimedop, Entry),
                    $place("semtimedop_tx", Semtimedop, Return),
                ]],
            },
            call_site(&[&[program_at("stack_tx", syscall_tracepoint(Semget, Return))]]),
            $($more)?
        ]
    };
}

pub(super) const TRACEPOINT: &[ProbeSubject] = syscalls!(sole_program);

/// For a kernel that preempts: programs of the perf kind are skipped where a task was preempted in
/// a system call on a map, and a raw program at the same place makes that good. It must come after
/// them, so it is attached last (`kernel/tracepoint.c:func_add`).
pub(super) const TRACEPOINT_PREEMPTED: &[ProbeSubject] = syscalls!(
    first_program,
    ProbeSubject {
        name: "second-look",
        provides: "system calls on semaphores of which another program was skipped",
        weight: Required,
        ways: &[&[
            spare_program(RAW_ENTRY, RawTracepoint("sys_enter")),
            spare_program(RAW_RETURN, RawTracepoint("sys_exit")),
            spare_program(RAW_SEMGET_RETURN, RawTracepoint("sys_exit")),
        ]],
    }
);

const RAW_ENTRY: &str = "sys_re";
const RAW_RETURN: &str = "sys_rx";
const RAW_SEMGET_RETURN: &str = "semget_rx";

const fn sole_program(program: &'static str, call: SemCall, end: CallEnd) -> Attachment {
    program_at(program, syscall_tracepoint(call, end))
}

const fn first_program(program: &'static str, call: SemCall, end: CallEnd) -> Attachment {
    let raw = match (call, end) {
        (_, Entry) => RAW_ENTRY,
        (Semget, Return) => RAW_SEMGET_RETURN,
        (_, Return) => RAW_RETURN,
    };
    let counter = Counter::noticed_syscall(call, end);
    noticed_program(program, syscall_tracepoint(call, end), raw, counter)
}

const fn syscall_tracepoint(call: SemCall, end: CallEnd) -> ProbeHook {
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
            program_at("dm_suspend_ke", Kprobe(concat!($module, "dev_suspend"))),
            program_at("dm_kx", Kretprobe(concat!($module, "dev_suspend"))),
            program_at("dm_remove_ke", Kprobe(concat!($module, "dev_remove"))),
            program_at("dm_kx", Kretprobe(concat!($module, "dev_remove"))),
            program_at("dm_rename_ke", Kprobe(concat!($module, "dev_rename"))),
            program_at("dm_kx", Kretprobe(concat!($module, "dev_rename"))),
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
            spare_program("dm_suspend_ke", Kprobe(concat!($module, "dev_suspend"))),
            spare_program("dm_remove_ke", Kprobe(concat!($module, "dev_remove"))),
            spare_program("dm_rename_ke", Kprobe(concat!($module, "dev_rename"))),
            spare_program("dm_x", Fexit("dev_suspend")),
            spare_program("dm_y", Fexit("dev_suspend")),
            spare_program("dm_kx", Kretprobe(concat!($module, "dev_suspend"))),
            spare_program("dm_x", Fexit("dev_remove")),
            spare_program("dm_y", Fexit("dev_remove")),
            spare_program("dm_kx", Kretprobe(concat!($module, "dev_remove"))),
            spare_program("dm_x", Fexit("dev_rename")),
            spare_program("dm_y", Fexit("dev_rename")),
            spare_program("dm_kx", Kretprobe(concat!($module, "dev_rename"))),
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
            spare_program(
                "dm_uevent_ke",
                Kprobe(concat!($module, "dm_kobject_uevent")),
            ),
        ]
    };
}

/// device-mapper, apart from the backend of the semaphores: dm_mod may be a module that is loaded
/// later, and its types are not the kernel's.
pub(super) const DEVICE_MAPPER: &[ProbeSubject] = &[
    dm_subject(&[DM_FENTRY, DM_KPROBE, DM_KPROBE_BUILT_IN]),
    uevent_subject(&[UEVENT_FENTRY, UEVENT_KPROBE, UEVENT_KPROBE_BUILT_IN]),
];

/// For a kernel that preempts: no lock is held here, but the programs of kprobes run with
/// preemption off. A return has two trampolines besides, because a kretprobe loses returns of
/// functions that sleep; one that all have missed is settled, and told without a result.
pub(super) const DEVICE_MAPPER_PREEMPTED: &[ProbeSubject] = &[
    dm_subject(&[
        dm_twice!("dm_mod:"),
        dm_twice!(""),
        DM_FENTRY,
        DM_KPROBE,
        DM_KPROBE_BUILT_IN,
    ]),
    uevent_subject(&[
        uevent_twice!("dm_mod:"),
        uevent_twice!(""),
        UEVENT_FENTRY,
        UEVENT_KPROBE,
        UEVENT_KPROBE_BUILT_IN,
    ]),
];

const fn dm_subject(ways: &'static [&'static [Attachment]]) -> ProbeSubject {
    ProbeSubject {
        name: "dm",
        provides: DM_IOCTL,
        weight: Optional,
        ways,
    }
}

const fn uevent_subject(ways: &'static [&'static [Attachment]]) -> ProbeSubject {
    ProbeSubject {
        name: "uevent",
        provides: DM_UEVENT,
        weight: Optional,
        ways,
    }
}

const DM_FENTRY: &[Attachment] = &[
    program_at("dm_suspend_e", Fentry("dev_suspend")),
    program_at("dm_x", Fexit("dev_suspend")),
    program_at("dm_remove_e", Fentry("dev_remove")),
    program_at("dm_x", Fexit("dev_remove")),
    program_at("dm_rename_e", Fentry("dev_rename")),
    program_at("dm_x", Fexit("dev_rename")),
];

const DM_KPROBE: &[Attachment] = dm_kprobe!("dm_mod:");

/// Built in; or a kernel that counts symbols of this name without the module's. Those refuse a
/// name that is not unique.
const DM_KPROBE_BUILT_IN: &[Attachment] = dm_kprobe!("");

const UEVENT_FENTRY: &[Attachment] = &[program_at("dm_uevent_e", Fentry("dm_kobject_uevent"))];
const UEVENT_KPROBE: &[Attachment] = &[program_at(
    "dm_uevent_ke",
    Kprobe("dm_mod:dm_kobject_uevent"),
)];
const UEVENT_KPROBE_BUILT_IN: &[Attachment] =
    &[program_at("dm_uevent_ke", Kprobe("dm_kobject_uevent"))];
