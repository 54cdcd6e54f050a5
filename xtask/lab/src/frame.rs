//! What the guest reports to the host: frames over one virtio-serial port.
//!
//! A frame is the line `NAME LENGTH`, then LENGTH bytes. The guest's shell can write it with
//! `echo` and `cat`, and a stream that was cut off does not look complete.

use std::io::{self, BufRead, Read as _};

/// Largest payload taken from a guest.
const LIMIT: u64 = 1 << 30;

/// One message of the guest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
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
pub(crate) fn read_frame(input: &mut impl BufRead) -> io::Result<Option<Frame>> {
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
    decode(name, payload).map(Some)
}

/// Splits `NAME LENGTH\n`.
fn parse_header(line: &str) -> Option<(&str, u64)> {
    let (name, length) = line.strip_suffix('\n')?.split_once(' ')?;
    Some((name, length.parse().ok()?))
}

/// Gives a payload its meaning.
fn decode(name: &str, payload: Vec<u8>) -> io::Result<Frame> {
    let text = || String::from_utf8_lossy(&payload).trim().to_owned();
    let bad = |_| io::Error::other(format!("frame {name}: no number: {:?}", text()));
    Ok(match name {
        "hello" => Frame::Hello(text()),
        "broken" => Frame::Broken(text()),
        "start" => Frame::Start,
        "timeout" => Frame::TimedOut,
        "exit" => Frame::Exit(text().parse().map_err(bad)?),
        "taint" => Frame::Taint(text().parse().map_err(bad)?),
        "dmesg" => Frame::Dmesg(payload),
        "out" => Frame::Out(payload),
        "end" => Frame::End,
        other => Frame::Other(other.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut bytes: &[u8]) -> (Vec<Frame>, Option<io::Error>) {
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
        let (frames, error) = all(RUN);
        assert!(error.is_none());
        assert_eq!(
            frames,
            [
                Frame::Hello("6.1".into()),
                Frame::Start,
                Frame::Exit(77),
                Frame::Taint(0),
                Frame::Dmesg(b"a\nb c".to_vec()),
                Frame::Out(vec![0, 0xff, b'\n']),
                Frame::End,
            ]
        );
    }

    #[test]
    fn a_stream_cut_anywhere_never_invents_a_frame() {
        let whole = all(RUN).0;
        for cut in 0..RUN.len() {
            let (frames, error) = all(&RUN[..cut]);
            assert_eq!(frames[..], whole[..frames.len()], "cut at {cut}");
            assert!(
                error.is_some() || frames.len() < whole.len(),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(all(b"exit two\n").1.is_some());
        assert!(all(b"exit 2\nab").1.is_some());
        assert!(all(b"dmesg 99999999999\n").1.is_some());
        assert_eq!(all(b"news 1\nx").0, [Frame::Other("news".into())]);
    }
}
