//! Where a recording is on disk. Whatever happens, what was there before is not lost, and what was
//! recorded is found: nothing is created before tracing has begun; a new name appears whole; a file
//! that is to be replaced stays until the new recording has ended; a rotation moves and replaces only
//! what this recording has written, or found at its start.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::Context as _;

use crate::{
    host::regular_file::{open_regular, open_special, rename_new},
    recording,
    wording::cause_text,
};

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
    /// Where the current file is: a sibling of a file that is replaced at the end.
    current: PathBuf,
    there: ExistingFile,
    overwrite: Overwrite,
    /// What may be moved and replaced.
    own: Vec<FileId>,
    /// The first file has its name.
    begun: bool,
    /// When the next file is begun; `None` for never.
    pub rotation: Option<Rotation>,
}

/// What has this name before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum ExistingFile {
    Nothing,
    /// A file that is replaced when the recording has ended.
    File,
    /// A pipe or a device, which is written to.
    Special,
}

/// Which file it is. A number is given again as soon as its file is gone, a time of birth is not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct FileId {
    device: u64,
    inode: u64,
    /// Not every file system tells.
    born: Option<SystemTime>,
}

impl FileId {
    fn from_metadata(meta: &fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            born: meta.created().ok(),
        }
    }
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
            Err(error) if path.symlink_metadata().is_ok() => {
                if error.kind() == ErrorKind::NotFound {
                    anyhow::bail!(
                        "{shown}: is a link to a file that does not exist; remove the link, or \
                         give another name"
                    );
                }
                anyhow::bail!("{shown}: is a link: {}", cause_text(&error));
            }
            Err(_) => ExistingFile::Nothing,
        };
        let forced = overwrite == Overwrite::Yes;
        if there == ExistingFile::Special && !forced {
            anyhow::bail!("{shown}: is no regular file; name one that does not exist yet");
        }
        let foreign = there == ExistingFile::File && !may_be_replaced(path)?;
        // Of no use is a hint at an option that refuses as well.
        let hint_helps = overwrite == Overwrite::Never || !foreign;
        if there != ExistingFile::Nothing && !forced && hint_helps {
            anyhow::bail!("{shown}: {}", overwrite.refusal());
        }
        if foreign {
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
        let mut target = Self {
            current: path.clone(),
            path,
            there,
            overwrite,
            own: Vec::new(),
            begun: false,
            rotation,
        };
        if there != ExistingFile::Special {
            let beside = target.sibling_path();
            if beside.symlink_metadata().is_ok() {
                anyhow::bail!(
                    "{}: is left of a recording that was killed; give it another name",
                    beside.display()
                );
            }
            if there == ExistingFile::File {
                target.own.extend(id_at(&target.path)?);
                target.current = beside;
            }
        }
        for number in 1..=target.keep_count() {
            let older = target.slot_path(number);
            let Ok(meta) = older.symlink_metadata() else {
                continue;
            };
            if !forced {
                anyhow::bail!("{}: {}", older.display(), overwrite.refusal());
            }
            if !meta.is_file() || !may_be_replaced(&older)? {
                anyhow::bail!(
                    "{}: is no recording, and --max-size would replace it; move it away, or give \
                     another name",
                    older.display()
                );
            }
            target.own.push(FileId::from_metadata(&meta));
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
        (self.current != self.path).then(|| self.current.clone())
    }

    /// Where others can read it while it is written.
    pub(super) fn readable_path(&self) -> Option<PathBuf> {
        std::path::absolute(&self.current).ok()
    }

    /// Whether the current file still has its name.
    pub(super) fn is_current_there(&self) -> bool {
        self.current.symlink_metadata().is_ok()
    }

    fn keep_count(&self) -> u32 {
        self.rotation.map_or(0, |it| it.keep)
    }

    /// `FILE.1`: the number counts files back from the current one, which is 0.
    fn slot_path(&self, number: u32) -> PathBuf {
        match number {
            0 => self.current.clone(),
            _ => with_suffix(&self.path, &number.to_string()),
        }
    }

    /// In the same directory, so that it can be renamed.
    fn sibling_path(&self) -> PathBuf {
        with_suffix(&self.path, &format!("partial-{}", std::process::id()))
    }

    /// Where a file is made, until it can be read by itself.
    fn draft_path(&self) -> PathBuf {
        match self.there {
            ExistingFile::File if self.begun => with_suffix(&self.current, "next"),
            _ => self.sibling_path(),
        }
    }

    /// What has a name, if it is of this recording.
    ///
    /// # Errors
    /// It is not: it may not be touched.
    fn find_own(&self, path: &Path) -> io::Result<Option<FileId>> {
        match id_at(path)? {
            None => Ok(None),
            Some(id) if self.own.contains(&id) && may_be_replaced(path).is_ok_and(|may| may) => {
                Ok(Some(id))
            }
            Some(_) => Err(io::Error::other(format!(
                "{}: is not of this recording, and is not replaced; move it away",
                path.display()
            ))),
        }
    }

    /// Makes a file for a recording that has nothing in it yet.
    ///
    /// # Errors
    /// It cannot be created.
    pub(super) fn create_file(&self) -> io::Result<RecordingFile> {
        if self.there == ExistingFile::Special {
            return Ok(RecordingFile {
                file: open_special(&self.path)?,
                at: self.path.clone(),
                written: 0,
                stage: OutputStage::Special,
            });
        }
        let at = self.draft_path();
        let mut options = OpenOptions::new();
        // It holds command lines of other users.
        let file = options.write(true).create_new(true).mode(0o600).open(&at)?;
        Ok(RecordingFile {
            file,
            at,
            written: 0,
            stage: OutputStage::Empty,
        })
    }

    /// Makes room for the next file: the current one becomes `FILE.1`, and the oldest goes if there
    /// is no room for it.
    ///
    /// # Errors
    /// Renaming fails, or one of the names was given to another file: then nothing is moved.
    pub(super) fn shift_files(&mut self) -> io::Result<()> {
        let keep = self.keep_count();
        let mut own = Vec::new();
        let mut free = None;
        for number in 0..=keep {
            match self.find_own(&self.slot_path(number))? {
                Some(id) => own.push(id),
                None => free = free.or(Some(number)),
            }
        }
        if self.there == ExistingFile::File {
            own.extend(id_at(&self.path)?.filter(|id| self.own.contains(id)));
        }
        self.own = own;
        for number in (1..=free.unwrap_or(keep)).rev() {
            let (from, to) = (self.slot_path(number - 1), self.slot_path(number));
            if free.is_none() && number == keep {
                fs::rename(from, to)?;
            } else {
                rename_new(&from, &to)?;
            }
        }
        Ok(())
    }
}

fn id_at(path: &Path) -> io::Result<Option<FileId>> {
    match path.symlink_metadata() {
        Ok(meta) => Ok(Some(FileId::from_metadata(&meta))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a file is a recording, or empty: everything else is not ours.
fn may_be_replaced(path: &Path) -> anyhow::Result<bool> {
    let named = || path.display().to_string();
    let file = open_regular(path).with_context(named)?;
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
    /// It has its name.
    Named,
    /// It is written into a pipe or a device.
    Special,
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
                    return Err(self.cut_partial(frames, done, ErrorKind::WriteZero.into()));
                }
                Ok(more) => done += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
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

    /// Tracing has begun and what is in it can be read by itself: it takes its name.
    ///
    /// # Errors
    /// The name was taken meanwhile.
    pub(super) fn take_name(&mut self, target: &mut RecordingTarget) -> io::Result<()> {
        if self.stage != OutputStage::Empty {
            return Ok(());
        }
        self.sync_data()?;
        let current = &target.current;
        // The first one beside a file that is replaced at the end was made there.
        if self.at != *current {
            self.rename_to(current, target)?;
        }
        self.at.clone_from(current);
        self.stage = OutputStage::Named;
        target.begun = true;
        target.own.push(self.file_id()?);
        Ok(())
    }

    fn rename_to(&self, name: &Path, target: &RecordingTarget) -> io::Result<()> {
        // Of a rotation that keeps none.
        if target.find_own(name).is_ok_and(|it| it.is_some()) {
            return fs::rename(&self.at, name);
        }
        rename_new(&self.at, name).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => io::Error::other(target.overwrite.refusal()),
            _ => error,
        })
    }

    /// It is complete and the last: it replaces what was there before the recording.
    ///
    /// # Errors
    /// It is not on disk, has lost its name, or cannot be renamed.
    pub(super) fn finish(&mut self, target: &RecordingTarget) -> io::Result<()> {
        self.sync_data()?;
        if self.stage != OutputStage::Named {
            return Ok(());
        }
        self.check_name()?;
        if self.at != target.path {
            match target.find_own(&target.path)? {
                Some(_) => fs::rename(&self.at, &target.path)?,
                None => rename_new(&self.at, &target.path)?,
            }
            self.at.clone_from(&target.path);
        }
        Ok(())
    }

    fn file_id(&self) -> io::Result<FileId> {
        Ok(FileId::from_metadata(&self.file.metadata()?))
    }

    /// Somebody may have removed or renamed it while it was written.
    fn check_name(&self) -> io::Result<()> {
        if id_at(&self.at)? == Some(self.file_id()?) {
            return Ok(());
        }
        let gone = if self.file.metadata()?.nlink() == 0 {
            "it was removed while it was written; record anew".to_owned()
        } else {
            let place = fs::read_link(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
            format!(
                "it was renamed while it was written, and is {} now",
                place.display()
            )
        };
        Err(io::Error::other(gone))
    }
}

impl Drop for RecordingFile {
    fn drop(&mut self) {
        if self.stage == OutputStage::Empty {
            let _best_effort = fs::remove_file(&self.at);
        }
    }
}

#[cfg(test)]
mod tests;
