//! A pool of threads that share out numbered tasks.
//!
//! A run opens a door; workers that come in time enter and take tasks from a counter, and the
//! caller, who works too, closes the door when no task is left and waits for those inside. A
//! worker that sleeps costs the caller nothing but its wake-up call.

use super::buffer::Scratch;
use super::view::part;
use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

/// Looks for work this many times before a worker sleeps: some tens of microseconds, longer than
/// what lies between two operators of a step.
const SPINS: u32 = 2000;

/// Elements that an element-by-element task takes: some microseconds of work.
pub(crate) const ELEMENTS: usize = 1 << 14;

/// The door's state: bit 0 open, bits 1..32 workers inside, bits 32..64 number of the run.
const OPEN: u64 = 1;
const ENTER: u64 = 2;
const INSIDE: u64 = (1 << 32) - ENTER;
const RUN: u64 = 1 << 32;
/// The number of a run that tells workers to end.
const END: u64 = u64::MAX;

type Task<'a> = dyn Fn(usize, &mut Scratch) + Sync + 'a;

struct Job {
    /// Lives as long as the door's run: its lifetime is erased.
    task: *const Task<'static>,
    count: usize,
}

struct Shared {
    door: AtomicU64,
    next: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    asleep: Vec<AtomicBool>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written by the caller alone while no worker is inside a closed door, and read
// by workers inside; everything else is atomic or locked.
unsafe impl Sync for Shared {}
// SAFETY: the task behind the pointer is `Sync`.
unsafe impl Send for Shared {}

impl Shared {
    /// Takes tasks until none is left. Returns what a task panicked with.
    fn work(&self, task: &Task, count: usize, scratch: &mut Scratch) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let index = self.next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    break;
                }
                task(index, scratch);
            }
        }));
        if let Err(payload) = result {
            // Nobody needs to begin the remaining tasks.
            self.next.store(count, Ordering::Relaxed);
            let mut first = self.panic.lock().unwrap_or_else(|e| e.into_inner());
            first.get_or_insert(payload);
        }
    }

    fn worker(&self, index: usize) {
        let mut scratch = Scratch::new();
        let mut seen = 0;
        loop {
            let state = self.wait(index, seen);
            if state == END {
                return;
            }
            seen = state / RUN;
            if !self.enter(seen) {
                continue;
            }
            // SAFETY: the caller wrote the job before it opened the door and waits for whoever is
            // inside, so the job and what it borrows live on.
            let job = unsafe { (*self.job.get()).as_ref() };
            if let Some(job) = job {
                // SAFETY: as above.
                self.work(unsafe { &*job.task }, job.count, &mut scratch);
            }
            self.door.fetch_sub(ENTER, Ordering::Release);
        }
    }

    /// Waits for a run other than `seen`.
    fn wait(&self, index: usize, seen: u64) -> u64 {
        let mut spins = 0;
        loop {
            let state = self.door.load(Ordering::SeqCst);
            if state == END || state / RUN != seen {
                return state;
            }
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                self.asleep[index].store(true, Ordering::SeqCst);
                let state = self.door.load(Ordering::SeqCst);
                if state != END && state / RUN == seen {
                    std::thread::park();
                }
                self.asleep[index].store(false, Ordering::SeqCst);
            }
        }
    }

    /// Enters the door of run `seen` if it is open still.
    fn enter(&self, seen: u64) -> bool {
        let mut state = self.door.load(Ordering::Acquire);
        while state != END && state / RUN == seen && state & OPEN != 0 {
            match self.door.compare_exchange_weak(
                state,
                state + ENTER,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
        false
    }
}

/// Threads that work for one caller.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    scratch: Scratch,
    run: u64,
}

impl Pool {
    /// A pool of `threads` in all, the caller among them, or as many as the system grants.
    pub(crate) fn new(threads: usize) -> Self {
        let others = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            door: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            asleep: (0..others).map(|_| AtomicBool::new(false)).collect(),
            panic: Mutex::new(None),
        });
        // Where the system grants fewer threads, fewer do the same work.
        let workers = (0..others)
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("electra-{}", index + 1))
                    .spawn(move || shared.worker(index))
                    .ok()
            })
            .collect();
        Pool {
            shared,
            workers,
            scratch: Scratch::new(),
            run: 0,
        }
    }

    /// Number of threads, the caller among them.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(0) .. task(count - 1)`, each once, in any order and side by side. A panic in a
    /// task comes out here.
    pub(crate) fn run(&mut self, count: usize, task: impl Fn(usize, &mut Scratch) + Sync) {
        let _caller = Caller;
        if self.workers.is_empty() || count < 2 {
            for index in 0..count {
                task(index, &mut self.scratch);
            }
            return;
        }
        let shared = &*self.shared;
        let task: &Task = &task;
        let erased: *const Task = task;
        // SAFETY: the lifetime is erased, nothing else; the door is closed and empty before this
        // function returns, and no worker looks at the job after that.
        let erased: *const Task<'static> = unsafe { std::mem::transmute(erased) };
        // SAFETY: the door is closed and nobody inside.
        unsafe {
            *shared.job.get() = Some(Job {
                task: erased,
                count,
            });
        }
        shared.next.store(0, Ordering::Relaxed);
        self.run = (self.run + 1) % (RUN - 1);
        shared.door.store((self.run * RUN) | OPEN, Ordering::SeqCst);
        self.wake(count - 1);
        shared.work(task, count, &mut self.scratch);
        shared.door.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while shared.door.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            if spins < 10 * SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        let mut panic = shared.panic.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(payload) = panic.take() {
            drop(panic);
            resume_unwind(payload);
        }
    }

    /// Sees to it that `wanted` workers come, if there are as many: those awake come by themselves,
    /// and each one woken costs the caller a call into the system.
    fn wake(&self, wanted: usize) {
        let asleep = || {
            let workers = self.workers.iter().zip(&self.shared.asleep);
            workers.filter(|(_, asleep)| asleep.load(Ordering::SeqCst))
        };
        let awake = self.workers.len() - asleep().count();
        for (worker, _) in asleep().take(wanted.saturating_sub(awake)) {
            worker.thread().unpark();
        }
    }

    /// Calls `task` with ranges that cover `0..rows`, each of about 16 K elements at `cols` a row.
    pub(crate) fn rows(
        &mut self,
        rows: usize,
        cols: usize,
        task: impl Fn(Range<usize>, &mut Scratch) + Sync,
    ) {
        let size = (ELEMENTS / cols.max(1)).max(1);
        self.run(rows.div_ceil(size), |index, scratch| {
            task(part(rows, size, index), scratch);
        });
    }
}

/// The caller's thread during a run. It is not ours: others may set the matrix unit differently before
/// the next one, so it is left as it was, also after a panic.
struct Caller;

impl Drop for Caller {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        super::amx::release();
    }
}

/// Nanoseconds that a run of one empty task for each of `threads` threads takes: what two operators
/// that follow each other pay for it.
pub fn barrier_ns(threads: usize) -> f64 {
    const RUNS: u32 = 20_000;
    let mut pool = Pool::new(threads);
    let mut runs = |count| {
        for _ in 0..count {
            pool.run(threads, |_, _| ());
        }
    };
    runs(RUNS / 10);
    let start = Instant::now();
    runs(RUNS);
    start.elapsed().as_nanos() as f64 / f64::from(RUNS)
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.door.store(END, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its tasks, so it cannot have ended by one.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Pool({})", self.threads())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_in_every_run() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads);
            for run in 0..2000 {
                let count = run % 7;
                let hits: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                pool.run(count, |i, _| {
                    hits[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn workers_that_sleep_wake_up_again() {
        let mut pool = Pool::new(3);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(5));
            let done = AtomicUsize::new(0);
            pool.run(64, |_, _| {
                std::thread::sleep(std::time::Duration::from_micros(100));
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.into_inner(), 64);
        }
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(2);
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(8, |i, _| assert!(i != 5, "task five"));
        }));
        assert!(result.is_err());
        let done = AtomicUsize::new(0);
        pool.run(8, |_, _| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), 8);
    }
}
