//! The end of a text file that somebody else writes.

use std::{
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
    time::UNIX_EPOCH,
};

use crate::host::Roots;

/// A line is looked at up to here.
const MAX_LINE: usize = 4096;

/// The end of a file.
pub(super) struct Tail {
    bytes: Vec<u8>,
    /// When it was last written, in seconds since 1970.
    pub modified: i64,
}

impl Tail {
    /// Reads the last bytes of a regular file of the host; `None` if there is none.
    pub(super) fn read(roots: &Roots, path: &str, most: u64) -> io::Result<Option<Self>> {
        let mut file = match roots.open_regular(Path::new(path)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                return Err(io::Error::other("not a regular file"));
            }
            Err(error) => return Err(error),
        };
        let meta = file.metadata()?;
        let skipped = meta.len().saturating_sub(most);
        file.seek(SeekFrom::Start(skipped))?;
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes)?;
        if skipped > 0 {
            // The first line is half of one.
            let end = bytes.iter().position(|&byte| byte == b'\n');
            bytes.drain(..end.map_or(bytes.len(), |end| end + 1));
        }
        let modified = meta.modified().ok();
        let modified = modified.and_then(|it| it.duration_since(UNIX_EPOCH).ok());
        let modified = modified.map_or(0, |it| it.as_secs().cast_signed());
        Ok(Some(Self { bytes, modified }))
    }

    /// Its lines, each cut at what is looked at.
    pub(super) fn lines(&self) -> impl DoubleEndedIterator<Item = String> {
        self.bytes.split(|&byte| byte == b'\n').map(|line| {
            let line = &line[..line.len().min(MAX_LINE)];
            String::from_utf8_lossy(line).into_owned()
        })
    }
}
