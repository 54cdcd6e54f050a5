//! The state of udevd: does it run, is it busy, would it run `dmsetup udevcomplete`.

mod details;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{
    Roots,
    processes::{ProcessList, RunningProcess},
};

pub use details::read_details as details;
use dmtrace_core::facts::UdevFacts;

/// The rule that completes cookies; nothing else does.
const NOTIFY_RULE: &str = "95-dm-notify.rules";
/// `EVENT_TIMEOUT_USEC` of systemd, seconds.
const DEFAULT_EVENT_TIMEOUT: u64 = 180;
/// Where udev looks for configuration, most important first. `lib` is another place than
/// `usr/lib` only where `/usr` is not merged.
const PLACES: [&str; 5] = ["etc", "run", "usr/local/lib", "usr/lib", "lib"];

/// Reads it.
pub fn read_udev(roots: &Roots, list: &ProcessList) -> UdevFacts {
    let daemon = find_daemon(roots, list);
    let (notify_rule, notify_rule_mask) = notify_rule(roots);
    UdevFacts {
        control_socket: roots.exists("run/udev/control"),
        daemon,
        activated: daemon.is_none() && is_listened(roots),
        queue_busy: roots.exists("run/udev/queue"),
        notify_rule,
        notify_rule_mask,
        event_timeout: event_timeout(roots, daemon),
        details: None,
    }
}

/// The udevd of the host. A container can have one too, in its own PID namespace; the mount
/// namespace tells nothing because the unit has `PrivateMounts=yes`.
fn find_daemon(roots: &Roots, list: &ProcessList) -> Option<u32> {
    let named = |process: &RunningProcess| matches!(&*process.live.comm, "systemd-udevd" | "udevd");
    let host_ns = fs::read_link(roots.proc_path("1/ns/pid")).ok();
    let candidates = list.processes.iter().filter(|(pid, process)| {
        let ns = fs::read_link(roots.proc_path(format!("{pid}/ns/pid"))).ok();
        // Not a namesake of an ordinary user, and not a worker (before systemd 248 workers kept
        // the name of the daemon, their parent).
        let owner = fs::metadata(roots.proc_path(pid.to_string())).map(|meta| meta.uid());
        let parent = list.processes.get(&process.live.ppid);
        named(process)
            && (ns.is_none() || host_ns.is_none() || ns == host_ns)
            && !owner.is_ok_and(|uid| uid != root_uid(roots))
            && !parent.is_some_and(named)
    });
    candidates.map(|(&pid, _)| pid).next()
}

/// Whether the control socket is open in some process. The path alone may be left over from a
/// udevd that was killed; a socket that systemd holds belongs to a udevd that is started on demand.
fn is_listened(roots: &Roots) -> bool {
    const LISTENS: &str = "00010000";
    let sockets = roots.read_proc("1/net/unix").unwrap_or_default();
    // Num RefCount Protocol Flags Type St Inode Path
    String::from_utf8_lossy(&sockets).lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(3);
        fields.next() == Some(LISTENS) && fields.nth(3) == Some("/run/udev/control")
    })
}

/// Who owns process 1: root, also where a test is the host.
fn root_uid(roots: &Roots) -> u32 {
    fs::metadata(roots.proc_path("1")).map_or(0, |meta| meta.uid())
}

/// Path of the rule in force, or of the file that masks it.
///
/// The file in the most important place wins whatever is in it (`conf_files_list_strv`); an empty
/// one or a link to `/dev/null` switches the rule off.
fn notify_rule(roots: &Roots) -> (Option<String>, Option<String>) {
    for place in PLACES {
        let path = PathBuf::from(place).join("udev/rules.d").join(NOTIFY_RULE);
        let mask = fs::read_link(roots.fs.join(&path)).is_ok_and(|to| to == Path::new("/dev/null"));
        match roots.read_fs(&path) {
            _ if mask => return (None, Some(roots.display_path(&path))),
            Ok(text) if text.is_empty() => return (None, Some(roots.display_path(&path))),
            Ok(_) => return (Some(roots.display_path(&path)), None),
            // There, only not for us.
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
                return (Some(roots.display_path(&path)), None);
            }
            // Missing, or a link whose target is missing: udev ignores both.
            Err(_) => {}
        }
    }
    (None, None)
}

/// Seconds after which udevd kills a worker. The kernel command line overrides the daemon's
/// arguments, those override the files (`manager_parse_udev_config`, `parse_argv`,
/// `parse_proc_cmdline_item`).
fn event_timeout(roots: &Roots, daemon: Option<u32>) -> u64 {
    let cmdline = roots.read_proc("cmdline").unwrap_or_default();
    let kernel = String::from_utf8_lossy(&cmdline)
        .split_ascii_whitespace()
        .filter_map(|word| {
            let (name, value) = word.split_once('=')?;
            (name.replace('-', "_") == "udev.event_timeout").then_some(())?;
            parse_seconds(value)
        })
        .next_back();
    kernel
        .or_else(|| {
            timeout_of_arguments(&roots.read_patiently(format!("{}/cmdline", daemon?)).ok()?)
        })
        .or_else(|| timeout_of_files(roots))
        .unwrap_or(DEFAULT_EVENT_TIMEOUT)
}

fn timeout_of_arguments(block: &[u8]) -> Option<u64> {
    let block = String::from_utf8_lossy(block);
    let mut found = None;
    let mut arguments = block.split('\0');
    while let Some(argument) = arguments.next() {
        let value = match argument {
            "-t" | "--event-timeout" => arguments.next(),
            _ => argument
                .strip_prefix("--event-timeout=")
                .or_else(|| argument.strip_prefix("-t")),
        };
        found = value.and_then(parse_seconds).or(found);
    }
    found
}

/// `udev.conf` of the most important place, then the drop-ins of all places by name; the last
/// assignment wins.
fn timeout_of_files(roots: &Roots) -> Option<u64> {
    let mut files: Vec<PathBuf> = Vec::new();
    let conf = PLACES.map(|place| Path::new(place).join("udev/udev.conf"));
    files.extend(conf.into_iter().find(|path| roots.exists(path)));
    let mut drop_ins: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for place in PLACES {
        let dir = Path::new(place).join("udev/udev.conf.d");
        for name in roots.read_names(&dir) {
            if name
                .extension()
                .is_some_and(|extension| extension == "conf")
            {
                drop_ins
                    .entry(name.clone())
                    .or_insert_with(|| dir.join(name));
            }
        }
    }
    files.extend(drop_ins.into_values());
    let mut found = None;
    for path in files {
        let text = roots.read_fs(path).unwrap_or_default();
        for line in String::from_utf8_lossy(&text).lines() {
            if let Some((name, value)) = line.split_once('=')
                && name.trim() == "event_timeout"
            {
                let value = value.trim().trim_matches(['"', '\'']);
                found = parse_seconds(value).or(found);
            }
        }
    }
    found
}

/// A time span of systemd: seconds, or numbers with units.
fn parse_seconds(text: &str) -> Option<u64> {
    let text = text.trim();
    if text == "infinity" {
        return Some(u64::MAX);
    }
    let plain = text.parse().ok();
    plain.or_else(|| {
        humantime::parse_duration(text)
            .ok()
            .map(|span| span.as_secs())
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;
    use dmtrace_core::facts::LiveProcess;

    struct FakeHost(TempDir);

    impl FakeHost {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn roots(&self) -> Roots {
            Roots::below(self.0.path())
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn link(&self, path: &str, to: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(to, path).unwrap();
        }

        fn timeout(&self) -> u64 {
            event_timeout(&self.roots(), None)
        }
    }

    #[test]
    fn a_bare_host_has_no_udev() {
        let host = FakeHost::new();
        let facts = read_udev(&host.roots(), &ProcessList::default());
        let expected = UdevFacts {
            event_timeout: 180,
            ..UdevFacts::default()
        };
        assert_eq!(facts, expected);
    }

    #[test]
    fn control_socket_and_queue() {
        let host = FakeHost::new();
        host.write("run/udev/control", "");
        host.write("run/udev/queue", "");
        let facts = read_udev(&host.roots(), &ProcessList::default());
        assert!(facts.control_socket && facts.queue_busy);
    }

    #[test]
    fn a_socket_that_systemd_holds() {
        let host = FakeHost::new();
        host.write("run/udev/control", "");
        let head = "Num       RefCount Protocol Flags    Type St Inode Path\n";
        let socket = |flags: &str, path: &str| {
            format!("{head}0000000000000000: 00000002 00000000 {flags} 0005 01 1234 {path}\n")
        };
        let activated = || read_udev(&host.roots(), &ProcessList::default()).activated;
        assert!(!activated());
        host.write("proc/1/net/unix", &socket("00010000", "/run/udev/control"));
        assert!(activated());
        // Another socket, and a client of this one.
        host.write("proc/1/net/unix", &socket("00010000", "/run/udev/control2"));
        assert!(!activated());
        host.write("proc/1/net/unix", &socket("00000000", "/run/udev/control"));
        assert!(!activated());
    }

    #[test]
    fn the_rule_and_what_overrides_it() {
        let host = FakeHost::new();
        let rule = || notify_rule(&host.roots());
        let path = |place: &str| Some(format!("/{place}/udev/rules.d/{NOTIFY_RULE}"));
        host.write("lib/udev/rules.d/95-dm-notify.rules", "x");
        assert_eq!(rule(), (path("lib"), None));
        host.write("usr/lib/udev/rules.d/95-dm-notify.rules", "x");
        assert_eq!(rule(), (path("usr/lib"), None));
        host.write("run/udev/rules.d/95-dm-notify.rules", "");
        assert_eq!(rule(), (None, path("run")));
        host.write("etc/udev/rules.d/95-dm-notify.rules", "own");
        assert_eq!(rule(), (path("etc"), None));
        fs::remove_file(host.0.path().join("etc/udev/rules.d/95-dm-notify.rules")).unwrap();
        host.link("etc/udev/rules.d/95-dm-notify.rules", "/dev/null");
        assert_eq!(rule(), (None, path("etc")));
    }

    #[test]
    fn sources_of_the_timeout_in_order() {
        let host = FakeHost::new();
        host.write("usr/lib/udev/udev.conf", "event_timeout=1\n");
        host.write("etc/udev/udev.conf", "# event_timeout=2\nudev_log=info\n");
        assert_eq!(host.timeout(), 180);
        host.write("etc/udev/udev.conf", "event_timeout = \"3min\"\n");
        assert_eq!(host.timeout(), 180);
        host.write("usr/lib/udev/udev.conf.d/50-a.conf", "event_timeout=60\n");
        host.write("run/udev/udev.conf.d/40-b.conf", "event_timeout=70\n");
        assert_eq!(host.timeout(), 60);
        host.write("etc/udev/udev.conf.d/50-a.conf", "event_timeout=nonsense\n");
        assert_eq!(host.timeout(), 70);
        host.write("proc/9/cmdline", "systemd-udevd\0--event-timeout=80\0");
        assert_eq!(event_timeout(&host.roots(), Some(9)), 80);
        host.write(
            "proc/cmdline",
            "root=/dev/vda udev.event-timeout=90 rd.udev.event_timeout=1",
        );
        assert_eq!(event_timeout(&host.roots(), Some(9)), 90);
    }

    #[test]
    fn time_spans() {
        assert_eq!(parse_seconds("180"), Some(180));
        assert_eq!(parse_seconds("2min 30s"), Some(150));
        assert_eq!(parse_seconds("infinity"), Some(u64::MAX));
        assert_eq!(parse_seconds("soon"), None);
    }

    #[test]
    fn the_daemon_of_the_host_and_not_its_workers() {
        let host = FakeHost::new();
        host.link("proc/1/ns/pid", "pid:[1]");
        let mut list = ProcessList::default();
        let mut add = |pid: u32, ppid, comm: &str, ns: &str| {
            host.link(&format!("proc/{pid}/ns/pid"), ns);
            let live = LiveProcess {
                comm: comm.to_owned(),
                ppid,
                ..LiveProcess::default()
            };
            let process = RunningProcess {
                live,
                ..RunningProcess::default()
            };
            list.processes.insert(pid, process);
        };
        add(40, 30, "systemd-udevd", "pid:[2]");
        add(50, 60, "systemd-udevd", "pid:[1]");
        add(60, 1, "systemd-udevd", "pid:[1]");
        assert_eq!(find_daemon(&host.roots(), &list), Some(60));
    }
}
