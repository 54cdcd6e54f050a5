//! The parent of the readers: who is searched, by whom, and for how long.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Mutex, PoisonError, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use dmtrace_core::search::{
    Coverage, HolderClass, HolderProcess, Needles, NotSearched, Search, UnsearchedReason,
};

use super::{
    options::{Progress, SearchOptions},
    report::{Ending, Report},
    worker::{FILES, Job, Worker, is_reaped},
};
use crate::{
    host::{Roots, clock, processes},
    wording::cause_text,
};

/// Readers that did not end when they were killed. They are waited for later.
static ABANDONED: Mutex<Vec<i32>> = Mutex::new(Vec::new());

/// With so many of them nothing more is read.
const MOST_ABANDONED: usize = 8;

/// More make no search faster: the memory bus is full.
const MOST_WORKERS: usize = 4;

/// So often somebody who waits is told how far it is.
const PROGRESS_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Pool<'a> {
    needles: &'a Needles,
    options: &'a SearchOptions,
    roots: Roots,
    workers: Vec<Worker>,
    /// Why there are fewer than there should be.
    no_worker: Option<String>,
    /// Processes that are to be searched or were: number and start.
    seen: BTreeSet<(u32, u64)>,
    queue: VecDeque<Job>,
    search: Search,
    /// What ended workers have read.
    bytes: u64,
    done: u64,
    end: Instant,
    told: Instant,
}

impl<'a> Pool<'a> {
    pub(super) fn new(needles: &'a Needles, options: &'a SearchOptions) -> Self {
        let now = Instant::now();
        Self {
            needles,
            options,
            roots: Roots::host(),
            workers: Vec::new(),
            no_worker: None,
            seen: BTreeSet::new(),
            queue: VecDeque::new(),
            search: Search::default(),
            bytes: 0,
            done: 0,
            end: now + options.total_limit,
            told: now,
        }
    }

    pub(super) fn search(mut self, progress: &mut dyn FnMut(Progress)) -> Search {
        // Also reads the offsets of the clocks, once for all workers.
        self.search.began = clock::boot_now();
        self.search.needles = self.needles.keys().clone();
        self.search.coverage = Coverage {
            descriptors: self.options.descriptors,
            files_since: None,
            files_failed: None,
        };
        self.search.hidden = processes::hidden_reason(&self.roots);
        if !self.options.only.is_empty() {
            let why = "only some processes were searched; search all".to_owned();
            self.search.hidden.get_or_insert(why);
        }
        if self.needles.is_empty() {
            self.search.stable = true;
        } else {
            if self.options.files.is_some() {
                self.queue.push_back(FILES);
            }
            self.rounds(progress);
        }
        self.end_workers();
        if let Some(why) = self.no_worker.take() {
            self.search.hidden.get_or_insert(why);
        }
        self.search.bytes = self.bytes;
        self.search.ended = clock::boot_now();
        progress(self.progress());
        self.search
    }

    /// Goes through the list of processes until none is new.
    fn rounds(&mut self, progress: &mut dyn FnMut(Progress)) {
        while self.search.rounds < self.options.rounds {
            let new = match self.list_new() {
                Ok(new) => new,
                Err(error) => {
                    let why = format!("the list of processes: {}", cause_text(&error));
                    self.search.hidden.get_or_insert(why);
                    return;
                }
            };
            self.search.rounds += 1;
            if new.is_empty() && self.queue.is_empty() {
                self.search.stable = true;
                return;
            }
            self.queue.extend(new);
            if !self.drain(progress) {
                return;
            }
        }
    }

    /// Processes that were not there the last time.
    fn list_new(&mut self) -> std::io::Result<Vec<u32>> {
        let own = std::process::id();
        let mut ours: BTreeSet<u32> = lock_abandoned()
            .iter()
            .chain(
                self.workers
                    .iter()
                    .map(Worker::pid)
                    .collect::<Vec<_>>()
                    .iter(),
            )
            .map(|pid| pid.cast_unsigned())
            .collect();
        ours.insert(own);
        let mut new = Vec::new();
        for pid in processes::list_pids(&self.roots)? {
            let wanted = self.options.only.is_empty() || self.options.only.contains(&pid);
            if !wanted || ours.contains(&pid) {
                continue;
            }
            // One that has gone since may have handed a number on: it counts as new.
            let start = match processes::read_stat(&self.roots, pid) {
                Ok(stat) if stat.kernel => continue,
                Ok(stat) if stat.is_dead() && stat.threads <= 1 => continue,
                Ok(stat) => stat.start_ticks,
                Err(_) => u64::MAX,
            };
            if self.seen.insert((pid, start)) {
                new.push(pid);
            }
        }
        Ok(new)
    }

    /// Does all jobs; tells whether it may go on.
    fn drain(&mut self, progress: &mut dyn FnMut(Progress)) -> bool {
        loop {
            if self.options.cancel.load(Ordering::Relaxed) {
                self.search.cancelled = true;
                return false;
            }
            if Instant::now() >= self.end || lock_abandoned().len() >= MOST_ABANDONED {
                self.give_all_up();
                return false;
            }
            self.hand_out();
            if self.queue.is_empty() && self.workers.iter().all(|it| it.job().is_none()) {
                return true;
            }
            if self.workers.is_empty() {
                return false;
            }
            self.wait();
            self.collect();
            if self.told.elapsed() >= PROGRESS_PAUSE {
                self.told = Instant::now();
                progress(self.progress());
            }
        }
    }

    /// Gives everybody without work some.
    fn hand_out(&mut self) {
        let wanted = match self.options.workers {
            0 => thread::available_parallelism().map_or(1, usize::from),
            given => given,
        };
        let wanted = wanted.min(MOST_WORKERS);
        let idle = self.workers.iter().filter(|it| it.job().is_none()).count();
        let missing = self.queue.len().saturating_sub(idle);
        for _ in 0..missing.min(wanted.saturating_sub(self.workers.len())) {
            match Worker::start(self.needles, self.options) {
                Ok(worker) => self.workers.push(worker),
                Err(error) => {
                    let cause = cause_text(&error);
                    let why = format!("no process that reads: {cause}; raise the limit");
                    if self.workers.is_empty() {
                        self.no_worker = Some(why);
                    }
                    break;
                }
            }
        }
        for worker in &mut self.workers {
            if worker.job().is_none()
                && let Some(job) = self.queue.pop_front()
                && worker.give(job).is_err()
            {
                self.queue.push_front(job);
                break;
            }
        }
    }

    /// Until somebody is done, or it is time to see whether all go on.
    fn wait(&self) {
        const PATIENCE_MS: i32 = 20;
        let mut wait: Vec<libc::pollfd> = self
            .workers
            .iter()
            .map(|worker| libc::pollfd {
                fd: worker.fd(),
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        let count = wait.len() as libc::nfds_t;
        // SAFETY: as many as are told, and they outlive the call.
        unsafe { libc::poll(wait.as_mut_ptr(), count, PATIENCE_MS) };
    }

    fn collect(&mut self) {
        let mut ended = Vec::new();
        for number in 0..self.workers.len() {
            let worker = &mut self.workers[number];
            let Some(job) = worker.job() else {
                // It has nothing to say but that it has ended.
                if is_readable(worker) {
                    ended.push((number, None));
                }
                continue;
            };
            if is_readable(worker) {
                match worker.take() {
                    Ok(report) => self.note(job, report),
                    Err(error) => {
                        let cause = format!("its reader has ended: {}", cause_text(&error));
                        ended.push((number, Some((job, UnsearchedReason::Failed { cause }))));
                    }
                }
            } else if worker.is_late(self.options) {
                ended.push((number, Some((job, UnsearchedReason::TimedOut))));
            }
        }
        for (number, why) in ended.into_iter().rev() {
            let worker = self.workers.swap_remove(number);
            if let Some((job, reason)) = why {
                self.not_searched(job, worker.class(), reason);
            }
            self.end_worker(worker);
        }
    }

    fn note(&mut self, job: Job, report: Report) {
        if job == FILES {
            if report.files_done {
                let since = self.options.files.as_ref().map(|it| it.since);
                self.search.coverage.files_since = since;
            } else {
                let why = report.files_failed;
                let unsaid = || "not all files could be read".to_owned();
                self.search.coverage.files_failed = Some(why.unwrap_or_else(unsaid));
            }
            for (key, path) in report.files {
                self.search.files.entry(key).or_default().push(path);
            }
            return;
        }
        self.done += 1;
        match report.ending {
            Ending::Searched => self.search.searched += 1,
            Ending::Powerless => self.search.powerless += 1,
            Ending::Nobody if report.problems.is_empty() => return,
            Ending::Nobody => {}
        }
        self.search.swapped += report.swapped;
        for reason in report.problems {
            self.search.not_searched.push(NotSearched {
                pid: job,
                comm: report.comm.clone(),
                class: report.class,
                reason,
            });
        }
        if let (Some(id), Some(class)) = (report.id, report.class) {
            let process = HolderProcess {
                id,
                comm: report.comm,
                exe: report.exe,
                class,
                traits: report.traits,
            };
            self.search.add(process, report.found.into_spots());
        }
    }

    fn not_searched(&mut self, job: Job, class: Option<HolderClass>, reason: UnsearchedReason) {
        if job == FILES {
            let why = match reason {
                UnsearchedReason::TimedOut => "reading them took too long".to_owned(),
                other => other.to_string(),
            };
            self.search.coverage.files_failed = Some(why);
            return;
        }
        self.done += 1;
        let comm = processes::read_stat(&self.roots, job).map(|stat| stat.comm);
        self.search.not_searched.push(NotSearched {
            pid: job,
            comm: comm.unwrap_or_default(),
            class,
            reason,
        });
    }

    /// Time is up for all that is left.
    fn give_all_up(&mut self) {
        let busy: Vec<(Job, Option<HolderClass>)> = self
            .workers
            .iter()
            .filter_map(|it| Some((it.job()?, it.class())))
            .collect();
        let left = std::mem::take(&mut self.queue);
        let left = left.into_iter().map(|job| (job, None));
        for (job, class) in busy.into_iter().chain(left) {
            self.not_searched(job, class, UnsearchedReason::TimedOut);
        }
    }

    fn end_worker(&mut self, worker: Worker) {
        self.bytes += worker.bytes();
        if let Some(pid) = worker.end() {
            lock_abandoned().push(pid);
        }
    }

    fn end_workers(&mut self) {
        for worker in std::mem::take(&mut self.workers) {
            self.end_worker(worker);
        }
        lock_abandoned().retain(|pid| !is_reaped(*pid));
    }

    fn progress(&self) -> Progress {
        let working: u64 = self.workers.iter().map(Worker::bytes).sum();
        Progress {
            done: self.done,
            total: self.seen.len() as u64,
            bytes: self.bytes + working,
        }
    }
}

fn is_readable(worker: &Worker) -> bool {
    let mut wait = libc::pollfd {
        fd: worker.fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one, and it outlives the call.
    unsafe { libc::poll(&raw mut wait, 1, 0) > 0 }
}

fn lock_abandoned() -> std::sync::MutexGuard<'static, Vec<i32>> {
    ABANDONED.lock().unwrap_or_else(PoisonError::into_inner)
}
