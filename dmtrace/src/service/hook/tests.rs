//! Real commands.

use std::{fs, path::PathBuf, sync::mpsc as channel};

use super::*;

/// Longer than any of these commands takes.
const LONG: Duration = Duration::from_secs(60);

fn in_runtime(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test);
}

fn sample_finding(comm: &str) -> HookFinding {
    HookFinding {
        json: format!("{{\"comm\":\"{comm}\"}}\n"),
        variables: vec![("DMTRACE_COMM", plain_line(comm))],
    }
}

/// A hook that runs this script, and what it says about failures.
fn script_hook(
    text: &str,
    limit: Duration,
) -> (Hook, channel::Receiver<String>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hook");
    fs::write(
        &path,
        format!("#!/bin/sh\ncd {}\n{text}\n", dir.path().display()),
    )
    .unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let (send, problems) = channel::channel();
    // Through sh: another test's fork may hold the new script open for writing (ETXTBSY).
    let command = CommandLine {
        program: "/bin/sh".to_owned(),
        arguments: vec![path.display().to_string(), "an argument".to_owned()],
    };
    let hook = Hook::start(command, limit, move |why| send.send(why).unwrap());
    (hook, problems, dir)
}

#[test]
fn the_command_gets_the_finding_and_little_else() {
    in_runtime(async {
        let text = r#"cat > in; env | grep -v '^\(PWD\|_\|SHLVL\|OLDPWD\)=' | sort > env; echo "$1" > arg"#;
        let (hook, _, dir) = script_hook(text, LONG);
        hook.queue_finding(sample_finding("lvm"));
        let runs = Arc::clone(&hook.runs);
        hook.finish(LONG).await;
        assert_eq!(runs[HookRun::Ok as usize].load(Ordering::Relaxed), 1);
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("in"), "{\"comm\":\"lvm\"}\n");
        assert_eq!(read("env"), format!("DMTRACE_COMM=lvm\nPATH={PATH}\n"));
        assert_eq!(read("arg"), "an argument\n");
    });
}

#[test]
fn runs_do_not_overlap_and_keep_their_order() {
    in_runtime(async {
        let text = r#"mkdir lock || echo overlap >> log; cat >> log; rmdir lock"#;
        let (hook, _, dir) = script_hook(text, LONG);
        for comm in ["one", "two", "three"] {
            hook.queue_finding(sample_finding(comm));
        }
        hook.finish(LONG).await;
        let log = fs::read_to_string(dir.path().join("log")).unwrap();
        assert_eq!(
            log,
            "{\"comm\":\"one\"}\n{\"comm\":\"two\"}\n{\"comm\":\"three\"}\n"
        );
    });
}

#[test]
fn what_hangs_is_killed_with_its_children_and_the_next_runs() {
    in_runtime(async {
        let text = r#"[ -e first ] && { touch second; exit; }; touch first
            sleep 1000 & echo $! > child; wait"#;
        let (hook, problems, dir) = script_hook(text, Duration::from_secs(2));
        hook.queue_finding(sample_finding("lvm"));
        hook.queue_finding(sample_finding("lvm"));
        let runs = Arc::clone(&hook.runs);
        hook.finish(LONG).await;
        let runs = HookRun::ALL.map(|run| runs[run as usize].load(Ordering::Relaxed));
        assert_eq!(runs, [1, 0, 1, 0]);
        assert!(dir.path().join("second").exists());
        let why = problems.recv().unwrap();
        assert!(why.ends_with("killed after 2s"), "{why}");
        let child = fs::read_to_string(dir.path().join("child")).unwrap();
        let stat = PathBuf::from(format!("/proc/{}/stat", child.trim()));
        let lives = || fs::read_to_string(&stat).is_ok_and(|text| !text.contains(") Z"));
        while lives() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

#[test]
fn a_failure_is_counted_and_told() {
    in_runtime(async {
        // It reads nothing, and is told more than a pipe holds.
        let (hook, problems, _dir) = script_hook("exit 3", LONG);
        let mut large = sample_finding("lvm");
        large.json = "x".repeat(1 << 20);
        hook.queue_finding(large);
        let runs = Arc::clone(&hook.runs);
        hook.finish(LONG).await;
        assert_eq!(runs[HookRun::Failed as usize].load(Ordering::Relaxed), 1);
        assert_eq!(problems.recv().unwrap(), "hook /bin/sh: exit status: 3");
    });
}

#[test]
fn a_flood_is_dropped_and_counted_and_never_waits() {
    in_runtime(async {
        let (hook, _, _dir) = script_hook("sleep 1000", LONG);
        // The runner has no turn in between.
        for _ in 0..QUEUE + 7 {
            hook.queue_finding(sample_finding("lvm"));
        }
        assert_eq!(hook.run_counts(), [0, 0, 0, 7]);
        hook.finish(Duration::ZERO).await;
    });
}

#[test]
fn command_lines() {
    let read = |text: &str| text.parse::<CommandLine>();
    let command = read(r#"/bin/sh -c 'echo "$1"' "two words" $HOME"#).unwrap();
    assert_eq!(
        command.arguments,
        ["-c", "echo \"$1\"", "two words", "$HOME"]
    );
    for (text, why) in [
        ("", "there is no word"),
        ("/bin/sh 'open", "a quote is not closed"),
        ("sh -c true", "absolute path"),
        ("/nonexistent/hook", "no executable file"),
        ("/etc/passwd", "no executable file"),
        ("/bin", "no executable file"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
}

#[test]
fn names_of_processes_cannot_break_out() {
    assert_eq!(plain_line("evil\n\0name"), "evil  name");
    let long = plain_line(&"ü".repeat(1000));
    assert_eq!(long.len(), VALUE_MAX);
}

#[test]
fn what_the_command_is_told_is_the_same_bytes() {
    use crate::render::tests::{golden::assert_golden, scene::Scene};
    let scene = Scene::new();
    let rows = scene.rows();
    let told: String = rows
        .iter()
        .map(|row| HookFinding::from_row(&row.to_report()))
        .map(|it| format!("{}{:?}\n", it.json, it.variables))
        .collect();
    assert_golden("service/hook/tests/golden.txt", &told);
}
