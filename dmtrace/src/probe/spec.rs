//! The table of probes. Loader, `doctor` and the documentation read this and nothing else.

use std::fmt;

use serde::Serialize;

use crate::verdict::BlindSpot;

/// How a set of probes is attached, in order of preference.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// fentry and fexit.
    Trampoline,
    /// kprobes and kretprobes.
    Kprobe,
    /// `syscalls:*` tracepoints.
    Tracepoint,
}

impl Backend {
    /// Best first.
    pub const ALL: [Self; 3] = [Self::Trampoline, Self::Kprobe, Self::Tracepoint];

    /// Name on the command line and in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Trampoline => "fentry",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
        }
    }

    /// What this backend cannot see, as verdicts take it into account.
    pub const fn hides(self) -> &'static [BlindSpot] {
        match self {
            Self::Trampoline => &[],
            Self::Kprobe => &[BlindSpot::Results],
            Self::Tracepoint => &[BlindSpot::Compat, BlindSpot::NamespaceTeardown],
        }
    }

    /// What this backend cannot see, in words; empty for the best one.
    pub const fn blind_spots(self) -> &'static [&'static str] {
        match self {
            Self::Trampoline => &[],
            Self::Kprobe => &[
                "why a wait on a cookie ended early (EINTR, EIDRM)",
                "failed look-ups of cookies",
            ],
            Self::Tracepoint => &[
                "removal of semaphores with their IPC namespace (found by comparing)",
                "32-bit callers (found by comparing, creator unknown)",
            ],
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Where a program goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hook {
    /// Entry of a kernel function, by trampoline.
    Fentry(&'static str),
    /// Return of a kernel function, by trampoline.
    Fexit(&'static str),
    /// Entry of a kernel function, by breakpoint.
    Kprobe(&'static str),
    /// Return of a kernel function, by breakpoint.
    Kretprobe(&'static str),
    /// A tracepoint: category and name.
    Tracepoint(&'static str, &'static str),
    /// A tracepoint by its arguments.
    RawTracepoint(&'static str),
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fentry(function) => write!(f, "fentry:{function}"),
            Self::Fexit(function) => write!(f, "fexit:{function}"),
            Self::Kprobe(function) => write!(f, "kprobe:{function}"),
            Self::Kretprobe(function) => write!(f, "kretprobe:{function}"),
            Self::Tracepoint(category, name) => write!(f, "{category}:{name}"),
            Self::RawTracepoint(name) => write!(f, "raw_tp:{name}"),
        }
    }
}

/// One program in its place.
#[derive(Clone, Copy, Debug)]
pub struct Attachment {
    /// Name of the program in the object.
    pub program: &'static str,
    /// Where it goes.
    pub hook: Hook,
}

/// Whether a backend is of use without a subject.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Weight {
    /// No.
    Required,
    /// Yes; something is then unseen.
    Optional,
}

/// What a group of programs lets dmtrace see.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// Short name, as in `doctor`.
    pub name: &'static str,
    /// In words.
    pub provides: &'static str,
    /// Whether the backend needs it.
    pub weight: Weight,
    /// Ways to see it, best first; all programs of a way go together.
    pub ways: &'static [&'static [Attachment]],
}

const fn at(program: &'static str, hook: Hook) -> Attachment {
    Attachment { program, hook }
}

const fn syscall(program: &'static str, name: &'static str) -> Attachment {
    Attachment {
        program,
        hook: Hook::Tracepoint("syscalls", name),
    }
}

use Hook::{Fentry, Fexit, Kprobe, Kretprobe};
use Weight::{Optional, Required};

const CREATE: &str = "creation of semaphores, and creations that failed";
const DESTROY: &str = "removal of semaphores, also with their namespace";
const OPERATE: &str = "semop on cookies: +1, -1, waits";
const SETVAL: &str = "SETVAL on cookies";
const EXIT: &str = "end of processes, and execve";
const CALL_SITE: &str = "user stacks of those who make cookies";
const LOOKUP: &str = "look-ups of cookies that are not there";

const END_OF_PROCESS: Subject = Subject {
    name: "exit",
    provides: EXIT,
    weight: Required,
    ways: &[&[
        at("exit_e", Hook::RawTracepoint("sched_process_exit")),
        at("exec_e", Hook::RawTracepoint("sched_process_exec")),
    ]],
};

/// Programs beside those of "create", so that these work whatever becomes of them.
const fn call_site(ways: &'static [&'static [Attachment]]) -> Subject {
    Subject {
        name: "call-site",
        provides: CALL_SITE,
        weight: Optional,
        ways,
    }
}

const TRAMPOLINE: &[Subject] = &[
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
    END_OF_PROCESS,
];

const KPROBE: &[Subject] = &[
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
    END_OF_PROCESS,
];

const TRACEPOINT: &[Subject] = &[
    Subject {
        name: "create",
        provides: "creation of semaphores, creations that failed, failed look-ups",
        weight: Required,
        ways: &[&[
            syscall("semget_te", "sys_enter_semget"),
            syscall("semget_tx", "sys_exit_semget"),
        ]],
    },
    Subject {
        name: "destroy",
        provides: "IPC_RMID of semaphores, SETVAL on cookies",
        weight: Required,
        ways: &[&[
            syscall("semctl_te", "sys_enter_semctl"),
            syscall("semctl_tx", "sys_exit_semctl"),
        ]],
    },
    Subject {
        name: "operate",
        provides: OPERATE,
        weight: Required,
        ways: &[&[
            syscall("semop_te", "sys_enter_semop"),
            syscall("semop_tx", "sys_exit_semop"),
            syscall("semtimedop_te", "sys_enter_semtimedop"),
            syscall("semtimedop_tx", "sys_exit_semtimedop"),
        ]],
    },
    call_site(&[&[syscall("stack_tx", "sys_exit_semget")]]),
    END_OF_PROCESS,
];

const DM_IOCTL: &str = "device-mapper's resume, remove and rename, their devices and results";
const DM_UEVENT: &str = "uevents that carry a cookie";

/// device-mapper, apart from the backend of the semaphores: dm_mod may be a module that is loaded
/// later, and its types are not the kernel's.
const DEVICE_MAPPER: &[Subject] = &[
    Subject {
        name: "dm",
        provides: DM_IOCTL,
        weight: Optional,
        ways: &[
            &[
                at("dm_suspend_e", Fentry("dev_suspend")),
                at("dm_x", Fexit("dev_suspend")),
                at("dm_remove_e", Fentry("dev_remove")),
                at("dm_x", Fexit("dev_remove")),
                at("dm_rename_e", Fentry("dev_rename")),
                at("dm_x", Fexit("dev_rename")),
            ],
            &[
                at("dm_suspend_ke", Kprobe("dm_mod:dev_suspend")),
                at("dm_kx", Kretprobe("dm_mod:dev_suspend")),
                at("dm_remove_ke", Kprobe("dm_mod:dev_remove")),
                at("dm_kx", Kretprobe("dm_mod:dev_remove")),
                at("dm_rename_ke", Kprobe("dm_mod:dev_rename")),
                at("dm_kx", Kretprobe("dm_mod:dev_rename")),
            ],
            // Built in; or a kernel that counts symbols of this name without the module's. Those
            // refuse a name that is not unique.
            &[
                at("dm_suspend_ke", Kprobe("dev_suspend")),
                at("dm_kx", Kretprobe("dev_suspend")),
                at("dm_remove_ke", Kprobe("dev_remove")),
                at("dm_kx", Kretprobe("dev_remove")),
                at("dm_rename_ke", Kprobe("dev_rename")),
                at("dm_kx", Kretprobe("dev_rename")),
            ],
        ],
    },
    Subject {
        name: "uevent",
        provides: DM_UEVENT,
        weight: Optional,
        ways: &[
            &[at("dm_uevent_e", Fentry("dm_kobject_uevent"))],
            &[at("dm_uevent_ke", Kprobe("dm_mod:dm_kobject_uevent"))],
            &[at("dm_uevent_ke", Kprobe("dm_kobject_uevent"))],
        ],
    },
];

/// Subjects of device-mapper.
pub const fn device_mapper() -> &'static [Subject] {
    DEVICE_MAPPER
}

/// Subjects of a backend.
pub const fn subjects(backend: Backend) -> &'static [Subject] {
    match backend {
        Backend::Trampoline => TRAMPOLINE,
        Backend::Kprobe => KPROBE,
        Backend::Tracepoint => TRACEPOINT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_kernels_cut_at_15_bytes() {
        let all = Backend::ALL.into_iter().flat_map(subjects);
        for subject in all.chain(device_mapper()) {
            for attachment in subject.ways.iter().flat_map(|way| way.iter()) {
                assert!(attachment.program.len() <= 15, "{}", attachment.program);
            }
        }
    }
}
