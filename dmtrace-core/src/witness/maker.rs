//! Who made a cookie, where the audit has it.

use super::{
    CookieMoment, Doubt, Grade, Ground, MadeSet, Role, Suspect, Testimony, UnknownReason, When,
    dossier::Dossier,
    inquiry::{Inquiry, Scene, Step},
    operator::as_possible,
    programs::is_dmsetup,
};

/// libdevmapper gives a new set its first value at once, which is what the kernel's stamp tells.
const FIRST_VALUE_WITHIN: i64 = 10;

impl<'a> Inquiry<'a> {
    /// The process that made this very set: its number, its key and its second are those of a record.
    /// Both stamps are of the same clock, however it was set. `None` if there is no such record.
    pub(super) fn by_maker(&self, moment: &CookieMoment, scene: Scene) -> Option<Step> {
        let set = MadeSet {
            key: moment.key,
            semid: moment.sem.semid,
        };
        let makers = self
            .makers
            .get(&set)?
            .iter()
            .map(|&place| &self.dossiers[place]);
        let records = makers.flat_map(|maker| maker.statements.iter().map(move |it| (maker, *it)));
        let mut found = records.filter(|(_, it)| it.made == Some(set) && is_then(it, moment));
        let (maker, record) = found.next()?;
        if found.any(|(other, _)| other.pid() != maker.pid()) {
            // Of two namespaces.
            return Some(Step::Stop(UnknownReason::Ambiguous, Vec::new()));
        }
        Some(self.weigh_maker(moment, scene, maker, record))
    }

    fn weigh_maker(
        &self,
        moment: &CookieMoment,
        scene: Scene,
        maker: &Dossier<'a>,
        record: &Testimony,
    ) -> Step {
        let mut suspect = self.suspect(maker, Role::Owner, moment, scene);
        suspect.grade = Grade::Inferred;
        suspect.doubts.retain(|it| *it != Doubt::NotLastOperator);
        suspect.grounds.insert(
            0,
            Ground::Made {
                witness: record.witness,
            },
        );
        suspect.who.alive = maker.killed.is_none() && self.is_alive_since(&suspect, scene);
        if !maker.name().is_some_and(is_dmsetup) || maker.killed.is_some() {
            return Step::Named(Box::new(suspect));
        }
        match maker.command() {
            // For somebody who goes on to use it.
            Some(command) if !command.contains("udevcreatecookie") => {
                Step::Named(Box::new(suspect))
            }
            None if maker.life.is_none() => {
                Step::Stop(UnknownReason::ParentUnknown, as_possible([suspect]))
            }
            // Its number may have another process since, and which one that was then is not known.
            _ if !scene.exact => Step::Stop(UnknownReason::ClockInDoubt, as_possible([suspect])),
            _ => self.script_of(moment, scene, maker, scene.created),
        }
    }

    /// Whether the process still runs, and is no other one with its number.
    fn is_alive_since(&self, suspect: &Suspect, scene: Scene) -> bool {
        let live = suspect
            .who
            .pid
            .and_then(|pid| self.facts.processes.get(&pid));
        live.is_some_and(|live| {
            let same_name = suspect.who.name.as_ref() == Some(&live.comm);
            let started = super::clock::ticks_to_nanos(live.start_ticks);
            let created = scene.created_since_boot;
            same_name && scene.exact && created.is_narrow() && started <= created.to
        })
    }
}

fn is_then(record: &Testimony, moment: &CookieMoment) -> bool {
    let When::Second { at } = record.when else {
        return false;
    };
    let after = moment.ctime.0.saturating_sub(at.0);
    (-1..=FIRST_VALUE_WITHIN).contains(&after)
}
