//! Who makes cookies in the demo. The program `cookie-actor` of the tests plays them and udev.

/// When an actor has done its part.
pub(super) enum Until {
    End,
    /// It has said this and lives on.
    Step(&'static str),
}

pub(super) struct ActorPart {
    pub about: &'static str,
    /// How the actor plays it.
    pub line: &'static [&'static str],
    /// When it has.
    pub until: Until,
    /// Whether udev's part looks for the cookie in another IPC namespace.
    pub looks_elsewhere: bool,
    /// What `watch` says of it in the end.
    pub verdict: &'static str,
}

pub(super) const CAST: [ActorPart; 5] = [
    ActorPart {
        about: "made, completed by udev 0.3 s later, waited for, removed: healthy",
        line: &["cycle", "--delay-ms", "300"],
        until: Until::End,
        looks_elsewhere: false,
        verdict: "destroy",
    },
    ActorPart {
        about: "its owner is killed before it waits, udev never comes",
        line: &["cycle", "--stop-at", "after-inc", "--how", "kill"],
        until: Until::End,
        looks_elsewhere: false,
        verdict: "leaked",
    },
    ActorPart {
        about: "its owner is killed before it waits, udev has done its part",
        line: &["cycle", "--stop-at", "after-complete", "--how", "kill"],
        until: Until::End,
        looks_elsewhere: false,
        verdict: "leaked",
    },
    ActorPart {
        about: "its owner waits, udev looks for it in another IPC namespace",
        line: &["cycle", "--stop-at", "in-wait", "--how", "hold"],
        until: Until::Step("waiting"),
        looks_elsewhere: true,
        verdict: "stuck",
    },
    ActorPart {
        about: "two whose owner lives, goes on and never waits, as old docker",
        line: &["moby", "--count", "2", "--every-ms", "200", "--hold"],
        until: Until::Step("holding"),
        looks_elsewhere: false,
        verdict: "leaked",
    },
];
