//! Owns the threads. Fork/join for a decode step: workers spin for the next job, and park when it does not come. Knows
//! nothing of the work it hands out.
//!
//! Work is handed out in pieces from a counter, and the caller closes the job when none is left: a worker that has not
//! entered by then is not waited for. So a core lost to a neighbour slows a step by what that core would have done,
//! instead of holding up each of its 150 joins until the scheduler gives it back.
//!
//! Measured on 2 threads of a busy machine, median of a fork and join: 0.3 us spinning, 13 to 30 us parked; rayon from
//! outside its pool 21 to 41 us.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle, park, yield_now};

use crate::{Error, Result};

/// The threads that share the work of a step. The caller of [`Pool::split`] is one of them.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Pieces a thread that a matrix product is cut into; each costs about 0.1 us.
    pub(crate) const CHUNKS: usize = 8;

    /// `threads` counts the caller, who works too. A worker parks after `spins` looks (about 15 ns each) at an idle pool.
    ///
    /// # Errors
    /// When the system refuses a thread.
    #[cfg(test)]
    pub(crate) fn new(threads: usize, spins: usize) -> Result<Self> {
        Self::placed(threads, spins, |_| {})
    }

    /// The same; every worker begins with `place` and its number, from 1. The caller is thread 0 and places itself.
    ///
    /// # Errors
    /// When the system refuses a thread.
    ///
    /// Panics without threads, or with more than the state counts.
    pub(crate) fn placed(threads: usize, spins: usize, place: impl Fn(usize) + Clone + Send + 'static) -> Result<Self> {
        assert!((1..=ENTERED as usize).contains(&threads), "a placement has some threads, not too many: this is a bug");
        let shared = Arc::new(Shared {
            state: Line(AtomicU64::new(CLOSED)),
            next: Line(AtomicUsize::new(0)),
            finished: Line(AtomicUsize::new(0)),
            work: UnsafeCell::new(None),
            parked: (1..threads).map(|_| Line(AtomicBool::new(false))).collect(),
            busy: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
            spins,
        });
        let mut pool = Self { shared, workers: Vec::new() };
        for index in 0..threads - 1 {
            let (shared, place) = (pool.shared.clone(), place.clone());
            let worker = Builder::new().name(format!("cpu-{}", index + 1)).spawn(move || {
                place(index + 1);
                serve(&shared, index);
            });
            pool.workers.push(worker.map_err(|e| Error::Unavailable {
                device: "cpu".into(),
                reason: format!("the system refused compute thread {} of {threads}: {e}; use fewer threads", index + 2),
            })?);
        }
        Ok(pool)
    }

    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job` over all of `0..total` in `chunks` pieces a thread, and returns when all are done. Each index is in
    /// exactly one piece. A panic in a piece, on any thread, is raised here once all threads have left the job.
    ///
    /// Panics when called from inside a job, or from two threads at a time.
    pub(crate) fn split(&self, total: usize, chunks: usize, job: &(dyn Fn(Range<usize>) + Sync)) {
        let s = &*self.shared;
        let _turn = Turn::take(&s.busy);
        if self.workers.is_empty() || total <= 1 {
            if total > 0 {
                job(0..total);
            }
            return;
        }
        let number = s.state.0.load(Relaxed) / NUMBER;
        s.next.0.store(0, Relaxed);
        s.finished.0.store(0, Relaxed);
        // SAFETY: nobody is inside; the erased lifetime holds because we return only after all who entered have finished.
        unsafe {
            let job = std::mem::transmute::<*const (dyn Fn(Range<usize>) + Sync + '_), Job>(job);
            *s.work.get() = Some(Work { job, total, parts: (self.threads() * chunks.max(1)).min(total) });
        }
        s.state.0.store((number + 1) * NUMBER, SeqCst);
        self.wake();
        // SAFETY: as above; only `split` writes `work`.
        let mine = catch_unwind(AssertUnwindSafe(|| unsafe { pieces(s) }));
        let entered = (s.state.0.fetch_or(CLOSED, AcqRel) & ENTERED) as usize;
        let mut spins = 0;
        while s.finished.0.load(Acquire) != entered {
            spins += 1;
            if spins < s.spins { std::hint::spin_loop() } else { yield_now() }
        }
        let theirs = s.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = mine.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    fn wake(&self) {
        for (parked, worker) in self.shared.parked.iter().zip(&self.workers) {
            if parked.0.load(SeqCst) && parked.0.swap(false, SeqCst) {
                worker.thread().unpark();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            let _ = worker.join();
        }
    }
}

type Job = *const (dyn Fn(Range<usize>) + Sync);

/// `state` is the job's number, above one bit "closed", above the count of workers that have entered it.
const ENTERED: u64 = 0xffff;
const CLOSED: u64 = 1 << 16;
const NUMBER: u64 = 1 << 17;

#[repr(align(128))] // its own pair of cache lines
struct Line<T>(T);

struct Work {
    job: Job,
    total: usize,
    parts: usize,
}

struct Shared {
    state: Line<AtomicU64>,
    next: Line<AtomicUsize>,
    finished: Line<AtomicUsize>,
    work: UnsafeCell<Option<Work>>,
    parked: Vec<Line<AtomicBool>>,
    busy: AtomicBool,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    spins: usize,
}

// SAFETY: `work` is written only by the caller while no worker is inside a job, and read only by those who entered.
unsafe impl Sync for Shared {}
// SAFETY: as above; the job pointer is followed only while the caller waits.
unsafe impl Send for Shared {}

/// The right to run a job, given back when dropped.
struct Turn<'a>(&'a AtomicBool);

impl<'a> Turn<'a> {
    fn take(busy: &'a AtomicBool) -> Self {
        assert!(!busy.swap(true, Acquire), "split inside split: this is a bug");
        Self(busy)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Release);
    }
}

fn serve(s: &Shared, index: usize) {
    let (mut done, mut spins) = (0, 0);
    while !s.stop.load(Relaxed) {
        let state = s.state.0.load(Acquire);
        if state & CLOSED == 0 && state / NUMBER != done {
            if s.state.0.compare_exchange(state, state + 1, AcqRel, Relaxed).is_ok() {
                // SAFETY: entered, so the caller waits for `finished` before it touches `work` or returns.
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| unsafe { pieces(s) })) {
                    s.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
                }
                s.finished.0.fetch_add(1, Release);
                (done, spins) = (state / NUMBER, 0);
            }
            continue;
        }
        spins += 1;
        if spins < s.spins {
            std::hint::spin_loop();
            continue;
        }
        // Announce, look again, sleep: the caller opens the job before it looks at `parked`, so no wake-up is lost.
        s.parked[index].0.store(true, SeqCst);
        let state = s.state.0.load(SeqCst);
        if (state & CLOSED != 0 || state / NUMBER == done) && !s.stop.load(SeqCst) {
            park();
        }
        s.parked[index].0.store(false, SeqCst);
        spins = 0;
    }
}

/// Takes pieces until none is left.
///
/// # Safety
/// The calling thread is inside the job: it opened it, or has entered it.
unsafe fn pieces(s: &Shared) {
    // SAFETY: inside the job, so `work` is set and not written.
    let (work, job) = unsafe {
        let work = (*s.work.get()).as_ref().expect("an open job has work: this is a bug");
        (work, &*work.job)
    };
    loop {
        let part = s.next.0.fetch_add(1, Relaxed);
        if part >= work.parts {
            return;
        }
        job(work.total * part / work.parts..work.total * (part + 1) / work.parts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_is_visited_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads, 100).expect("threads start");
            for total in [0, 1, 2, 7, 100, 1000] {
                let seen: Vec<AtomicUsize> = (0..total).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..20 {
                    pool.split(total, 3, &|range| range.for_each(|i| _ = seen[i].fetch_add(1, Relaxed)));
                }
                assert!(seen.iter().all(|n| n.load(Relaxed) == 20), "{threads} threads, {total}");
            }
        }
    }

    #[test]
    fn parked_workers_wake_and_an_idle_pool_ends() {
        let pool = Pool::new(3, 0).expect("threads start"); // parks at once
        for _ in 0..200 {
            let count = AtomicUsize::new(0);
            pool.split(64, 4, &|range| _ = count.fetch_add(range.len(), Relaxed));
            assert_eq!(count.load(Relaxed), 64);
        }
    }

    #[test]
    fn a_panic_on_any_thread_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3, 100).expect("threads start");
        for bad in 0..24 {
            let job = |range: Range<usize>| assert!(!range.contains(&bad), "piece {bad}");
            let caught = catch_unwind(AssertUnwindSafe(|| pool.split(24, 8, &job)));
            let message = *caught.expect_err("the panic is raised").downcast::<String>().expect("a message");
            assert_eq!(message, format!("piece {bad}"));
        }
        let count = AtomicUsize::new(0);
        pool.split(64, 4, &|range| _ = count.fetch_add(range.len(), Relaxed));
        assert_eq!(count.load(Relaxed), 64);
    }

    #[test]
    fn a_split_inside_a_split_is_refused() {
        for threads in [1, 2] {
            let pool = Pool::new(threads, 100).expect("threads start");
            let nested = catch_unwind(AssertUnwindSafe(|| pool.split(4, 1, &|_| pool.split(4, 1, &|_| {}))));
            assert!(nested.is_err());
        }
    }
}
