//! The file format of recordings: messages as they came from the kernel, framed and checked.
//!
//! ```text
//! file    = "DMTRACE\x01" frame*
//! frame   = length:u32 crc:u32 kind:u16 zero:u16 payload[length]     (little endian)
//! crc     = CRC-32 of kind, zero and payload
//! ```
//! The first frame is [`RecordedFrame::Start`] and carries the layout version of the messages. A
//! reader takes every whole frame and says where it stopped: a file cut off at any byte is read up
//! to there.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
};

use dmtrace_common::{ABI, ProcRecord, SemKey, SemRecord};
use dmtrace_core::{
    event::{CallSite, Package, Plain, as_bytes, read_plain, read_sem_record},
    facts::{HostFacts, Snapshot},
    ids::{BootTime, Key, ProcId, SemId, UnixTime},
};
use serde::{Deserialize, Serialize};

use crate::output::time::Clock;

const MAGIC: [u8; 8] = *b"DMTRACE\x01";
const HEADER: usize = 12;
/// No frame is larger: a snapshot of 32,000 sets takes about 10 MiB.
const FRAME_MAX: usize = 256 << 20;

/// What a recording begins with.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct RecordingStart {
    /// Layout of the messages, [`ABI`].
    pub abi: u32,
    /// Version of dmtrace that wrote it.
    pub version: String,
    /// `uname -r`.
    pub kernel: String,
    /// Identity of the boot: all times are relative to it.
    pub boot_id: Option<String>,
    /// When tracing began.
    pub began: BootTime,
    /// Wall clock at that moment.
    pub wall: UnixTime,
    /// Nanoseconds beyond these seconds. 0 in older recordings.
    #[serde(default)]
    pub wall_nanos: u32,
    /// Name of the backend.
    pub backend: String,
    /// Command line of the recording process.
    pub command: Vec<String>,
    /// Files of the same trace before this one. What was there when this one was begun is in its
    /// first entries; what had gone by then is in the earlier files only.
    #[serde(default)]
    pub parts_before: u32,
}

impl RecordingStart {
    /// Relates its boot times to the wall clock, as it was when the recording began.
    pub fn clock(&self) -> Clock {
        Clock::relating(self.began, self.wall, self.wall_nanos)
    }
}

/// One entry of a recording.
#[derive(Clone, Debug)]
pub enum RecordedFrame {
    /// The beginning.
    Start(Box<RecordingStart>),
    /// A message of the ring, undecoded.
    Message(Vec<u8>),
    /// A record of the semaphore map, read because messages were dropped.
    Sem(SemKey, Box<SemRecord>),
    /// A record of the process map.
    Proc(Box<ProcRecord>),
    /// All semaphore sets.
    Snapshot(Box<Snapshot>),
    /// What the host said.
    Facts(Box<HostFacts>),
    /// The balance at the regular end, as JSON.
    End(serde_json::Value),
    /// Packages of executables, by mount namespace and path; where it is not known, why.
    Packages(BTreeMap<String, Result<Package, String>>),
    /// A call site, which later frames name by its number. Older versions skip this and the next.
    Site(u32, Box<CallSite>),
    /// The call site of a cookie that was made before.
    SiteOf(SiteOf),
    /// A kind that this version does not know; skipped.
    Unknown(u16),
}

/// Which call site a cookie has.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct SiteOf {
    /// The set.
    pub sem: SemId,
    /// Its key.
    pub key: Key,
    /// When the stack was taken.
    pub at: BootTime,
    /// Who made the set.
    pub maker: ProcId,
    /// Number of the call site.
    pub site: u32,
}

/// How a recording ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RecordingTail {
    /// After a whole frame.
    Whole,
    /// In the middle of a frame: the bytes from this offset on are missing or damaged.
    Cut {
        /// Offset of the incomplete frame.
        at: u64,
        /// Bytes are there, and are not what was written.
        damaged: bool,
        /// In words.
        why: String,
    },
}

/// Why a file cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// Not a recording.
    #[error("not a dmtrace recording")]
    NotARecording,
    /// Written by a newer version.
    #[error("recorded with layout {found}; this version reads up to {ABI}; use a newer dmtrace")]
    TooNew {
        /// Layout of the file.
        found: u32,
    },
    /// A file of no bytes.
    #[error("the file is empty")]
    NoBytes,
    /// Cut off before its first frame.
    #[error("cut off before its first entry")]
    Empty,
    /// Reading failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Writes a recording.
pub struct RecordingWriter<W> {
    out: W,
}

impl<W: Write> RecordingWriter<W> {
    /// Begins a recording.
    ///
    /// # Errors
    /// Writing fails.
    pub fn begin(mut out: W, start: &RecordingStart) -> io::Result<Self> {
        out.write_all(&MAGIC)?;
        let mut writer = Self { out };
        writer.write_json(0, start)?;
        Ok(writer)
    }

    /// Goes on with a recording that was begun.
    pub const fn resume(out: W) -> Self {
        Self { out }
    }

    /// Adds a message of the ring.
    ///
    /// # Errors
    /// Writing fails.
    pub fn write_message(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_frame(1, &[bytes])
    }

    /// Adds a record of the semaphore map.
    ///
    /// # Errors
    /// Writing fails.
    pub fn write_sem(&mut self, key: SemKey, record: &SemRecord) -> io::Result<()> {
        self.write_frame(2, &[as_bytes(&key), as_bytes(record)])
    }

    /// Adds a record of the process map.
    ///
    /// # Errors
    /// Writing fails.
    pub fn write_process(&mut self, record: &ProcRecord) -> io::Result<()> {
        self.write_frame(3, &[as_bytes(record)])
    }

    /// Adds a snapshot.
    ///
    /// # Errors
    /// Writing fails.
    pub fn write_snapshot(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.write_json(4, snapshot)
    }

    /// Adds facts of the host.
    ///
    /// # Errors
    /// Writing fails.
    pub fn write_facts(&mut self, facts: &HostFacts) -> io::Result<()> {
        self.write_json(5, facts)
    }

    /// Adds packages of executables, by mount namespace and path; where it is not known, why.
    ///
    /// # Errors
    /// Writing fails.
    pub fn write_packages(
        &mut self,
        packages: &BTreeMap<String, Result<Package, String>>,
    ) -> io::Result<()> {
        self.write_json(20, packages)
    }

    /// Adds a call site under a number.
    ///
    /// # Errors
    /// Writing fails.
    pub fn write_site(&mut self, number: u32, site: &CallSite) -> io::Result<()> {
        self.write_json(7, &(number, site))
    }

    /// Adds which call site a cookie has.
    ///
    /// # Errors
    /// Writing fails.
    pub fn site_of(&mut self, which: &SiteOf) -> io::Result<()> {
        self.write_json(8, which)
    }

    /// Ends the recording and hands the file back.
    ///
    /// # Errors
    /// Writing fails.
    pub fn finish(mut self, balance: &impl Serialize) -> io::Result<W> {
        self.write_json(6, balance)?;
        self.out.flush()?;
        Ok(self.out)
    }

    /// What it writes to.
    pub const fn writer_mut(&mut self) -> &mut W {
        &mut self.out
    }

    fn write_json(&mut self, kind: u16, value: &impl Serialize) -> io::Result<()> {
        let bytes = serde_json::to_vec(value).map_err(io::Error::other)?;
        self.write_frame(kind, &[&bytes])
    }

    fn write_frame(&mut self, kind: u16, parts: &[&[u8]]) -> io::Result<()> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let length = u32::try_from(length).map_err(io::Error::other)?;
        let mut crc = crc32fast::Hasher::new();
        let kind = u32::from(kind).to_le_bytes();
        crc.update(&kind);
        for part in parts {
            crc.update(part);
        }
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(&crc.finalize().to_le_bytes())?;
        self.out.write_all(&kind)?;
        parts.iter().try_for_each(|part| self.out.write_all(part))
    }
}

/// How many of these bytes of a recording are whole frames. `beginning`: they begin the file.
pub fn whole_frames(bytes: &[u8], beginning: bool) -> usize {
    let mut end = if beginning { MAGIC.len() } else { 0 };
    if end > bytes.len() {
        return 0;
    }
    while let Some(length) = bytes.get(end..end + 4) {
        let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
        match end.checked_add(HEADER + length) {
            Some(next) if next <= bytes.len() => end = next,
            _ => break,
        }
    }
    end
}

/// Reads a recording, frame by frame.
pub struct RecordingReader<R> {
    input: R,
    offset: u64,
    tail: Option<RecordingTail>,
    payload: Vec<u8>,
}

impl<R: Read> RecordingReader<R> {
    /// Opens a recording.
    ///
    /// # Errors
    /// It is not one, is too new, or is cut off before its first frame.
    pub fn open(mut input: R) -> Result<(Self, RecordingStart), RecordingError> {
        let mut magic = [0; MAGIC.len()];
        let got = fill_buffer(&mut input, &mut magic)?;
        if got == 0 {
            return Err(RecordingError::NoBytes);
        }
        if got < magic.len() {
            return Err(if MAGIC.starts_with(&magic[..got]) {
                RecordingError::Empty
            } else {
                RecordingError::NotARecording
            });
        }
        if magic != MAGIC {
            return Err(RecordingError::NotARecording);
        }
        let mut reader = Self {
            input,
            offset: MAGIC.len() as u64,
            tail: None,
            payload: Vec::new(),
        };
        match reader.next_frame()? {
            Some(RecordedFrame::Start(start)) if start.abi > ABI => {
                Err(RecordingError::TooNew { found: start.abi })
            }
            Some(RecordedFrame::Start(start)) => Ok((reader, *start)),
            Some(_) => Err(RecordingError::NotARecording),
            None => Err(RecordingError::Empty),
        }
    }

    /// The next frame; `None` at the end, whole or not: see [`RecordingReader::tail`].
    ///
    /// # Errors
    /// Reading fails.
    pub fn next_frame(&mut self) -> io::Result<Option<RecordedFrame>> {
        if self.tail.is_some() {
            return Ok(None);
        }
        let mut header = [0u8; HEADER];
        let got = fill_buffer(&mut self.input, &mut header)?;
        if got == 0 {
            self.tail = Some(RecordingTail::Whole);
            return Ok(None);
        }
        if got < HEADER {
            return Ok(self.mark_cut("its header is incomplete"));
        }
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (length, crc, kind) = (word(0) as usize, word(4), word(8));
        if length > FRAME_MAX {
            return Ok(self.mark_damage("its length is not plausible"));
        }
        self.payload.clear();
        // Grows with what is really there: a damaged length must not reserve 256 MiB.
        let read = (&mut self.input)
            .take(length as u64)
            .read_to_end(&mut self.payload)?;
        if read < length {
            return Ok(self.mark_cut("its content is incomplete"));
        }
        let mut check = crc32fast::Hasher::new();
        check.update(&kind.to_le_bytes());
        check.update(&self.payload);
        if check.finalize() != crc {
            return Ok(self.mark_damage("wrong checksum"));
        }
        let Some(frame) = parse_frame(kind as u16, &self.payload) else {
            return Ok(self.mark_damage("its content is not readable"));
        };
        self.offset += (HEADER + length) as u64;
        Ok(Some(frame))
    }

    /// How the recording ended, once [`RecordingReader::next_frame`] has returned `None`.
    pub const fn tail(&self) -> Option<&RecordingTail> {
        self.tail.as_ref()
    }

    fn mark_cut(&mut self, why: &str) -> Option<RecordedFrame> {
        self.mark_end(false, why)
    }

    fn mark_damage(&mut self, why: &str) -> Option<RecordedFrame> {
        self.mark_end(true, why)
    }

    fn mark_end(&mut self, damaged: bool, why: &str) -> Option<RecordedFrame> {
        self.tail = Some(RecordingTail::Cut {
            at: self.offset,
            damaged,
            why: why.to_owned(),
        });
        None
    }
}

fn parse_frame(kind: u16, payload: &[u8]) -> Option<RecordedFrame> {
    fn parse_json<T: for<'de> Deserialize<'de>>(payload: &[u8]) -> Option<T> {
        serde_json::from_slice(payload).ok()
    }
    fn parse_plain<T: Plain>(payload: &[u8]) -> Option<T> {
        read_plain(payload).ok()
    }
    Some(match kind {
        0 => RecordedFrame::Start(parse_json(payload)?),
        1 => RecordedFrame::Message(payload.to_vec()),
        2 => {
            let record = payload.get(size_of::<SemKey>()..)?;
            RecordedFrame::Sem(
                parse_plain(payload)?,
                Box::new(read_sem_record(record).ok()?),
            )
        }
        3 => RecordedFrame::Proc(Box::new(parse_plain(payload)?)),
        4 => RecordedFrame::Snapshot(parse_json(payload)?),
        5 => RecordedFrame::Facts(parse_json(payload)?),
        6 => RecordedFrame::End(parse_json(payload)?),
        20 => RecordedFrame::Packages(parse_json(payload)?),
        7 => {
            let (number, site) = parse_json(payload)?;
            RecordedFrame::Site(number, site)
        }
        8 => RecordedFrame::SiteOf(parse_json(payload)?),
        other => RecordedFrame::Unknown(other),
    })
}

/// Reads until the buffer is full or the input ends.
fn fill_buffer(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match input.read(&mut buffer[done..]) {
            Ok(0) => break,
            Ok(more) => done += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests;
