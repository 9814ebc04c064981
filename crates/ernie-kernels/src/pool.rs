//! How work is spread over threads: the one place that knows which thread pool there is.
//!
//! Today that is rayon's global pool, sized by the binary. No kernel calls rayon itself (the `gemm` crate does, for
//! [`crate::gemm`]), so that a pool with cheaper barriers can replace it here. Splits are made by row counts that do not
//! depend on the number of threads wherever a sum crosses them.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

/// The number of threads that share the work.
pub(crate) fn threads() -> usize {
    rayon::current_num_threads()
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
    let pieces = n.div_ceil(grain);
    if pieces <= 1 || threads() == 1 {
        for i in 0..pieces {
            f(i * grain..((i + 1) * grain).min(n));
        }
        return;
    }
    (0..pieces).into_par_iter().for_each(|i| f(i * grain..((i + 1) * grain).min(n)));
}

/// As [`ranges`], with a result of each range, in the order of the ranges.
pub(crate) fn map_ranges<R: Send>(n: usize, grain: usize, f: impl Fn(Range<usize>) -> R + Sync + Send) -> Vec<R> {
    let grain = grain.max(1);
    let pieces = n.div_ceil(grain);
    if pieces <= 1 {
        return (0..pieces).map(|i| f(i * grain..((i + 1) * grain).min(n))).collect();
    }
    (0..pieces).into_par_iter().map(|i| f(i * grain..((i + 1) * grain).min(n))).collect()
}

/// Splits `a` into pieces of `piece` elements and calls `f` with the first element's index and the piece.
pub(crate) fn pieces<A: Send>(a: &mut [A], piece: usize, f: impl Fn(usize, &mut [A]) + Sync + Send) {
    if a.len() <= piece {
        if !a.is_empty() {
            f(0, a);
        }
        return;
    }
    a.par_chunks_mut(piece).enumerate().for_each(|(i, a)| f(i * piece, a));
}

/// Splits two outputs into the same rows (of `wa` and `wb` elements) and calls `f` with the first row and both pieces.
pub(crate) fn rows2<A: Send, B: Send>(
    (a, wa): (&mut [A], usize),
    (b, wb): (&mut [B], usize),
    grain: usize,
    f: impl Fn(usize, &mut [A], &mut [B]) + Sync + Send,
) {
    if a.is_empty() && b.is_empty() {
        return;
    }
    if a.len() <= wa * grain {
        f(0, a, b);
        return;
    }
    a.par_chunks_mut(wa * grain)
        .zip(b.par_chunks_mut(wb * grain))
        .enumerate()
        .for_each(|(i, (a, b))| f(i * grain, a, b));
}

/// As [`rows2`], with three outputs.
pub(crate) fn rows3<A: Send, B: Send, C: Send>(
    (a, wa): (&mut [A], usize),
    (b, wb): (&mut [B], usize),
    (c, wc): (&mut [C], usize),
    grain: usize,
    f: impl Fn(usize, &mut [A], &mut [B], &mut [C]) + Sync + Send,
) {
    if a.is_empty() && b.is_empty() && c.is_empty() {
        return;
    }
    if a.len() <= wa * grain {
        f(0, a, b, c);
        return;
    }
    a.par_chunks_mut(wa * grain)
        .zip(b.par_chunks_mut(wb * grain))
        .zip(c.par_chunks_mut(wc * grain))
        .enumerate()
        .for_each(|(i, ((a, b), c))| f(i * grain, a, b, c));
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
    /// Buffers that are not in use, the one needed next on top.
    static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `len` floats of per-thread scratch that start on a cache line, of unspecified content.
///
/// The memory is kept for the next call on the thread. Calls may nest: a task may be stolen while another one waits.
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
