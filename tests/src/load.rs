//! Calls whose cost is measured, and cookies in numbers: the load of `cargo xtask bench`.

use std::{
    hint::black_box,
    io, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::sysv::{self, Abi};

/// What is called in a loop.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum LoadCall {
    /// `semop` on a set that is no cookie; never sleeps.
    Semop,
    /// A cookie's life: made, set, +1, -1, -1, waited for, removed.
    Life,
    /// The same, one each millisecond: whoever reads what a tracer tells has slept meanwhile.
    Paced,
    /// `getppid`.
    Syscall,
    /// `FIONREAD` on a pipe.
    Ioctl,
    /// `fork`, `_exit` in the child, `wait`.
    Exit,
}

/// System calls on a cookie in its life, see [`play_life`].
pub const LIFE_OPERATIONS: u64 = 7;

impl LoadCall {
    /// All.
    pub const ALL: [Self; 6] = [
        Self::Semop,
        Self::Life,
        Self::Paced,
        Self::Syscall,
        Self::Ioctl,
        Self::Exit,
    ];

    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Semop => "semop",
            Self::Life => "life",
            Self::Paced => "paced",
            Self::Syscall => "syscall",
            Self::Ioctl => "ioctl",
            Self::Exit => "exit",
        }
    }
}

/// How much is called.
#[derive(Clone, Copy, Debug)]
pub enum Amount {
    /// As many as fit into this time.
    Time(Duration),
    /// So many.
    Calls(u64),
}

/// What a call costs, the median of some batches.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Calls in all batches.
    pub calls: u64,
    /// Processor time of the caller and its children, nanoseconds a call.
    pub cpu_ns: f64,
    /// Time that passed, nanoseconds a call.
    pub wall_ns: f64,
}

/// Enters an IPC namespace of its own.
///
/// # Errors
/// The caller is not root.
pub fn own_namespace() -> io::Result<()> {
    // SAFETY: no memory is involved.
    sysv::check_result(unsafe { libc::unshare(libc::CLONE_NEWIPC) }).map(drop)
}

/// Keeps this thread on a processor.
///
/// # Errors
/// There is no such processor.
pub fn stay_on(cpu: usize) -> io::Result<()> {
    // SAFETY: a set of bits, for which all zeros is valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: CPU_SET checks the number.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set outlives the call.
    sysv::check_result(unsafe {
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    })
    .map(drop)
}

/// Measures one kind of call.
///
/// # Errors
/// A call fails that should not.
pub fn measure_call(call: LoadCall, amount: Amount, batches: u32) -> Result<Cost> {
    let place = LoadPlace::new()?;
    let (mut serial, mut rest) = (0, Vec::new());
    // Caches and branch predictors, and how long one takes.
    let begun = Instant::now();
    let warm = match amount {
        Amount::Time(_) if matches!(call, LoadCall::Exit | LoadCall::Paced) => 20,
        Amount::Time(_) => 200,
        Amount::Calls(count) => count.div_ceil(10).max(2),
    };
    place.run_call(call, warm, &mut serial)?;
    let each = begun.elapsed().as_secs_f64() / warm as f64;
    let count = match amount {
        Amount::Calls(count) => count,
        Amount::Time(time) => (time.as_secs_f64() / f64::from(batches) / each) as u64,
    }
    .max(5);
    for _ in 0..batches {
        let (cpu, wall) = place.run_call(call, count, &mut serial)?;
        rest.push((per_call(cpu, count), per_call(wall, count)));
    }
    place.remove_all()?;
    Ok(Cost {
        calls: count * u64::from(batches),
        cpu_ns: median_of(rest.iter().map(|(cpu, _)| *cpu).collect()),
        wall_ns: median_of(rest.iter().map(|(_, wall)| *wall).collect()),
    })
}

/// Processor time and time that passes.
fn time_run(call: LoadCall, run: impl FnOnce() -> Result<()>) -> Result<(Duration, Duration)> {
    let (wall, cpu) = (Instant::now(), cpu_time(call)?);
    run()?;
    Ok((cpu_time(call)?.saturating_sub(cpu), wall.elapsed()))
}

/// Between two lives at a pace.
const PAUSE: Duration = Duration::from_millis(1);

fn per_call(time: Duration, count: u64) -> f64 {
    time.as_nanos() as f64 / count as f64
}

fn median_of(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Processor time used so far: of this thread, or of the process and its children.
fn cpu_time(call: LoadCall) -> io::Result<Duration> {
    if call == LoadCall::Exit {
        return Ok(cpu_used(libc::RUSAGE_SELF)? + cpu_used(libc::RUSAGE_CHILDREN)?);
    }
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the buffer outlives the call.
    sysv::check_result(unsafe {
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time)
    })?;
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

fn cpu_used(who: libc::c_int) -> io::Result<Duration> {
    // SAFETY: numbers only, for which all zeros is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the buffer outlives the call.
    sysv::check_result(unsafe { libc::getrusage(who, &raw mut usage) })?;
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    Ok(time(usage.ru_utime) + time(usage.ru_stime))
}

/// What the calls work on.
struct LoadPlace {
    plain: i32,
    pipe: [libc::c_int; 2],
}

impl LoadPlace {
    fn new() -> Result<Self> {
        let mut pipe = [0; 2];
        // SAFETY: the buffer has room for two descriptors.
        sysv::check_result(unsafe { libc::pipe(pipe.as_mut_ptr()) }).context("pipe")?;
        let plain = sysv::get_set(0, 1, 0o600).context("semget")?;
        Ok(Self { plain, pipe })
    }

    fn remove_all(self) -> Result<()> {
        sysv::remove_set(self.plain).context("IPC_RMID")?;
        for fd in self.pipe {
            // SAFETY: a descriptor of our own.
            unsafe { libc::close(fd) };
        }
        Ok(())
    }

    /// Processor time and time that passes, without pauses.
    fn run_call(
        &self,
        call: LoadCall,
        count: u64,
        serial: &mut u32,
    ) -> Result<(Duration, Duration)> {
        if call != LoadCall::Paced {
            return time_run(call, || self.repeat_call(call, count, serial));
        }
        let mut sum = (Duration::ZERO, Duration::ZERO);
        for _ in 0..count {
            thread::sleep(PAUSE);
            let (cpu, wall) = time_run(call, || self.repeat_call(call, 1, serial))?;
            sum = (sum.0 + cpu, sum.1 + wall);
        }
        Ok(sum)
    }

    fn repeat_call(&self, call: LoadCall, count: u64, serial: &mut u32) -> Result<()> {
        match call {
            LoadCall::Semop => {
                for number in 0..count {
                    let op = if number % 2 == 0 { 1 } else { -1 };
                    sysv::semop_one(Abi::SemTimedOp, self.plain, op, 0)?;
                }
                if count % 2 == 1 {
                    sysv::semop_one(Abi::SemTimedOp, self.plain, -1, 0)?;
                }
            }
            LoadCall::Life | LoadCall::Paced => {
                for _ in 0..count {
                    play_life(serial)?;
                }
            }
            LoadCall::Syscall => {
                for _ in 0..count {
                    // SAFETY: no memory is involved.
                    black_box(unsafe { libc::getppid() });
                }
            }
            LoadCall::Ioctl => {
                let mut waiting: libc::c_int = 0;
                for _ in 0..count {
                    // SAFETY: FIONREAD writes one int, which outlives the call.
                    let result =
                        unsafe { libc::ioctl(self.pipe[0], libc::FIONREAD, &raw mut waiting) };
                    sysv::check_result(result).context("FIONREAD")?;
                }
            }
            LoadCall::Exit => {
                for _ in 0..count {
                    run_child()?;
                }
            }
        }
        Ok(())
    }
}

fn run_child() -> Result<()> {
    // SAFETY: one thread; the child does nothing but end.
    let pid = sysv::check_result(unsafe { libc::fork() }).context("fork")?;
    if pid == 0 {
        // SAFETY: ends the child without running anything of its parent.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: the buffer outlives the call.
    sysv::check_result(unsafe { libc::waitpid(pid, &raw mut status, 0) }).context("waitpid")?;
    Ok(())
}

/// A cookie as libdm uses it, udev's part included.
fn play_life(serial: &mut u32) -> Result<()> {
    let semid = make_cookie(serial)?;
    sysv::set_value(semid, 1)?;
    sysv::semop_one(Abi::SemTimedOp, semid, 1, 0)?;
    sysv::semop_one(Abi::SemTimedOp, semid, -1, libc::IPC_NOWAIT)?;
    sysv::semop_one(Abi::SemTimedOp, semid, -1, libc::IPC_NOWAIT)?;
    sysv::semop_one(Abi::SemTimedOp, semid, 0, 0)?;
    sysv::remove_set(semid)?;
    Ok(())
}

/// Makes the set of the next cookie that is free.
fn make_cookie(serial: &mut u32) -> Result<i32> {
    for _ in 0..0x1_0000 {
        *serial = serial.wrapping_add(1);
        let key = 0x0d4d_0000 | (*serial & 0xffff);
        match sysv::get_set(key, 1, libc::IPC_CREAT | libc::IPC_EXCL | 0o600) {
            // libdm does not take base 0.
            _ if *serial & 0xffff == 0 => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result.with_context(|| format!("semget {key:#x}")),
        }
    }
    bail!("no cookie is free")
}

/// Nanoseconds that a million instructions take: with QEMU's -icount, where each takes the same.
///
/// # Errors
/// The clock fails, or this is another architecture.
pub fn calibrate_clock() -> Result<f64> {
    const ROUNDS: u64 = 5_000_000;
    let mut rest = Vec::new();
    for _ in 0..5 {
        let begun = cpu_time(LoadCall::Syscall)?;
        spin(ROUNDS)?;
        let time = cpu_time(LoadCall::Syscall)?.saturating_sub(begun);
        rest.push(per_call(time, ROUNDS * 2) * 1e6);
    }
    Ok(median_of(rest))
}

/// Two instructions a round.
#[cfg(target_arch = "x86_64")]
fn spin(rounds: u64) -> Result<()> {
    // SAFETY: changes one register, which is declared.
    unsafe {
        std::arch::asm!("2:", "dec {0}", "jnz 2b", inout(reg) rounds => _, options(nomem, nostack));
    }
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn spin(_rounds: u64) -> Result<()> {
    bail!("instructions are counted on x86_64 only")
}

/// What was done.
#[derive(Clone, Copy, Debug)]
pub struct LoadDone {
    /// System calls on cookies.
    pub operations: u64,
    /// In this time.
    pub time: Duration,
}

/// Lives of cookies, by some threads at a rate.
///
/// # Errors
/// A call fails that should not.
pub fn play_cookies(rate: Option<u64>, time: Duration, threads: u32) -> Result<LoadDone> {
    let begun = Instant::now();
    let share = rate.map(|rate| rate as f64 / LIFE_OPERATIONS as f64 / f64::from(threads.max(1)));
    let workers: Vec<_> = (0..threads.max(1))
        .map(|number| {
            // Keys of their own, so that threads do not meet.
            let mut serial = 0x1000 * (number + 1);
            thread::spawn(move || -> Result<u64> {
                let mut lives = 0;
                while begun.elapsed() < time {
                    let due = share.map(|share| (begun.elapsed().as_secs_f64() * share) as u64);
                    let due = due.unwrap_or(lives + 50);
                    while lives < due {
                        play_life(&mut serial)?;
                        lives += 1;
                    }
                    if share.is_some() {
                        thread::sleep(Duration::from_millis(1));
                    }
                }
                Ok(lives)
            })
        })
        .collect();
    let mut lives = 0;
    for worker in workers {
        lives += worker.join().ok().context("a worker panicked")??;
    }
    Ok(LoadDone {
        operations: lives * LIFE_OPERATIONS,
        time: begun.elapsed(),
    })
}

/// Makes sets that stay: cookies as after `dm_task_set_cookie`, or private sets.
///
/// # Errors
/// A call fails; the limits of kernel.sem are reached.
pub fn hold_sets(count: u32, plain: bool) -> Result<Vec<i32>> {
    let mut serial = 0x8000;
    (0..count)
        .map(|_| {
            if plain {
                return sysv::get_set(0, 1, 0o600).context("semget");
            }
            let semid = make_cookie(&mut serial)?;
            sysv::set_value(semid, 1)?;
            sysv::semop_one(Abi::SemTimedOp, semid, 1, 0)?;
            Ok(semid)
        })
        .collect()
}

/// Removes what [`hold_sets`] has made.
///
/// # Errors
/// One is gone already.
pub fn release_sets(sets: &[i32]) -> Result<()> {
    sets.iter()
        .try_for_each(|&semid| sysv::remove_set(semid).with_context(|| format!("set {semid}")))
}

/// Makes a cookie, and memory full of random bytes with its number at the end.
///
/// # Errors
/// A call fails.
pub fn fill_memory(mib: u32) -> Result<Vec<u64>> {
    let mut serial = 0x8000;
    let semid = make_cookie(&mut serial)?;
    let key = sysv::get_key(semid).context("key of the cookie")?;
    let mut random = fastrand::Rng::with_seed(1);
    let words = usize::try_from(u64::from(mib) << 17)?;
    let mut filled: Vec<u64> = (0..words).map(|_| random.u64(..)).collect();
    filled.push(key.into());
    Ok(filled)
}
