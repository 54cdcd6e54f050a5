//! Messages that say who was killed.

use super::{Ending, programs::name_of_command};

/// Who has written a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Message<'a> {
    /// The kernel.
    Kernel(&'a str),
    /// The manager of the system's units, process 1.
    Manager(&'a str),
    /// Any other program.
    Program(&'a str),
}

/// What a message says of a process that is not the one that wrote it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Told {
    /// Its number.
    pub pid: Option<u32>,
    /// Its name.
    pub name: Option<String>,
    /// Its command line.
    pub command: Option<String>,
    /// Its user.
    pub uid: Option<u32>,
    /// Its unit.
    pub unit: Option<String>,
    /// How it ended.
    pub ending: Option<Ending>,
    /// Anybody can have such a process, with any name: its user is not said.
    pub of_anybody: bool,
}

/// Reads a message; `None` if it says nothing of the end of a process.
pub fn read_message(message: Message<'_>) -> Option<Told> {
    match message {
        Message::Kernel(text) => read_kernel(text),
        Message::Manager(text) => read_manager(text),
        Message::Program(text) => read_shell(text),
    }
}

/// Whether a line of the kernel is of device-mapper or of its devices.
pub fn is_device_mapper_line(text: &str) -> bool {
    text.starts_with("device-mapper: ")
        || text.strip_prefix("dm-").is_some_and(|rest| {
            let digits = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            digits.len() < rest.len() && digits.starts_with(':')
        })
}

const SIGKILL: u8 = 9;

fn read_kernel(text: &str) -> Option<Told> {
    read_oom(text).or_else(|| read_fault(text))
}

/// `Out of memory: Killed process 812 (lvcreate) total-vm:…, UID:0 pgtables:…`, `Memory cgroup out of
/// memory: Killed process 812 (lvcreate), UID 0, total-vm:…`.
fn read_oom(text: &str) -> Option<Told> {
    const HEADS: [&str; 4] = [
        "Out of memory: Killed process ",
        "Out of memory (oom_kill_allocating_task): Killed process ",
        "Memory cgroup out of memory: Killed process ",
        "Killed process ",
    ];
    let rest = HEADS.iter().find_map(|head| text.strip_prefix(head))?;
    let (pid, rest) = rest.split_once(" (")?;
    // The name may have parentheses in it.
    let end = rest.rfind(") total-vm").or_else(|| rest.rfind("), UID "))?;
    let end = rest.rfind("), UID ").map_or(end, |other| other.min(end));
    let name = rest.get(..end).filter(|name| name.len() <= 15)?;
    let rest = rest.get(end..)?;
    let uid = [", UID:", "), UID "].iter().find_map(|label| {
        let (_, value) = rest.split_once(label)?;
        value.split([' ', ',']).next()?.parse().ok()
    });
    Some(Told {
        pid: Some(pid.parse().ok()?),
        name: Some(name.to_owned()),
        uid,
        ending: Some(Ending::Killed { signal: SIGKILL }),
        of_anybody: uid.is_none(),
        ..Told::default()
    })
}

/// What the kernel says of a process that did what the processor does not allow, and its signal.
const FAULTS: [(&str, u8); 5] = [
    ("]: segfault at ", 11),
    ("] general protection fault", 11),
    ("] trap invalid opcode ", 4),
    ("] trap divide error ", 8),
    ("] trap int3 ", 5),
];

/// `lvcreate[812]: segfault at 0 ip …`, `traps: lvcreate[812] general protection fault ip:…`.
fn read_fault(text: &str) -> Option<Told> {
    let text = text.strip_prefix("traps: ").unwrap_or(text);
    // The name may have anything in it, also such words: what is said comes behind it.
    let (head, signal) = FAULTS
        .iter()
        .find_map(|(words, signal)| Some((&text[..text.rfind(words)?], *signal)))?;
    let (name, pid) = head.rsplit_once('[')?;
    if name.is_empty() || name.len() > 15 {
        return None;
    }
    Some(Told {
        pid: Some(pid.parse().ok()?),
        name: Some(name.to_owned()),
        ending: Some(Ending::Killed { signal }),
        of_anybody: true,
        ..Told::default()
    })
}

/// `x.service: Main process exited, code=killed, status=9/KILL`, `x.service: Killing process 812
/// (lvcreate) with signal SIGKILL.`
fn read_manager(text: &str) -> Option<Told> {
    let (unit, rest) = text.split_once(": ")?;
    if unit.contains(' ') || !unit.contains('.') {
        return None;
    }
    let told = Told {
        unit: Some(unit.to_owned()),
        ..Told::default()
    };
    if let Some(rest) = rest.strip_prefix("Main process exited, code=") {
        let (code, status) = rest.split_once(", status=")?;
        let status = status.split(['/', ' ', '.', ',']).next()?;
        let number = status.parse().unwrap_or(0);
        let ending = match code {
            "killed" | "dumped" => Ending::Killed { signal: number },
            "exited" => Ending::Exited { code: number },
            _ => return None,
        };
        return Some(Told {
            ending: Some(ending),
            ..told
        });
    }
    if let Some(rest) = rest.strip_prefix("Killing process ") {
        let (pid, rest) = rest.split_once(" (")?;
        let (name, signal) = rest.rsplit_once(") with signal ")?;
        let signal = match signal.trim_end_matches('.') {
            "SIGKILL" => SIGKILL,
            "SIGTERM" => 15,
            "SIGABRT" => 6,
            _ => 0,
        };
        return Some(Told {
            pid: Some(pid.parse().ok()?),
            name: Some(name.to_owned()),
            ending: Some(Ending::Killed { signal }),
            ..told
        });
    }
    (rest == "A process of this unit has been killed by the OOM killer.").then_some(Told {
        ending: Some(Ending::Killed { signal: SIGKILL }),
        ..told
    })
}

/// What a shell says when a job ends by a signal.
const SHELL_WORDS: [(&str, u8); 7] = [
    ("Killed", SIGKILL),
    ("Terminated", 15),
    ("Hangup", 1),
    ("Aborted", 6),
    ("Segmentation fault", 11),
    ("Bus error", 7),
    ("Interrupt", 2),
];

/// `/usr/local/bin/backup.sh: line 3:   812 Killed                  dmsetup create bk --table …`.
fn read_shell(text: &str) -> Option<Told> {
    let (_, rest) = text.split_once(": line ")?;
    let (line, rest) = rest.split_once(": ")?;
    let _number: u32 = line.parse().ok()?;
    let rest = rest.trim_start();
    let (pid, rest) = rest.split_once(' ')?;
    let (command, signal) = SHELL_WORDS
        .iter()
        .find_map(|(word, signal)| Some((rest.strip_prefix(word)?, *signal)))?;
    let command = command.trim_start();
    let command = command
        .strip_prefix("(core dumped)")
        .unwrap_or(command)
        .trim();
    Some(Told {
        pid: Some(pid.parse().ok()?),
        name: name_of_command(command).map(str::to_owned),
        command: (!command.is_empty()).then(|| command.to_owned()),
        ending: Some(Ending::Killed { signal }),
        ..Told::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn killed(message: Message<'_>) -> Option<(Option<u32>, Option<String>, u8)> {
        let told = read_message(message)?;
        match told.ending? {
            Ending::Killed { signal } => Some((told.pid, told.name.or(told.unit), signal)),
            Ending::Exited { .. } => None,
        }
    }

    #[test]
    fn whose_process_it_was() {
        for (text, uid) in [
            (
                "Out of memory: Killed process 8 (a, UID:7) total-vm:9kB, anon-rss:1kB, UID:1000 \
                 pgtables:1kB",
                Some(1000),
            ),
            (
                "Memory cgroup out of memory: Killed process 7 (a), UID 0, total-vm:9kB",
                Some(0),
            ),
            ("Out of memory: Killed process 7 (a) total-vm:9kB", None),
            ("lvcreate[812]: segfault at 0 ip 00007f", None),
        ] {
            let told = read_message(Message::Kernel(text)).unwrap();
            assert_eq!((told.uid, told.of_anybody), (uid, uid.is_none()), "{text}");
        }
    }

    #[test]
    fn lines_of_device_mapper() {
        for text in [
            "device-mapper: ioctl: 4.48.0-ioctl",
            "dm-3: detected capacity change",
        ] {
            assert!(is_device_mapper_line(text), "{text}");
        }
        for text in ["dm-: x", "dm-crypt: x", "dm-3", "x device-mapper: y"] {
            assert!(!is_device_mapper_line(text), "{text}");
        }
    }

    #[test]
    fn who_was_killed() {
        let of = |pid, name: &str, signal| Some((pid, Some(name.to_owned()), signal));
        for (text, expected) in [
            (
                "Out of memory: Killed process 812 (lvcreate) total-vm:9kB, anon-rss:1kB, UID:0 pgtables:1kB",
                of(Some(812), "lvcreate", 9),
            ),
            (
                "Memory cgroup out of memory: Killed process 7 (a) b), UID 0, total-vm:9kB",
                of(Some(7), "a) b", 9),
            ),
            ("Killed process x (a) total-vm:9kB", None),
            (
                "lvcreate[812]: Out of memory: Killed process 1 (a) total-vm",
                None,
            ),
            (
                "lvcreate[812]: segfault at 0 ip 00007f sp 00007f error 4 in lvm[55d+9]",
                of(Some(812), "lvcreate", 11),
            ),
            (
                "traps: a[1]: segfault[7] general protection fault ip:55 sp:7f error:0",
                of(Some(7), "a[1]: segfault", 11),
            ),
            (
                "traps: x[7] trap invalid opcode ip:55 sp:7f error:0 in x[55d+9]",
                of(Some(7), "x", 4),
            ),
            ("a name that is too long[7]: segfault at 0", None),
            ("[7]: segfault at 0", None),
        ] {
            assert_eq!(killed(Message::Kernel(text)), expected, "{text}");
        }
        for (text, expected) in [
            (
                "nightly.service: Main process exited, code=killed, status=9/KILL",
                of(None, "nightly.service", 9),
            ),
            (
                "nightly.service: Killing process 812 (lvcreate) with signal SIGKILL.",
                of(Some(812), "lvcreate", 9),
            ),
            (
                "nightly.service: Main process exited, code=exited, status=5/n/a",
                None,
            ),
            ("nightly.service: Deactivated successfully.", None),
            (
                "Started nightly.service - x: Main process exited, code=killed, status=9",
                None,
            ),
        ] {
            assert_eq!(killed(Message::Manager(text)), expected, "{text}");
        }
        for (text, expected) in [
            (
                "/tmp/backup.sh: line 3:   812 Killed                  dmsetup create bk",
                of(Some(812), "dmsetup", 9),
            ),
            (
                "x: line 30: 9 Segmentation fault      (core dumped) /sbin/lvcreate -n y",
                of(Some(9), "lvcreate", 11),
            ),
            ("x: line y: 9 Killed dmsetup", None),
            ("x: line 3: 9: command not found", None),
            ("Killed", None),
        ] {
            assert_eq!(killed(Message::Program(text)), expected, "{text}");
        }
    }
}
