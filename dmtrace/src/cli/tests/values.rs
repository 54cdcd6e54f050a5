//! Values of options: unknown ones are never taken for something that finds nothing.

use std::time::Duration;

use clap::{CommandFactory as _, error::ErrorKind};
use dmtrace_core::{
    backend::Backend,
    ids::{IpcNs, Key},
    verdict::State,
};

use super::{least_args, parse_args, parse_error, verb_commands};
use crate::cli::{Cli, Verb, args::BackendArg};

#[test]
fn unknown_words_are_refused_with_those_that_are_known() {
    let mut options = Vec::new();
    for verb in verb_commands() {
        for option in verb.get_arguments() {
            let known = option.get_possible_values();
            let (Some(long), false) = (option.get_long(), known.is_empty()) else {
                continue;
            };
            if !option.get_action().takes_values() {
                continue;
            }
            options.push(long.to_owned());
            let word = format!("--{long}=nothing-of-this-kind");
            let words = [&[verb.get_name(), &word], least_args(verb.get_name())].concat();
            let error = parse_error(&words);
            assert_eq!(error.kind(), ErrorKind::InvalidValue, "{words:?}: {error}");
            assert_eq!(error.exit_code(), 2, "{words:?}");
            let text = error.to_string();
            for value in known {
                assert!(text.contains(value.get_name()), "{words:?}: {text}");
            }
        }
    }
    for option in ["state", "output", "sort", "by", "backend", "color"] {
        assert!(
            options.iter().any(|it| it == option),
            "{option}: {options:?}"
        );
    }
}

#[test]
fn a_slip_of_the_finger_gets_the_word_that_was_meant() {
    for (words, meant) in [
        (["list", "--state", "leakd"], "leaked"),
        (["list", "--state", "leaked,stuk"], "stuck"),
        (["clean", "--state", "stucked"], "stuck"),
        (["list", "-o", "key,semdi"], "semid"),
        (["list", "--sort", "-agee"], "age"),
        (["report", "--by", "proces"], "process"),
        (["watch", "--backend", "kprobes"], "kprobe"),
        (["list", "--color", "alway"], "always"),
    ] {
        let text = parse_error(&words).to_string();
        assert!(text.contains(&format!("'{meant}'")), "{words:?}: {text}");
    }
}

#[test]
fn a_filter_takes_several_states_in_any_case() {
    let states = |words: &[&str]| match parse_args(words).verb {
        Verb::List(args) => args.filters.state,
        other => panic!("{other:?}"),
    };
    let both = [State::Leaked, State::Stuck];
    assert_eq!(states(&["list", "--state", "leaked,stuck"]), both);
    assert_eq!(states(&["list", "--state=leaked", "--state=stuck"]), both);
    assert_eq!(states(&["list", "--state", "LEAKED,Stuck"]), both);
    for state in State::ALL {
        assert_eq!(states(&["list", "--state", state.name()]), [state]);
    }
    assert_eq!(
        states(&["list", "--state", "over_completed"]),
        [State::OverCompleted]
    );
}

#[test]
fn a_backend_has_one_name() {
    for backend in Backend::ALL {
        let named = match parse_args(&["watch", "--backend", backend.name()]).verb {
            Verb::Watch(args) => args.tuning.backend,
            other => panic!("{other:?}"),
        };
        let same = match named {
            Some(BackendArg::Fentry) => Backend::Trampoline,
            Some(BackendArg::Kprobe) => Backend::Kprobe,
            Some(BackendArg::Tracepoint) => Backend::Tracepoint,
            None => panic!("none"),
        };
        assert_eq!(same, backend);
        assert_eq!(serde_json::json!(backend), backend.name(), "in JSON");
        assert_eq!(backend.to_string(), backend.name());
    }
}

#[test]
fn values_are_taken_as_people_write_them() {
    match parse_args(&[
        "list",
        "--uid",
        "root",
        "--min-age",
        "90",
        "--ipc-ns",
        "self",
    ])
    .verb
    {
        Verb::List(args) => {
            assert_eq!(args.filters.uid, Some(0));
            assert_eq!(args.filters.min_age, Some(Duration::from_secs(90)));
            assert!(args.filters.ipc_ns.is_some_and(|ns| ns != IpcNs(0)));
        }
        other => panic!("{other:?}"),
    }
    match parse_args(&["clean", "0x0d4d1234", "7", "--older-than", "5"]).verb {
        Verb::Clean(args) => {
            let [by_key, by_semid] = args.cookies[..] else {
                panic!("{:?}", args.cookies);
            };
            assert_eq!(by_key.key, Some(Key(0x0d4d_1234)));
            assert_eq!((by_semid.key, by_semid.semid), (None, Some(7)));
            assert_eq!(args.older_than, Some(Duration::from_secs(5)));
        }
        other => panic!("{other:?}"),
    }
    for wrong in [
        ["list", "--uid", "no-such-user-here"],
        ["list", "--ipc-ns", "mine"],
        ["list", "--min-age", "soon"],
        ["clean", "--older-than", "soon"],
        ["clean", "--apply", "cookie"],
    ] {
        assert_eq!(parse_error(&wrong).exit_code(), 2, "{wrong:?}");
    }
}

#[test]
fn a_command_needs_no_dashes() {
    let command = |words: &[&str]| match parse_args(words).verb {
        Verb::Exec(args) => (args.command, args.grace),
        other => panic!("{other:?}"),
    };
    let grace = Duration::from_secs(1);
    let plain = command(&["exec", "--grace", "1", "make", "-j", "--json", "check"]);
    assert_eq!(plain.0, ["make", "-j", "--json", "check"]);
    assert_eq!(plain.1, grace);
    let dashes = command(&[
        "exec", "--grace", "1", "--", "make", "-j", "--json", "check",
    ]);
    assert_eq!(dashes, plain);
    // What stands before the command is an option of exec, and may be a slip of the finger.
    assert_eq!(
        parse_error(&["exec", "--grac", "1", "make"]).kind(),
        ErrorKind::UnknownArgument
    );
    assert_eq!(
        parse_error(&["exec"]).kind(),
        ErrorKind::MissingRequiredArgument
    );
}

#[test]
fn no_lines_at_all_is_a_mistake() {
    assert_eq!(parse_error(&["watch", "-n", "0"]).exit_code(), 2);
    parse_args(&["watch", "-n", "1"]);
}

#[test]
fn what_should_be_a_number_is_asked_for() {
    let mut asked = Vec::new();
    for verb in verb_commands() {
        for option in verb.get_arguments() {
            let unit = option.get_value_names().and_then(|names| names.first());
            let number = unit.is_some_and(|unit| ["N", "KIB", "MIB"].contains(&unit.as_str()));
            let Some(long) = option.get_long().filter(|_| number) else {
                continue;
            };
            asked.push(long.to_owned());
            for wrong in ["many", "-1", "1.5", "99999999999999999999999", ""] {
                let word = format!("--{long}={wrong}");
                let words = [&[verb.get_name(), &word], least_args(verb.get_name())].concat();
                let error = parse_error(&words);
                assert_eq!(error.exit_code(), 2, "{words:?}");
                let text = error.to_string();
                assert!(text.contains("give a number"), "{words:?}: {text}");
            }
        }
    }
    for option in ["count", "top", "max", "ring", "keep", "history-limit"] {
        assert!(asked.iter().any(|it| it == option), "{option}: {asked:?}");
    }
}

#[test]
fn help_and_readme_list_the_same_exit_codes() {
    let readme = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"));
    let help = Cli::command().render_help().to_string();
    let (_, codes) = help.split_once("Exit codes:\n").unwrap();
    let mut listed = 0;
    for line in codes.lines().filter(|line| !line.trim().is_empty()) {
        let (code, text) = line.trim().split_once("  ").unwrap();
        let text = text.replace("clean:", "`clean`:");
        let row = format!("| {code} | {text} |");
        assert!(readme.contains(&row), "{row}");
        listed += 1;
    }
    assert_eq!(listed, 6);
}

#[test]
fn what_would_be_ignored_is_refused() {
    let refused = |words: &[&str]| {
        let args = match parse_args(words).verb {
            Verb::Report(args) => args,
            other => panic!("{other:?}"),
        };
        let page = super::TestPage::default();
        let error = crate::cli::report::run(&args, true, &mut page.out()).unwrap_err();
        error.to_string()
    };
    assert!(refused(&["report", "--folded"]).contains("--json"));
    let both = refused(&["report", "--since", "1h", "leak.dmt"]);
    assert!(
        both.contains("the recording leak.dmt: leave out one"),
        "{both}"
    );
    parse_error(&["report", "--folded", "--bug"]);
    parse_error(&["report", "--folded", "--by", "stack"]);
    let none = parse_error(&["report", "--top", "0"]).to_string();
    assert!(none.contains("from 1 to"), "{none}");
}

#[cfg(feature = "live")]
#[test]
fn a_recording_does_not_go_to_standard_output() {
    let page = super::TestPage::default();
    let refusal = |words: &[&str]| match parse_args(words).verb {
        Verb::Record(args) => crate::cli::watch::record(&args, false, &mut page.out()),
        Verb::Watch(args) => crate::cli::watch::run(&args, false, &mut page.out()),
        other => panic!("{other:?}"),
    };
    for words in [&["record", "-"][..], &["watch", "--record", "-"]] {
        let text = refusal(words).unwrap_err().to_string();
        assert!(
            text.starts_with("-: a recording cannot go to standard output"),
            "{text}"
        );
    }
}
