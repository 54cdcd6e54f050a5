//! Takes stacks out of their ring and makes call sites of them, on a thread of its own: the books
//! do not wait for it.

use std::{
    collections::HashMap,
    io::{self, Write as _},
    os::{fd::AsRawFd, unix::net::UnixStream},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use dmtrace_common::{
    CS_64, GoroutineSample, PAGE, ProcKey, STACK_NO_REGS, STACK_PAGES, StackSample,
};
use dmtrace_core::{
    event::{CallSite, ChainEnd, read_plain},
    ids::{BootTime, Key, ProcId, SemId},
};
use tokio::sync::Notify;

use super::{AddressSpace, Finder, Memory, Registers, Symbolizer, unwind_stack};
use crate::host::heap;

/// Binaries are kept in memory for the next stack so long. Those of a large program, or of a Go
/// daemon, are tens of megabytes, and the next stack may come in a month.
pub(crate) const BINARY_CACHE_TTL: Duration = Duration::from_secs(1);

/// Call sites that are told apart.
const MAX_DISTINCT_SITES: usize = 4096;

/// The call site of a set that was made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct FoundSite {
    pub sem: SemId,
    pub key: Key,
    /// When the stack was taken: right before or after the creation is told.
    pub at: BootTime,
    pub maker: ProcId,
    pub site: Arc<CallSite>,
}

/// Looks up the path of a program.
pub(super) type ProgramLookup = Box<dyn FnMut(ProcKey) -> Option<String> + Send>;

/// The thread, and what it has found.
pub(crate) struct Worker {
    thread: Option<JoinHandle<()>>,
    found: Receiver<FoundSite>,
    stop: UnixStream,
    received: Arc<AtomicU64>,
    new_site: Arc<Notify>,
}

impl Worker {
    /// Starts. With `names`, call sites are resolved at once: for a recording. `kept`: binaries are
    /// kept for the next stack so long; `None` for as long as it runs.
    ///
    /// # Errors
    /// The system refuses a thread or a socket.
    pub(crate) fn start(
        ring: RingBuf<MapData>,
        programs: ProgramLookup,
        names: bool,
        kept: Option<Duration>,
    ) -> io::Result<Self> {
        let (stop, stopped) = UnixStream::pair()?;
        let (send, found) = mpsc::channel();
        let received = Arc::new(AtomicU64::new(0));
        let news = Arc::new(Notify::new());
        let (count, notify) = (Arc::clone(&received), Arc::clone(&news));
        let thread = thread::Builder::new()
            .name("stacks".to_owned())
            .spawn(move || {
                // Made here: they are not for several threads.
                let mut work = WorkerState {
                    programs,
                    finder: Finder::default(),
                    symbolizer: names.then(Symbolizer::default),
                    known: HashMap::new(),
                    kept,
                };
                work.run(ring, &stopped, &send, &count, &notify);
            })?;
        Ok(Self {
            thread: Some(thread),
            found,
            stop,
            received,
            new_site: news,
        })
    }

    /// What was found since the last time.
    pub(crate) fn take_sites(&self) -> Vec<FoundSite> {
        self.found.try_iter().collect()
    }

    /// Messages taken from the ring.
    pub(crate) fn received_count(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    /// Waits until something is found.
    pub(crate) async fn wait_sites(&self) {
        self.new_site.notified().await;
    }

    /// Works off what is in the ring, and ends the thread.
    pub(crate) fn finish(&mut self) {
        let _gone = self.stop.write_all(&[0]);
        if let Some(thread) = self.thread.take() {
            // A panic there has lost call sites, which the count of what was received shows.
            let _panicked = thread.join();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.finish();
    }
}

struct WorkerState {
    programs: ProgramLookup,
    finder: Finder,
    symbolizer: Option<Symbolizer>,
    /// Call sites as found, and as handed on.
    known: HashMap<CallSite, Arc<CallSite>>,
    kept: Option<Duration>,
}

impl WorkerState {
    fn run(
        &mut self,
        mut ring: RingBuf<MapData>,
        stopped: &UnixStream,
        send: &Sender<FoundSite>,
        count: &AtomicU64,
        news: &Notify,
    ) {
        loop {
            let limit = self.kept.filter(|_| !self.finder.is_empty());
            let woken = wait_ring(ring.as_raw_fd(), stopped.as_raw_fd(), limit);
            if woken == WakeReason::TimeIsUp {
                self.finder = Finder::default();
                heap::trim_heap();
                continue;
            }
            while let Some(item) = ring.next() {
                let sample = read_plain::<StackSample>(&item).map(Box::new);
                // Room for the next one before the work begins.
                drop(item);
                if let Ok(sample) = sample {
                    // A binary can hold anything; whatever it does to a library must not end the
                    // trace's call sites.
                    let worked = catch_unwind(AssertUnwindSafe(|| self.process_sample(&sample)));
                    let Ok(found) = worked else { continue };
                    count.fetch_add(1, Ordering::Release);
                    if send.send(found).is_err() {
                        return;
                    }
                    news.notify_one();
                }
            }
            if woken == WakeReason::End {
                return;
            }
        }
    }

    fn process_sample(&mut self, sample: &StackSample) -> FoundSite {
        let mut site = self.unwind_sample(sample);
        site.mnt_ns = sample.mnt_ns;
        let known = self.known.get(&site).cloned();
        let site = known.unwrap_or_else(|| {
            if self.known.len() >= MAX_DISTINCT_SITES {
                self.known.clear();
            }
            let mut named = site.clone();
            if let Some(symbolizer) = &mut self.symbolizer {
                symbolizer.resolve_site(&mut named);
            }
            let named = Arc::new(named);
            self.known.insert(site, Arc::clone(&named));
            named
        });
        FoundSite {
            sem: SemId {
                ns: dmtrace_core::ids::IpcNs(sample.ns),
                semid: sample.semid,
            },
            key: Key(sample.key),
            at: BootTime(sample.header.ts),
            maker: sample.header.actor.into(),
            site,
        }
    }

    fn unwind_sample(&mut self, sample: &StackSample) -> CallSite {
        let nothing = |why: &str| CallSite {
            end: ChainEnd::Truncated(why.to_owned()),
            ..CallSite::default()
        };
        if sample.state & STACK_NO_REGS != 0 {
            return nothing("the registers could not be read");
        }
        if sample.regs.cs != CS_64 {
            return nothing("stacks of 32-bit programs are not unwound");
        }
        let memory = copied_memory(sample);
        let program = (self.programs)(sample.header.actor);
        let mut space = AddressSpace::of_sample(sample, program.as_deref());
        let registers = Registers::of_user(&sample.regs);
        unwind_stack(&mut space, &mut self.finder, registers, &memory)
    }
}

/// The stacks of a message.
fn copied_memory(sample: &StackSample) -> Memory<'_> {
    let pages = (sample.pages as usize).min(STACK_PAGES);
    let own = pages.min(sample.thread_pages as usize);
    let (thread, goroutine) = sample.stack[..pages * PAGE].split_at(own * PAGE);
    let full = pages == STACK_PAGES;
    if sample.goroutine == GoroutineSample::default() {
        return Memory::new(sample.start, thread, full);
    }
    let start = sample.goroutine.sp & !(PAGE as u64 - 1);
    // Of the thread's stack only what C uses was copied.
    Memory::new(sample.start, thread, true).with_goroutine(sample.goroutine, start, goroutine, full)
}

/// What has ended a wait.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum WakeReason {
    Messages,
    TimeIsUp,
    /// There will be no more messages.
    End,
}

/// Waits for messages, for ever without a limit.
fn wait_ring(ring: i32, stopped: i32, limit: Option<Duration>) -> WakeReason {
    let mut descriptors = [ring, stopped].map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    });
    let limit = limit.map_or(-1, |limit| i32::try_from(limit.as_millis()).unwrap_or(-1));
    // SAFETY: two descriptors, which are open as long as this thread runs.
    let ready = unsafe { libc::poll(descriptors.as_mut_ptr(), 2, limit) };
    match ready {
        0 => WakeReason::TimeIsUp,
        _ if ready > 0 && descriptors[1].revents != 0 => WakeReason::End,
        _ => WakeReason::Messages,
    }
}
