//! Files that a person names: regular ones only. A FIFO would wait for its writer for ever, a
//! device has no end.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

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

/// Whether a file may be put there in one step (`rename(2)`): nothing is there, or a regular file.
///
/// # Errors
/// There is something else, which a rename would replace.
pub fn check_replaceable(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.is_file() => Err(not_regular()),
        _ => Ok(()),
    }
}

fn not_regular() -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, "not a regular file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_regular_file_is_neither_read_nor_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
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
            check_replaceable(path).unwrap_err();
        }
        let file = dir.path().join("file");
        check_replaceable(&file).unwrap();
        fs::write(&file, "text").unwrap();
        open_regular(&file).unwrap();
        check_replaceable(&file).unwrap();
    }
}
