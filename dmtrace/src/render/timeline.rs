//! A cookie's life, step by step, in the words of the protocol.

use dmtrace_core::{
    event::{ExitStatus, errno_word},
    facts::HostFacts,
    ids::{BootTime, DevNum},
    ledger::{ActorRef, Cookie, CookieCall, DecrementMeaning, EndKind, Ledger, TimelineStep},
};

use crate::{
    finding::Moment,
    output::time::{self, Clock},
    render::row::Row,
    wording::count_noun,
};

/// What all stories of one run share.
pub(crate) struct Telling<'a> {
    pub(crate) ledger: &'a Ledger,
    /// What the host says.
    pub(crate) facts: &'a HostFacts,
    /// Boot time to wall clock.
    pub(crate) clock: Clock,
    /// It is about this machine, now.
    pub(crate) here: bool,
}

/// The whole life, as far as it is known, and whether that is all.
pub(crate) fn moments(telling: &Telling<'_>, row: &Row<'_>) -> Vec<Moment> {
    let Some(cookie) = row.semaphore.cookie.as_deref() else {
        return Vec::new();
    };
    let teller = Teller {
        telling,
        row,
        cookie,
    };
    let mut head: Vec<&TimelineStep> = cookie.timeline.head().iter().collect();
    let mut tail: Vec<&TimelineStep> = cookie.timeline.tail().collect();
    // Events of two CPUs may have arrived in the wrong order.
    head.sort_by_key(|step| step.at);
    tail.sort_by_key(|step| step.at);
    let mut moments = Vec::new();
    let created = head.iter().any(|step| step.what == CookieCall::Create);
    if !created {
        moments.extend(teller.before());
    }
    moments.extend(head.into_iter().map(|step| teller.moment(step)));
    if cookie.timeline.skipped() > 0 {
        let skipped = count_noun(cookie.timeline.skipped(), "more step", "more steps");
        let what = format!("... {skipped} ...");
        moments.push(teller.untimed("", what));
    }
    moments.extend(tail.into_iter().map(|step| teller.moment(step)));
    moments.extend(teller.unseen_end());
    moments.extend(teller.since());
    moments
}

struct Teller<'a> {
    telling: &'a Telling<'a>,
    row: &'a Row<'a>,
    cookie: &'a Cookie,
}

impl Teller<'_> {
    fn at(&self, at: BootTime, who: String, what: String) -> Moment {
        let clock = &self.telling.clock;
        Moment {
            time: Some(clock.rfc3339_at(at)),
            shown: clock.time_of_day(at),
            who,
            tid: None,
            what,
            value: None,
        }
    }

    fn untimed(&self, who: &str, what: String) -> Moment {
        Moment {
            time: None,
            shown: String::new(),
            who: who.to_owned(),
            tid: None,
            what,
            value: None,
        }
    }

    fn moment(&self, step: &TimelineStep) -> Moment {
        let who = match (&step.who, step.what) {
            (_, CookieCall::Uevent { .. }) | (None, _) => "kernel".to_owned(),
            (Some(who), _) => who.to_string(),
        };
        let mut moment = self.at(step.at, who, self.what(step));
        let other = |who: &&ActorRef| who.tid != 0 && who.tid != who.image.id.tgid;
        moment.tid = step.who.as_ref().filter(other).map(|who| who.tid);
        let touches = matches!(
            step.what,
            CookieCall::Create
                | CookieCall::SetVal
                | CookieCall::Up { .. }
                | CookieCall::Down { .. }
                | CookieCall::Waited
        );
        // A completion can be told after the waiter that it has woken.
        let fine = touches && step.errno == 0;
        moment.value = step.value.filter(|_| fine).map(|value| value.max(0));
        moment
    }

    fn what(&self, step: &TimelineStep) -> String {
        let failed = |what: &str| format!("{what} fails: {}", errno_word(step.errno));
        match step.what {
            CookieCall::Create => "makes it".to_owned(),
            CookieCall::SetVal if step.errno != 0 => failed("SETVAL"),
            CookieCall::SetVal => "sets it".to_owned(),
            CookieCall::Up { by } if step.errno != 0 => failed(&format!("+{by}")),
            CookieCall::Up { by } => format!("+{by}: announces an operation"),
            CookieCall::Down { by, .. } if step.errno == libc::EAGAIN => {
                format!("-{by} fails: the value was 0 already (EAGAIN)")
            }
            CookieCall::Down { by, .. } if step.errno != 0 => failed(&format!("-{by}")),
            CookieCall::Down { by, meaning } => match meaning {
                DecrementMeaning::Completion => format!("-{by}: completes{}", self.completer(step)),
                DecrementMeaning::SelfCompletion => {
                    format!("-{by}: takes back its own, as after a failed ioctl")
                }
                DecrementMeaning::WaitEntry => format!("-{by}: is done, and goes to wait"),
            },
            CookieCall::Wait => "sleeps until the value is 0".to_owned(),
            CookieCall::Waited => match step.errno {
                0 => "wakes up: the value is 0".to_owned(),
                libc::EINTR => "its sleep is interrupted by a signal (EINTR)".to_owned(),
                libc::EIDRM => "wakes up: the set was removed under it (EIDRM)".to_owned(),
                errno => format!("its sleep fails: {}", errno_word(errno)),
            },
            CookieCall::Other => "another semop".to_owned(),
            CookieCall::Ioctl {
                command,
                device,
                uevent,
            } => {
                let name = self.device(device);
                let result = match (step.errno, uevent) {
                    (0, true) => "ok, a uevent was sent".to_owned(),
                    (0, false) => "ok, no uevent".to_owned(),
                    (errno, _) => format!("fails: {}", errno_word(errno)),
                };
                format!("ioctl {command} {name}: {result}")
            }
            CookieCall::Uevent { action, device } => {
                format!("uevent {action} for {}", self.device(device))
            }
            CookieCall::Remove => match self.row.semaphore.ending.as_ref().map(|end| end.kind) {
                Some(EndKind::WhileLive) => "removes it while it is in use".to_owned(),
                Some(EndKind::WithNamespace) => "its IPC namespace ends, and it with it".to_owned(),
                Some(EndKind::NamespaceGone) => {
                    "its IPC namespace is not found any more".to_owned()
                }
                Some(EndKind::Vanished) => "it is gone; its removal was not seen".to_owned(),
                _ => "removes it".to_owned(),
            },
            CookieCall::Exit => match self.exit(step) {
                Some(status) => format!("ends: {status}"),
                None => "has ended".to_owned(),
            },
        }
    }

    /// What a completer is, if that is known.
    fn completer(&self, step: &TimelineStep) -> &'static str {
        let image = step
            .who
            .as_ref()
            .and_then(|who| self.telling.ledger.process(who.image))
            .and_then(|process| process.image.as_deref());
        let udev = |name: &str| matches!(name, "(udev-worker)" | "systemd-udevd" | "udevd");
        match image.map(|image| image.parents.iter().any(|parent| udev(&parent.comm))) {
            Some(true) => " one, for udev",
            _ => " one",
        }
    }

    fn exit(&self, step: &TimelineStep) -> Option<ExitStatus> {
        let image = step.who.as_ref()?.image;
        let user = self
            .cookie
            .users
            .iter()
            .find(|user| user.who.image == image)?;
        user.exit?.status
    }

    /// Name and number of a device; within one cookie a number may have had two names.
    fn device(&self, number: Option<DevNum>) -> String {
        let known = self.cookie.devices.iter().rev();
        let mut fitting = known.filter(|device| number.is_none() || device.number == number);
        match (fitting.next(), number) {
            (Some(device), Some(_)) => device.full_label(),
            (Some(device), None) if self.cookie.devices.len() == 1 => device.full_label(),
            (_, Some(number)) => number.to_string(),
            (_, None) => "a device".to_owned(),
        }
    }

    /// What is known of the time before the first step.
    fn before(&self) -> Vec<Moment> {
        let semaphore = self.row.semaphore;
        let mut moments = Vec::new();
        match (semaphore.created, self.row.process) {
            (Some(at), Some(process)) => {
                let who = format!("{}[{}]", process.name, process.image_id.id.tgid);
                moments.push(self.at(at, who, "makes it".to_owned()));
            }
            (Some(at), None) => moments.push(self.at(at, "?".to_owned(), "makes it".to_owned())),
            (None, _) => {
                if let Some(at) = self
                    .row
                    .set
                    .and_then(|set| time::Moment::of_unix(set.ctime))
                {
                    moments.push(self.untimed("?", format!("made, or last set, {at}")));
                }
                if let Some(set) = self.row.set {
                    let by = match set.first.map_or(0, |first| first.pid) {
                        0 => String::new(),
                        pid => {
                            format!(" by process {pid} (that number may be another process now)")
                        }
                    };
                    moments.push(match time::Moment::of_unix(set.otime) {
                        Some(at) => self.untimed("?", format!("last operation {at}{by}")),
                        None => self.untimed("?", format!("never operated on; set{by}")),
                    });
                }
            }
        }
        let counts = self.cookie.counts;
        let (up, down) = (
            counts.owner_inc.saturating_add(counts.other_inc),
            counts.owner_dec.saturating_add(counts.other_dec),
        );
        if self.cookie.timeline.head().is_empty() && up + down + counts.waits > 0 {
            let what = format!(
                "in sum: {up} announced, {down} taken back or completed, {}",
                count_noun(counts.waits, "wait", "waits")
            );
            moments.push(self.untimed("", what));
        }
        moments
    }

    /// The time since the last step: what is missing did not happen in it.
    fn since(&self) -> Option<Moment> {
        let last = self.cookie.timeline.iter().map(|step| step.at).max()?;
        let live = self.row.semaphore.is_live();
        let quiet = time::age_text(self.telling.facts.now.duration_since(last));
        live.then(|| self.untimed("", format!("nothing since then, for {quiet}")))
    }

    /// An end that is in no step.
    fn unseen_end(&self) -> Option<Moment> {
        let ending = self.row.semaphore.ending.as_ref()?;
        let told = self
            .cookie
            .timeline
            .iter()
            .any(|step| step.what == CookieCall::Remove);
        (!told).then(|| self.at(ending.at, "kernel".to_owned(), "it is gone".to_owned()))
    }
}
