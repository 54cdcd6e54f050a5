//! Takes the uncompressed kernel out of a bzImage.
//!
//! QEMU boots an ELF kernel directly through its PVH entry; that skips the decompressor, which
//! costs seconds under emulation.

use std::{fs, io::Write as _, path::Path, process::Stdio};

use anyhow::{Context as _, Result, bail};

use super::host;

/// Offsets in the x86 boot protocol's header.
const SETUP_SECTS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// Decompressors by the magic bytes of what they read.
const FORMATS: &[(&[u8], &str)] = &[
    (&[0xfd, b'7', b'z', b'X', b'Z'], "xz"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
    (&[0x02, 0x21, 0x4c, 0x18], "lz4"),
    (&[0x1f, 0x8b], "gzip"),
];

/// Writes the ELF kernel inside `image` to `target`.
pub(crate) fn extract_elf(image: &[u8], target: &Path) -> Result<()> {
    let payload = find_payload(image)?;
    let Some((_, program)) = FORMATS.iter().find(|(magic, _)| payload.starts_with(magic)) else {
        bail!(
            "payload in an unknown compression (starts with {:02x?})",
            payload.get(..4)
        );
    };
    let output = fs::File::create(target)
        .with_context(|| format!("{}: cannot be made", target.display()))?;
    let mut child = host::host_command(program)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(output)
        .spawn()
        .with_context(|| format!("{program}: cannot be started"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // The decompressor's own status says more than a broken pipe would.
        let _ = stdin.write_all(payload);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{program}: {status} while decompressing the kernel");
    }
    let head = fs::read(target)?;
    if !head.starts_with(b"\x7fELF") {
        bail!("payload is no ELF kernel");
    }
    Ok(())
}

/// The compressed payload, without the size that the kernel's build appends.
fn find_payload(image: &[u8]) -> Result<&[u8]> {
    if image.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
        bail!("not a bzImage");
    }
    let word = |at: usize| -> Option<usize> {
        let bytes: [u8; 4] = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let sectors = usize::from(*image.get(SETUP_SECTS).unwrap_or(&0));
    let setup = (if sectors == 0 { 4 } else { sectors } + 1) * 512;
    word(PAYLOAD_OFFSET)
        .zip(word(PAYLOAD_LENGTH))
        .and_then(|(offset, length)| {
            let start = setup.checked_add(offset)?;
            image.get(start..start.checked_add(length.checked_sub(4)?)?)
        })
        .context("bzImage header points outside the file")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample_image(offset: u32, length: u32, body: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[SETUP_SECTS] = 1;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&offset.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(body);
        image
    }

    #[test]
    fn payload_loses_its_size_word() {
        let image = sample_image(2, 7, b"..abcSIZErest");
        assert_eq!(find_payload(&image).unwrap(), b"abc");
    }

    #[test]
    fn hostile_headers_are_errors() {
        assert!(find_payload(b"short").is_err());
        assert!(find_payload(&sample_image(u32::MAX, 8, b"")).is_err());
        assert!(find_payload(&sample_image(0, 2, b"abcdef")).is_err());
        assert!(find_payload(&sample_image(0, 100, b"abcdef")).is_err());
    }
}
