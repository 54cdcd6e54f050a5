//! Where a recording is on disk. Whatever happens, what was there before is not lost, and what was
//! recorded is found: nothing is created before tracing has begun; a new name appears whole; a file
//! that is to be replaced stays until the new recording has ended.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::recording;

/// When a new file is begun, and how many older ones are kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Rotation {
    /// Size of a file, bytes.
    pub max: u64,
    /// Older files beside the current one: `FILE.1` is the latest of them.
    pub keep: u32,
}

/// Whether a recording may replace an earlier one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Overwrite {
    /// There is no option for it.
    Never,
    /// It was not asked for.
    No,
    Yes,
}

impl Overwrite {
    /// Why a name cannot be had.
    const fn refusal(self) -> &'static str {
        match self {
            Self::Never => "File exists; give another name",
            Self::No | Self::Yes => "File exists; use --force to overwrite it, or another name",
        }
    }
}

/// What a recording is to be written to.
#[derive(Clone, Debug)]
pub(super) struct RecordingTarget {
    path: PathBuf,
    there: ExistingFile,
    overwrite: Overwrite,
    /// When the next file is begun; `None` for never.
    pub rotation: Option<Rotation>,
}

/// What has this name before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum ExistingFile {
    Nothing,
    /// A file that is replaced when the recording has ended.
    File,
    /// An earlier file of this recording, which goes as soon as the next one has begun.
    Own,
    /// A pipe or a device, which is written to.
    Special,
}

impl RecordingTarget {
    /// Looks at it. Changes nothing.
    ///
    /// # Errors
    /// Something has the name and must not be replaced, or the directory is not there.
    pub(super) fn inspect(
        path: &Path,
        overwrite: Overwrite,
        rotation: Option<Rotation>,
    ) -> anyhow::Result<Self> {
        let shown = path.display();
        let there = match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => anyhow::bail!("{shown}: is a directory; name a file"),
            Ok(meta) if meta.is_file() => ExistingFile::File,
            Ok(_) => ExistingFile::Special,
            Err(_) => ExistingFile::Nothing,
        };
        // A link to nothing is there, too.
        let taken = path.symlink_metadata().is_ok();
        let forced = overwrite == Overwrite::Yes;
        if there == ExistingFile::Special && !forced {
            anyhow::bail!("{shown}: is no regular file; name one that does not exist yet");
        }
        if taken && (!forced || there == ExistingFile::Nothing) {
            anyhow::bail!("{shown}: {}", overwrite.refusal());
        }
        if there == ExistingFile::File && !may_be_replaced(path)? {
            anyhow::bail!(
                "{shown}: is no recording; dmtrace replaces only recordings, give another name"
            );
        }
        if there == ExistingFile::Special && rotation.is_some() {
            anyhow::bail!("{shown}: is no regular file; leave out --max-size");
        }
        // The link stays, and the file that it leads to is replaced.
        let path = match there {
            ExistingFile::File => fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()),
            _ => path.to_owned(),
        };
        let target = Self {
            path,
            there,
            overwrite,
            rotation,
        };
        let older = (1..=rotation.map_or(0, |it| it.keep)).map(|number| target.older_path(number));
        for older in older {
            if !forced && older.symlink_metadata().is_ok() {
                anyhow::bail!("{}: {}", older.display(), overwrite.refusal());
            }
        }
        let parent = target.path.parent().filter(|it| !it.as_os_str().is_empty());
        if let Some(parent) = parent
            && !parent.is_dir()
        {
            anyhow::bail!("{}: no such directory; create it", parent.display());
        }
        Ok(target)
    }

    /// The name that was asked for.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where it is until it has ended, if that is not its name.
    pub(super) fn temporary_path(&self) -> Option<PathBuf> {
        (self.there == ExistingFile::File).then(|| self.sibling_path())
    }

    /// Where others can read it while it is written.
    pub(super) fn readable_path(&self) -> Option<PathBuf> {
        let path = self.temporary_path().unwrap_or_else(|| self.path.clone());
        std::path::absolute(path).ok()
    }

    /// `FILE.1`: the number counts files back.
    fn older_path(&self, number: u32) -> PathBuf {
        with_suffix(&self.path, &number.to_string())
    }

    /// In the same directory, so that it can be renamed.
    fn sibling_path(&self) -> PathBuf {
        with_suffix(&self.path, &format!("partial-{}", std::process::id()))
    }

    /// Makes a file for a recording that has nothing in it yet.
    ///
    /// # Errors
    /// It cannot be created.
    pub(super) fn create_file(&self) -> io::Result<RecordingFile> {
        let mut options = OpenOptions::new();
        options.write(true);
        if self.there == ExistingFile::Special {
            return Ok(RecordingFile {
                file: options.open(&self.path)?,
                at: self.path.clone(),
                written: 0,
                stage: OutputStage::Named,
            });
        }
        let at = self.sibling_path();
        // It holds command lines of other users.
        let file = options.create_new(true).mode(0o600).open(&at)?;
        Ok(RecordingFile {
            file,
            at,
            written: 0,
            stage: OutputStage::Empty,
        })
    }

    /// Makes room for the next file: the current one becomes `FILE.1`, and the oldest goes.
    ///
    /// # Errors
    /// Renaming fails.
    pub(super) fn shift_files(&mut self) -> io::Result<()> {
        let keep = self.rotation.map_or(0, |it| it.keep);
        for number in (1..=keep).rev() {
            let from = match number {
                1 => self.path.clone(),
                number => self.older_path(number - 1),
            };
            match fs::rename(from, self.older_path(number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.there = if keep == 0 {
            ExistingFile::Own
        } else {
            ExistingFile::Nothing
        };
        Ok(())
    }
}

/// Whether a file is a recording, or empty: everything else is not ours.
fn may_be_replaced(path: &Path) -> anyhow::Result<bool> {
    let named = || path.display().to_string();
    let file = File::open(path).with_context(named)?;
    match recording::RecordingReader::open(file) {
        Err(recording::RecordingError::NotARecording) => Ok(false),
        // One that is too new, damaged or cut off is one all the same.
        _ => Ok(true),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

/// How far a file has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum OutputStage {
    /// Tracing may still fail to begin.
    Empty,
    /// It is a recording, beside the one that it will replace.
    Beside,
    /// It has its name.
    Named,
}

/// A file that a recording is written to.
#[derive(Debug)]
pub(super) struct RecordingFile {
    file: File,
    at: PathBuf,
    written: u64,
    stage: OutputStage,
}

impl RecordingFile {
    /// Bytes in it.
    pub(super) const fn written_bytes(&self) -> u64 {
        self.written
    }

    /// Writes whole frames. What is cut off by an error is taken away again, so that the file ends
    /// with a whole frame.
    ///
    /// # Errors
    /// Writing fails.
    pub(super) fn write_frames(&mut self, frames: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < frames.len() {
            match self.file.write(&frames[done..]) {
                Ok(0) => {
                    return Err(self.cut_partial(frames, done, io::ErrorKind::WriteZero.into()));
                }
                Ok(more) => done += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.cut_partial(frames, done, error)),
            }
        }
        self.written += done as u64;
        Ok(())
    }

    fn cut_partial(&mut self, frames: &[u8], done: usize, error: io::Error) -> io::Error {
        let whole = recording::whole_frames(&frames[..done], self.written == 0);
        self.written += whole as u64;
        // A pipe or a device cannot be cut.
        let _as_it_is = self.file.set_len(self.written);
        error
    }

    /// What was written is on disk.
    ///
    /// # Errors
    /// It is not.
    pub(super) fn sync_data(&self) -> io::Result<()> {
        match self.file.sync_data() {
            // Pipes and devices have nothing to sync.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            result => result,
        }
    }

    /// Tracing has begun and the first frames are in it: it takes its name, unless there is a file
    /// to be replaced.
    ///
    /// # Errors
    /// The name was taken meanwhile.
    pub(super) fn take_name(&mut self, target: &RecordingTarget) -> io::Result<()> {
        match (self.stage, target.there) {
            (OutputStage::Empty, ExistingFile::Nothing) => {
                self.sync_data()?;
                name_new(&self.at, &target.path).map_err(|error| match error.kind() {
                    io::ErrorKind::AlreadyExists => io::Error::other(target.overwrite.refusal()),
                    _ => error,
                })?;
                self.at.clone_from(&target.path);
                self.stage = OutputStage::Named;
            }
            (OutputStage::Empty, ExistingFile::Own) => self.finish(target)?,
            (OutputStage::Empty, _) => self.stage = OutputStage::Beside,
            _ => {}
        }
        Ok(())
    }

    /// It is complete: it takes its name, and replaces what has it.
    ///
    /// # Errors
    /// It is not on disk, or cannot be renamed.
    pub(super) fn finish(&mut self, target: &RecordingTarget) -> io::Result<()> {
        self.sync_data()?;
        if self.stage != OutputStage::Named {
            fs::rename(&self.at, &target.path)?;
            self.at.clone_from(&target.path);
            self.stage = OutputStage::Named;
        }
        Ok(())
    }
}

impl Drop for RecordingFile {
    fn drop(&mut self) {
        if self.stage == OutputStage::Empty {
            let _best_effort = fs::remove_file(&self.at);
        }
    }
}

/// Gives a file a name that nothing has.
fn name_new(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => fs::remove_file(from),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        // A file system without links.
        Err(_) if to.symlink_metadata().is_err() => fs::rename(from, to),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
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
        assert!(refusal(&path, Overwrite::No).contains("use --force"));
        let forced = refusal(&path, Overwrite::Yes);
        assert!(
            forced.contains("is no recording; dmtrace replaces only recordings"),
            "{forced}"
        );
        // Made by mktemp.
        fs::write(&path, "").unwrap();
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
        let target = RecordingTarget::inspect(&path, Overwrite::No, None).unwrap();
        let mut output = target.create_file().unwrap();
        output.write_frames(b"first").unwrap();
        assert!(!path.exists());
        output.take_name(&target).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(list_names(dir.path()), ["a"]);
        // Another one that was faster.
        let late = dir.path().join("b");
        let target = RecordingTarget::inspect(&late, Overwrite::No, None).unwrap();
        let mut output = target.create_file().unwrap();
        fs::write(&late, "theirs").unwrap();
        let refused = output.take_name(&target).unwrap_err().to_string();
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
        let target = RecordingTarget::inspect(&path, Overwrite::Yes, None).unwrap();
        let mut output = target.create_file().unwrap();
        output.write_frames(b"new").unwrap();
        output.take_name(&target).unwrap();
        assert_eq!(fs::read(&path).unwrap(), OLD);
        // Dropped without an end, as after a full disk: both are there.
        let beside = output.at.clone();
        assert_eq!(Some(&beside), target.temporary_path().as_ref());
        drop(output);
        assert_eq!(fs::read(&beside).unwrap(), b"new");
        fs::remove_file(beside).unwrap();
        let mut output = target.create_file().unwrap();
        output.write_frames(b"new").unwrap();
        output.take_name(&target).unwrap();
        output.finish(&target).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(list_names(dir.path()), ["a"]);
    }

    #[test]
    fn rotation_keeps_so_many() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let rotation = Some(Rotation { max: 1, keep: 2 });
        let mut target = RecordingTarget::inspect(&path, Overwrite::No, rotation).unwrap();
        for part in [b"1", b"2", b"3", b"4"] {
            if part != b"1" {
                target.shift_files().unwrap();
            }
            let mut output = target.create_file().unwrap();
            output.write_frames(part).unwrap();
            output.take_name(&target).unwrap();
            output.finish(&target).unwrap();
        }
        assert_eq!(list_names(dir.path()), ["a", "a.1", "a.2"]);
        let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
        assert_eq!([read("a"), read("a.1"), read("a.2")], [b"4", b"3", b"2"]);
        let rotation = Some(Rotation { max: 1, keep: 0 });
        fs::write(&path, OLD).unwrap();
        let mut target = RecordingTarget::inspect(&path, Overwrite::Yes, rotation).unwrap();
        target.shift_files().unwrap();
        let mut output = target.create_file().unwrap();
        output.write_frames(b"5").unwrap();
        output.take_name(&target).unwrap();
        let rotation = Some(Rotation { max: 1, keep: 2 });
        assert_eq!(list_names(dir.path()), ["a", "a.1", "a.2"]);
        assert_eq!([read("a"), read("a.1"), read("a.2")], [b"5", b"3", b"2"]);
        assert!(RecordingTarget::inspect(&path, Overwrite::No, rotation).is_err());
        fs::remove_file(&path).unwrap();
        let refused = RecordingTarget::inspect(&path, Overwrite::No, rotation).unwrap_err();
        assert!(refused.to_string().contains("a.1"), "{refused}");
    }
}
