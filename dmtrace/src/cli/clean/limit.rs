//! `dmtrace clean --raise-limit` and `--restore-limit`: room for new semaphore sets at once, and back
//! again. They remove nothing; whoever leaks goes on.

use std::{
    fmt, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
};

use anyhow::{Context as _, Result};
use dmtrace_core::ids::IpcNs;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    cleanup::audit::Audit,
    cli::{
        args::CleanArgs,
        failure::{Failure, exit},
    },
    host::{
        self, Roots, Scope, clock,
        namespaces::own_ns,
        run_dir::{RUN_DIR, create_private_dir, create_private_file, read_private_file},
    },
    output::{Out, json, print_remark},
    wording::{cause_text, causes_text, chain_text, count_noun},
};

/// The limits of the caller's IPC namespace.
const PATH: &str = "/proc/sys/kernel/sem";
/// IPCMNI of a kernel without `ipcmni_extend`: more sets there cannot be.
const SETS_MAX: u32 = 32_768;
/// Longer is not what this program has written.
const MAX_RECORD: u64 = 4096;

/// `kernel.sem`: SEMMSL, SEMMNS, SEMOPM, SEMMNI.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
struct SemSysctl([u32; 4]);

impl SemSysctl {
    /// The same with twice as many sets, as far as there can be so many.
    fn with_more_sets(self) -> Self {
        let [per_set, all, at_once, sets] = self.0;
        let more = sets.saturating_mul(2).clamp(128, SETS_MAX).max(sets);
        Self([per_set, all.max(more), at_once, more])
    }
}

impl FromStr for SemSysctl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Result<Vec<u32>, _> = text.split_whitespace().map(str::parse).collect();
        numbers
            .ok()
            .and_then(|numbers| <[u32; 4]>::try_from(numbers).ok())
            .map(Self)
            .ok_or_else(|| format!("{PATH}: {:?} is not four numbers", text.trim()))
    }
}

impl fmt::Display for SemSysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [per_set, all, at_once, sets] = self.0;
        write!(f, "{per_set} {all} {at_once} {sets}")
    }
}

/// What dmtrace has set, and what was there before, for the undoing.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
struct RaisedLimit {
    boot_id: Option<String>,
    /// The limits are those of an IPC namespace.
    ipc_ns: Option<IpcNs>,
    /// Before the first raise.
    was: SemSysctl,
    /// As the last raise left it.
    set: SemSysctl,
}

/// Where the limits are, and where is kept what they were.
struct LimitPlace {
    sysctl: PathBuf,
    record: PathBuf,
    boot_id: Option<String>,
    ipc_ns: Option<IpcNs>,
}

impl LimitPlace {
    fn of_host() -> Self {
        Self {
            sysctl: PathBuf::from(PATH),
            record: Path::new(RUN_DIR).join("limit.json"),
            boot_id: clock::boot_id(&Roots::host()),
            ipc_ns: own_ns(),
        }
    }

    fn read_limits(&self) -> Result<SemSysctl> {
        let text = fs::read_to_string(&self.sysctl).with_context(|| PATH.to_owned())?;
        Ok(text.parse().map_err(Failure::Environment)?)
    }

    fn write_limits(&self, limits: SemSysctl) -> Result<()> {
        fs::write(&self.sysctl, limits.to_string()).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                let text = format!("{PATH}: {error}: run as root, outside of containers");
                Failure::Environment(text).into()
            }
            _ => anyhow::Error::from(error).context(PATH),
        })
    }

    /// What an earlier command of this boot has set here; nothing that others could have written.
    fn read_record(&self) -> Option<RaisedLimit> {
        let text = read_private_file(&self.record, MAX_RECORD)?;
        let raised: RaisedLimit = serde_json::from_str(&text).ok()?;
        let here = raised.boot_id.is_some() && raised.boot_id == self.boot_id;
        (here && raised.ipc_ns == self.ipc_ns).then_some(raised)
    }

    /// Before the limit is raised: one that cannot be undone is not.
    fn write_record(&self, raised: &RaisedLimit) -> io::Result<()> {
        if let Some(parent) = self.record.parent() {
            create_private_dir(parent)?;
        }
        let draft = self
            .record
            .with_extension(format!("{}.tmp", std::process::id()));
        let text = serde_json::to_vec(raised).map_err(io::Error::other)?;
        let written = create_private_file(&draft)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| fs::rename(&draft, &self.record));
        if written.is_err() {
            let _gone = fs::remove_file(&draft);
        }
        written
    }

    /// Raises it, and remembers what it was.
    fn raise(&self, now: SemSysctl, then: SemSysctl) -> Result<()> {
        // Raised twice, it goes back to what it was before the first time.
        let before = self.read_record().filter(|raised| raised.set == now);
        let raised = RaisedLimit {
            boot_id: self.boot_id.clone(),
            ipc_ns: self.ipc_ns,
            was: before.map_or(now, |raised| raised.was),
            set: then,
        };
        let shown = self.record.display();
        self.write_record(&raised).map_err(|error| {
            let why = cause_text(&error);
            Failure::Environment(format!(
                "{shown}: {why}; run as root, outside of containers"
            ))
        })?;
        self.write_limits(then)
    }

    /// What is to be restored, by `sets` that are in use.
    ///
    /// # Errors
    /// Nothing is, with the reason.
    fn plan_restoring(&self, sets: Option<usize>) -> Result<(SemSysctl, SemSysctl), Failure> {
        let refused = |text: String| Err(Failure::Environment(text));
        let Some(raised) = self.read_record() else {
            return refused(
                "nothing to restore: no dmtrace clean --raise-limit --apply of this boot changed \
                 kernel.sem here"
                    .to_owned(),
            );
        };
        let now = self
            .read_limits()
            .map_err(|error| Failure::Environment(chain_text(&error)))?;
        let RaisedLimit { was, set, .. } = raised;
        if now != set {
            return refused(format!(
                "kernel.sem is {now}, not {set} as dmtrace left it: somebody has changed it since; to \
                 set it all the same: sysctl -w kernel.sem='{was}'"
            ));
        }
        let limit = was.0[3];
        match sets {
            Some(sets) if sets >= limit as usize => refused(format!(
                "{} in use: with {limit} nobody could make another; remove what is leaked \
                 first: dmtrace clean",
                count_noun(sets, "set is", "sets are")
            )),
            _ => Ok((now, was)),
        }
    }
}

/// Shows what it would write, or writes it; and how that is undone.
pub(super) fn raise_limit(args: &CleanArgs, as_json: bool, out: &mut Out) -> Result<ExitCode> {
    let place = LimitPlace::of_host();
    let now = place.read_limits()?;
    let then = now.with_more_sets();
    if then == now {
        let text = format!("kernel.sem: {now}: there cannot be more sets; remove leaked ones");
        return Err(Failure::Environment(text).into());
    }
    if args.apply {
        place.raise(now, then)?;
        write_audit(args, "raise_limit", now, then);
    }
    if as_json {
        return print_object("raise_limit", args.apply, [now, then], out);
    }
    let (from, to) = (now.0[3], then.0[3]);
    let done = if args.apply {
        "raised"
    } else {
        "would be raised"
    };
    out.print_line(&format!(
        "limit of semaphore sets {done} from {from} to {to}, until the next boot"
    ))?;
    out.print_line(if args.apply {
        "new sets can be made at once; nothing was removed, and whoever leaks goes on"
    } else {
        "to do it: dmtrace clean --raise-limit --apply"
    })?;
    out.print_line("to undo it: dmtrace clean --restore-limit --apply")?;
    Ok(exit::CLEAN)
}

/// Shows what `--raise-limit` has changed and would be put back, or puts it back.
pub(super) fn restore_limit(args: &CleanArgs, as_json: bool, out: &mut Out) -> Result<ExitCode> {
    let place = LimitPlace::of_host();
    let (now, was) = place.plan_restoring(sets_in_use(place.ipc_ns))?;
    if args.apply {
        place.write_limits(was)?;
        // Whether or not it goes: the value is no longer what it says.
        let _gone = fs::remove_file(&place.record);
        write_audit(args, "restore_limit", now, was);
    }
    if as_json {
        return print_object("restore_limit", args.apply, [now, was], out);
    }
    let done = if args.apply {
        "restored"
    } else {
        "would be restored"
    };
    let (from, to) = (now.0[3], was.0[3]);
    out.print_line(&format!(
        "limit of semaphore sets {done} from {from} to {to}, as it was"
    ))?;
    if !args.apply {
        out.print_line("to do it: dmtrace clean --restore-limit --apply")?;
    }
    Ok(exit::CLEAN)
}

fn print_object(
    kind: &str,
    applied: bool,
    [now, then]: [SemSysctl; 2],
    out: &mut Out,
) -> Result<ExitCode> {
    let body = json!({
        "applied": applied,
        "was": now.to_string(),
        "becomes": then.to_string(),
    });
    out.print_json(&json::json_envelope(kind, &body))?;
    Ok(exit::CLEAN)
}

/// After the act: room must not wait for a disk that may stand still on a broken host.
fn write_audit(args: &CleanArgs, kind: &'static str, was: SemSysctl, is: SemSysctl) {
    let written = Audit::open(&args.audit)
        .and_then(|mut audit| audit.write_limit(kind, &was.to_string(), &is.to_string()));
    if let Err(error) = written {
        print_remark(&causes_text(&error));
    }
}

/// Sets that are there now in this namespace; `None` where that cannot be read.
fn sets_in_use(ns: Option<IpcNs>) -> Option<usize> {
    let scope = Scope {
        namespaces: ns.into_iter().collect(),
        ..Scope::default()
    };
    let snapshot = host::take_snapshot(&scope);
    let mut spaces = snapshot.namespaces.iter();
    Some(spaces.find(|it| Some(it.ns) == ns)?.sets.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_number_of_sets_grows() {
        let usual: SemSysctl = "32000\t1024000000\t500\t128\n".parse().unwrap();
        let more = usual.with_more_sets();
        assert_eq!(more.to_string(), "32000 1024000000 500 256");
        // All sets of one semaphore each must fit, and a number beyond the kernel's is left alone.
        let narrow: SemSysctl = "250 100 32 100".parse().unwrap();
        assert_eq!(narrow.with_more_sets().to_string(), "250 200 32 200");
        for most in ["32000 1024000000 500 32768", "1 100000 1 40000"] {
            let most: SemSysctl = most.parse().unwrap();
            assert_eq!(most.with_more_sets(), most);
        }
        let zero: SemSysctl = "1 1 1 0".parse().unwrap();
        assert_eq!(zero.with_more_sets().0[3], 128);
        assert!("1 2 3".parse::<SemSysctl>().is_err());
        assert!("1 2 3 x".parse::<SemSysctl>().is_err());
    }

    /// A place with limits of its own, of which nobody else takes notice.
    fn place_at(dir: &Path) -> LimitPlace {
        let place = LimitPlace {
            sysctl: dir.join("sem"),
            record: dir.join("run").join("limit.json"),
            boot_id: Some("a".to_owned()),
            ipc_ns: Some(IpcNs::HOST),
        };
        fs::write(&place.sysctl, "32000\t1024000000\t500\t128\n").unwrap();
        place
    }

    fn raise(place: &LimitPlace) {
        let now = place.read_limits().unwrap();
        place.raise(now, now.with_more_sets()).unwrap();
    }

    fn refusal(place: &LimitPlace, sets: usize) -> String {
        place.plan_restoring(Some(sets)).unwrap_err().to_string()
    }

    #[test]
    fn what_was_raised_twice_goes_back_to_what_it_was_at_first() {
        let dir = tempfile::tempdir().unwrap();
        let place = place_at(dir.path());
        assert!(refusal(&place, 3).starts_with("nothing to restore"));
        raise(&place);
        raise(&place);
        assert_eq!(place.read_limits().unwrap().0[3], 512);
        let (now, was) = place.plan_restoring(Some(3)).unwrap();
        assert_eq!((now.0[3], was.0[3]), (512, 128));
        // With as many sets as that it would be full again.
        assert!(refusal(&place, 128).contains("128 sets are in use"));
        assert!(place.plan_restoring(Some(127)).is_ok());
    }

    #[test]
    fn what_somebody_else_has_set_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let place = place_at(dir.path());
        raise(&place);
        fs::write(&place.sysctl, "32000 1024000000 500 4096").unwrap();
        let text = refusal(&place, 3);
        assert!(text.contains("is 32000 1024000000 500 4096"), "{text}");
        assert!(text.contains("sysctl -w kernel.sem='32000 1024000000 500 128'"));
        // Raised again, it goes back to that.
        raise(&place);
        assert_eq!(place.plan_restoring(Some(3)).unwrap().1.0[3], 4096);
    }

    #[test]
    fn a_record_of_another_boot_or_of_anybody_is_not_believed() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let mut place = place_at(dir.path());
        raise(&place);
        let open = fs::Permissions::from_mode(0o666);
        fs::set_permissions(&place.record, open).unwrap();
        assert!(refusal(&place, 3).starts_with("nothing to restore"));
        fs::set_permissions(&place.record, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(place.plan_restoring(Some(3)).is_ok());
        place.boot_id = Some("b".to_owned());
        assert!(refusal(&place, 3).starts_with("nothing to restore"));
        place.boot_id = Some("a".to_owned());
        place.ipc_ns = Some(IpcNs(7));
        assert!(refusal(&place, 3).starts_with("nothing to restore"));
    }
}
