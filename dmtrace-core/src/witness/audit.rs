//! Records of the kernel's audit: what rules of the host ask for (`audit.rules(7)`), and each process
//! that a fault of its own has ended.

use std::collections::VecDeque;

use super::{Author, Ending, MadeSet, Testimony, Witness, bounded_text};
use crate::ids::{Key, UnixTime};

/// Calls whose other records may still come; those of several processes are mixed.
const MAX_OPEN_CALLS: usize = 64;

/// Words of a command line that are kept.
const MAX_WORDS: usize = 64;

/// Bytes of a process's name (`TASK_COMM_LEN`, without its end).
const MAX_NAME: usize = 15;

/// `IPC_CREAT | IPC_EXCL`: the set was not there before.
const MAKES_NEW: u64 = 0o3000;

const SIGKILL: u64 = 9;

/// One record: a line of `audit.log`, or an entry of the journal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AuditRecord<'a> {
    /// Its type, such as `SYSCALL`.
    pub kind: &'a str,
    /// When the system call began.
    pub at: UnixTime,
    /// The same for all records of one system call.
    pub serial: u64,
    /// `name=value`, with blanks between them.
    pub fields: &'a str,
}

impl<'a> AuditRecord<'a> {
    /// A line of `audit.log`: `type=SYSCALL msg=audit(1795132812.345:678): arch=c000003e …`.
    pub fn from_line(line: &'a str) -> Option<Self> {
        let line = match line.strip_prefix("node=") {
            Some(rest) => rest.split_once(' ')?.1,
            None => line,
        };
        let (kind, rest) = line.strip_prefix("type=")?.split_once(' ')?;
        let (stamp, fields) = rest.strip_prefix("msg=audit(")?.split_once("):")?;
        let (at, serial) = stamp.split_once(':')?;
        let (seconds, _) = at.split_once('.')?;
        // Behind it stands the same in words, for people.
        let fields = fields.split('\u{1d}').next().unwrap_or(fields);
        Some(Self {
            kind,
            at: UnixTime(seconds.parse().ok()?),
            serial: serial.parse().ok()?,
            fields: fields.trim_start(),
        })
    }

    fn field(&self, name: &str) -> Option<&'a str> {
        self.fields
            .split(' ')
            .find_map(|it| it.strip_prefix(name)?.strip_prefix('='))
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.field(name)?.parse().ok()
    }

    /// An argument of the call: the kernel writes them as hexadecimal numbers.
    fn argument(&self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.field(name)?, 16).ok()
    }

    /// Text that others chose.
    fn text(&self, name: &str) -> Option<String> {
        decode_text(self.field(name)?).map(|it| bounded_text(&it))
    }

    /// Name of a process; the kernel has none that is longer.
    fn process_name(&self, name: &str) -> Option<String> {
        let text = decode_text(self.field(name)?).filter(|it| it.len() <= MAX_NAME)?;
        Some(bounded_text(&text))
    }
}

/// `"lvcreate"`; or bytes as hexadecimal digits where it has blanks, quotes or the like in it.
fn decode_text(value: &str) -> Option<String> {
    if let Some(quoted) = value.strip_prefix('"') {
        return Some(quoted.strip_suffix('"')?.to_owned());
    }
    let pairs = value.as_bytes().chunks(2);
    let bytes = pairs.map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok());
    let bytes: Option<Vec<u8>> = bytes.collect();
    let bytes = bytes.filter(|it| !it.is_empty() && value.len().is_multiple_of(2))?;
    Some(String::from_utf8_lossy(&bytes).replace('\0', " "))
}

/// What a system call does, as far as it matters here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Call {
    MakeSet { key: Key },
    Kill { signal: u64 },
    Execute,
    Other,
}

impl Call {
    fn of(record: &AuditRecord<'_>) -> Option<Self> {
        let number: u32 = record.number("syscall")?;
        let arguments = ["a0", "a1", "a2", "a3"].map(|name| record.argument(name).unwrap_or(0));
        let [a0, a1, a2, a3] = arguments;
        Some(match (record.field("arch")?, number) {
            ("c000003e", 64) | ("40000003", 393) | ("c00000b7", 190) => Self::make_set(a0, a2),
            // `ipc(SEMGET, key, …)`; the upper half is a version.
            ("40000003", 117) if a0 & 0xffff == 2 => Self::make_set(a1, a3),
            ("c000003e", 62 | 200) | ("40000003", 37 | 238) | ("c00000b7", 129 | 130) => {
                Self::Kill { signal: a1 }
            }
            ("c000003e", 234) | ("40000003", 270) | ("c00000b7", 131) => Self::Kill { signal: a2 },
            (_, 424) => Self::Kill { signal: a1 },
            ("c000003e", 59 | 322) | ("40000003", 11 | 358) | ("c00000b7", 221 | 281) => {
                Self::Execute
            }
            _ => Self::Other,
        })
    }

    const fn make_set(key: u64, flags: u64) -> Self {
        if flags & MAKES_NEW != MAKES_NEW {
            return Self::Other;
        }
        // A register is wider than a key.
        Self::MakeSet {
            key: Key((key & 0xffff_ffff) as u32),
        }
    }
}

/// Reads the records of one log, in its order: what belongs together comes in several.
#[derive(Debug, Default)]
pub struct AuditReader {
    open: VecDeque<(u64, Call, Testimony)>,
}

impl AuditReader {
    /// What a record says of a process; `None` if nothing, or if another of the same call says more.
    pub fn read(
        &mut self,
        record: &AuditRecord<'_>,
        witness: Witness,
        source: &str,
    ) -> Option<Testimony> {
        let said = |line: &str| Testimony::of_line(witness, source, record.at, line);
        match record.kind {
            "SYSCALL" => self.read_call(record, said("")),
            "EXECVE" => {
                let (_, _, caller) = self.opened(record, Call::Execute)?;
                let words = (0..MAX_WORDS).map_while(|at| record.text(&format!("a{at}")));
                let command = words.collect::<Vec<_>>().join(" ");
                let command = bounded_text(&command);
                Some(Testimony {
                    line: bounded_text(&format!("{}: {command}", caller.line)),
                    command: Some(command),
                    ..caller.clone()
                })
            }
            "OBJ_PID" => {
                let (_, _, by) = self.opened(record, Call::Kill { signal: SIGKILL })?;
                let (pid, name): (u32, _) = (record.number("opid")?, record.process_name("ocomm")?);
                Some(Testimony {
                    pid: Some(pid),
                    uid: record.number("ouid"),
                    ending: Some(Ending::Killed { signal: 9 }),
                    author: Author::Kernel,
                    line: bounded_text(&format!("{name}[{pid}]: SIGKILL by {}", by.line)),
                    name: Some(name),
                    ..said("")
                })
            }
            "ANOM_ABEND" => {
                let (pid, name): (u32, _) = (record.number("pid")?, record.process_name("comm")?);
                let signal = record.number("sig")?;
                Some(Testimony {
                    pid: Some(pid),
                    exe: record.text("exe"),
                    uid: record.number("uid"),
                    ending: Some(Ending::Killed { signal }),
                    author: Author::Kernel,
                    line: bounded_text(&format!("{name}[{pid}]: ended by signal {signal}")),
                    name: Some(name),
                    ..said("")
                })
            }
            _ => None,
        }
    }

    fn read_call(&mut self, record: &AuditRecord<'_>, said: Testimony) -> Option<Testimony> {
        // What failed has done nothing.
        (record.field("success") == Some("yes")).then_some(())?;
        let call = Call::of(record)?;
        let (pid, name): (u32, _) = (record.number("pid")?, record.process_name("comm")?);
        let caller = format!("{name}[{pid}]");
        let exe = record.text("exe");
        let semid: Option<i32> = record.number("exit");
        let made = match call {
            Call::MakeSet { key } => semid.map(|semid| MadeSet { key, semid }),
            _ => None,
        };
        let line = match (made, call) {
            (Some(made), _) => {
                format!(
                    "{caller}: semget made set {} with key {}",
                    made.semid, made.key
                )
            }
            (None, Call::Execute) => format!("{caller}: started {}", exe.as_deref().unwrap_or("?")),
            (None, Call::Kill { .. }) => caller,
            (None, _) => format!("{caller}: system call {}", record.field("syscall")?),
        };
        let effective: Option<u32> = record.number("euid");
        let testimony = Testimony {
            pid: Some(pid),
            parent: record.number("ppid"),
            name: Some(name),
            exe,
            uid: record.number("uid"),
            privileged: effective == Some(0),
            made,
            line: bounded_text(&line),
            ..said
        };
        if matches!(call, Call::Execute | Call::Kill { .. }) {
            if self.open.len() >= MAX_OPEN_CALLS {
                self.open.pop_front();
            }
            self.open
                .push_back((record.serial, call, testimony.clone()));
        }
        // Who sends a signal is not asked for; who gets one is.
        (!matches!(call, Call::Kill { .. })).then_some(testimony)
    }

    fn opened(&self, record: &AuditRecord<'_>, call: Call) -> Option<&(u64, Call, Testimony)> {
        let mut open = self.open.iter();
        open.find(|(serial, is, _)| *serial == record.serial && *is == call)
    }
}
