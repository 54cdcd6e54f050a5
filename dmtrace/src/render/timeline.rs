//! A cookie's life, step by step, in the words of the protocol.

use dmtrace_core::{
    event::{ExitStatus, errno_word},
    facts::HostFacts,
    ids::{BootTime, DevNum},
    ledger::{ActorRef, Cookie, CookieCall, DecrementMeaning, EndKind, Ledger, TimelineStep},
    verdict::Completeness,
};

use crate::{
    finding::StoryMoment,
    output::time::{self, Clock},
    render::row::Row,
    wording::count_noun,
};

/// How the last line of a story begins. Stored stories are told as of when they were found.
pub(crate) const NOTHING_SINCE: &str = "nothing since then, for ";

/// What all stories of one run share.
pub(crate) struct StoryContext<'a> {
    pub(crate) ledger: &'a Ledger,
    /// What the host says.
    pub(crate) facts: &'a HostFacts,
    /// What may be missing in the books.
    pub(crate) completeness: &'a Completeness,
    /// Boot time to wall clock.
    pub(crate) clock: Clock,
    /// It is about this machine, now.
    pub(crate) here: bool,
    /// What a clean-up must be given to know the same: each option after a space.
    pub(crate) source: String,
}

/// The whole life, as far as it is known, and whether that is all.
pub(crate) fn story_moments(telling: &StoryContext<'_>, row: &Row<'_>) -> Vec<StoryMoment> {
    let Some(cookie) = row.semaphore.cookie.as_deref() else {
        return Vec::new();
    };
    let teller = MomentWriter {
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
        moments.extend(teller.moments_before());
    }
    moments.extend(head.into_iter().map(|step| teller.step_moment(step)));
    if cookie.timeline.skipped() > 0 {
        let skipped = count_noun(cookie.timeline.skipped(), "more step", "more steps");
        let what = format!("... {skipped} ...");
        moments.push(teller.untimed_moment("", what));
    }
    moments.extend(tail.into_iter().map(|step| teller.step_moment(step)));
    moments.extend(teller.unseen_end());
    moments.extend(teller.moment_since());
    moments
}

struct MomentWriter<'a> {
    telling: &'a StoryContext<'a>,
    row: &'a Row<'a>,
    cookie: &'a Cookie,
}

impl MomentWriter<'_> {
    fn moment_at(&self, at: BootTime, who: String, what: String) -> StoryMoment {
        let clock = &self.telling.clock;
        StoryMoment {
            time: Some(clock.rfc3339_at(at)),
            shown: clock.time_of_day(at),
            who,
            tid: None,
            what,
            value: None,
        }
    }

    fn untimed_moment(&self, who: &str, what: String) -> StoryMoment {
        StoryMoment {
            time: None,
            shown: String::new(),
            who: who.to_owned(),
            tid: None,
            what,
            value: None,
        }
    }

    fn step_moment(&self, step: &TimelineStep) -> StoryMoment {
        let who = match (&step.who, step.what) {
            (_, CookieCall::Uevent { .. }) | (None, _) => "kernel".to_owned(),
            (Some(who), _) => who.to_string(),
        };
        let mut moment = self.moment_at(step.at, who, self.step_text(step));
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

    fn step_text(&self, step: &TimelineStep) -> String {
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
                DecrementMeaning::Completion => {
                    format!("-{by}: completes{}", self.completer_text(step))
                }
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
                let name = self.device_text(device);
                let result = match (step.errno, uevent) {
                    (0, true) => "ok, a uevent was sent".to_owned(),
                    (0, false) => "ok, no uevent".to_owned(),
                    (errno, _) => format!("fails: {}", errno_word(errno)),
                };
                format!("ioctl {command} {name}: {result}")
            }
            CookieCall::Uevent { action, device } => {
                format!("uevent {action} for {}", self.device_text(device))
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
            CookieCall::Exit => match self.exit_status(step) {
                Some(status) => format!("ends: {status}"),
                None => "has ended".to_owned(),
            },
        }
    }

    /// What a completer is, if that is known.
    fn completer_text(&self, step: &TimelineStep) -> &'static str {
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

    fn exit_status(&self, step: &TimelineStep) -> Option<ExitStatus> {
        let image = step.who.as_ref()?.image;
        let user = self
            .cookie
            .users
            .iter()
            .find(|user| user.who.image == image)?;
        user.exit?.status
    }

    /// Name and number of a device; within one cookie a number may have had two names.
    fn device_text(&self, number: Option<DevNum>) -> String {
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
    fn moments_before(&self) -> Vec<StoryMoment> {
        let semaphore = self.row.semaphore;
        let mut moments = Vec::new();
        match (semaphore.created, self.row.process) {
            (Some(at), Some(process)) => {
                let who = format!("{}[{}]", process.name, process.image_id.id.tgid);
                moments.push(self.moment_at(at, who, "makes it".to_owned()));
            }
            (Some(at), None) => {
                moments.push(self.moment_at(at, "?".to_owned(), "makes it".to_owned()));
            }
            (None, _) => {
                if let Some(at) = self
                    .row
                    .set
                    .and_then(|set| time::Moment::of_unix(set.ctime))
                {
                    moments.push(self.untimed_moment("?", format!("made, or last set, {at}")));
                }
                if let Some(set) = self.row.set {
                    let by = match set.first.map_or(0, |first| first.pid) {
                        0 => String::new(),
                        pid => {
                            format!(" by process {pid} (that number may be another process now)")
                        }
                    };
                    moments.push(match time::Moment::of_unix(set.otime) {
                        Some(at) => self.untimed_moment("?", format!("last operation {at}{by}")),
                        None if by.is_empty() => {
                            self.untimed_moment("?", "never set, never operated on".to_owned())
                        }
                        None => self.untimed_moment("?", format!("never operated on; set{by}")),
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
                "in total: {up} announced, {down} taken back or completed, {}",
                count_noun(counts.waits, "wait", "waits")
            );
            moments.push(self.untimed_moment("", what));
        }
        moments
    }

    /// The time since the last step: what is missing did not happen in it.
    fn moment_since(&self) -> Option<StoryMoment> {
        let last = self.cookie.timeline.iter().map(|step| step.at).max()?;
        let live = self.row.semaphore.is_live();
        let quiet = time::age_text(self.telling.facts.now.duration_since(last));
        live.then(|| self.untimed_moment("", format!("{NOTHING_SINCE}{quiet}")))
    }

    /// An end that is in no step.
    fn unseen_end(&self) -> Option<StoryMoment> {
        let ending = self.row.semaphore.ending.as_ref()?;
        let told = self
            .cookie
            .timeline
            .iter()
            .any(|step| step.what == CookieCall::Remove);
        (!told).then(|| self.moment_at(ending.at, "kernel".to_owned(), "it is gone".to_owned()))
    }
}
