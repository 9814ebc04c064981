//! How work is spread over threads: the one place that knows which thread pool there is.
//!
//! It is our own ([`workers`]): a decode step has over a hundred regions, and each must cost less than a microsecond. Splits
//! are made by row counts that do not depend on the number of threads wherever a sum crosses them.

mod workers;

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use self::workers::Pool;

static POOL: Pool = Pool::new(0);

/// The number of threads that share the work of a kernel, the calling one included.
pub fn threads() -> usize {
    POOL.threads()
}

/// Sets how many threads share the work of a kernel, the calling one included; 0 gives all cores that the process may use.
///
/// May be called at any time: it holds from the next kernel on. More than 512 are taken as 512.
pub fn set_threads(threads: usize) {
    POOL.set_threads(threads);
}

/// Calls `f` with each index in `0..pieces`, in parallel and in no order, and returns when all have returned.
///
/// The threads are the kernels' own. A call from inside a piece, or while another thread has them, runs on the caller alone.
///
/// # Panics
/// When a piece does, with its payload, after the other threads have stopped; pieces not begun by then are left out.
pub fn parallel(pieces: usize, f: impl Fn(usize) + Sync) {
    POOL.run(pieces, &f);
}

/// Elements a piece of element-wise work should have before it is worth another thread (some 10 microseconds).
pub(crate) const GRAIN: usize = 16 * 1024;

/// Rows of `width` elements that make a piece worth its own task.
pub(crate) fn grain_rows(width: usize) -> usize {
    (GRAIN / width.max(1)).max(1)
}

/// Calls `f` with consecutive ranges of at most `grain` that cover `0..n`, in parallel and in no order.
pub(crate) fn ranges(n: usize, grain: usize, f: impl Fn(Range<usize>) + Sync + Send) {
    let grain = grain.max(1);
    parallel(n.div_ceil(grain), |i| f(i * grain..((i + 1) * grain).min(n)));
}

/// As [`ranges`], with a result of each range, in the order of the ranges.
pub(crate) fn map_ranges<R: Send>(n: usize, grain: usize, f: impl Fn(Range<usize>) -> R + Sync + Send) -> Vec<R> {
    let grain = grain.max(1);
    let mut results: Vec<Option<R>> = (0..n.div_ceil(grain)).map(|_| None).collect();
    pieces(&mut results, 1, |i, result| result[0] = Some(f(i * grain..((i + 1) * grain).min(n))));
    results.into_iter().flatten().collect()
}

/// Splits `a` into pieces of `piece` elements and calls `f` with the first element's index and the piece.
pub(crate) fn pieces<A: Send>(a: &mut [A], piece: usize, f: impl Fn(usize, &mut [A]) + Sync + Send) {
    let (n, a) = (a.len(), Shared::new(a));
    // SAFETY: the ranges do not overlap, and each is handed out once.
    ranges(n, piece, |range| f(range.start, unsafe { a.part(range) }));
}

/// Splits two outputs into the same rows (of `wa` and `wb` elements) and calls `f` with the first row and both pieces.
pub(crate) fn rows2<A: Send, B: Send>(
    (a, wa): (&mut [A], usize),
    (b, wb): (&mut [B], usize),
    grain: usize,
    f: impl Fn(usize, &mut [A], &mut [B]) + Sync + Send,
) {
    rows3((a, wa), (b, wb), (&mut [] as &mut [()], 0), grain, |row, a, b, _| f(row, a, b));
}

/// As [`rows2`], with three outputs.
///
/// # Panics
/// When the outputs do not have the same number of rows.
pub(crate) fn rows3<A: Send, B: Send, C: Send>(
    (a, wa): (&mut [A], usize),
    (b, wb): (&mut [B], usize),
    (c, wc): (&mut [C], usize),
    grain: usize,
    f: impl Fn(usize, &mut [A], &mut [B], &mut [C]) + Sync + Send,
) {
    let of = |len: usize, width: usize| len.checked_div(width).unwrap_or(0);
    let rows = of(a.len(), wa).max(of(b.len(), wb)).max(of(c.len(), wc));
    assert!(
        a.len() == rows * wa && b.len() == rows * wb && c.len() == rows * wc,
        "pool: {} elements by {wa}, {} by {wb} and {} by {wc} are not the same rows",
        a.len(),
        b.len(),
        c.len()
    );
    let (a, b, c) = (Shared::new(a), Shared::new(b), Shared::new(c));
    ranges(rows, grain, |rows| {
        let at = |width: usize| rows.start * width..rows.end * width;
        // SAFETY: the row ranges do not overlap, and each is handed out once.
        let (a, b, c) = unsafe { (a.part(at(wa)), b.part(at(wb)), c.part(at(wc))) };
        f(rows.start, a, b, c);
    });
}

/// A slice that several threads write, each its own part. The parts are the callers' promise.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: a `Shared` is a `&mut [T]` taken apart; `part` demands that no two threads hold overlapping parts, so sharing it
// moves at most the elements themselves between threads, which `T: Send` allows.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as above; the pointer itself carries no thread affinity.
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Shared { start: slice.as_mut_ptr(), len: slice.len(), owner: PhantomData }
    }

    /// Of elements that nobody has written yet.
    ///
    /// # Safety
    /// They are written through [`Self::pointer`] before anything reads them.
    pub(crate) unsafe fn unwritten(slice: &'a mut [MaybeUninit<T>]) -> Self {
        Shared { start: slice.as_mut_ptr().cast(), len: slice.len(), owner: PhantomData }
    }

    /// The first element, for writers whose part is not one range; the number of elements is [`Self::len`].
    pub(crate) fn pointer(&self) -> *mut T {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No other part that overlaps `range` may be alive, on any thread, while the result is.
    ///
    /// # Panics
    /// When `range` is outside the slice.
    #[allow(clippy::mut_from_ref)] // Disjointness is the caller's promise, stated above.
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part {range:?} of {} elements", self.len);
        // SAFETY: the range is inside the slice this was made from, which `'a` keeps borrowed; exclusiveness is promised.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.end - range.start) }
    }
}

thread_local! {
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic on this thread is caught and dealt with by the thread that it works for: for a program's panic hook, which reports
/// it and must not end the process then.
pub fn panics_are_caught() -> bool {
    CAUGHT.get()
}

/// Says that this thread catches its panics, with them those of other threads that work for it in a parallel region.
pub fn catch_panics() {
    CAUGHT.set(true);
}

thread_local! {
    /// Buffers that are not in use, the one needed next on top.
    static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `len` floats of per-thread scratch that start on a cache line, of unspecified content.
///
/// The memory is kept for the next call on the thread. Calls may nest.
pub(crate) fn scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    const LINE: usize = 64 / size_of::<f32>();
    let mut buffer = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    if buffer.len() < len + LINE {
        buffer.resize(len + LINE, 0.0);
    }
    // The offset could only be refused in const evaluation, where 0 would be right as well.
    let skip = buffer.as_ptr().align_offset(64).min(LINE);
    let result = f(&mut buffer[skip..skip + len]);
    SCRATCH.with_borrow_mut(|buffers| buffers.push(buffer));
    result
}
