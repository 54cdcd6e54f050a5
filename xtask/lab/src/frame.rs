//! What the guest reports to the host: frames over one virtio-serial port.
//!
//! A frame is the line `NAME LENGTH`, then LENGTH bytes. The guest's shell can write it with
//! `echo` and `cat`, and a stream that was cut off does not look complete.

use std::io::{self, BufRead, Read as _};

/// Largest payload taken from a guest.
const LIMIT: u64 = 1 << 30;

/// One message of the guest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum GuestFrame {
    /// The init runs; payload: kernel release.
    Hello(String),
    /// A step of the preparation failed; payload: which.
    Broken(String),
    /// The command is about to start.
    Start,
    /// The guest stopped the command because its time was over.
    TimedOut,
    /// The command ended with this code.
    Exit(i32),
    /// `/proc/sys/kernel/tainted` at the end.
    Taint(u64),
    Dmesg(Vec<u8>),
    /// A tar archive of `/out`.
    Out(Vec<u8>),
    /// Nothing more comes.
    End,
    /// A frame this version does not know.
    Other(String),
}

/// Reads the next frame; `None` at the end of the stream. A stream cut inside a frame is an error.
pub(crate) fn read_frame(input: &mut impl BufRead) -> io::Result<Option<GuestFrame>> {
    let mut line = String::new();
    if input.by_ref().take(128).read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let (name, length) = parse_header(&line)
        .ok_or_else(|| io::Error::other(format!("no frame header: {:?}", line.trim_end())))?;
    if length > LIMIT {
        return Err(io::Error::other(format!(
            "frame {name}: {length} bytes, limit is {LIMIT}"
        )));
    }
    let mut payload = Vec::new();
    input.by_ref().take(length).read_to_end(&mut payload)?;
    if payload.len() as u64 != length {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!(
                "frame {name}: cut after {} of {length} bytes",
                payload.len()
            ),
        ));
    }
    decode_frame(name, payload).map(Some)
}

/// Splits `NAME LENGTH\n`.
fn parse_header(line: &str) -> Option<(&str, u64)> {
    let (name, length) = line.strip_suffix('\n')?.split_once(' ')?;
    Some((name, length.parse().ok()?))
}

/// Gives a payload its meaning.
fn decode_frame(name: &str, payload: Vec<u8>) -> io::Result<GuestFrame> {
    let text = || String::from_utf8_lossy(&payload).trim().to_owned();
    let bad = |_| io::Error::other(format!("frame {name}: no number: {:?}", text()));
    Ok(match name {
        "hello" => GuestFrame::Hello(text()),
        "broken" => GuestFrame::Broken(text()),
        "start" => GuestFrame::Start,
        "timeout" => GuestFrame::TimedOut,
        "exit" => GuestFrame::Exit(text().parse().map_err(bad)?),
        "taint" => GuestFrame::Taint(text().parse().map_err(bad)?),
        "dmesg" => GuestFrame::Dmesg(payload),
        "out" => GuestFrame::Out(payload),
        "end" => GuestFrame::End,
        other => GuestFrame::Other(other.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_frames(mut bytes: &[u8]) -> (Vec<GuestFrame>, Option<io::Error>) {
        let mut frames = Vec::new();
        loop {
            match read_frame(&mut bytes) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return (frames, None),
                Err(error) => return (frames, Some(error)),
            }
        }
    }

    const RUN: &[u8] =
        b"hello 3\n6.1start 0\nexit 2\n77taint 1\n0dmesg 5\na\nb cout 3\n\0\xff\nend 0\n";

    #[test]
    fn a_whole_run() {
        let (frames, error) = read_frames(RUN);
        assert!(error.is_none());
        assert_eq!(
            frames,
            [
                GuestFrame::Hello("6.1".into()),
                GuestFrame::Start,
                GuestFrame::Exit(77),
                GuestFrame::Taint(0),
                GuestFrame::Dmesg(b"a\nb c".to_vec()),
                GuestFrame::Out(vec![0, 0xff, b'\n']),
                GuestFrame::End,
            ]
        );
    }

    #[test]
    fn a_stream_cut_anywhere_never_invents_a_frame() {
        let whole = read_frames(RUN).0;
        for cut in 0..RUN.len() {
            let (frames, error) = read_frames(&RUN[..cut]);
            assert_eq!(frames[..], whole[..frames.len()], "cut at {cut}");
            assert!(
                error.is_some() || frames.len() < whole.len(),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(read_frames(b"exit two\n").1.is_some());
        assert!(read_frames(b"exit 2\nab").1.is_some());
        assert!(read_frames(b"dmesg 99999999999\n").1.is_some());
        assert_eq!(
            read_frames(b"news 1\nx").0,
            [GuestFrame::Other("news".into())]
        );
    }
}
