//! The kernel's last operator of a cookie, and when it says who made it.

use super::{
    CookieMoment, Doubt, Grade, Ground, Role, Suspect, UnknownReason,
    clock::{SLACK, Span, ticks_to_nanos},
    dossier::Dossier,
    inquiry::{Completer, Inquiry, MAX_POSSIBLE, Scene, Step},
    programs::{is_dmsetup, is_udev},
};
use crate::facts::LiveProcess;

/// What starts so long after a cookie was touched has not touched it: more than any error of the clock
/// that does not show.
const CLOCK_GRAIN: i64 = 12_000_000_000;

/// A shell's child that is a shell itself, and its child.
const MAX_PARENTS: usize = 4;

/// They take over processes whose parents have ended, and run no `dmsetup`.
const REAPERS: [&str; 9] = [
    "systemd",
    "init",
    "conmon",
    "containerd-shim",
    "tini",
    "dumb-init",
    "catatonit",
    "s6-svscan",
    "runsvdir",
];

impl<'a> Inquiry<'a> {
    /// The last operator, where it cannot be udev's.
    pub(super) fn by_last_operator(&self, moment: &CookieMoment, scene: Scene) -> Step {
        let pid = moment.last_pid;
        if pid == 0 || scene.value.is_none() {
            return Step::Next(UnknownReason::NoWitness);
        }
        // At 0 it is whoever has completed it.
        if scene.value == Some(0) {
            return Step::Next(UnknownReason::CompletedByUdev);
        }
        let mut reason = UnknownReason::OperatorUnknown;
        if let Some(live) = self.facts.processes.get(&pid) {
            let started = ticks_to_nanos(live.start_ticks);
            reason = UnknownReason::NumberReused;
            if started <= scene.touched_since_boot.to.saturating_add(CLOCK_GRAIN) {
                match self.living_operator(moment, scene, started) {
                    Step::Next(
                        why @ (UnknownReason::NumberMayBeReused | UnknownReason::NumberReused),
                    ) => reason = why,
                    known => return known,
                }
            }
        }
        // What is said of a number that has another process by now: only of the one who ended.
        let reused = reason != UnknownReason::OperatorUnknown;
        let ended = |it: &&Dossier<'_>| !reused || it.killed.is_some() || it.life.is_some();
        if !scene.exact {
            return Step::Next(UnknownReason::ClockInDoubt);
        }
        let mut found = self
            .of_pid(pid)
            .filter(|it| it.may_have_run(scene.touched) || self.ended_soon_after(it, scene))
            .filter(ended);
        match (found.next(), found.next()) {
            (Some(dossier), None) => self.ended_operator(moment, scene, dossier),
            (Some(first), Some(second)) => {
                let possible = [first, second].into_iter().chain(found);
                let possible = possible.map(|it| self.suspect(it, Role::Owner, moment, scene));
                Step::Stop(
                    UnknownReason::Ambiguous,
                    as_possible(possible.take(MAX_POSSIBLE)),
                )
            }
            // Whoever made it is the only one who has touched it.
            (None, _) if !scene.operated => Step::Stop(reason, Vec::new()),
            (None, _) => Step::Next(reason),
        }
    }

    fn living_operator(&self, moment: &CookieMoment, scene: Scene, started: i64) -> Step {
        let pid = moment.last_pid;
        let Some(live) = self.facts.processes.get(&pid) else {
            return Step::Next(UnknownReason::NoWitness);
        };
        if is_udev(&live.comm)
            || (is_dmsetup(&live.comm) && self.is_udev_pid(live.ppid, scene.touched))
        {
            return Step::Next(UnknownReason::CompletedByUdev);
        }
        let mut suspect = Suspect {
            who: self.living(pid),
            role: Role::Owner,
            grade: Grade::Inferred,
            grounds: vec![Ground::LastOperator],
            doubts: Vec::new(),
        };
        self.add_lines(pid, scene, &mut suspect);
        self.add_holding(moment, &mut suspect);
        if started <= scene.created_since_boot.from {
            suspect.grounds.push(Ground::LivedThen);
            if self.timeline.is_unwatched(moment.ctime) {
                suspect.doubts.push(Doubt::ClockUnwatched);
            }
            return Step::Named(Box::new(suspect));
        }
        suspect.grade = Grade::Possible;
        if !scene.exact {
            return Step::Stop(UnknownReason::ClockInDoubt, vec![suspect]);
        }
        // In the second in which the cookie was made: it may have the number of whoever ended then.
        if started <= scene.created_since_boot.to {
            if suspect.grounds.contains(&Ground::HoldsNumber) {
                suspect.grade = Grade::Inferred;
                return Step::Named(Box::new(suspect));
            }
            return Step::Next(UnknownReason::NumberMayBeReused);
        }
        if started > scene.touched_since_boot.to {
            return Step::Next(UnknownReason::NumberReused);
        }
        suspect.doubts.push(Doubt::BeganLater);
        Step::Stop(UnknownReason::OnlyParticipant, vec![suspect])
    }

    /// The last operator has ended, and a witness knows it.
    fn ended_operator(&self, moment: &CookieMoment, scene: Scene, dossier: &Dossier<'a>) -> Step {
        let dmsetup = dossier.name().is_some_and(is_dmsetup);
        let whose = self.completes_for(dossier);
        if dmsetup && scene.operated && whose != Completer::Somebody {
            return Step::Next(UnknownReason::CompletedByUdev);
        }
        if dmsetup && dossier.killed.is_none() {
            return self.script_of(moment, scene, dossier, scene.touched);
        }
        let suspect = self.suspect(dossier, Role::Owner, moment, scene);
        let later = dossier
            .life
            .is_some_and(|(begun, _)| begun.from > scene.created.to + SLACK);
        if later {
            return Step::Stop(UnknownReason::OnlyParticipant, as_possible([suspect]));
        }
        name_if_sure(suspect)
    }

    /// `dmsetup` has ended as it should and left a cookie: whoever ran it wanted that. `then`: when it
    /// ran, where nothing says it better.
    pub(super) fn script_of(
        &self,
        moment: &CookieMoment,
        scene: Scene,
        dossier: &Dossier<'a>,
        then: Span,
    ) -> Step {
        let child = self.suspect(dossier, Role::Owner, moment, scene);
        let unknown = |child| Step::Stop(UnknownReason::ParentUnknown, as_possible([child]));
        let Some(pid) = dossier.pid() else {
            return unknown(child);
        };
        let ground = Ground::RanDmsetup {
            pid,
            witness: dossier.witness(),
        };
        let at = dossier.life.map_or(then, |(begun, _)| begun);
        let mut parent = dossier.parent();
        for _ in 0..MAX_PARENTS {
            let Some(pid) = parent.filter(|&pid| pid > 1) else {
                break;
            };
            if self.is_udev_pid(pid, at) {
                break;
            }
            let ended: Vec<&Dossier<'_>> = self.ran_then(pid, at).collect();
            let living = self.living_then(pid, at);
            match (ended.as_slice(), living) {
                ([shell], _) if shell.life.is_some() || living.is_none() => {
                    if shell.name().is_some_and(|name| REAPERS.contains(&name)) {
                        break;
                    }
                    let passing =
                        shell.is_forked() && shell.killed.is_none() && ends_with(shell, dossier);
                    if passing {
                        parent = shell.parent();
                        continue;
                    }
                    let mut suspect = self.suspect(shell, Role::Script, moment, scene);
                    suspect.grounds.insert(0, ground);
                    return name_if_sure(suspect);
                }
                (_, Some(live)) => {
                    if REAPERS.contains(&live.comm.as_str()) {
                        break;
                    }
                    let mut suspect = Suspect {
                        who: self.living(pid),
                        role: Role::Script,
                        grade: Grade::Inferred,
                        grounds: vec![ground, Ground::LivedThen],
                        doubts: Vec::new(),
                    };
                    self.add_lines(pid, scene, &mut suspect);
                    self.add_holding(moment, &mut suspect);
                    return Step::Named(Box::new(suspect));
                }
                _ => break,
            }
        }
        unknown(child)
    }

    /// Killed within a minute of the last touch: no other process has got its number by then.
    fn ended_soon_after(&self, dossier: &Dossier<'_>, scene: Scene) -> bool {
        const SOON: i64 = 60_000_000_000;
        dossier.killed.is_some_and(|(death, ..)| {
            let since = scene.touched.from - SLACK;
            dossier.life.is_none() && (since..=scene.touched.to + SOON).contains(&death.from)
        })
    }

    /// Whether this number was that of udevd or one of its workers.
    fn is_udev_pid(&self, pid: u32, at: Span) -> bool {
        let udev = &self.facts.udev;
        let workers = udev.details.iter().flat_map(|it| &it.workers);
        let living = self.facts.processes.get(&pid);
        let living = living.filter(|it| {
            ticks_to_nanos(it.start_ticks) <= at.to || !self.timeline.is_anchored_before(at)
        });
        let now = udev.daemon == Some(pid) || workers.into_iter().any(|it| it.pid == pid);
        living.is_some_and(|it| now || is_udev(&it.comm))
            || self
                .ran_then(pid, at)
                .any(|it| it.name().is_some_and(is_udev))
    }

    /// The process that has this number, if it ran then for certain.
    fn living_then(&self, pid: u32, at: Span) -> Option<&LiveProcess> {
        let live = self.facts.processes.get(&pid)?;
        let ran = ticks_to_nanos(live.start_ticks) <= at.to && self.timeline.is_anchored_before(at);
        ran.then_some(live)
    }

    fn ran_then(&self, pid: u32, at: Span) -> impl Iterator<Item = &Dossier<'a>> {
        self.of_pid(pid).filter(move |it| it.may_have_run(at))
    }

    /// For whom a process would complete a cookie.
    pub(super) fn completes_for(&self, dossier: &Dossier<'_>) -> Completer {
        const UDEV_UNIT: &str = "systemd-udevd";
        if !dossier.name().is_none_or(is_dmsetup) {
            return Completer::Somebody;
        }
        let of_udev = dossier.unit().is_some_and(|it| it.starts_with(UDEV_UNIT));
        match dossier.command() {
            Some(command) if command.contains("udevcomplete") => return Completer::Udev,
            _ if of_udev => return Completer::Udev,
            Some(_) => return Completer::Somebody,
            None => {}
        }
        let at = dossier.life.map_or(dossier.seen, |(begun, _)| begun);
        match dossier.parent() {
            Some(parent) if self.is_udev_pid(parent, at) => Completer::Udev,
            Some(parent) if self.is_known(parent, at) => Completer::Somebody,
            _ if dossier.unit().is_some() => Completer::Somebody,
            _ => Completer::Unknown,
        }
    }

    fn is_known(&self, pid: u32, at: Span) -> bool {
        self.living_then(pid, at).is_some() || self.ran_then(pid, at).next().is_some()
    }
}

/// Names who is inferred.
fn name_if_sure(suspect: Suspect) -> Step {
    match suspect.grade {
        Grade::Inferred => Step::Named(Box::new(suspect)),
        Grade::Possible => Step::Stop(UnknownReason::OperatorUnknown, vec![suspect]),
    }
}

/// Whether a process ended no later than its child: it only stood in between.
fn ends_with(shell: &Dossier<'_>, child: &Dossier<'_>) -> bool {
    match (shell.life, child.life) {
        (Some((_, shell)), Some((_, child))) => shell.from <= child.to + SLACK,
        _ => false,
    }
}

pub(super) fn as_possible(suspects: impl IntoIterator<Item = Suspect>) -> Vec<Suspect> {
    suspects
        .into_iter()
        .map(|mut suspect| {
            suspect.grade = Grade::Possible;
            suspect
        })
        .collect()
}
