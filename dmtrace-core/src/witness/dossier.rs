//! What all witnesses say of one process.

use std::collections::BTreeMap;

use super::{
    Ending, Testimony, When, Who, Witness,
    clock::{SLACK, Span, Timeline},
    mentions_cookie_program,
    programs::{is_cookie_program, name_of_command},
};

/// Lines of one process that are further apart may be of two that had the same number.
const MAX_SILENCE: i64 = 60_000_000_000;

/// A log tells of an end so late.
const LATE: i64 = 10_000_000_000;

/// One process, or a unit of which no process is known.
pub(super) struct Dossier<'a> {
    pub statements: Vec<&'a Testimony>,
    /// Of the first and of the last statement.
    pub seen: Span,
    /// Begin and end by accounting.
    pub life: Option<(Span, Span)>,
    /// When it was killed, by which signal, and who says so.
    pub killed: Option<(Span, u8, Witness)>,
}

impl<'a> Dossier<'a> {
    fn new(testimony: &'a Testimony, (begun, ended): (Span, Span)) -> Self {
        let accounting = matches!(testimony.when, When::Life { .. });
        let mut dossier = Self {
            statements: Vec::new(),
            seen: Span {
                from: begun.from,
                to: ended.to,
            },
            life: accounting.then_some((begun, ended)),
            killed: None,
        };
        dossier.add(testimony, ended);
        dossier
    }

    fn add(&mut self, testimony: &'a Testimony, at: Span) {
        self.seen.from = self.seen.from.min(at.from);
        self.seen.to = self.seen.to.max(at.to);
        // Accounting knows how a process ended; a log, where accounting says nothing.
        let knows = self.life.is_none() || testimony.witness == Witness::Accounting;
        if let Some(Ending::Killed { signal }) = testimony.ending
            && knows
            && self.killed.is_none()
        {
            self.killed = Some((at, signal, testimony.witness));
        }
        self.statements.push(testimony);
    }

    fn first<T>(&self, of: impl Fn(&'a Testimony) -> Option<T>) -> Option<T> {
        self.statements.iter().find_map(|it| of(it))
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.first(|it| it.pid)
    }

    pub(super) fn parent(&self) -> Option<u32> {
        self.first(|it| it.parent)
    }

    pub(super) fn name(&self) -> Option<&'a str> {
        self.first(|it| it.name.as_deref())
            .or_else(|| self.first(|it| it.command.as_deref().and_then(name_of_command)))
    }

    pub(super) fn command(&self) -> Option<&'a str> {
        self.first(|it| it.command.as_deref())
    }

    pub(super) fn unit(&self) -> Option<&'a str> {
        self.first(|it| it.unit.as_deref())
    }

    fn uid(&self) -> Option<u32> {
        self.first(|it| it.uid)
    }

    /// Whether it is the child of a process that has not called `execve` since: half of a script.
    pub(super) fn is_forked(&self) -> bool {
        self.statements.iter().any(|it| it.forked)
    }

    /// Who says most of it.
    pub(super) fn witness(&self) -> Witness {
        self.statements
            .first()
            .map_or(Witness::Journal, |it| it.witness)
    }

    /// Whether all of it may have been written by anybody.
    pub(super) fn is_forgeable(&self) -> bool {
        self.statements.iter().all(|it| it.forgeable)
    }

    /// Whether that it was killed may have been written by anybody.
    pub(super) fn is_death_forgeable(&self) -> bool {
        self.statements
            .iter()
            .filter(|it| it.tells_kill())
            .all(|it| it.forgeable)
    }

    /// Whether it had no right to use device-mapper.
    pub(super) fn is_powerless(&self) -> bool {
        self.uid().is_some_and(|uid| uid != 0) && !self.statements.iter().any(|it| it.privileged)
    }

    /// Whether it is known to make cookies: by its name, its command line, or what systemd said when
    /// it started its unit.
    pub(super) fn uses_cookies(&self) -> bool {
        match self.name() {
            Some(name) => is_cookie_program(name),
            None => self
                .statements
                .iter()
                .any(|it| !it.forgeable && mentions_cookie_program(&it.line)),
        }
    }

    /// Whether it may have run at some time in a span.
    pub(super) fn may_have_run(&self, at: Span) -> bool {
        match self.life {
            Some((begun, ended)) => begun.from <= at.to + SLACK && ended.to >= at.from - SLACK,
            None => self.is_near(at, 5_000_000_000),
        }
    }

    fn is_near(&self, at: Span, distance: i64) -> bool {
        self.seen.from.saturating_sub(distance) <= at.to
            && at.from <= self.seen.to.saturating_add(distance)
    }

    /// Who it is.
    pub(super) fn who(&self) -> Who {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Who {
            pid: self.pid(),
            name: owned(self.name()),
            command: owned(self.command()),
            exe: self.first(|it| it.exe.clone()),
            uid: self.uid(),
            unit: owned(self.unit()),
            container: self.first(|it| it.container.clone()),
            alive: false,
        }
    }
}

/// Puts together what is said of one process.
pub(super) fn collect<'a>(
    testimonies: &'a [Testimony],
    timeline: &Timeline<'_>,
) -> Vec<Dossier<'a>> {
    let placed = testimonies
        .iter()
        .filter(|it| it.witness != Witness::PackageLog)
        .map(|it| (it, timeline.place(it)))
        // Of an earlier boot.
        .filter(|(_, (_, ended))| ended.to >= 0);
    let (records, mut lines): (Vec<_>, Vec<_>) =
        placed.partition(|(it, _)| matches!(it.when, When::Life { .. }));
    lines.sort_by_key(|(_, (begun, _))| begun.from);
    let mut dossiers: Vec<Dossier<'a>> = records
        .into_iter()
        .map(|(it, span)| Dossier::new(it, span))
        .collect();
    let mut by_pid: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (place, dossier) in dossiers.iter().enumerate() {
        if let Some(pid) = dossier.pid() {
            by_pid.entry(pid).or_default().push(place);
        }
    }
    let mut units: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (testimony, (begun, ended)) in lines {
        let place = dossiers.len();
        let same = match (testimony.pid, testimony.unit.as_deref()) {
            (Some(pid), _) => by_pid.entry(pid).or_default(),
            (None, Some(unit)) if testimony.name.is_none() => units.entry(unit).or_default(),
            // Killed in a container, where numbers are others.
            (None, _) if testimony.name.is_some() => &mut Vec::new(),
            _ => continue,
        };
        let known = same
            .iter()
            .rev()
            .find(|&&place| belongs(&dossiers[place], testimony, begun));
        if let Some(&known) = known {
            dossiers[known].add(testimony, ended);
        } else {
            same.push(place);
            dossiers.push(Dossier::new(testimony, (begun, ended)));
        }
    }
    merge_units(&mut dossiers);
    dossiers
}

/// Whether a line is of this process.
fn belongs(dossier: &Dossier<'_>, line: &Testimony, at: Span) -> bool {
    if let Some((begun, ended)) = dossier.life {
        return begun.from - SLACK <= at.to && at.from <= ended.to + LATE;
    }
    let same_name = match (dossier.name(), line.name.as_deref()) {
        (Some(a), Some(b)) => a == b,
        _ => true,
    };
    same_name && dossier.is_near(at, MAX_SILENCE)
}

/// What is said of a unit is said of its only process that makes cookies.
fn merge_units(dossiers: &mut Vec<Dossier<'_>>) {
    let is_unit = |it: &Dossier<'_>| it.pid().is_none() && it.name().is_none();
    let (units, mut processes): (Vec<_>, Vec<_>) =
        std::mem::take(dossiers).into_iter().partition(is_unit);
    for unit in units {
        let mut of_unit = processes.iter_mut().filter(|it| {
            it.unit() == unit.unit() && it.uses_cookies() && it.is_near(unit.seen, MAX_SILENCE)
        });
        match (of_unit.next(), of_unit.next()) {
            (Some(process), None) => {
                for statement in unit.statements {
                    process.add(statement, unit.killed.map_or(unit.seen, |killed| killed.0));
                }
            }
            // Which of them was killed is said of each, or of none.
            (Some(_), Some(_)) => {}
            (None, _) => processes.push(unit),
        }
    }
    *dossiers = processes;
}
