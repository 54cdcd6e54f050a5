//! Writer for the `newc` cpio format, the one the kernel unpacks as an initramfs.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use anyhow::{Context as _, Result, bail};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// An archive being written. Everything belongs to root; times are zero, so equal input gives
/// equal output.
pub(crate) struct Archive<W> {
    out: W,
    inode: u32,
    made: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// An archive into `out`.
    pub(crate) fn new(out: W) -> Self {
        Self {
            out,
            inode: 0,
            made: BTreeSet::new(),
        }
    }

    /// Adds a file with its parent directories.
    pub(crate) fn add_file(&mut self, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.add_parents(path)?;
        self.write_entry(path, REGULAR | (mode & 0o7777), data)
    }

    /// Adds a directory with its parents.
    pub(crate) fn add_directory(&mut self, path: &str) -> io::Result<()> {
        self.add_parents(path)?;
        if self.made.insert(relative_path(path).to_owned()) {
            self.write_entry(path, DIRECTORY | 0o755, &[])?;
        }
        Ok(())
    }

    /// Adds a symlink with its parent directories.
    pub(crate) fn add_symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.add_parents(path)?;
        self.write_entry(path, SYMLINK | 0o777, target.as_bytes())
    }

    /// Adds a host file, symlink or whole directory under `path`.
    pub(crate) fn add_host_path(&mut self, host: &Path, path: &str) -> Result<()> {
        // The named file itself may be a symlink, as build outputs often are.
        let meta = fs::metadata(host).with_context(|| format!("{}: unreadable", host.display()))?;
        if meta.is_dir() {
            self.add_host_dir(host, path)
        } else {
            self.add_host_file(host, path)
        }
    }

    fn add_host_file(&mut self, host: &Path, path: &str) -> Result<()> {
        let data = fs::read(host).with_context(|| format!("{}: unreadable", host.display()))?;
        if u32::try_from(data.len()).is_err() {
            bail!("{}: over 4 GiB, too large for an initramfs", host.display());
        }
        let mode = fs::metadata(host)?.permissions().mode();
        Ok(self.add_file(path, mode, &data)?)
    }

    fn add_host_dir(&mut self, host: &Path, path: &str) -> Result<()> {
        self.add_directory(path)?;
        let list = fs::read_dir(host).with_context(|| format!("{}: unreadable", host.display()))?;
        let mut entries = list.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let inner = format!("{}/{}", path, entry.file_name().to_string_lossy());
            let kind = entry.file_type()?;
            if kind.is_symlink() {
                let target = fs::read_link(entry.path())?;
                self.write_entry(
                    &inner,
                    SYMLINK | 0o777,
                    target.as_os_str().as_encoded_bytes(),
                )?;
            } else if kind.is_dir() {
                self.add_host_dir(&entry.path(), &inner)?;
            } else if kind.is_file() {
                self.add_host_file(&entry.path(), &inner)?;
            }
        }
        Ok(())
    }

    /// Ends the archive and returns the writer. The next archive may follow directly.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.write_entry("TRAILER!!!", 0, &[])?;
        Ok(self.out)
    }

    fn add_parents(&mut self, path: &str) -> io::Result<()> {
        let path = relative_path(path);
        for (end, _) in path.match_indices('/') {
            let parent = &path[..end];
            if self.made.insert(parent.to_owned()) {
                self.write_entry(parent, DIRECTORY | 0o755, &[])?;
            }
        }
        Ok(())
    }

    fn write_entry(&mut self, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let name = relative_path(path);
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let size = u32::try_from(data.len()).map_err(io::Error::other)?;
        let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        let mut header = String::from("070701");
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize chk
        for field in [
            self.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0,
        ] {
            header.push_str(&format!("{field:08x}"));
        }
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0])?;
        self.write_padding(header.len() + name.len() + 1)?;
        self.out.write_all(data)?;
        self.write_padding(data.len())
    }

    fn write_padding(&mut self, written: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..written.wrapping_neg() % 4])
    }
}

/// A path as cpio wants it: without leading slashes.
fn relative_path(path: &str) -> &str {
    path.trim_start_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_parents_made_once() {
        let mut archive = Archive::new(Vec::new());
        archive.add_file("/a/b/one", 0o755, b"12345").unwrap();
        archive.add_file("a/b/two", 0o644, b"").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(bytes.windows(6).filter(|w| w == b"070701").count(), 5);
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("a/b\0").count(), 1);
        assert!(text.contains("a/b/one\0") && text.contains("12345\0\0\0"));
        // mode of the first file, in the fixed column after ino
        let at = text.find("a/b/one").unwrap() - 110;
        assert_eq!(&text[at + 14..at + 22], "000081ed");
    }

    #[test]
    fn a_missing_host_file_is_named() {
        let mut archive = Archive::new(Vec::new());
        let error = archive
            .add_host_path(Path::new("/no/such/file"), "x")
            .unwrap_err();
        assert!(format!("{error:#}").contains("/no/such/file"));
    }
}
