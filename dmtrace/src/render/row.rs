//! One semaphore set as `list`, `watch`, `exec` and JSON show it.

use std::{
    cell::{OnceCell, RefCell},
    time::Duration,
};

use dmtrace_core::{
    cleanup::prospect::Prospect,
    event::{CallSite, ProcessImage, workload::Workload},
    facts::{HostFacts, SetSnapshot},
    ids::{BootTime, SemId},
    ledger::{Cookie, Creator, Device, Ledger, Process, Semaphore, WhyUnknown},
    verdict::{
        Class, Completeness, Confidence, Context, Doubt, Judged, Pending, Thresholds, Undecided,
        Verdict,
    },
};
use serde_json::Value;

use crate::{
    finding::{
        CookieUsage, IoctlCounts, Known, Maker, SetFields, SetOwner, SetReport, VerdictReport,
        owner_mark,
    },
    output::time,
    stack::Symbolizer,
};

/// A set with everything that can be said of it.
pub(crate) struct Row<'a> {
    /// The set in the books.
    pub semaphore: &'a Semaphore,
    /// The set in the snapshot.
    pub set: Option<&'a SetSnapshot>,
    /// The judgement; `None` for a set that was not judged.
    pub verdict: Option<Verdict>,
    /// Why the judgement is not final, if it is not.
    pub pending: Option<Pending>,
    /// How it is known who made it.
    pub known: Known,
    /// Who made it, as far as it was captured.
    pub image: Option<&'a ProcessImage>,
    pub process: Option<&'a Process>,
    pub age: Option<Duration>,
    /// When the snapshot began that it was judged by.
    taken: BootTime,
    /// Names calls; `None` where nobody asks for them.
    names: Option<&'a RefCell<Symbolizer>>,
    /// The call site with its names, once somebody has asked.
    site: OnceCell<Option<CallSite>>,
}

impl<'a> Row<'a> {
    /// With this judgement.
    pub(crate) fn set_judged(&mut self, judged: Judged<'a>) {
        if self.known == Known::Unknown && judged.verdict.culprit.is_some() {
            self.known = Known::Inferred;
        }
        self.taken = judged.taken;
        self.verdict = Some(judged.verdict);
    }

    /// What a clean-up would do with it; `None` for a set that was not judged.
    pub(crate) fn clean_prospect(
        &self,
        ledger: &Ledger,
        facts: &HostFacts,
        completeness: &Completeness,
    ) -> Option<Prospect> {
        let judged = Judged {
            semaphore: self.semaphore,
            set: self.set,
            taken: self.taken,
            verdict: self.verdict.clone()?,
        };
        let context = Context {
            facts,
            completeness,
            thresholds: &Thresholds::default(),
        };
        Some(Prospect::ask_plan(&judged, ledger, &context, None))
    }

    /// From the books alone.
    pub(crate) fn from_books(
        ledger: &'a Ledger,
        semaphore: &'a Semaphore,
        set: Option<&'a SetSnapshot>,
        now: BootTime,
    ) -> Self {
        let process = semaphore
            .creator
            .image()
            .and_then(|image| ledger.process(image));
        Self {
            semaphore,
            set,
            verdict: None,
            pending: None,
            known: match semaphore.creator {
                Creator::Unknown(_) => Known::Unknown,
                _ => Known::Observed,
            },
            image: process.and_then(|process| process.image.as_deref()),
            process,
            age: semaphore.created.map(|created| now.duration_since(created)),
            taken: BootTime(0),
            names: None,
            site: OnceCell::new(),
        }
    }

    /// Age by the kernel's stamp, for sets whose creation was not seen. `None` where the wall clock
    /// was set, or may have been, so that it is not known.
    pub(crate) fn stamp_age(&self, facts: &HostFacts) -> Option<Duration> {
        let age = facts.locate_stamp(self.set?.ctime).age(facts.now)?;
        Some(Duration::from_secs(age.as_secs()))
    }

    /// The state as one word; `-` for a set that was not judged.
    pub(crate) fn state(&self) -> &'static str {
        self.verdict
            .as_ref()
            .map_or("-", |verdict| verdict.class.label())
    }

    /// Whether the administrator should look at it.
    pub(crate) fn is_finding(&self) -> bool {
        self.verdict
            .as_ref()
            .is_some_and(|verdict| verdict.class.is_finding())
    }

    /// Why it is left open whether it is leaked, if it is.
    pub(crate) fn doubt(&self) -> Option<Doubt> {
        let verdict = self.verdict.as_ref()?;
        Doubt::of_verdict(self.semaphore, verdict)
    }

    /// Whether nothing is known of it because it was made before the trace began.
    pub(crate) fn is_older_than_trace(&self) -> bool {
        let verdict = self.verdict.as_ref();
        verdict.is_some_and(|verdict| {
            let why = Undecided::CreatorUnknown(WhyUnknown::BeforeTracer);
            verdict.class == Class::Unknown(why)
        })
    }

    /// Number of the process that made it, or is held responsible.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.semaphore
            .creator
            .image()
            .map(|image| image.id.tgid)
            .or_else(|| {
                self.verdict
                    .as_ref()?
                    .culprit
                    .as_ref()
                    .map(|culprit| culprit.who.image.id.tgid)
            })
    }

    /// Name of the process that made it, or is held responsible.
    pub(crate) fn comm(&self) -> &str {
        match self.process {
            Some(process) => process.name.as_str(),
            None => self
                .verdict
                .as_ref()
                .and_then(|verdict| verdict.culprit.as_ref())
                .map_or("", |culprit| culprit.who.name.as_str()),
        }
    }

    /// Whether the process that made it has ended, if that is known.
    pub(crate) fn creator_ended(&self) -> Option<bool> {
        let process = self.process?;
        Some(process.exit.is_some())
    }

    /// `name[pid]`, with `+` if it has ended and `?` if it is inferred; `-` if it is not known.
    pub(crate) fn owner_text(&self) -> String {
        let Some(pid) = self.pid() else {
            return "-".to_owned();
        };
        let mark = owner_mark(self.known, self.creator_ended());
        let name = self.comm();
        format!("{}[{pid}]{mark}", if name.is_empty() { "?" } else { name })
    }

    /// What its cgroup says.
    pub(crate) fn workload(&self) -> Workload {
        self.image
            .map(|image| Workload::from_cgroup(&image.cgroup))
            .unwrap_or_default()
    }

    /// Devices that ioctls with the cookie worked on, as far as they were seen.
    pub(crate) fn devices(&self) -> &'a [Device] {
        devices(self.semaphore)
    }

    /// Their names: the last one first, it is the one that matters.
    pub(crate) fn device_names(&self) -> String {
        let labels: Vec<String> = self.devices().iter().rev().map(Device::label).collect();
        labels.join(",")
    }

    /// Names its calls with this.
    pub(crate) const fn with_names(mut self, names: &'a RefCell<Symbolizer>) -> Self {
        self.names = Some(names);
        self
    }

    /// The calls that led to it, with their names as far as they can be had. Looks into binaries
    /// at the first call.
    pub(crate) fn call_site(&self) -> Option<&CallSite> {
        let resolve = || {
            let captured = self.semaphore.cookie.as_ref()?.call_site.as_ref()?;
            let mut site = CallSite::clone(captured);
            if let Some(names) = self.names {
                names.borrow_mut().resolve_site(&mut site);
            }
            Some(site)
        };
        self.site.get_or_init(resolve).as_ref()
    }

    /// Value of semaphore 0: from the kernel, else from the books.
    pub(crate) fn value(&self) -> Option<i32> {
        self.set
            .and_then(|set| set.first)
            .map(|first| first.value)
            .or_else(|| self.semaphore.cookie.as_ref()?.value())
    }

    /// Threads that wait, by the kernel's count.
    pub(crate) fn waiting_threads(&self) -> Option<u32> {
        self.set
            .and_then(|set| set.first)
            .map(|first| first.zcnt + first.ncnt)
    }

    /// All of it as data.
    pub(crate) fn to_report(&self) -> SetReport {
        let SemId { ns, semid } = self.semaphore.id;
        SetReport {
            ipc_ns: ns,
            semid,
            key: self.semaphore.key,
            cookie: self.semaphore.is_cookie(),
            nsems: self.set.map_or(self.semaphore.nsems, |set| set.nsems),
            value: self.value(),
            waiting: self.waiting_threads(),
            age_seconds: self.age.map(|age| age.as_secs()),
            created_boot_ns: self.semaphore.created,
            state: self.state().to_owned(),
            pending: self.pending,
            owner_known: self.known,
            owner: self.pid().map(|pid| SetOwner {
                pid,
                comm: self.comm().to_owned(),
                ended: self.creator_ended(),
                exit: self.process.and_then(|process| process.exit),
            }),
            usage: self.semaphore.cookie.as_deref().map(cookie_usage),
            call_site: self.call_site().cloned(),
            fields: self.set.map(set_fields),
            maker: self.image.map(|image| Maker {
                process: image.clone(),
                workload: self.workload(),
            }),
            verdict: self.verdict.as_ref().map(verdict_report),
        }
    }

    /// The JSON object.
    pub(crate) fn to_json(&self) -> Value {
        self.to_report().to_json()
    }
}

fn cookie_usage(cookie: &Cookie) -> CookieUsage {
    CookieUsage {
        devices: cookie.devices.clone(),
        devices_more: cookie.devices_more,
        ioctls: IoctlCounts {
            returned: cookie.counts.ioctls,
            failed: cookie.counts.ioctls_failed,
            uevents: cookie.counts.uevents,
        },
    }
}

fn set_fields(set: &SetSnapshot) -> SetFields {
    SetFields {
        mode: format!("{:04o}", set.mode & 0o7777),
        uid: Some(set.uid),
        cuid: Some(set.cuid),
        ctime: time::unix_rfc3339(set.ctime),
        otime: time::unix_rfc3339(set.otime),
        last_pid: set.first.map(|first| first.pid),
    }
}

fn verdict_report(verdict: &Verdict) -> VerdictReport {
    VerdictReport {
        class: Some(verdict.class),
        text: verdict.class.to_string(),
        confidence: known_by(verdict),
        reason: undecided_reason(verdict),
        evidence: verdict.evidence.iter().map(ToString::to_string).collect(),
        missing_step: verdict.missing,
        culprit: verdict.culprit.clone(),
    }
}

const fn known_by(verdict: &Verdict) -> Known {
    match verdict.confidence {
        Confidence::Observed => Known::Observed,
        Confidence::Inferred => Known::Inferred,
        Confidence::Searched => Known::Searched,
        Confidence::Unknown(_) => Known::Unknown,
    }
}

/// `observed`, `inferred`, `searched` or `unknown`.
pub(crate) const fn confidence_word(verdict: &Verdict) -> &'static str {
    match known_by(verdict) {
        Known::Observed => "observed",
        Known::Inferred => "inferred",
        Known::Searched => "searched",
        Known::Unknown => "unknown",
    }
}

/// Why a verdict is unknown.
fn undecided_reason(verdict: &Verdict) -> Option<String> {
    match verdict.confidence {
        Confidence::Unknown(reason) => Some(reason.to_string()),
        _ => None,
    }
}

/// Devices of a cookie.
pub(crate) fn devices(semaphore: &Semaphore) -> &[Device] {
    semaphore
        .cookie
        .as_deref()
        .map_or(&[], |cookie| &cookie.devices)
}

/// What a person needs to find a process again, or its like: labels and texts.
pub(crate) fn describe_process(image: &ProcessImage) -> Vec<(&'static str, String)> {
    let mut lines = vec![("command", image.command_line())];
    if let Some(exe) = &image.exe {
        let deleted = if image.exe_deleted { " (deleted)" } else { "" };
        lines.push(("program", format!("{exe}{deleted}")));
    }
    let workload = Workload::from_cgroup(&image.cgroup).to_string();
    let workload = if workload == "-" {
        image.cgroup.clone()
    } else {
        workload
    };
    lines.push((
        "runs as",
        format!(
            "uid {}, pid {} in its namespace, in {workload}",
            image.uid, image.ns_pid
        ),
    ));
    lines.extend(ancestors_line(image).map(|parents| ("below", parents)));
    lines
}

/// What it runs below, the nearest first; `None` if that is not known.
pub(crate) fn ancestors_line(image: &ProcessImage) -> Option<String> {
    let parents = image.parents.iter();
    let names: Vec<String> = parents
        .map(|parent| format!("{}[{}]", parent.comm, parent.id.tgid))
        .collect();
    (!names.is_empty()).then(|| names.join(" < "))
}
