//! From the bytes of a kernel message to an [`Event`].

use dmtrace_common::{
    DmEvent, EVENT_BY_SYSCALL, EVENT_DEVICE_BY_NAME, EVENT_FROM_MAP, EVENT_NO_RESULT,
    EVENT_NS_TEARDOWN, EVENT_UNTRACKED, Header, Kind, OPS_KEPT, ProcRecord, SemEvent, SemKey,
    SemRecord, StackSample,
};

use super::{
    Actor, Event, EventKind, ExitStatus, Operation, ProcessImage, Quality, dm,
    text::decode_c_string,
};
use crate::ids::{BootTime, IpcNs, Key, SemId};

/// Why a message could not be decoded.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// Fewer bytes than the kind needs.
    #[error("message of {got} bytes where {need} are needed")]
    Short {
        /// Bytes present.
        got: usize,
        /// Bytes needed.
        need: usize,
    },
    /// A kind that this version does not know.
    #[error("message of unknown kind {0}")]
    UnknownKind(u16),
}

/// Decodes one message of the ring or of a recording.
///
/// # Errors
/// The message is too short for its kind, or its kind is not known.
pub fn decode_event(bytes: &[u8]) -> Result<Event, DecodeError> {
    let header: Header = read_plain(bytes)?;
    let kind = Kind::from_u16(header.kind).ok_or(DecodeError::UnknownKind(header.kind))?;
    if kind == Kind::Proc {
        let record: ProcRecord = read_plain(bytes)?;
        let image = ProcessImage::from_record(&record);
        return Ok(Event {
            at: BootTime(header.ts),
            began: None,
            actor: decode_actor(&header, image.comm.clone()),
            quality: decode_quality(header.flags),
            what: EventKind::Process(Box::new(image)),
        });
    }
    if matches!(kind, Kind::Ioctl | Kind::Uevent) {
        let event: DmEvent = read_plain(bytes)?;
        return Ok(Event {
            at: BootTime(header.ts),
            began: None,
            actor: decode_actor(&header, decode_c_string(&event.comm)),
            quality: decode_quality(header.flags),
            what: dm::decode_dm_event(kind, &event),
        });
    }
    if kind == Kind::Stack {
        // Those have a ring of their own; as an event they arrive as a call site.
        return Err(DecodeError::UnknownKind(header.kind));
    }
    let event = read_sem_event(bytes)?;
    Ok(Event {
        at: BootTime(header.ts),
        began: (event.began != 0).then_some(BootTime(event.began.min(header.ts))),
        actor: decode_actor(&header, decode_c_string(&event.comm)),
        quality: decode_quality(header.flags),
        what: decode_sem_event(kind, &event),
    })
}

fn decode_sem_event(kind: Kind, event: &SemEvent) -> EventKind {
    let sem = SemId {
        ns: IpcNs(event.ns),
        semid: event.semid,
    };
    let ns = sem.ns;
    let key = Key(event.key);
    let errno = event.ret.min(0).saturating_neg();
    match kind {
        Kind::Created => EventKind::Created {
            sem,
            key,
            nsems: event.arg.max(0) as u32,
            semflg: event.extra,
        },
        Kind::CreateFailed => EventKind::CreateFailed { ns, key, errno },
        Kind::SetVal => EventKind::SetVal {
            sem,
            key,
            value: event.arg,
            errno,
        },
        Kind::Op => EventKind::Op {
            sem,
            key,
            ops: decode_operations(event),
            errno,
        },
        Kind::WaitBegin => EventKind::WaitBegin {
            sem,
            key,
            ops: decode_operations(event),
        },
        Kind::Destroyed => EventKind::Destroyed { sem, key },
        Kind::Exit => EventKind::Exit {
            status: ExitStatus::from_wait(event.arg),
        },
        Kind::Proc | Kind::LookupFailed | Kind::Ioctl | Kind::Uevent | Kind::Stack => {
            EventKind::LookupFailed { ns, key, errno }
        }
    }
}

fn decode_operations(event: &SemEvent) -> Vec<Operation> {
    event
        .ops
        .iter()
        .take((event.extra as usize).min(OPS_KEPT))
        .map(|buf| Operation {
            num: buf.num,
            op: buf.op,
            flg: buf.flg,
        })
        .collect()
}

fn decode_actor(header: &Header, comm: String) -> Actor {
    Actor {
        id: header.actor.into(),
        exec: header.actor.exec,
        tid: header.tid,
        comm,
    }
}

const fn decode_quality(flags: u16) -> Quality {
    Quality {
        untracked: flags & EVENT_UNTRACKED != 0,
        ns_teardown: flags & EVENT_NS_TEARDOWN != 0,
        by_syscall: flags & EVENT_BY_SYSCALL != 0,
        no_result: flags & EVENT_NO_RESULT != 0,
        from_map: flags & EVENT_FROM_MAP != 0,
        device_by_name: flags & EVENT_DEVICE_BY_NAME != 0,
    }
}

/// Types of the kernel's border: `repr(C)`, integers only, no padding.
pub trait Plain: Copy {}
impl Plain for Header {}
impl Plain for SemEvent {}
impl Plain for DmEvent {}
impl Plain for SemKey {}
impl Plain for SemRecord {}
impl Plain for ProcRecord {}
impl Plain for StackSample {}

/// The bytes of a value.
pub const fn as_bytes<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain` types have no padding, so every byte is initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// A value from its bytes; more bytes than needed are ignored.
pub fn read_plain<T: Plain>(bytes: &[u8]) -> Result<T, DecodeError> {
    let need = size_of::<T>();
    if bytes.len() < need {
        return Err(DecodeError::Short {
            got: bytes.len(),
            need,
        });
    }
    // SAFETY: the length was checked; `Plain` types are repr(C) integers, valid for every bit
    // pattern; the read does not need alignment.
    Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// A record of the semaphore map. Layouts 2 and 3 have appended fields to it: in older recordings
/// they are zeros.
pub fn read_sem_record(bytes: &[u8]) -> Result<SemRecord, DecodeError> {
    const FIRST: usize = std::mem::offset_of!(SemRecord, last_dm);
    const SECOND: usize = std::mem::offset_of!(SemRecord, operators);
    if !matches!(bytes.len(), FIRST | SECOND) {
        return read_plain(bytes);
    }
    let mut whole = [0; size_of::<SemRecord>()];
    whole[..bytes.len()].copy_from_slice(bytes);
    read_plain(&whole)
}

/// A message on a set. Layout 3 has appended a field to it.
fn read_sem_event(bytes: &[u8]) -> Result<SemEvent, DecodeError> {
    const FIRST: usize = std::mem::offset_of!(SemEvent, began);
    if bytes.len() != FIRST {
        return read_plain(bytes);
    }
    let mut whole = [0; size_of::<SemEvent>()];
    whole[..FIRST].copy_from_slice(bytes);
    read_plain(&whole)
}
