//! The columns of `list`.

use crate::output::table::Column;

const fn column(
    name: &'static str,
    header: &'static str,
    right: bool,
    about: &'static str,
) -> Column {
    Column {
        name,
        header,
        about,
        right,
    }
}

/// All columns, in the order in which they are listed.
pub(super) const COLUMNS: &[Column] = &[
    column(
        "key",
        "COOKIE",
        false,
        "System V key; for a cookie, the cookie",
    ),
    column("semid", "SEMID", true, "identifier of the set"),
    column("ns", "IPC-NS", false, "IPC namespace, by inode number"),
    column("value", "VAL", true, "value of semaphore 0"),
    column("wait", "WAIT", true, "threads that wait on it"),
    column("age", "AGE", true, "time since it was made"),
    column("state", "STATE", false, "verdict in one word"),
    column(
        "owner",
        "OWNER",
        false,
        "who made it: + has ended, ? inferred",
    ),
    column(
        "confidence",
        "CONFIDENCE",
        false,
        "observed, inferred or unknown",
    ),
    column("verdict", "VERDICT", false, "verdict in words"),
    column("nsems", "NSEMS", true, "semaphores in the set"),
    column("mode", "MODE", false, "permission bits"),
    column("uid", "UID", true, "owner of the set"),
    column("ctime", "CTIME", false, "creation or last SETVAL"),
    column("otime", "OTIME", false, "last successful semop"),
    column(
        "lastpid",
        "LASTPID",
        true,
        "last process that changed it; may be reused",
    ),
    column("pid", "PID", true, "process that made it"),
    column(
        "nspid",
        "NSPID",
        true,
        "its number inside its PID namespace",
    ),
    column("comm", "COMM", false, "its name"),
    column("exe", "EXE", false, "its executable"),
    column(
        "container",
        "CONTAINER",
        false,
        "its container, or unit of systemd",
    ),
    column("cgroup", "CGROUP", false, "its cgroup"),
    column("parents", "PARENTS", false, "its ancestors"),
    column("cmdline", "COMMAND", false, "its command line"),
    column(
        "device",
        "DEVICE",
        false,
        "devices that it was used for, the last one first",
    ),
    column("site", "CALL SITE", false, "the calls that made it"),
];
