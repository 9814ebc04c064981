//! The threads behind the kernels: a caller and its helpers share the pieces of a region, and nobody waits for a sleeper.
//!
//! A region is published by one store. Helpers that are awake *join* it (a compare-and-swap on the same word), take pieces
//! from a counter until there are none, and leave. The caller takes pieces as well, then closes the region and waits for those
//! who joined, and only for those: a helper that is asleep, or that the machine has taken off its core, costs nothing but its
//! help. With hot helpers that is a few transfers of a cache line, well under a microsecond; a futex is twenty.
//!
//! Helpers spin for [`SPIN`] after a region and then park, so that an idle process uses no processor time.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The most threads a pool will have, whatever is asked for.
const MOST: usize = 512;

/// How long a helper looks for the next region before it parks: longer than what lies between the regions of a decode step.
const SPIN: Duration = Duration::from_micros(80);

/// How long the caller spins for helpers that still hold a piece before it gives its core away while it waits.
const PATIENCE: Duration = Duration::from_micros(20);

/// Set in the state while helpers may join; the bits below count those who did, the upper half numbers the regions.
const OPEN: u64 = 1 << 31;
const JOINED: u64 = OPEN - 1;
const REGION: u64 = 1 << 32;

/// Keeps what different threads write on different cache lines (two, as the hardware fetches them in pairs).
#[repr(align(128))]
struct Apart<T>(T);

type Pieces = dyn Fn(usize) + Sync;

/// What helpers are to do: call `run` with each index below `count`.
#[derive(Clone, Copy)]
struct Job {
    run: *const Pieces,
    count: usize,
    /// Whether the caller catches panics.
    caught: bool,
}

/// What the caller and its helpers share.
struct Board {
    state: Apart<AtomicU64>,
    /// The next piece to take.
    next: Apart<AtomicUsize>,
    job: Apart<UnsafeCell<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    over: AtomicBool,
    /// One a helper: whether it sleeps and wants to be woken.
    asleep: Vec<Apart<AtomicBool>>,
}

// SAFETY: `job` is written by the one owner of the crew while the region is closed and nobody is joined, and read by helpers
// between joining and leaving; the state's acquire and release operations order the two. Its pointer is to a `Sync` closure,
// which outlives the region (`Crew::run`). Everything else is atomics and a mutex.
unsafe impl Sync for Board {}
// SAFETY: as above; nothing in it belongs to a thread.
unsafe impl Send for Board {}

impl Board {
    /// Takes pieces until there are none. A panic is kept for the caller, and no more pieces are handed out.
    ///
    /// # Safety
    /// The job's closure must be alive: the caller of the region, or a helper that has joined it.
    unsafe fn work(&self, job: Job) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let piece = self.next.0.fetch_add(1, Ordering::Relaxed);
                if piece >= job.count {
                    break;
                }
                // SAFETY: alive by contract.
                unsafe { (*job.run)(piece) };
            }
        }));
        if let Err(payload) = result {
            self.next.0.store(job.count, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
        }
    }

    /// The life of helper `me`.
    fn help(&self, me: usize) {
        let mut seen = 0;
        let mut idle = Idle::new(SPIN);
        loop {
            let state = self.state.0.load(Ordering::Acquire);
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            if state / REGION == seen {
                if !idle.spin() {
                    self.sleep(me, seen);
                    idle = Idle::new(SPIN);
                }
                continue;
            }
            if state & OPEN == 0 {
                seen = state / REGION;
                idle = Idle::new(SPIN);
                continue;
            }
            if self.state.0.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            seen = state / REGION;
            // SAFETY: having joined an open region, nobody writes the job, and its closure lives, until this thread leaves.
            unsafe {
                let job = *self.job.0.get();
                super::CAUGHT.set(job.caught);
                self.work(job);
            }
            self.state.0.fetch_sub(1, Ordering::Release);
            idle = Idle::new(SPIN);
        }
    }

    /// Parks until a region after `seen` is published.
    fn sleep(&self, me: usize, seen: u64) {
        let asleep = &self.asleep[me].0;
        // The caller publishes and then looks for sleepers; this says "asleep" and then looks for a region. In the single order
        // of these four, at least one of the two sees the other.
        asleep.store(true, Ordering::SeqCst);
        while asleep.load(Ordering::SeqCst) {
            if self.state.0.load(Ordering::SeqCst) / REGION != seen || self.over.load(Ordering::SeqCst) {
                asleep.store(false, Ordering::Relaxed);
                return;
            }
            thread::park();
        }
    }
}

/// Spinning that knows how long it has gone on.
struct Idle {
    limit: Duration,
    turns: u32,
    since: Option<Instant>,
}

impl Idle {
    fn new(limit: Duration) -> Self {
        Idle { limit, turns: 0, since: None }
    }

    /// One turn; false once the time is up.
    fn spin(&mut self) -> bool {
        std::hint::spin_loop();
        self.turns += 1;
        // The clock is read now and then only, and not at all where the wait is short.
        if !self.turns.is_multiple_of(64) {
            return true;
        }
        let now = Instant::now();
        now.duration_since(*self.since.get_or_insert(now)) < self.limit
    }
}

/// Helpers at one size of the pool.
struct Crew {
    /// Threads that were asked for, the caller included; fewer helpers may have started.
    size: usize,
    board: Arc<Board>,
    helpers: Vec<JoinHandle<()>>,
}

impl Crew {
    fn new(size: usize) -> Self {
        fn nothing(_: usize) {}
        let board = Arc::new(Board {
            state: Apart(AtomicU64::new(0)),
            next: Apart(AtomicUsize::new(0)),
            job: Apart(UnsafeCell::new(Job { run: &nothing, count: 0, caught: false })),
            panic: Mutex::new(None),
            over: AtomicBool::new(false),
            asleep: (1..size).map(|_| Apart(AtomicBool::new(false))).collect(),
        });
        let start = |me: usize| {
            let board = Arc::clone(&board);
            // A machine that refuses a thread has one helper less.
            thread::Builder::new().name(format!("kernels-{}", me + 1)).spawn(move || board.help(me)).ok()
        };
        let helpers = (0..size.saturating_sub(1)).map_while(start).collect();
        Crew { size, board, helpers }
    }

    /// Runs a region of at least two pieces; the panic of one, if any, after all have stopped.
    fn run(&self, count: usize, run: &(dyn Fn(usize) + Sync)) -> Result<(), Box<dyn Any + Send>> {
        let board = &*self.board;
        // SAFETY: only the lifetime changes. Helpers use the pointer between joining and leaving, and this function returns
        // after the region is closed and all who joined have left.
        let run = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const Pieces>(run) };
        let job = Job { run, count, caught: super::panics_are_caught() };
        // SAFETY: the last region is closed and left by all, so no helper reads the job; the caller owns the crew.
        unsafe { *board.job.0.get() = job };
        board.next.0.store(0, Ordering::Relaxed);
        let region = board.state.0.load(Ordering::Relaxed) / REGION;
        board.state.0.store(((region + 1) % REGION * REGION) | OPEN, Ordering::SeqCst);
        for (helper, asleep) in self.helpers.iter().zip(&board.asleep).take(count - 1) {
            if asleep.0.load(Ordering::SeqCst) && asleep.0.swap(false, Ordering::SeqCst) {
                helper.thread().unpark();
            }
        }
        // SAFETY: the closure is borrowed for the whole of this call.
        unsafe { board.work(job) };
        let mut joined = board.state.0.fetch_and(!OPEN, Ordering::AcqRel) & JOINED;
        let mut idle = Idle::new(PATIENCE);
        let mut patient = true;
        while joined > 0 {
            if patient {
                patient = idle.spin();
            } else {
                // A helper that holds a piece may be waiting for a core, perhaps for this one.
                thread::yield_now();
            }
            joined = board.state.0.load(Ordering::Acquire) & JOINED;
        }
        match board.panic.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(payload) => Err(payload),
            None => Ok(()),
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.board.over.store(true, Ordering::SeqCst);
        for (helper, asleep) in self.helpers.iter().zip(&self.board.asleep) {
            asleep.0.store(false, Ordering::SeqCst);
            helper.thread().unpark();
        }
        for helper in self.helpers.drain(..) {
            // A helper catches the panics of its pieces, so there is nothing to hear of.
            let _ = helper.join();
        }
    }
}

/// A pool: at most one region at a time, on threads that start when the first one comes.
pub(super) struct Pool {
    /// Threads asked for; 0: as many as the process may use.
    wanted: AtomicUsize,
    busy: AtomicBool,
    /// Touched by the thread that set `busy`, and by no other.
    crew: UnsafeCell<Option<Crew>>,
}

// SAFETY: `crew` is reached through `Owner` alone, of which `busy` lets one exist at a time; its acquire and release order
// one owner's accesses before the next one's.
unsafe impl Sync for Pool {}

/// The right to touch the crew.
struct Owner<'a>(&'a Pool);

impl Owner<'_> {
    /// The crew at the size that is wanted now.
    fn crew(&mut self) -> &Crew {
        // SAFETY: the only owner.
        let crew = unsafe { &mut *self.0.crew.get() };
        let size = self.0.threads();
        if crew.as_ref().is_some_and(|crew| crew.size != size) {
            *crew = None;
        }
        crew.get_or_insert_with(|| Crew::new(size))
    }
}

impl Drop for Owner<'_> {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
    }
}

impl Pool {
    pub(super) const fn new(threads: usize) -> Self {
        Pool { wanted: AtomicUsize::new(threads), busy: AtomicBool::new(false), crew: UnsafeCell::new(None) }
    }

    fn own(&self) -> Option<Owner<'_>> {
        let free = self.busy.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok();
        free.then(|| Owner(self))
    }

    pub(super) fn threads(&self) -> usize {
        static CORES: OnceLock<usize> = OnceLock::new();
        match self.wanted.load(Ordering::Relaxed) {
            0 => *CORES.get_or_init(|| thread::available_parallelism().map_or(1, usize::from).min(MOST)),
            threads => threads,
        }
    }

    pub(super) fn set_threads(&self, threads: usize) {
        self.wanted.store(threads.min(MOST), Ordering::Relaxed);
        // Threads that are no longer wanted end now; if a region is running, when the next one begins.
        if let Some(owner) = self.own() {
            // SAFETY: the only owner.
            let crew = unsafe { &mut *owner.0.crew.get() };
            if crew.as_ref().is_some_and(|crew| crew.size != self.threads()) {
                *crew = None;
            }
        }
    }

    /// Calls `f` with each index below `count`, shared among the threads; alone when they are taken or there is but one.
    pub(super) fn run(&self, count: usize, f: &(dyn Fn(usize) + Sync)) {
        if count >= 2
            && self.threads() > 1
            && let Some(mut owner) = self.own()
        {
            let result = owner.crew().run(count, f);
            drop(owner);
            if let Err(payload) = result {
                resume_unwind(payload);
            }
            return;
        }
        for i in 0..count {
            f(i);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    /// Every piece of a region is done exactly once.
    fn counts(pool: &Pool, pieces: usize) {
        let done: Vec<AtomicU32> = (0..pieces).map(|_| AtomicU32::new(0)).collect();
        pool.run(pieces, &|i| {
            done[i].fetch_add(1, Ordering::Relaxed);
        });
        assert!(done.iter().all(|d| d.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn many_tiny_regions_lose_no_piece() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads);
            for i in 0..20_000 {
                counts(&pool, i % 9);
            }
        }
    }

    #[test]
    fn helpers_take_part_and_wake_again() {
        let pool = Pool::new(2);
        for _ in 0..5 {
            let (here, elsewhere) = (thread::current().id(), AtomicBool::new(false));
            let start = Instant::now();
            // Pieces end when the other thread has come: this would hang if a parked helper were never woken.
            pool.run(2, &|_| {
                if thread::current().id() == here {
                    while !elsewhere.load(Ordering::Relaxed) && start.elapsed() < Duration::from_secs(20) {
                        thread::yield_now();
                    }
                } else {
                    elsewhere.store(true, Ordering::Relaxed);
                }
            });
            assert!(elsewhere.load(Ordering::Relaxed));
            // Long past the spinning: the helper sleeps.
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_region_inside_a_region_runs_in_place() {
        let pool = Pool::new(3);
        let done = AtomicUsize::new(0);
        for _ in 0..200 {
            pool.run(4, &|_| {
                let here = thread::current().id();
                pool.run(5, &|_| {
                    assert_eq!(thread::current().id(), here);
                    done.fetch_add(1, Ordering::Relaxed);
                });
            });
        }
        assert_eq!(done.into_inner(), 200 * 4 * 5);
    }

    #[test]
    fn many_callers_share_one_pool_and_none_waits_for_another() {
        let pool = Pool::new(3);
        thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    for i in 0..3000 {
                        counts(&pool, 1 + i % 5);
                    }
                });
            }
            scope.spawn(|| {
                for i in 0..60 {
                    pool.set_threads(1 + i % 5);
                    thread::yield_now();
                }
            });
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        for round in 0..50 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(20, &|i| assert!(i != round % 20, "piece {i} of round {round}"));
            }));
            let text = *caught.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(text, format!("piece {} of round {round}", round % 20));
            counts(&pool, 7);
        }
    }

    #[test]
    fn helpers_know_whether_the_caller_catches_panics() {
        let pool = Pool::new(4);
        for caught in [false, true, false] {
            super::super::CAUGHT.set(caught);
            for _ in 0..50 {
                pool.run(40, &|_| assert_eq!(super::super::panics_are_caught(), caught));
            }
        }
    }

    #[test]
    fn the_size_may_change_between_regions() {
        let pool = Pool::new(0);
        for threads in [0, 1, 4, 2, 9, 0, 3] {
            pool.set_threads(threads);
            assert!(if threads == 0 { pool.threads() >= 1 } else { pool.threads() == threads });
            for _ in 0..50 {
                counts(&pool, 11);
            }
        }
        pool.set_threads(usize::MAX);
        assert_eq!(pool.threads(), MOST);
    }
}
