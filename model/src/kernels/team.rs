//! A team of threads that shares out the tasks of one call after another.
//!
//! A decoding step is a few hundred products of some ten microseconds, so a call must cost far less
//! than that: workers watch one word of memory and claim tasks from a counter. A call waits for those
//! workers only that have come to it, so one that sleeps, or that the machine runs late, holds nobody
//! up.
//!
//! One call is served at a time. A call that comes while another is under way, from another thread or
//! from within a task, runs its tasks on its own thread.

use std::{
    any::Any,
    cell::UnsafeCell,
    hint::spin_loop,
    marker::PhantomData,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Condvar, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How long a worker watches for the next call before it sleeps.
const PATIENCE: Duration = Duration::from_micros(30);
/// The same while somebody holds a [`Hot`].
const HOT_PATIENCE: Duration = Duration::from_millis(1);
/// Looks at the word between two looks at the clock; about a microsecond.
const LOOKS: u32 = 64;

/// Runs `f(0)`, `f(1)`, ... `f(tasks - 1)`, each once, on all threads, the caller's among them, and
/// returns when all are done. Which thread runs a task, and when, is not fixed.
///
/// # Panics
/// When a task panics: with its payload, after the tasks under way have ended; others may not run.
pub fn for_each(tasks: usize, f: impl Fn(usize) + Sync) {
    team().run(tasks, &f);
}

/// Runs `f(i, chunk i)` for the chunks of `size` elements of `values` (the last may be shorter), as
/// [`for_each`].
pub fn for_each_chunk<T: Send>(values: &mut [T], size: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let (size, len) = (size.max(1), values.len());
    let values = Shared::new(values);
    for_each(len.div_ceil(size), |i| {
        // SAFETY: chunks don't overlap, and each is one task's.
        let chunk = unsafe { values.part(i * size, size.min(len - i * size)) };
        f(i, chunk);
    });
}

/// Threads that share the work: `RAYON_NUM_THREADS` where it is set, else what the machine offers.
pub fn threads() -> usize {
    team().workers + 1
}

/// While one is held, workers watch for the next call for up to a millisecond before they sleep.
#[must_use]
#[derive(Debug)]
pub struct Hot(());

/// Keeps the workers awake between calls until the guard is dropped.
pub fn stay_hot() -> Hot {
    team().hot.fetch_add(1, Ordering::Relaxed);
    Hot(())
}

impl Drop for Hot {
    fn drop(&mut self) {
        team().hot.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A slice that tasks write disjoint parts of.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: the parts are handed out as `&mut [T]` to one task each (the contract of `part`).
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(values: &'a mut [T]) -> Self {
        Self {
            start: values.as_mut_ptr(),
            len: values.len(),
            slice: PhantomData,
        }
    }

    /// `len` elements from `from` on.
    ///
    /// # Safety
    /// No other part that is alive overlaps this one.
    #[allow(clippy::mut_from_ref, reason = "disjoint by the caller's promise")]
    pub(crate) unsafe fn part(&self, from: usize, len: usize) -> &mut [T] {
        assert!(
            from <= self.len && len <= self.len - from,
            "a part outside its slice"
        );
        // SAFETY: inside the slice; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }
}

/// A word on a cache line of its own.
#[repr(align(128))]
struct Line<T>(T);

/// The word that workers watch: a call's number, whether workers may come to it, and how many have.
const OPEN: usize = 1 << 16;
const INSIDE: usize = OPEN - 1;
const CALL: usize = OPEN << 1;

/// What a call runs; the caller's stack holds the closure.
#[derive(Clone, Copy)]
struct Job {
    f: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

struct Team {
    workers: usize,
    /// A call is under way.
    busy: AtomicBool,
    /// See [`OPEN`].
    state: Line<AtomicUsize>,
    /// The next task to claim.
    next: Line<AtomicUsize>,
    /// Written by the caller while the call is closed and nobody is inside.
    job: UnsafeCell<Option<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    hot: AtomicUsize,
    sleeping: AtomicUsize,
    bed: Mutex<()>,
    bell: Condvar,
}

// SAFETY: `job` is written only while no worker is inside (see `run`), the rest is synchronised.
unsafe impl Sync for Team {}
// SAFETY: as above; the pointer in `job` is followed only during the call that it belongs to.
unsafe impl Send for Team {}

fn team() -> &'static Team {
    static TEAM: OnceLock<&'static Team> = OnceLock::new();
    TEAM.get_or_init(|| Team::start(wanted()))
}

fn wanted() -> usize {
    std::env::var("RAYON_NUM_THREADS")
        .ok()
        .and_then(|n| n.parse().ok())
        .filter(|n| *n > 0)
        .unwrap_or_else(|| thread::available_parallelism().map_or(1, NonZeroUsize::get))
        .min(INSIDE)
}

impl Team {
    /// A team of `threads`, the caller's among them; its workers live as long as the process.
    fn start(threads: usize) -> &'static Self {
        let team: &'static Self = Box::leak(Box::new(Self {
            workers: threads - 1,
            busy: AtomicBool::new(false),
            state: Line(AtomicUsize::new(0)),
            next: Line(AtomicUsize::new(0)),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            hot: AtomicUsize::new(0),
            sleeping: AtomicUsize::new(0),
            bed: Mutex::new(()),
            bell: Condvar::new(),
        }));
        for i in 0..team.workers {
            let name = format!("tina-team-{}", i + 1);
            // A thread that the system refuses is missed by nobody: the others do its share.
            if let Err(error) = thread::Builder::new().name(name).spawn(|| team.work()) {
                tracing::warn!(%error, "a thread could not be started");
            }
        }
        team
    }

    fn run(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.workers == 0 || self.busy.swap(true, Ordering::Acquire) {
            return (0..tasks).for_each(f);
        }
        // SAFETY: the borrow outlives its use: `run` returns, or unwinds, only when the call is
        // closed and nobody is inside.
        let f = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync)>(f)
        };
        let job = Job { f, tasks };
        // SAFETY: the call before was closed and everybody left it, and `busy` is ours.
        unsafe { *self.job.get() = Some(job) };
        self.next.0.store(0, Ordering::Relaxed);
        let call = (self.state.0.load(Ordering::Relaxed) & !INSIDE).wrapping_add(CALL) | OPEN;
        // Sequentially consistent with `sleep`: either the sleeper sees the call or we see it.
        self.state.0.store(call, Ordering::SeqCst);
        let sleeping = self.sleeping.load(Ordering::SeqCst);
        if sleeping > 0 {
            drop(self.bed.lock().unwrap_or_else(PoisonError::into_inner));
            for _ in 0..sleeping.min(tasks - 1) {
                self.bell.notify_one();
            }
        }
        self.claim(job);
        self.state.0.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0;
        while self.state.0.load(Ordering::Acquire) & INSIDE > 0 {
            looks += 1;
            if looks % (8 * LOOKS) == 0 {
                thread::yield_now();
            }
            spin_loop();
        }
        let panic = self
            .panic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.busy.store(false, Ordering::Release);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Runs tasks until none is left to claim.
    fn claim(&self, job: Job) {
        // SAFETY: the caller's closure lives until the call is closed and everybody has left it.
        let f = unsafe { &*job.f };
        let all = AssertUnwindSafe(|| {
            loop {
                let task = self.next.0.fetch_add(1, Ordering::Relaxed);
                if task >= job.tasks {
                    break;
                }
                f(task);
            }
        });
        if let Err(payload) = catch_unwind(all) {
            self.next.0.store(job.tasks, Ordering::Relaxed);
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(payload);
        }
    }

    /// A worker's life.
    fn work(&self) {
        let mut last = 0;
        loop {
            let call = self.wait(last);
            last = call & !INSIDE;
            let mut now = call;
            // Come in, unless the call was closed meanwhile.
            while now & !INSIDE == last {
                let come = self.state.0.compare_exchange_weak(
                    now,
                    now + 1,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                );
                match come {
                    Ok(_) => {
                        // SAFETY: we are inside, so the caller doesn't write it.
                        if let Some(job) = unsafe { *self.job.get() } {
                            self.claim(job);
                        }
                        self.state.0.fetch_sub(1, Ordering::Release);
                        break;
                    }
                    Err(other) => now = other,
                }
            }
        }
    }

    /// Returns the state when it is an open call other than `last`.
    fn wait(&self, last: usize) -> usize {
        let fresh = |state: usize| state & OPEN > 0 && state & !INSIDE != last;
        let since = Instant::now();
        loop {
            for _ in 0..LOOKS {
                let state = self.state.0.load(Ordering::Acquire);
                if fresh(state) {
                    return state;
                }
                spin_loop();
            }
            let hot = self.hot.load(Ordering::Relaxed) > 0;
            let watched = since.elapsed();
            if watched > if hot { HOT_PATIENCE } else { PATIENCE } {
                break;
            }
            if watched > PATIENCE {
                // Whoever else wants this core may have it; where nobody does, this costs little.
                thread::yield_now();
            }
        }
        let mut bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        let state = loop {
            let state = self.state.0.load(Ordering::SeqCst);
            if fresh(state) {
                break state;
            }
            bed = self.bell.wait(bed).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for tasks in [0, 1, 2, 3, 17, 1000] {
            let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            for_each(tasks, |i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn chunks_cover_the_slice() {
        let mut values = vec![0; 103];
        for_each_chunk(&mut values, 10, |i, chunk| chunk.fill(i + 1));
        assert!(values.iter().enumerate().all(|(at, v)| *v == at / 10 + 1));
    }

    #[test]
    fn many_calls_from_many_threads_lose_nothing() {
        let team = Team::start(4);
        thread::scope(|scope| {
            for caller in 0..3 {
                scope.spawn(move || {
                    for call in 0..3_000usize {
                        let tasks = (call * 7 + caller) % 23;
                        let sum = AtomicUsize::new(0);
                        team.run(tasks, &|i| {
                            sum.fetch_add(i + 1, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), tasks * (tasks + 1) / 2);
                        if call % 500 == 0 {
                            // Long enough for the workers to fall asleep.
                            thread::sleep(Duration::from_millis(2));
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn a_call_within_a_task_runs_there() {
        let team = Team::start(3);
        let sum = AtomicUsize::new(0);
        team.run(20, &|_| {
            team.run(10, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), 20 * 45);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        let team = Team::start(3);
        for _ in 0..20 {
            let payload = catch_unwind(AssertUnwindSafe(|| {
                team.run(50, &|i| assert!(i != 31, "task thirty-one"));
            }))
            .unwrap_err();
            assert!(
                payload
                    .downcast_ref::<&str>()
                    .is_some_and(|s| s.contains("thirty-one"))
            );
            let sum = AtomicUsize::new(0);
            team.run(50, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 49 * 50 / 2);
        }
    }

    #[test]
    fn guards_are_counted() {
        let before = team().hot.load(Ordering::Relaxed);
        let (a, b) = (stay_hot(), stay_hot());
        drop(a);
        for_each(100, |_| {});
        drop(b);
        assert_eq!(team().hot.load(Ordering::Relaxed), before);
    }
}
