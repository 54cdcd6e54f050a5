//! What may be removed.

use std::time::Duration;

use super::scene::Scene;
use crate::{
    clean::{
        plan::{Action, Options, Plan},
        recheck::{What, recheck},
    },
    facts::{HostFacts, SetSnapshot, Snapshot},
    verdict::{Completeness, Context, Obstacle, Rules, Thresholds, survey},
};

fn plan(scene: &Scene, snapshot: &Snapshot, facts: &HostFacts, options: Options) -> Plan {
    let context = Context {
        facts,
        completeness: &Completeness::default(),
        thresholds: &Thresholds::default(),
    };
    let judged = survey(&scene.ledger, Some(snapshot), &context);
    Plan::build(&judged, &scene.ledger, &context, options)
}

fn leaked(seconds: u64) -> (Scene, Snapshot, HostFacts) {
    let mut scene = Scene::new();
    let (proc, _) = scene.armed();
    scene.kill(proc);
    let (snapshot, facts) = scene.after(seconds);
    (scene, snapshot, facts)
}

fn obstacles(plan: &Plan) -> &[Obstacle] {
    match &plan.entries[0].action {
        Action::Destroy | Action::Complete(_) => &[],
        Action::Keep { because } => because,
    }
}

#[test]
fn an_old_leak_is_removed() {
    let (scene, snapshot, facts) = leaked(700);
    let plan = plan(&scene, &snapshot, &facts, Options::default());
    assert_eq!(plan.acts().count(), 1, "{plan:#?}");
    let entry = &plan.entries[0];
    let owner = entry.owner.as_ref().unwrap();
    assert_eq!(owner.name, "lvm");
    assert_eq!(owner.command.as_deref(), Some("lvm lvcreate"));
    assert!(entry.verdict.observed);
    let json = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
}

#[test]
fn a_young_leak_is_kept() {
    let (scene, snapshot, facts) = leaked(100);
    let kept = plan(&scene, &snapshot, &facts, Options::default());
    let expected = [
        Obstacle::EventPending { count: 1 },
        Obstacle::TooYoung {
            seconds: 100,
            needed: 600,
        },
    ];
    assert_eq!(obstacles(&kept), expected);
    let options = Options {
        rules: Rules {
            older_than: Duration::from_secs(60),
            ..Rules::default()
        },
        ..Options::default()
    };
    let mut idle = facts;
    idle.udev.daemon = None;
    let removed = plan(&scene, &snapshot, &idle, options);
    assert_eq!(removed.acts().count(), 1, "{removed:#?}");
}

#[test]
fn the_fuse_blows_for_all() {
    let (scene, snapshot, facts) = leaked(700);
    let options = Options {
        max: Some(0),
        ..Options::default()
    };
    let plan = plan(&scene, &snapshot, &facts, options);
    assert!(plan.blown);
    assert_eq!(plan.acts().count(), 0);
}

#[test]
fn each_rule_that_fails_is_named() {
    let (scene, snapshot, facts) = leaked(700);
    let with = |change: &dyn Fn(&mut HostFacts)| {
        let mut facts = facts.clone();
        change(&mut facts);
        plan(&scene, &snapshot, &facts, Options::default())
    };
    let key = snapshot.namespaces[0].sets[0].key;
    let carried = with(&|facts| {
        facts.carriers.insert(key, vec![99]);
    });
    assert!(obstacles(&carried).contains(&Obstacle::Carrier { pid: 99 }));
    let unread = with(&|facts| facts.carriers_complete = false);
    assert_eq!(obstacles(&unread), [Obstacle::CarriersUnreadable]);
    let unlisted = with(&|facts| facts.processes_complete = false);
    assert_eq!(obstacles(&unlisted), [Obstacle::ProcessesUnreadable]);
    let busy = with(&|facts| facts.udev.queue_busy = true);
    assert_eq!(obstacles(&busy), [Obstacle::EventPending { count: 1 }]);
    let back = with(&|facts| facts.wall.0 -= 100_000);
    assert_eq!(obstacles(&back), [Obstacle::ClockSet]);
    let unread = plan(&scene, &Snapshot::default(), &facts, Options::default());
    assert_eq!(obstacles(&unread), [Obstacle::NotRead]);
}

#[test]
fn whatever_moves_stops_the_removal() {
    let (scene, snapshot, facts) = leaked(700);
    let plan = plan(&scene, &snapshot, &facts, Options::default());
    let entry = &plan.entries[0];
    let set = &snapshot.namespaces[0].sets[0];
    assert_eq!(recheck(entry, set, &facts), Ok(()));
    type Edit = fn(&mut SetSnapshot);
    let moves: [(Edit, What); 12] = [
        (|set| set.semid += 1, What::Semid),
        (|set| set.key.0 += 1, What::Key),
        (|set| set.ctime.0 += 1, What::Ctime),
        (|set| set.otime.0 += 1, What::Otime),
        (|set| set.nsems = 2, What::Nsems),
        (|set| set.mode = 0o660, What::Mode),
        (|set| set.uid = 1, What::Owner),
        (|set| set.cgid = 1, What::Owner),
        (|set| set.first = None, What::Readable),
        (|set| set.first.as_mut().unwrap().value += 1, What::Value),
        (|set| set.first.as_mut().unwrap().pid += 1, What::Operator),
        (|set| set.first.as_mut().unwrap().zcnt = 1, What::Waiters),
    ];
    for (change, what) in moves {
        let mut now = set.clone();
        change(&mut now);
        let moved = recheck(entry, &now, &facts).unwrap_err();
        assert_eq!(moved.what, what);
        assert!(!moved.to_string().is_empty());
    }
    let mut now = facts.clone();
    now.carriers.insert(set.key, vec![99]);
    assert_eq!(recheck(entry, set, &now).unwrap_err().what, What::Carriers);
    let mut now = facts.clone();
    now.waiters.insert(entry.sem, vec![Default::default()]);
    assert_eq!(recheck(entry, set, &now).unwrap_err().what, What::Waiters);
    let mut now = facts;
    let owner = entry.gone[0];
    now.processes.entry(owner.tgid).or_default().start_ticks = owner.start_ticks();
    assert_eq!(recheck(entry, set, &now).unwrap_err().what, What::Users);
}
