//! What explain understands, and what it says of what is not there.

use dmtrace_core::{
    event::{Actor, Event, EventKind, Quality},
    ids::{BootTime, IpcNs, ProcId, SemId},
};

use super::*;

fn parse_word(word: &str) -> Option<ExplainTarget> {
    parse_target(Some(word), None)
        .ok()
        .map(|(target, _)| target)
}

/// So many cookies are made and removed.
fn remove_cookies(case: &mut Case, count: usize) {
    let id = ProcId {
        tgid: 11,
        start: BootTime(50),
    };
    for number in 0..count {
        let sem = SemId {
            ns: IpcNs::HOST,
            semid: number as i32,
        };
        let key = Key(0x0d4d_2000 + number as u32);
        let created = EventKind::Created {
            sem,
            key,
            nsems: 1,
            semflg: 0o600,
        };
        for (step, what) in [created, EventKind::Destroyed { sem, key }]
            .into_iter()
            .enumerate()
        {
            case.ledger.apply(&Event {
                at: BootTime((100 + 10 * number + step) as u64),
                began: None,
                actor: Actor {
                    id,
                    exec: 0,
                    tid: 11,
                    comm: "lvm".to_owned(),
                },
                quality: Quality::default(),
                what,
            });
        }
    }
}

/// Nothing that was asked for is left out silently.
#[test]
fn a_recording_and_a_history_are_not_looked_into_at_once() {
    #[derive(clap::Parser)]
    struct Words {
        #[command(flatten)]
        explain: ExplainArgs,
    }
    let dir = tempfile::tempdir().unwrap();
    let recording = dir.path().join("r1.dmt");
    std::fs::write(&recording, "").unwrap();
    let recording = recording.to_str().unwrap();
    let words = ["explain", "--history", "h", recording];
    let words: Words = clap::Parser::try_parse_from(words).unwrap();
    let refused = run(&words.explain, false, &mut Out::to_stderr()).unwrap_err();
    let usage = matches!(refused.downcast_ref(), Some(Failure::Usage(_)));
    let said = refused.to_string();
    assert!(
        usage && said.contains("leave out") && said.contains(recording),
        "{said}"
    );
}

#[test]
fn numbers_are_read_as_tools_write_them() {
    let key = Key(0x0d4d_1234);
    assert_eq!(parse_word("0x0d4d1234"), Some(ExplainTarget::Key(key)));
    assert_eq!(parse_word("0xd4d1234"), Some(ExplainTarget::Key(key)));
    assert_eq!(
        parse_word("223154740"),
        Some(ExplainTarget::Either(key, 223_154_740))
    );
    assert_eq!(parse_word("32770"), Some(ExplainTarget::SemId(32_770)));
    assert_eq!(parse_word("0"), Some(ExplainTarget::SemId(0)));
    for wrong in ["0x1234", "-3", "cookie", "0x", "99999999999999999999"] {
        assert_eq!(parse_word(wrong), None, "{wrong}");
    }
}

#[test]
fn the_next_command_is_about_the_same() {
    assert_eq!(
        text::next_commands(" --ipc-ns 7", None),
        "dmtrace list --ipc-ns 7; by program: dmtrace report --ipc-ns 7"
    );
    let file = Some(Path::new("r 1.dmt"));
    assert_eq!(text::next_commands("", file), "dmtrace report 'r 1.dmt'");
    let key = ExplainTarget::Key(Key(0x0d4d_1234));
    let case = Case::empty();
    let text = not_found_message(key, &[], &case, &Filters::default(), file);
    assert_eq!(text, "r 1.dmt has no cookie 0x0d4d1234.");
    let mut crowded = Case::empty();
    crowded.ledger = dmtrace_core::ledger::Ledger::new();
    let kept = dmtrace_core::ledger::Retention::default().closed;
    remove_cookies(&mut crowded, kept + 6);
    let text = not_found_message(key, &[], &crowded, &Filters::default(), file);
    assert_eq!(
        text,
        format!(
            "r 1.dmt has no cookie 0x0d4d1234. Of those that are gone the newest {kept} are \
             looked at, 6 older ones are not."
        )
    );
}

#[test]
fn a_path_that_is_not_there_is_no_cookie() {
    for name in ["./nofile", "nofile.dmt", "no/file"] {
        let target = parse_target(Some(name), None).unwrap();
        let file = Some(PathBuf::from(name));
        assert_eq!(target, (ExplainTarget::Worst, file));
    }
    let error = Case::of_recording(Path::new("./nofile")).err().unwrap();
    let text = chain_text(&error);
    assert_eq!(text, "./nofile: No such file or directory");
}

#[test]
fn a_file_alone_is_a_recording() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_owned();
    let found = parse_target(path.to_str(), None).unwrap();
    assert_eq!(found, (ExplainTarget::Worst, Some(path.clone())));
    let found = parse_target(Some("7"), Some(path.clone())).unwrap();
    assert_eq!(found, (ExplainTarget::SemId(7), Some(path)));
    assert_eq!(
        parse_target(None, None).unwrap(),
        (ExplainTarget::Worst, None)
    );
}
