//! Who may have done the last operation on a set, where operations overlap on several processors.
//!
//! An operation takes effect at some moment between its entry and its return. Two that overlap may
//! have taken effect in either order, whatever the order in which their programs told of them. So
//! the kernel's last operator (`GETPID`) may be any of those that no other one followed entirely.

/// Operations that are kept; of more that overlap all at once, the last operator may be none. No
/// more fit beside a message on the stack of a program.
pub const OPERATORS: usize = 3;

/// One operation that succeeded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Operator {
    /// When its return was seen, nanoseconds since boot. 0 for an empty place.
    pub ended: u64,
    /// So many nanoseconds before that, at most, nothing that ended was the last: since the latest
    /// entry of an operation that had this place. Of a longer one it says less than it could.
    pub span: u32,
    /// Process number in the initial PID namespace.
    pub tgid: u32,
}

/// The operations that may have been the last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Operators {
    /// In no order. What another one has followed entirely may still be here.
    pub places: [Operator; OPERATORS],
}

impl Operators {
    /// Whether nothing is known.
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        let [a, b, c] = &self.places;
        a.ended | b.ended | c.ended == 0
    }

    /// The latest entry.
    #[inline(always)]
    fn last_began(&self) -> u64 {
        let [a, b, c] = &self.places;
        a.began().max(b.began()).max(c.began())
    }

    /// Where an operation is to be put; `None` if it cannot have been the last. `prefer` is where
    /// to begin: two processors that put at the same time should not want the same place.
    #[inline(always)]
    pub fn place_of(&self, prefer: u32, began: u64, ended: u64) -> Option<usize> {
        let last = self.last_began().max(began);
        if ended < last {
            return None;
        }
        let [a, b, c] = [0, 1, 2].map(|place: usize| self.places[place].ended < last);
        // Where all places are needed: the preferred one. That may make the last operator unknown,
        // never a wrong one.
        Some(match prefer % OPERATORS as u32 {
            0 if a || !(b || c) => 0,
            0 if b => 1,
            0 => 2,
            1 if b || !(a || c) => 1,
            1 if c => 2,
            1 => 0,
            _ if c || !(a || b) => 2,
            _ if a => 0,
            _ => 1,
        })
    }

    /// Adds an operation. `began` is its entry, or `ended` where that was not seen.
    pub fn note_operation(&mut self, tgid: u32, began: u64, ended: u64) {
        if let Some(place) = self.place_of(0, began, ended) {
            self.places[place].replace(tgid, began, ended);
        }
    }

    /// Whether a process may have been the last operator.
    pub fn may_end_with(&self, tgid: u32) -> bool {
        let last = self.last_began();
        self.places
            .iter()
            .any(|it| it.ended != 0 && it.ended >= last && it.tgid == tgid)
    }
}

impl Operator {
    /// The latest entry of an operation that had this place.
    #[inline(always)]
    fn began(&self) -> u64 {
        self.ended.saturating_sub(self.span as u64)
    }

    /// Replaces what is here.
    #[inline(always)]
    pub fn replace(&mut self, tgid: u32, began: u64, ended: u64) {
        let span = ended.saturating_sub(self.began().max(began));
        self.span = if span > u32::MAX as u64 {
            // A later entry than there was: who is not the last by this may be it all the same.
            u32::MAX
        } else {
            span as u32
        };
        self.ended = ended;
        self.tgid = tgid;
    }
}

const _: () = assert!(size_of::<Operators>() == OPERATORS * 16);

#[cfg(test)]
mod tests {
    use super::*;

    /// Entry, effect, return of the operation of each process.
    type Op = (u64, u64, u64);

    /// Every order of the numbers below `n`, by Heap.
    fn visit_orders(n: usize, visit: &mut dyn FnMut(&[usize])) {
        fn heap_permute(k: usize, all: &mut [usize], visit: &mut dyn FnMut(&[usize])) {
            if k <= 1 {
                return visit(all);
            }
            for index in 0..k {
                heap_permute(k - 1, all, visit);
                all.swap(if k.is_multiple_of(2) { index } else { 0 }, k - 1);
            }
        }
        let mut all = [0, 1, 2, 3, 4, 5];
        heap_permute(n, &mut all[..n], visit);
    }

    /// Told in whatever order, those that may end are those that no other one follows entirely.
    fn told_in_any_order(ops: &[Op]) {
        visit_orders(ops.len(), &mut |order| {
            let mut all = Operators::default();
            for &index in order {
                let (began, _, ended) = ops[index];
                all.note_operation(index as u32 + 1, began, ended);
            }
            for (index, op) in ops.iter().enumerate() {
                let followed = ops.iter().any(|other| other.0 > op.2);
                assert_eq!(
                    all.may_end_with(index as u32 + 1),
                    !followed,
                    "{index} of {ops:?} told as {order:?}: {all:?}"
                );
            }
            let last = (0..ops.len()).max_by_key(|&index| ops[index].1);
            assert!(last.is_some_and(|last| all.may_end_with(last as u32 + 1)));
            assert!(!all.may_end_with(99), "a stranger");
        });
    }

    #[test]
    fn two_and_three_that_overlap_end_with_any_of_them() {
        told_in_any_order(&[(1, 5, 20), (2, 9, 10)]);
        told_in_any_order(&[(1, 9, 20), (2, 5, 10)]);
        told_in_any_order(&[(1, 3, 10), (10, 11, 12)]);
        told_in_any_order(&[(1, 5, 30), (2, 6, 20), (3, 7, 10)]);
        told_in_any_order(&[(1, 29, 30), (2, 6, 20), (3, 7, 10)]);
        // A chain: the first and the last do not overlap.
        told_in_any_order(&[(1, 2, 10), (5, 15, 20), (12, 13, 30)]);
    }

    #[test]
    fn of_two_and_three_in_a_row_the_last_it_is() {
        told_in_any_order(&[(1, 2, 3), (4, 5, 6)]);
        told_in_any_order(&[(1, 2, 3), (4, 5, 6), (7, 8, 9)]);
        // Entries that were not seen: points.
        told_in_any_order(&[(3, 3, 3), (6, 6, 6), (9, 9, 9)]);
        // Two that overlap, and one after both.
        told_in_any_order(&[(1, 2, 6), (3, 4, 5), (7, 8, 9)]);
    }

    #[test]
    fn every_history_of_three() {
        // Entries and returns from a small grid, in all combinations.
        let spans: [(u64, u64); 7] = [(1, 2), (1, 4), (2, 6), (3, 3), (5, 8), (7, 9), (1, 9)];
        for a in spans {
            for b in spans {
                for c in spans {
                    let ops = [a, b, c].map(|(began, ended)| (began, ended, ended));
                    told_in_any_order(&ops);
                }
            }
        }
    }

    #[test]
    fn an_operation_of_many_seconds_says_less_and_nothing_wrong() {
        let mut all = Operators::default();
        all.note_operation(1, 10, 20_000_000_000);
        all.note_operation(2, 15, 16);
        assert!(all.may_end_with(1));
        assert!(!all.may_end_with(3));
    }

    #[test]
    fn more_at_once_than_there_is_room_for_name_no_innocent() {
        let mut all = Operators::default();
        for tgid in 1..=9 {
            all.note_operation(tgid, u64::from(tgid), 100);
        }
        assert!((1..=9).any(|tgid| all.may_end_with(tgid)));
        all.note_operation(10, 101, 102);
        assert!(all.may_end_with(10));
        assert!((1..=9).all(|tgid| !all.may_end_with(tgid)));
    }
}
