//! What is replaced, and what is left.

use super::*;

/// The beginning of a recording.
const OLD: &[u8] = b"DMTRACE\x01old";

fn list_names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn only_recordings_are_replaced_and_the_hint_is_one_that_works() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.txt");
    let refusal = |path: &Path, overwrite| {
        let refused = RecordingTarget::inspect(path, overwrite, None);
        refused.map(drop).unwrap_err().to_string()
    };
    fs::write(&path, "what I must not forget").unwrap();
    let never = refusal(&path, Overwrite::Never);
    assert!(
        never.ends_with(": File exists; give another name"),
        "{never}"
    );
    for overwrite in [Overwrite::No, Overwrite::Yes] {
        let refused = refusal(&path, overwrite);
        assert!(
            refused.contains("is no recording; dmtrace replaces only recordings"),
            "{refused}"
        );
    }
    // Made by mktemp.
    fs::write(&path, "").unwrap();
    assert!(refusal(&path, Overwrite::No).contains("use --force"));
    assert!(RecordingTarget::inspect(&path, Overwrite::Yes, None).is_ok());
    for overwrite in [Overwrite::Never, Overwrite::No] {
        let device = refusal(Path::new("/dev/full"), overwrite);
        assert!(
            device.starts_with("/dev/full: is no regular file;"),
            "{device}"
        );
    }
}

#[test]
fn nothing_is_left_of_a_start_that_failed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let target = RecordingTarget::inspect(&path, Overwrite::No, None).unwrap();
    assert!(list_names(dir.path()).is_empty());
    let mut output = target.create_file().unwrap();
    output.write_frames(b"first").unwrap();
    drop(output);
    assert!(list_names(dir.path()).is_empty());
}

#[test]
fn a_new_name_appears_with_the_first_frames_and_takes_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let mut target = RecordingTarget::inspect(&path, Overwrite::No, None).unwrap();
    let mut output = target.create_file().unwrap();
    output.write_frames(b"first").unwrap();
    assert!(!path.exists());
    output.take_name(&mut target).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"first");
    assert_eq!(list_names(dir.path()), ["a"]);
    // Another one that was faster.
    let late = dir.path().join("b");
    let mut target = RecordingTarget::inspect(&late, Overwrite::No, None).unwrap();
    let mut output = target.create_file().unwrap();
    fs::write(&late, "theirs").unwrap();
    let refused = output.take_name(&mut target).unwrap_err().to_string();
    assert!(refused.contains("use --force"), "{refused}");
    drop(output);
    assert_eq!(fs::read(&late).unwrap(), b"theirs");
    assert_eq!(list_names(dir.path()), ["a", "b"]);
}

#[test]
fn a_file_that_is_replaced_stays_to_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    fs::write(&path, OLD).unwrap();
    assert!(RecordingTarget::inspect(&path, Overwrite::No, None).is_err());
    let mut target = RecordingTarget::inspect(&path, Overwrite::Yes, None).unwrap();
    let mut output = target.create_file().unwrap();
    output.write_frames(b"new").unwrap();
    output.take_name(&mut target).unwrap();
    assert_eq!(fs::read(&path).unwrap(), OLD);
    // Dropped without an end, as after a full disk: both are there.
    let beside = output.at.clone();
    assert_eq!(Some(&beside), target.temporary_path().as_ref());
    drop(output);
    assert_eq!(fs::read(&beside).unwrap(), b"new");
    fs::remove_file(beside).unwrap();
    let mut output = target.create_file().unwrap();
    output.write_frames(b"new").unwrap();
    output.take_name(&mut target).unwrap();
    output.finish(&target).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(list_names(dir.path()), ["a"]);
}

/// A recording as short as one can be, with something to know it by.
fn short_recording(text: &str) -> Vec<u8> {
    [b"DMTRACE\x01", text.as_bytes()].concat()
}

/// The next file of a recording, as the recorder makes it.
fn write_part(target: &mut RecordingTarget, text: &str) -> io::Result<RecordingFile> {
    let first = !target.begun;
    let mut output = target.create_file()?;
    output.write_frames(&short_recording(text))?;
    if !first {
        target.shift_files()?;
    }
    output.take_name(target)?;
    Ok(output)
}

/// Names, and what is in them.
fn list_parts(dir: &Path) -> Vec<(String, String)> {
    let text = |name: &String| {
        let bytes = fs::read(dir.join(name)).unwrap();
        String::from_utf8_lossy(bytes.strip_prefix(b"DMTRACE\x01").unwrap_or(&bytes)).into_owned()
    };
    let names = list_names(dir).into_iter();
    names.map(|name| (name.clone(), text(&name))).collect()
}

fn assert_parts(dir: &Path, expected: &[(&str, &str)]) {
    let found = list_parts(dir);
    let found: Vec<_> = found
        .iter()
        .map(|(a, b)| (a.as_str(), b.as_str()))
        .collect();
    assert_eq!(found, expected);
}

const fn rotation_keeping(keep: u32) -> Option<Rotation> {
    Some(Rotation { max: 1, keep })
}

#[test]
fn rotation_keeps_so_many() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let mut target = RecordingTarget::inspect(&path, Overwrite::No, rotation_keeping(2)).unwrap();
    for text in ["1", "2", "3", "4"] {
        let mut output = write_part(&mut target, text).unwrap();
        if text == "4" {
            output.finish(&target).unwrap();
        }
    }
    assert_parts(dir.path(), &[("a", "4"), ("a.1", "3"), ("a.2", "2")]);
    fs::remove_file(&path).unwrap();
    let refused = RecordingTarget::inspect(&path, Overwrite::No, rotation_keeping(2)).unwrap_err();
    assert!(
        refused.to_string().contains("a.1: File exists"),
        "{refused}"
    );
    // None is kept: the next one takes the place.
    let mut target = RecordingTarget::inspect(&path, Overwrite::No, rotation_keeping(0)).unwrap();
    for text in ["5", "6"] {
        write_part(&mut target, text).unwrap();
    }
    assert_parts(dir.path(), &[("a", "6"), ("a.1", "3"), ("a.2", "2")]);
}

#[test]
fn a_file_that_is_replaced_stays_to_the_end_of_a_rotation_too() {
    for kept in [0, 2] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, short_recording("old")).unwrap();
        fs::write(with_suffix(&path, "1"), short_recording("older")).unwrap();
        let mut target =
            RecordingTarget::inspect(&path, Overwrite::Yes, rotation_keeping(kept)).unwrap();
        let beside = target.temporary_path().unwrap();
        let beside = beside.file_name().unwrap().to_str().unwrap();
        for text in ["1", "2", "3"] {
            let mut output = write_part(&mut target, text).unwrap();
            // It may be killed at any time.
            let parts = list_parts(dir.path());
            let has = |name: &str, text: &str| parts.contains(&(name.to_owned(), text.to_owned()));
            assert!(has("a", "old") && has(beside, text), "{parts:?}");
            if text == "3" {
                output.finish(&target).unwrap();
            }
        }
        if kept == 0 {
            assert_parts(dir.path(), &[("a", "3"), ("a.1", "older")]);
        } else {
            assert_parts(dir.path(), &[("a", "3"), ("a.1", "2"), ("a.2", "1")]);
        }
    }
}

#[test]
fn a_rotation_begins_only_where_it_replaces_recordings() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let notes = with_suffix(&path, "2");
    let refusal = || {
        let refused = RecordingTarget::inspect(&path, Overwrite::Yes, rotation_keeping(2));
        refused.map(drop).unwrap_err().to_string()
    };
    fs::write(&notes, "what I must not forget").unwrap();
    let said = refusal();
    assert!(
        said.contains("a.2: is no recording, and --max-size"),
        "{said}"
    );
    fs::remove_file(&notes).unwrap();
    // The rename would take a link or a directory away, too.
    std::os::unix::fs::symlink(&path, &notes).unwrap();
    assert!(refusal().contains("a.2: is no recording"));
    fs::remove_file(&notes).unwrap();
    fs::create_dir(&notes).unwrap();
    assert!(refusal().contains("a.2: is no recording"));
    fs::remove_dir(&notes).unwrap();
    fs::write(&notes, short_recording("older")).unwrap();
    assert!(RecordingTarget::inspect(&path, Overwrite::Yes, rotation_keeping(2)).is_ok());
}

/// Whoever comes later, and whatever has been asked for at the start.
#[test]
fn a_rotation_moves_nothing_that_came_up_meanwhile() {
    for overwrite in [Overwrite::No, Overwrite::Yes] {
        for theirs in ["a", "a.1", "a.2"] {
            for text in [short_recording("theirs"), b"notes".to_vec()] {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("a");
                let mut target =
                    RecordingTarget::inspect(&path, overwrite, rotation_keeping(2)).unwrap();
                for text in ["1", "2", "3"] {
                    write_part(&mut target, text).unwrap();
                }
                let theirs = dir.path().join(theirs);
                // Often with the inode number of the one before.
                fs::remove_file(&theirs).unwrap();
                fs::write(&theirs, &text).unwrap();
                let before = list_parts(dir.path());
                let error = write_part(&mut target, "4").map(drop).unwrap_err();
                let expected = format!("{}: is not of this recording", theirs.display());
                assert!(error.to_string().starts_with(&expected), "{error}");
                assert_eq!(list_parts(dir.path()), before);
            }
        }
    }
}

#[test]
fn the_end_replaces_nothing_that_came_up_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    fs::write(&path, OLD).unwrap();
    let mut target = RecordingTarget::inspect(&path, Overwrite::Yes, None).unwrap();
    let mut output = write_part(&mut target, "new").unwrap();
    fs::write(&path, "notes").unwrap();
    output.finish(&target).unwrap_err();
    assert_eq!(fs::read(&path).unwrap(), b"notes");
    drop(output);
    assert_eq!(
        fs::read(target.temporary_path().unwrap()).unwrap(),
        short_recording("new")
    );
}

#[test]
fn a_recording_that_lost_its_name_is_not_called_written() {
    for overwrite in [Overwrite::No, Overwrite::Yes] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        if overwrite == Overwrite::Yes {
            fs::write(&path, OLD).unwrap();
        }
        let mut target = RecordingTarget::inspect(&path, overwrite, None).unwrap();
        let mut output = write_part(&mut target, "1").unwrap();
        let moved = dir.path().join("moved");
        fs::rename(&output.at, &moved).unwrap();
        let said = output.finish(&target).unwrap_err().to_string();
        let place = format!("and is {} now", moved.display());
        assert!(
            said.contains("was renamed") && said.contains(&place),
            "{said}"
        );
        fs::remove_file(&moved).unwrap();
        fs::write(&output.at, "theirs").unwrap();
        let said = output.finish(&target).unwrap_err().to_string();
        assert!(said.contains("was removed while it was written"), "{said}");
        assert_eq!(fs::read(&output.at).unwrap(), b"theirs");
    }
}

#[test]
fn a_file_that_was_removed_does_not_end_the_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let mut target = RecordingTarget::inspect(&path, Overwrite::No, rotation_keeping(2)).unwrap();
    for text in ["1", "2", "3"] {
        write_part(&mut target, text).unwrap();
    }
    // There is room: nothing has to go.
    fs::remove_file(with_suffix(&path, "1")).unwrap();
    write_part(&mut target, "4").unwrap();
    assert_parts(dir.path(), &[("a", "4"), ("a.1", "3"), ("a.2", "1")]);
    fs::remove_file(&path).unwrap();
    write_part(&mut target, "5").unwrap();
    assert_parts(dir.path(), &[("a", "5"), ("a.1", "3"), ("a.2", "1")]);
}

#[test]
fn a_link_to_nothing_and_what_a_killed_recording_left_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let refusal = |overwrite| {
        let refused = RecordingTarget::inspect(&path, overwrite, None);
        refused.map(drop).unwrap_err().to_string()
    };
    std::os::unix::fs::symlink(dir.path().join("none"), &path).unwrap();
    for overwrite in [Overwrite::Never, Overwrite::No, Overwrite::Yes] {
        let said = refusal(overwrite);
        assert!(
            said.contains("a: is a link to a file that does not"),
            "{said}"
        );
    }
    fs::remove_file(&path).unwrap();
    // Process numbers are few in a container.
    let left = with_suffix(&path, &format!("partial-{}", std::process::id()));
    fs::write(&left, OLD).unwrap();
    for overwrite in [Overwrite::No, Overwrite::Yes] {
        let said = refusal(overwrite);
        assert!(
            said.contains("is left of a recording that was killed"),
            "{said}"
        );
    }
    assert_eq!(fs::read(left).unwrap(), OLD);
}

#[test]
fn a_pipe_without_a_reader_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    crate::host::regular_file::make_fifo(&fifo);
    let mut target = RecordingTarget::inspect(&fifo, Overwrite::Yes, None).unwrap();
    let refused = target.create_file().unwrap_err().to_string();
    assert!(refused.contains("nobody reads this pipe"), "{refused}");
    let mut reader = File::options();
    let reader = reader.read(true).custom_flags(libc::O_NONBLOCK);
    let _reader = reader.open(&fifo).unwrap();
    let mut output = write_special(&mut target);
    output.finish(&target).unwrap();
}

fn write_special(target: &mut RecordingTarget) -> RecordingFile {
    let mut output = target.create_file().unwrap();
    output.write_frames(&short_recording("1")).unwrap();
    output.take_name(target).unwrap();
    output
}
