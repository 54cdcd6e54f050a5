//! The lines that change anything: the removal, and the completion.

use std::io;

use dmtrace_core::{facts::SetSnapshot, verdict::Completion};

use crate::host::{HostError, Inside, semaphores};

/// Why a set is out of bounds, whatever a plan says.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Forbidden {
    /// It has not the form of a cookie: key, one semaphore, mode 0600, made and owned by root.
    #[error("it is no cookie")]
    NotACookie,
    /// Its value and waiters cannot be read.
    #[error("its state cannot be read")]
    Unreadable,
    /// Threads wait on it: they would take its removal for success.
    #[error("threads wait on it")]
    Waiters,
    /// Nobody waits on it: completing it helps nobody.
    #[error("nobody waits on it")]
    NoWaiter,
}

/// What came of the last look and the removal.
#[derive(Debug)]
pub(super) enum Act {
    Removed,
    Completed,
    Gone,
    /// It is not what it was.
    Changed(Box<SetSnapshot>),
    /// It is out of bounds.
    Forbidden(Forbidden),
    /// It cannot be read.
    Unread(HostError),
    Refused(io::Error),
}

/// The rules that stand above every plan.
///
/// # Errors
/// The first that is broken.
pub(super) fn permitted(set: &SetSnapshot) -> Result<(), Forbidden> {
    if !set.looks_like_cookie() {
        return Err(Forbidden::NotACookie);
    }
    let state = set.first.ok_or(Forbidden::Unreadable)?;
    if state.zcnt != 0 || state.ncnt != 0 {
        return Err(Forbidden::Waiters);
    }
    Ok(())
}

/// The rules that stand above every plan that completes.
///
/// # Errors
/// The first that is broken.
pub(super) fn completable(set: &SetSnapshot) -> Result<(), Forbidden> {
    if !set.looks_like_cookie() {
        return Err(Forbidden::NotACookie);
    }
    match set.first {
        None => Err(Forbidden::Unreadable),
        Some(state) if state.zcnt == 0 => Err(Forbidden::NoWaiter),
        Some(_) => Ok(()),
    }
}

/// Looks at the set once more, and lowers its value if it is `expected` to the last field.
///
/// The three operations are one for the kernel (`perform_atomic_semop`): the first two succeed
/// only if the value is exactly what was planned, the third leaves what is not lost. A sleeper is
/// woken if the result is 0.
pub(super) fn complete(inside: &Inside, expected: &SetSnapshot, completion: Completion) -> Act {
    let set = match semaphores::read_one(inside, expected.semid) {
        Ok(Some(set)) => set,
        Ok(None) => return Act::Gone,
        Err(error) => return Act::Unread(error),
    };
    if set != *expected {
        return Act::Changed(Box::new(set));
    }
    if let Err(forbidden) = completable(&set) {
        return Act::Forbidden(forbidden);
    }
    let Completion { value, count } = completion;
    let rest = value.saturating_sub(count);
    let (Ok(down), Ok(up)) = (i16::try_from(-value), i16::try_from(rest)) else {
        return Act::Refused(io::ErrorKind::InvalidInput.into());
    };
    if down >= 0 || up < 0 {
        return Act::Refused(io::ErrorKind::InvalidInput.into());
    }
    let operation = |sem_op| libc::sembuf {
        sem_num: 0,
        sem_op,
        sem_flg: libc::IPC_NOWAIT as i16,
    };
    let mut operations = [operation(down), operation(0), operation(up)];
    // An addition of 0 would be a second wait for zero.
    let length = if up == 0 { 2 } else { 3 };
    // SAFETY: `operations` is valid for `length` entries. `inside` proves that the semid is one of
    // the namespace that was looked at.
    if unsafe { libc::semop(set.semid, operations.as_mut_ptr(), length) } == 0 {
        return Act::Completed;
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::EIDRM) => Act::Gone,
        // Another value than expected.
        Some(libc::EAGAIN) => match semaphores::read_one(inside, expected.semid) {
            Ok(Some(set)) => Act::Changed(Box::new(set)),
            Ok(None) => Act::Gone,
            Err(error) => Act::Unread(error),
        },
        _ => Act::Refused(error),
    }
}

/// Looks at the set once more, and removes it if it is `expected` to the last field.
///
/// System V has no conditional removal: between the last reading (`GETZCNT`) and `IPC_RMID` lie
/// the few instructions of this function.
pub(super) fn remove(inside: &Inside, expected: &SetSnapshot) -> Act {
    let set = match semaphores::read_one(inside, expected.semid) {
        Ok(Some(set)) => set,
        Ok(None) => return Act::Gone,
        Err(error) => return Act::Unread(error),
    };
    if set != *expected {
        return Act::Changed(Box::new(set));
    }
    if let Err(forbidden) = permitted(&set) {
        return Act::Forbidden(forbidden);
    }
    // SAFETY: IPC_RMID takes no argument, and no memory is involved. `inside` proves that the
    // semid is one of the namespace that was looked at.
    if unsafe { libc::semctl(set.semid, 0, libc::IPC_RMID) } == 0 {
        return Act::Removed;
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::EIDRM) => Act::Gone,
        _ => Act::Refused(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmtrace_core::{facts::SemState, ids::Key};

    fn cookie() -> SetSnapshot {
        SetSnapshot {
            key: Key(0x0d4d_0001),
            mode: 0o600,
            nsems: 1,
            first: Some(SemState::default()),
            ..SetSnapshot::default()
        }
    }

    #[test]
    fn foreign_sets_are_out_of_bounds() {
        assert_eq!(permitted(&cookie()), Ok(()));
        for set in [
            SetSnapshot {
                key: Key(0x0d4e_0001),
                ..cookie()
            },
            SetSnapshot {
                nsems: 2,
                ..cookie()
            },
            SetSnapshot {
                nsems: 0,
                ..cookie()
            },
            SetSnapshot {
                mode: 0o666,
                ..cookie()
            },
            SetSnapshot { uid: 1, ..cookie() },
            SetSnapshot {
                cuid: 1,
                ..cookie()
            },
        ] {
            assert_eq!(permitted(&set), Err(Forbidden::NotACookie), "{set:?}");
        }
    }

    #[test]
    fn waiters_and_the_unreadable_are_out_of_bounds() {
        let with = |first| SetSnapshot { first, ..cookie() };
        assert_eq!(permitted(&with(None)), Err(Forbidden::Unreadable));
        for (zcnt, ncnt) in [(1, 0), (0, 1)] {
            let state = SemState {
                zcnt,
                ncnt,
                ..SemState::default()
            };
            assert_eq!(permitted(&with(Some(state))), Err(Forbidden::Waiters));
        }
    }
}
