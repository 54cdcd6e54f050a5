//! The decoder, on the bytes that the kernel side writes.

use dmtrace_common::{
    EVENT_NS_TEARDOWN, EVENT_UNTRACKED, Header, Kind, OPS_KEPT, PROC_EXE_CUT, ProcKey, ProcRecord,
    SemBuf, SemEvent,
};
use proptest::prelude::*;

use super::*;

/// The bytes of a message.
fn message_bytes<T: Copy>(message: &T) -> Vec<u8> {
    // SAFETY: the layouts of dmtrace-common have no padding; every byte is initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(message).cast(), size_of::<T>()) }
        .to_vec()
}

fn sample_message(kind: Kind) -> SemEvent {
    let mut comm = [0; 16];
    comm[..7].copy_from_slice(b"lvm\x1b[2J");
    SemEvent {
        header: Header {
            kind: kind as u16,
            flags: 0,
            tid: 12,
            ts: 99,
            actor: ProcKey {
                start: 50,
                tgid: 11,
                exec: 3,
            },
        },
        ns: 5,
        semid: 6,
        key: 0x0d4d_0007,
        ret: 0,
        arg: 8,
        extra: 1,
        ops: [
            SemBuf {
                num: 0,
                op: -1,
                flg: 0o4000,
            },
            SemBuf::default(),
            SemBuf::default(),
            SemBuf::default(),
        ],
        comm,
        began: 0,
    }
}

const SEM: SemId = SemId {
    ns: IpcNs(5),
    semid: 6,
};
const KEY: Key = Key(0x0d4d_0007);

#[test]
fn every_kind_is_decoded() {
    let errno = libc::ENOSPC;
    let ops = vec![Operation {
        num: 0,
        op: -1,
        flg: 0o4000,
    }];
    let table = [
        (
            Kind::Created,
            EventKind::Created {
                sem: SEM,
                key: KEY,
                nsems: 8,
                semflg: 1,
            },
        ),
        (
            Kind::CreateFailed,
            EventKind::CreateFailed {
                ns: SEM.ns,
                key: KEY,
                errno,
            },
        ),
        (
            Kind::SetVal,
            EventKind::SetVal {
                sem: SEM,
                key: KEY,
                value: 8,
                errno,
            },
        ),
        (
            Kind::Op,
            EventKind::Op {
                sem: SEM,
                key: KEY,
                ops: ops.clone(),
                errno,
            },
        ),
        (
            Kind::WaitBegin,
            EventKind::WaitBegin {
                sem: SEM,
                key: KEY,
                ops,
            },
        ),
        (Kind::Destroyed, EventKind::Destroyed { sem: SEM, key: KEY }),
        (
            Kind::Exit,
            EventKind::Exit {
                status: ExitStatus::Signal(8),
            },
        ),
        (
            Kind::LookupFailed,
            EventKind::LookupFailed {
                ns: SEM.ns,
                key: KEY,
                errno,
            },
        ),
    ];
    for (kind, what) in table {
        let mut message = sample_message(kind);
        message.ret = -errno;
        let event = decode_event(&message_bytes(&message)).unwrap();
        assert_eq!(event.what, what);
        assert_eq!(event.at, BootTime(99));
        assert_eq!((event.actor.id.tgid, event.actor.tid), (11, 12));
        assert_eq!((event.actor.id.start, event.actor.exec), (BootTime(50), 3));
        // Names are made by unprivileged users and shown on terminals.
        assert_eq!(event.actor.comm, "lvm\\u{1b}[2J");
    }
}

#[test]
fn restrictions_are_decoded() {
    let mut message = sample_message(Kind::Destroyed);
    message.header.flags = EVENT_UNTRACKED | EVENT_NS_TEARDOWN;
    let quality = decode_event(&message_bytes(&message)).unwrap().quality;
    assert!(quality.untracked && quality.ns_teardown && !quality.no_result);
}

#[test]
fn a_process_is_decoded() {
    // SAFETY: integers only; zeros are valid.
    let mut record: ProcRecord = unsafe { std::mem::zeroed() };
    record.header = sample_message(Kind::Proc).header;
    record.comm[..3].copy_from_slice(b"lvm");
    record.cmdline[..8].copy_from_slice(b"lvm\0a b\0");
    record.cmdline_len = 8;
    record.exe[..9].copy_from_slice(b"lvm\0sbin\0");
    record.exe_len = 9;
    record.parents[0].tgid = 4;
    let EventKind::Process(image) = decode_event(&message_bytes(&record)).unwrap().what else {
        panic!("not a process");
    };
    assert_eq!(image.exe.as_deref(), Some("/sbin/lvm"));
    assert_eq!(image.command_line(), "lvm 'a b'");
    assert_eq!(image.parents.len(), 1);
    record.state = PROC_EXE_CUT;
    let image = ProcessImage::from_record(&record);
    assert_eq!(image.exe.as_deref(), Some("sbin/lvm"));
}

#[test]
fn more_operations_than_are_kept_do_no_harm() {
    let mut message = sample_message(Kind::Op);
    message.extra = u32::MAX;
    let EventKind::Op { ops, .. } = decode_event(&message_bytes(&message)).unwrap().what else {
        panic!("not an operation");
    };
    assert_eq!(ops.len(), OPS_KEPT);
}

#[test]
fn a_message_says_when_its_call_was_entered_if_its_layout_does() {
    let mut op = sample_message(Kind::Op);
    let all = message_bytes(&op);
    let before = std::mem::offset_of!(SemEvent, began);
    let old = decode_event(&all[..before]).unwrap();
    assert_eq!(old.began, None);
    assert_eq!(old, decode_event(&all).unwrap());
    op.began = 90;
    let new = decode_event(&message_bytes(&op)).unwrap();
    assert_eq!(new.began, Some(BootTime(90)));
    assert_eq!(Event { began: None, ..new }, old);
    // Never after its end, whatever the clocks of two processors say.
    op.began = op.header.ts + 7;
    assert_eq!(
        decode_event(&message_bytes(&op)).unwrap().began,
        Some(BootTime(99))
    );
}

#[test]
fn short_and_unknown_messages_are_errors() {
    let all = message_bytes(&sample_message(Kind::Created));
    // Layout 2 ended here.
    let before = std::mem::offset_of!(SemEvent, began);
    for len in (0..all.len()).filter(|&len| len != before) {
        assert!(matches!(
            decode_event(&all[..len]),
            Err(DecodeError::Short { .. })
        ));
    }
    let mut unknown = sample_message(Kind::Created);
    unknown.header.kind = 999;
    assert_eq!(
        decode_event(&message_bytes(&unknown)),
        Err(DecodeError::UnknownKind(999))
    );
}

proptest! {
    #[test]
    fn no_bytes_panic(mut noise in prop::collection::vec(any::<u8>(), 0..1500), kind in 0..10_u8) {
        if let Some(first) = noise.first_mut() {
            *first = kind;
        }
        if let Some(second) = noise.get_mut(1) {
            *second = 0;
        }
        let _event = decode_event(&noise);
    }
}
