//! The pure core of dmtrace: what happened to System V semaphores goes in, the life of every
//! cookie and a verdict on it come out.
//!
//! Nothing here reads a clock, a file or the kernel, and nothing here knows how its input was
//! obtained. A live trace, a recording, the maps of a running tracer, a snapshot and the tests all
//! drive the same code, so the same input always gives the same answer. A lint forbids everything
//! else (`cargo xtask lint`, `pure-core`).
//!
//! # The way of the data
//!
//! 1. [`event`]: what a probe reported, decoded; [`facts`]: what the host says at one moment
//!    (a snapshot of all sets, the processes, udevd).
//! 2. [`ledger`]: the books. [`Ledger::apply`](ledger::Ledger::apply) enters an event,
//!    [`Ledger::adopt_record`](ledger::Ledger::adopt_record) a record of the kernel's maps,
//!    [`Ledger::reconcile`](ledger::Ledger::reconcile) compares with a snapshot and counts each
//!    difference as drift.
//! 3. [`verdict`]: [`survey_cookies`](verdict::survey_cookies) judges every live cookie: healthy,
//!    stuck, leaked, completed too often, or unknown with the reason; each with its evidence.
//!    Of a cookie that no event knows, [`search`] says whether anybody still holds its number.
//! 4. [`cleanup`]: [`Plan::build`](cleanup::plan::Plan::build) decides what may be removed, and
//!    [`recheck_entry`](cleanup::recheck::recheck_entry) whether that is still so at the last
//!    instant. Removing is done elsewhere.
//!
//! [`ids`] has the newtypes, [`backend`] the ways to observe a kernel and what each cannot see,
//! [`parallel`] work on all processors.
//!
//! # Units and errors
//!
//! Times are nanoseconds since boot ([`ids::BootTime`]); stamps that the kernel keeps are whole
//! seconds of the wall clock ([`ids::UnixTime`]): they are printed, compared for equality, and mapped
//! to spans of boot time by what is known of that clock ([`wall_clock`]).
//! Results of system calls are 0 or a positive `errno`. No function panics on any input; what
//! cannot be known is a value of its own, never a guess.
//!
//! # Example
//!
//! `lvcreate` makes a cookie, announces an operation, and is killed:
//!
//! ```
//! use dmtrace_core::{
//!     event::{Actor, Event, EventKind, ExitStatus, Operation, Quality},
//!     facts::HostFacts,
//!     ids::{BootTime, IpcNs, Key, ProcId, SemId},
//!     ledger::Ledger,
//!     verdict::{Class, Completeness, Confidence, Context, Thresholds, survey_cookies},
//! };
//!
//! let sem = SemId { ns: IpcNs::HOST, semid: 7 };
//! let key = Key(0x0d4d_1234);
//! let owner = Actor {
//!     id: ProcId { tgid: 4711, start: BootTime(1_000) },
//!     exec: 1,
//!     tid: 4711,
//!     comm: "lvcreate".to_owned(),
//! };
//! let add_one = Operation { num: 0, op: 1, flg: 0 };
//!
//! let mut ledger = Ledger::new();
//! for (second, what) in [
//!     (1, EventKind::Created { sem, key, nsems: 1, semflg: 0o3600 }),
//!     (2, EventKind::SetVal { sem, key, value: 1, errno: 0 }),
//!     (3, EventKind::Op { sem, key, ops: vec![add_one], errno: 0 }),
//!     (4, EventKind::Exit { status: ExitStatus::from_wait(9) }),
//! ] {
//!     let at = BootTime(second * 1_000_000_000);
//!     let event = Event {
//!         at,
//!         began: None,
//!         actor: owner.clone(),
//!         quality: Quality::default(),
//!         what,
//!     };
//!     ledger.apply(&event);
//! }
//!
//! let facts = HostFacts {
//!     now: BootTime(600_000_000_000),
//!     processes_complete: true,
//!     carriers_complete: true,
//!     ..HostFacts::default()
//! };
//! let completeness = Completeness::default();
//! let thresholds = Thresholds::default();
//! let context = Context { facts: &facts, completeness: &completeness, thresholds: &thresholds };
//! let judged = survey_cookies(&ledger, None, &context);
//!
//! assert!(matches!(judged[0].verdict.class, Class::Leaked(_)));
//! assert_eq!(judged[0].verdict.confidence, Confidence::Observed);
//! ```

pub mod backend;
pub mod cleanup;
pub mod duration;
pub mod event;
pub mod facts;
pub mod ids;
pub mod ledger;
pub mod parallel;
pub mod search;
pub mod verdict;
pub mod wall_clock;
pub mod witness;
pub mod wording;
