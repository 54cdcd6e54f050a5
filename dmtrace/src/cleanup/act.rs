//! The lines that change anything: the removal, and the completion.

use std::io;

use dmtrace_core::{facts::SetSnapshot, verdict::Completion};

use crate::host::{HostError, Inside, semaphores};

/// Why a set is out of bounds, whatever a plan says.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ForbiddenReason {
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
    /// The plan raises its value, or lowers it below 0, or is for another value.
    #[error("the plan completes {count} of {planned}, its value is {value}: make the plan again")]
    BadCompletion {
        /// Completions in the plan.
        count: i32,
        /// Value in the plan.
        planned: i32,
        /// Value now.
        value: i32,
    },
}

/// What came of the last look and the removal.
#[derive(Debug)]
pub(super) enum ActResult {
    Removed,
    Completed,
    Gone,
    /// It is not what it was.
    Changed(Box<SetSnapshot>),
    /// It is out of bounds.
    Forbidden(ForbiddenReason),
    /// It cannot be read.
    Unread(HostError),
    Refused(io::Error),
}

/// The rules that stand above every plan.
///
/// # Errors
/// The first that is broken.
pub(super) fn check_permitted(set: &SetSnapshot) -> Result<(), ForbiddenReason> {
    if !set.looks_like_cookie() {
        return Err(ForbiddenReason::NotACookie);
    }
    let state = set.first.ok_or(ForbiddenReason::Unreadable)?;
    if state.zcnt != 0 || state.ncnt != 0 {
        return Err(ForbiddenReason::Waiters);
    }
    Ok(())
}

/// The rules that stand above every plan that completes.
///
/// # Errors
/// The first that is broken.
pub(super) fn check_completable(
    set: &SetSnapshot,
    completion: Completion,
) -> Result<(), ForbiddenReason> {
    if !set.looks_like_cookie() {
        return Err(ForbiddenReason::NotACookie);
    }
    match set.first {
        None => Err(ForbiddenReason::Unreadable),
        Some(state) if state.zcnt == 0 => Err(ForbiddenReason::NoWaiter),
        Some(state) if !completion.fits_value(state.value) => Err(ForbiddenReason::BadCompletion {
            count: completion.count,
            planned: completion.value,
            value: state.value,
        }),
        Some(_) => Ok(()),
    }
}

/// Looks at the set once more, and lowers its value if it is `expected` to the last field.
///
/// The three operations are one for the kernel (`perform_atomic_semop`): the first two succeed
/// only if the value is exactly what was planned, the third leaves what is not lost. A sleeper is
/// woken if the result is 0.
pub(super) fn complete_cookie(
    inside: &Inside,
    expected: &SetSnapshot,
    completion: Completion,
) -> ActResult {
    let set = match semaphores::read_one(inside, expected.semid) {
        Ok(Some(set)) => set,
        Ok(None) => return ActResult::Gone,
        Err(error) => return ActResult::Unread(error),
    };
    if set != *expected {
        return ActResult::Changed(Box::new(set));
    }
    if let Err(forbidden) = check_completable(&set, completion) {
        return ActResult::Forbidden(forbidden);
    }
    // From 1 to the value, as was just checked.
    let Completion { value, count, .. } = completion;
    let (Ok(down), Ok(up)) = (i16::try_from(-value), i16::try_from(value - count)) else {
        return ActResult::Refused(io::ErrorKind::InvalidInput.into());
    };
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
        return ActResult::Completed;
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::EIDRM) => ActResult::Gone,
        // Another value than expected.
        Some(libc::EAGAIN) => match semaphores::read_one(inside, expected.semid) {
            Ok(Some(set)) => ActResult::Changed(Box::new(set)),
            Ok(None) => ActResult::Gone,
            Err(error) => ActResult::Unread(error),
        },
        _ => ActResult::Refused(error),
    }
}

/// Looks at the set once more, and removes it if it is `expected` to the last field.
///
/// System V has no conditional removal: between the last reading (`GETZCNT`) and `IPC_RMID` lie
/// the few instructions of this function.
pub(super) fn remove_set(inside: &Inside, expected: &SetSnapshot) -> ActResult {
    let set = match semaphores::read_one(inside, expected.semid) {
        Ok(Some(set)) => set,
        Ok(None) => return ActResult::Gone,
        Err(error) => return ActResult::Unread(error),
    };
    if set != *expected {
        return ActResult::Changed(Box::new(set));
    }
    if let Err(forbidden) = check_permitted(&set) {
        return ActResult::Forbidden(forbidden);
    }
    // SAFETY: IPC_RMID takes no argument, and no memory is involved. `inside` proves that the
    // semid is one of the namespace that was looked at.
    if unsafe { libc::semctl(set.semid, 0, libc::IPC_RMID) } == 0 {
        return ActResult::Removed;
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::EIDRM) => ActResult::Gone,
        _ => ActResult::Refused(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmtrace_core::{facts::SemState, ids::Key};

    fn sample_set() -> SetSnapshot {
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
        assert_eq!(check_permitted(&sample_set()), Ok(()));
        for set in [
            SetSnapshot {
                key: Key(0x0d4e_0001),
                ..sample_set()
            },
            SetSnapshot {
                nsems: 2,
                ..sample_set()
            },
            SetSnapshot {
                nsems: 0,
                ..sample_set()
            },
            SetSnapshot {
                mode: 0o666,
                ..sample_set()
            },
            SetSnapshot {
                uid: 1,
                ..sample_set()
            },
            SetSnapshot {
                cuid: 1,
                ..sample_set()
            },
        ] {
            assert_eq!(
                check_permitted(&set),
                Err(ForbiddenReason::NotACookie),
                "{set:?}"
            );
        }
    }

    #[test]
    fn waiters_and_the_unreadable_are_out_of_bounds() {
        let with = |first| SetSnapshot {
            first,
            ..sample_set()
        };
        assert_eq!(
            check_permitted(&with(None)),
            Err(ForbiddenReason::Unreadable)
        );
        for (zcnt, ncnt) in [(1, 0), (0, 1)] {
            let state = SemState {
                zcnt,
                ncnt,
                ..SemState::default()
            };
            assert_eq!(
                check_permitted(&with(Some(state))),
                Err(ForbiddenReason::Waiters)
            );
        }
    }

    /// A plan in a file may say anything.
    #[test]
    fn a_completion_only_lowers_the_value_that_it_was_planned_for() {
        let waited_for = |value| SetSnapshot {
            first: Some(SemState {
                value,
                zcnt: 1,
                ..SemState::default()
            }),
            ..sample_set()
        };
        let check = |is, value, count| {
            let completion = Completion {
                value,
                count,
                ..Completion::default()
            };
            check_completable(&waited_for(is), completion)
        };
        for (value, count) in [(1, 1), (2, 1), (2, 2), (32767, 32767)] {
            assert_eq!(check(value, value, count), Ok(()), "{count} of {value}");
        }
        for (is, value, count) in [
            (1, 1, -5),
            (1, 1, 0),
            (1, 1, 2),
            (2, 1, 1),
            (1, 2, 1),
            (0, 0, 0),
            (1, 1, i32::MIN),
            (1, i32::MIN, 1),
            (1, i32::MAX, i32::MAX),
        ] {
            let refused = check(is, value, count);
            assert!(
                matches!(refused, Err(ForbiddenReason::BadCompletion { .. })),
                "{count} of {value}, is {is}: {refused:?}"
            );
        }
    }
}
