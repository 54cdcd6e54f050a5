//! What `watch` prints, explained.

/// What the words in the column EVENT mean; part of `watch --help`.
pub(super) const LEGEND: &str = "\
Events:
  create      a cookie is made
  found       one that was made unseen, found by comparing with the kernel
  set         it is set to a value; 1 makes it ready for use
  +1          its user announces an operation that udev is to complete
  -1          an operation is completed, by udev or by the user itself
  -1 failed   the value was 0 already: somebody completed too much
  wait        its user waits until the value is 0
  released    that wait is over: the value is 0
  wait end    that wait has ended otherwise, by a signal or a removal
  destroy     it is removed
  exit        a process that uses it has ended, and it is still there
  no create   a semaphore could not be made
  no lookup   somebody looked for a cookie that is not there
  ioctl       device-mapper has done what was asked for with the cookie
  uevent      device-mapper tells udev about it
Findings, with the reason and how sure it is (more: dmtrace explain COOKIE):
  leaked, stuck, accident (removed while in use), over-completed
VAL is the value after the event: operations that are not completed, and 1 for
the wait to come. On a terminal an IPC namespace is named where it is not that
of the line before (at first: that of the host), elsewhere on every line where
it is not that of the host (ns=).";
