//! Files that a person names. Only regular ones are read: a FIFO would wait for its writer for
//! ever, a device has no end. What is written may be a pipe or a device, and waits for nobody.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    path::Path,
};

use rustix::fs::{CWD, OFlags, RenameFlags};

/// Opens a file for reading.
///
/// # Errors
/// Those of `open(2)`, or it is not a regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(not_regular())
    }
}

/// Creates a file for writing, or empties the one that is there. Into a FIFO it writes only if
/// somebody reads it.
///
/// # Errors
/// Those of `open(2)`, or a FIFO has no reader.
pub fn create_output(path: &Path) -> io::Result<File> {
    open_output(
        File::options().write(true).create(true).truncate(true),
        path,
    )
}

/// Opens a pipe or a device for writing, as [`create_output`] does.
///
/// # Errors
/// As [`create_output`].
pub fn open_special(path: &Path) -> io::Result<File> {
    open_output(File::options().write(true), path)
}

fn open_output(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path).map_err(|error| {
        let fifo = |meta: fs::Metadata| meta.file_type().is_fifo();
        if error.raw_os_error() == Some(libc::ENXIO) && fs::metadata(path).is_ok_and(fifo) {
            let text = "nobody reads this pipe; start its reader first";
            return io::Error::new(ErrorKind::InvalidInput, text);
        }
        error
    })?;
    // Only opening it must not wait: a reader that is slow loses nothing.
    let flags = rustix::fs::fcntl_getfl(&file)?;
    rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
    Ok(file)
}

/// Gives a file a name that nothing has.
///
/// # Errors
/// Those of `rename(2)`; `AlreadyExists` if something has the name.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::io::Errno;
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that cannot do it.
        Err(Errno::INVAL | Errno::NOSYS) => {}
        result => return Ok(result?),
    }
    match fs::hard_link(from, to) {
        Ok(()) => fs::remove_file(from),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(error),
        // It has no links either.
        Err(_) if to.symlink_metadata().is_err() => fs::rename(from, to),
        Err(error) => Err(error),
    }
}

fn not_regular() -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, "not a regular file")
}

/// A FIFO for a test.
#[cfg(test)]
pub(crate) fn make_fifo(path: &Path) {
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
    rustix::fs::mknodat(CWD, path, kind, mode, 0).expect("a FIFO can be made");
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn a_pipe_is_written_only_if_somebody_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        make_fifo(&fifo);
        for open in [create_output, open_special] {
            let error = open(&fifo).unwrap_err().to_string();
            assert_eq!(error, "nobody reads this pipe; start its reader first");
        }
        let mut reader = open_for_test(&fifo);
        let mut file = create_output(&fifo).unwrap();
        let flags = rustix::fs::fcntl_getfl(&file).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK), "{flags:?}");
        file.write_all(b"text").unwrap();
        drop(file);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
        let (mut reader, writer) = io::pipe().unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&writer);
        let path = format!("/dev/fd/{number}");
        let mut file = create_output(path.as_ref()).unwrap();
        file.write_all(b"more").unwrap();
        drop((file, writer));
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "textmore");
        create_output("/dev/null".as_ref()).unwrap();
        create_output(dir.path()).unwrap_err();
        let file = dir.path().join("file");
        fs::write(&file, "longer than the next").unwrap();
        create_output(&file).unwrap().write_all(b"next").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"next");
    }

    fn open_for_test(fifo: &Path) -> File {
        let mut options = File::options();
        let options = options.read(true).custom_flags(libc::O_NONBLOCK);
        options.open(fifo).unwrap()
    }

    #[test]
    fn a_new_name_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
        fs::write(&a, "a").unwrap();
        fs::write(&b, "b").unwrap();
        let error = rename_new(&a, &b).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!([fs::read(&a).unwrap(), fs::read(&b).unwrap()], [b"a", b"b"]);
        fs::remove_file(&b).unwrap();
        rename_new(&a, &b).unwrap();
        assert_eq!((a.exists(), fs::read(&b).unwrap()), (false, b"a".to_vec()));
    }

    #[test]
    fn what_is_no_regular_file_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        make_fifo(&fifo);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        for path in [fifo.as_path(), dir.path(), Path::new("/dev/null"), &link] {
            let error = open_regular(path).unwrap_err();
            assert_eq!(
                error.to_string(),
                "not a regular file",
                "{}",
                path.display()
            );
        }
        let file = dir.path().join("file");
        fs::write(&file, "text").unwrap();
        open_regular(&file).unwrap();
    }
}
