//! The columns of `list`.

use crate::output::table::Column;

const fn new_column(
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
    new_column(
        "key",
        "COOKIE",
        false,
        "System V key; for a cookie, the cookie",
    ),
    new_column("semid", "SEMID", true, "identifier of the set"),
    new_column("ns", "IPC-NS", false, "IPC namespace, by inode number"),
    new_column("value", "VAL", true, "value of semaphore 0"),
    new_column("wait", "WAIT", true, "threads that wait on it"),
    new_column("age", "AGE", true, "time since it was made"),
    new_column("state", "STATE", false, "verdict in one word"),
    new_column(
        "owner",
        "OWNER",
        false,
        "who made it: + has ended, ? inferred",
    ),
    new_column(
        "confidence",
        "CONFIDENCE",
        false,
        "observed, inferred or unknown",
    ),
    new_column("verdict", "VERDICT", false, "verdict in words"),
    new_column("nsems", "NSEMS", true, "semaphores in the set"),
    new_column("mode", "MODE", false, "permission bits"),
    new_column("uid", "UID", true, "owner of the set"),
    new_column("ctime", "CTIME", false, "creation or last SETVAL"),
    new_column("otime", "OTIME", false, "last successful semop"),
    new_column(
        "lastpid",
        "LASTPID",
        true,
        "last process that changed it; may be reused",
    ),
    new_column("pid", "PID", true, "process that made it"),
    new_column(
        "nspid",
        "NSPID",
        true,
        "its number inside its PID namespace",
    ),
    new_column("comm", "COMM", false, "its name"),
    new_column("exe", "EXE", false, "its executable"),
    new_column(
        "container",
        "CONTAINER",
        false,
        "its container, or unit of systemd",
    ),
    new_column("cgroup", "CGROUP", false, "its cgroup"),
    new_column("parents", "PARENTS", false, "its ancestors"),
    new_column("cmdline", "COMMAND", false, "its command line"),
    new_column(
        "device",
        "DEVICE",
        false,
        "devices that it was used for, the last one first",
    ),
    new_column("site", "CALL SITE", false, "the calls that made it"),
];
