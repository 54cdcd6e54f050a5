//! Weighs what the witnesses say against what the kernel keeps of a cookie.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Answer, CookieMoment, Doubt, Grade, Ground, MadeSet, Role, Suspect, Testimony, UnknownReason,
    Who, Witness,
    clock::{SLACK, Span, Timeline, ticks_to_nanos},
    dossier::{Dossier, collect},
    programs::{is_cookie_program, is_daemon},
};
use crate::{
    facts::HostFacts,
    ids::SemId,
    search::{HolderClass, HolderProcess, ProgramKind, identify_program},
};

/// So many are mentioned where nobody is named.
pub(super) const MAX_POSSIBLE: usize = 8;

/// So many lines of a suspect are kept.
const MAX_LINES: usize = 4;

/// Everything that is said, put together.
pub struct Inquiry<'a> {
    pub(super) facts: &'a HostFacts,
    pub(super) timeline: Timeline<'a>,
    pub(super) testimonies: &'a [Testimony],
    pub(super) dossiers: Vec<Dossier<'a>>,
    by_pid: BTreeMap<u32, Vec<usize>>,
    /// Those of the dossiers who made a set.
    pub(super) makers: BTreeMap<MadeSet, Vec<usize>>,
    /// Those who were killed: few.
    killed: Vec<usize>,
    holders: BTreeMap<SemId, Vec<&'a HolderProcess>>,
}

/// When the cookie was made and last touched.
#[derive(Clone, Copy)]
pub(super) struct Scene {
    pub created: Span,
    pub touched: Span,
    /// The same, to be held against starts of processes.
    pub created_since_boot: Span,
    pub touched_since_boot: Span,
    /// Both are known well enough to compare them with a log.
    pub exact: bool,
    /// Somebody has changed it since it was made.
    pub operated: bool,
    pub value: Option<i32>,
}

/// What one rule says.
pub(super) enum Step {
    Named(Box<Suspect>),
    /// Nobody, and no other rule may name one.
    Stop(UnknownReason, Vec<Suspect>),
    /// Nobody, for this reason unless another rule knows more.
    Next(UnknownReason),
}

/// For whom a `dmsetup` completes cookies.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Completer {
    Udev,
    Somebody,
    Unknown,
}

/// Weighs what is said of one cookie; of several, [`Inquiry::weigh_all`] sees more.
pub fn weigh(moment: &CookieMoment, testimonies: &[Testimony], facts: &HostFacts) -> Answer {
    Inquiry::new(testimonies, facts).weigh(moment)
}

impl<'a> Inquiry<'a> {
    /// Puts together what is said.
    pub fn new(testimonies: &'a [Testimony], facts: &'a HostFacts) -> Self {
        let timeline = Timeline::new(facts);
        let dossiers = collect(testimonies, &timeline);
        let mut by_pid: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        let mut makers: BTreeMap<MadeSet, Vec<usize>> = BTreeMap::new();
        for (place, dossier) in dossiers.iter().enumerate() {
            if let Some(pid) = dossier.pid() {
                by_pid.entry(pid).or_default().push(place);
            }
            for made in dossier.statements.iter().filter_map(|it| it.made) {
                makers.entry(made).or_default().push(place);
            }
        }
        let killed = (0..dossiers.len()).filter(|&place| dossiers[place].killed.is_some());
        Self {
            facts,
            timeline,
            testimonies,
            makers,
            killed: killed.collect(),
            dossiers,
            by_pid,
            holders: BTreeMap::new(),
        }
    }

    /// Adds that a living process has the number of a cookie.
    pub fn add_holder(&mut self, sem: SemId, holder: &'a HolderProcess) {
        self.holders.entry(sem).or_default().push(holder);
    }

    /// Weighs what is said of all cookies. Of them, one that handles one command at a time can have
    /// left a single one.
    pub fn weigh_all(&self, moments: &[CookieMoment]) -> BTreeMap<SemId, Answer> {
        let mut answers: BTreeMap<SemId, Answer> = moments
            .iter()
            .map(|moment| (moment.sem, self.weigh(moment)))
            .collect();
        let mut mentioned: BTreeMap<_, usize> = BTreeMap::new();
        for suspect in answers.values().flat_map(Answer::suspects) {
            if leaves_one_cookie(suspect) {
                *mentioned.entry(identity(&suspect.who)).or_default() += 1;
            }
        }
        for answer in answers.values_mut() {
            let Some(suspect) = answer.suspect() else {
                continue;
            };
            let count = mentioned.get(&identity(&suspect.who)).copied().unwrap_or(0);
            let is_known = |it: &Ground| matches!(it, Ground::LastOperator | Ground::Made { .. });
            if count > 1 && !suspect.grounds.iter().any(is_known) {
                let mut suspect = suspect.clone();
                suspect.grade = Grade::Possible;
                suspect.doubts.push(Doubt::ManyCookies { count });
                *answer = Answer::Unknown {
                    reason: UnknownReason::OneForMany,
                    possible: vec![suspect],
                };
            }
        }
        answers
    }

    /// Weighs what is said of one cookie.
    pub fn weigh(&self, moment: &CookieMoment) -> Answer {
        let scene = self.scene(moment);
        let unknown = |reason, possible| Answer::Unknown { reason, possible };
        let first = self.by_maker(moment, scene);
        let reason = match first.unwrap_or_else(|| self.by_last_operator(moment, scene)) {
            Step::Named(suspect) => return Answer::Named { suspect },
            Step::Stop(reason, possible) => return unknown(reason, possible),
            Step::Next(reason) => reason,
        };
        if !scene.exact {
            return unknown(UnknownReason::ClockInDoubt, Vec::new());
        }
        let mut suspects = self.killed_then(moment, scene);
        // Accounting knows all that ended then, the main process of a unit, too.
        if suspects.iter().any(is_accounted) {
            suspects.retain(|it| it.who.pid.is_some());
        }
        // Somebody acted last, and it may have been another program than udev's.
        let another = moment.last_pid != 0
            && scene.value != Some(0)
            && reason != UnknownReason::CompletedByUdev;
        if another {
            for suspect in &mut suspects {
                suspect.grade = Grade::Possible;
            }
        }
        suspects.extend(self.living_holders(moment, scene));
        settle(suspects, reason)
    }

    fn scene(&self, moment: &CookieMoment) -> Scene {
        let operated = moment.otime.0 != 0;
        let known = |stamp| self.timeline.locate_exactly(stamp).is_some();
        Scene {
            created: self.timeline.locate(moment.ctime),
            touched: self.timeline.locate(moment.last_touch()),
            created_since_boot: self.timeline.locate_on_boot_clock(moment.ctime),
            touched_since_boot: self.timeline.locate_on_boot_clock(moment.last_touch()),
            exact: known(moment.ctime) && known(moment.last_touch()),
            operated,
            value: moment.value,
        }
    }

    /// Those who were killed while the cookie was there.
    fn killed_then(&self, moment: &CookieMoment, scene: Scene) -> Vec<Suspect> {
        // Only its maker has touched it, and that one has a number.
        if !scene.operated && moment.last_pid != 0 {
            return Vec::new();
        }
        let killed = self.killed.iter().map(|&place| &self.dossiers[place]);
        let fits = killed.filter(|it| self.dies_then(it, scene));
        fits.map(|dossier| {
            let mut suspect = self.suspect(dossier, Role::Owner, moment, scene);
            if !dossier.uses_cookies() {
                suspect.grade = Grade::Possible;
                suspect.doubts.push(Doubt::NoDeviceMapper);
            }
            // Whoever goes on for days after a cookie was left is not known to have left it.
            let late = |death: Span| death.from > scene.touched.to + SLACK;
            if dossier.killed.is_some_and(|(death, ..)| late(death))
                && dossier.name().is_some_and(is_daemon)
            {
                suspect.grade = Grade::Possible;
            }
            if dossier.is_death_forgeable() {
                suspect.grade = Grade::Possible;
                suspect.doubts.push(Doubt::Forgeable);
                suspect.doubts.dedup();
            }
            suspect
        })
        .collect()
    }

    fn dies_then(&self, dossier: &Dossier<'_>, scene: Scene) -> bool {
        let Some((death, ..)) = dossier.killed else {
            return false;
        };
        if dossier.is_powerless()
            || death.to < scene.created.from - SLACK
            || self.completes_for(dossier) == Completer::Udev
        {
            return false;
        }
        // Alive at the last completion, it would have removed the cookie.
        if scene.value == Some(0) && death.from > scene.touched.to + SLACK {
            return false;
        }
        match dossier.life {
            Some((begun, _)) => begun.from <= scene.created.to + SLACK,
            // Since when it ran is not known: only what was killed then.
            None => death.from <= scene.touched.to.max(scene.created.to) + SLACK,
        }
    }

    /// Living processes that could act on the cookie and have its number.
    fn living_holders(&self, moment: &CookieMoment, scene: Scene) -> Vec<Suspect> {
        let holders = self.holders.get(&moment.sem).into_iter().flatten();
        let holders = holders.filter(|it| {
            let started = ticks_to_nanos(it.id.start_ticks());
            it.class == HolderClass::Actor && started <= scene.created_since_boot.to
        });
        holders
            .map(|holder| {
                let interpreter = identify_program(&holder.exe) == ProgramKind::Interpreter;
                Suspect {
                    who: Who {
                        pid: Some(holder.id.tgid),
                        name: Some(holder.comm.clone()),
                        exe: (!holder.exe.is_empty()).then(|| holder.exe.clone()),
                        alive: true,
                        ..Who::default()
                    },
                    role: Role::Owner,
                    // A shell may have the number from a list that somebody looked at.
                    grade: if interpreter {
                        Grade::Possible
                    } else {
                        Grade::Inferred
                    },
                    grounds: vec![Ground::HoldsNumber, Ground::LivedThen],
                    doubts: vec![Doubt::NotLastOperator],
                }
            })
            .collect()
    }

    pub(super) fn of_pid(&self, pid: u32) -> impl Iterator<Item = &Dossier<'a>> {
        let places = self.by_pid.get(&pid).into_iter().flatten();
        places.map(|&place| &self.dossiers[place])
    }

    /// A process as a suspect, with all that is said of it.
    pub(super) fn suspect(
        &self,
        dossier: &Dossier<'_>,
        role: Role,
        moment: &CookieMoment,
        scene: Scene,
    ) -> Suspect {
        let mut grounds = Vec::new();
        let mut doubts = Vec::new();
        let operator = moment.last_pid != 0 && dossier.pid() == Some(moment.last_pid);
        if operator && scene.value.is_some_and(|value| value > 0) {
            grounds.push(Ground::LastOperator);
        } else if role == Role::Owner && moment.last_pid != 0 {
            doubts.push(Doubt::NotLastOperator);
        }
        if let Some((death, signal, witness)) = dossier.killed
            && death.from <= scene.touched.to + SLACK
        {
            grounds.push(Ground::Killed { signal, witness });
        }
        if dossier.may_have_run(scene.created) {
            grounds.push(Ground::RanThen {
                witness: dossier.witness(),
            });
        }
        for statement in dossier.statements.iter().take(MAX_LINES) {
            grounds.push(Ground::Line {
                witness: statement.witness,
                line: statement.line.clone(),
            });
        }
        if dossier.is_forgeable() {
            doubts.push(Doubt::Forgeable);
        }
        if self.timeline.is_unwatched(moment.ctime) {
            doubts.push(Doubt::ClockUnwatched);
        }
        let life = dossier.life.is_none_or(|(begun, _)| begun.is_narrow());
        let narrow = life && dossier.killed.is_none_or(|(death, ..)| death.is_narrow());
        Suspect {
            who: dossier.who(),
            role,
            grade: if narrow {
                Grade::Inferred
            } else {
                Grade::Possible
            },
            grounds,
            doubts,
        }
    }

    /// A living process as far as it is known.
    pub(super) fn living(&self, pid: u32) -> Who {
        let said = self.of_living(pid).map(Dossier::who).last();
        let live = self.facts.processes.get(&pid);
        Who {
            pid: Some(pid),
            name: live.map(|it| it.comm.clone()),
            alive: true,
            ..said.unwrap_or_default()
        }
    }

    /// What is said of a process since it began; others had its number before.
    fn of_living(&self, pid: u32) -> impl Iterator<Item = &Dossier<'a>> {
        let live = self.facts.processes.get(&pid);
        let started = live.map_or(i64::MAX, |it| ticks_to_nanos(it.start_ticks));
        self.of_pid(pid)
            .filter(move |it| it.life.is_none() && it.seen.to >= started)
    }

    pub(super) fn add_lines(&self, pid: u32, scene: Scene, suspect: &mut Suspect) {
        let near = self.of_living(pid);
        let near = near.filter(|it| it.may_have_run(scene.touched));
        let lines = near.flat_map(|it| &it.statements);
        suspect
            .grounds
            .extend(lines.take(MAX_LINES).map(|it| Ground::Line {
                witness: it.witness,
                line: it.line.clone(),
            }));
    }

    pub(super) fn add_holding(&self, moment: &CookieMoment, suspect: &mut Suspect) {
        let holders = self.holders.get(&moment.sem).into_iter().flatten();
        if holders
            .into_iter()
            .any(|it| Some(it.id.tgid) == suspect.who.pid)
        {
            suspect.grounds.push(Ground::HoldsNumber);
        }
    }
}

/// Names the only one who fits; for want of that, everybody who may have been it.
fn settle(mut suspects: Vec<Suspect>, reason: UnknownReason) -> Answer {
    let fits = |it: &Suspect| !it.doubts.contains(&Doubt::NoDeviceMapper);
    let competitors: BTreeSet<_> = suspects
        .iter()
        .filter(|it| fits(it))
        .map(|it| identity(&it.who))
        .collect();
    let others = competitors.len().saturating_sub(1);
    let sure = suspects
        .iter()
        .position(|it| it.grade == Grade::Inferred && others == 0);
    if let Some(place) = sure {
        return Answer::Named {
            suspect: Box::new(suspects.swap_remove(place)),
        };
    }
    let reason = if others > 0 {
        suspects.retain(fits);
        for suspect in &mut suspects {
            suspect.doubts.push(Doubt::OthersFit { count: others });
        }
        UnknownReason::Ambiguous
    } else if reason == UnknownReason::NoWitness && !suspects.is_empty() {
        UnknownReason::OnlyKilled
    } else {
        reason
    };
    for suspect in &mut suspects {
        suspect.grade = Grade::Possible;
    }
    suspects.truncate(MAX_POSSIBLE);
    Answer::Unknown {
        reason,
        possible: suspects,
    }
}

/// Whether process accounting says that it was killed.
fn is_accounted(suspect: &Suspect) -> bool {
    suspect.who.pid.is_some()
        && suspect.grounds.iter().any(|it| {
            matches!(
                it,
                Ground::Killed {
                    witness: Witness::Accounting,
                    ..
                }
            )
        })
}

/// Whether it handles one command and ends.
fn leaves_one_cookie(suspect: &Suspect) -> bool {
    let name = suspect.who.name.as_deref();
    suspect.role == Role::Owner && name.is_none_or(|it| is_cookie_program(it) && !is_daemon(it))
}

fn identity(who: &Who) -> (Option<u32>, Option<String>, Option<String>, Option<String>) {
    (
        who.pid,
        who.name.clone(),
        who.unit.clone(),
        who.command.clone(),
    )
}
