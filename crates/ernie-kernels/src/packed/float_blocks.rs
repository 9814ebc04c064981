//! Products of f32 matrices that are packed as they are needed: the one driver of [`crate::gemm`] and [`crate::linear`].
//!
//! The result is cut into rectangles, one a task. A task packs the weights of some of its columns over some of `k`, multiplies
//! all of its rows by them while they are in the second-level cache, and goes on in `k`, its sums waiting in `y` meanwhile. An
//! output's sum does not notice: it is one chain of multiply-adds in the order of `k` however the cuts fall.

use std::ops::Range;

use super::float_pack;
use super::float_tile::{Block, Fused, STEP, Tile, WIDTH, run_words, run_words_tall};
use crate::Level;
use crate::level::Isa;
use crate::pool::{self, Shared};

/// Elements of the inner dimension that are packed at a time: a multiple of every stored format's block.
pub(crate) const DEPTH: usize = 256;

/// Most rows of input that are gone through before the next panels.
const ROWS: usize = 256;

/// Most columns that are packed at a time: with [`DEPTH`], 384 KiB.
const COLUMNS: usize = 384;

/// The same for a few rows of input, which should find them in the first-level cache.
const FEW_COLUMNS: usize = 48;

/// Products below this many multiplications are done on the calling thread.
const SERIAL: usize = 64 * 64 * 64;

/// The input `[m, k]` of a product.
#[derive(Clone, Copy)]
pub(crate) enum Left<'a> {
    /// Row by row.
    Rows(&'a [f32]),
    /// Its transpose, row by row.
    Columns(&'a [f32]),
}

/// The shape of a product: `[m, k]` by `[k, n]`.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) m: usize,
    pub(crate) k: usize,
    pub(crate) n: usize,
}

/// `y[m, n] = (y if add) + left · weights`, where `pack(ks, columns, panel)` writes the panel of up to sixteen columns over
/// `ks` (which starts at a multiple of [`DEPTH`] and is no longer), and `done(rows, columns, y)` is called for each rectangle
/// of `y` when it is whole, by the only task that has it.
///
/// # Panics
/// When a length does not fit.
pub(crate) fn product(
    isa: Isa,
    left: Left<'_>,
    Shape { m, k, n }: Shape,
    pack: impl Fn(Range<usize>, Range<usize>, &mut [f32]) + Sync + Send,
    y: &mut [f32],
    add: bool,
    done: impl Fn(Range<usize>, Range<usize>, &Shared<'_, f32>) + Sync + Send,
) {
    let sized = |x: usize, y: usize, len: usize| x.checked_mul(y) == Some(len);
    let (Left::Rows(x) | Left::Columns(x)) = left;
    assert!(
        sized(m, k, x.len()) && sized(m, n, y.len()),
        "product: {m}x{k} by {k}x{n} with {} and {} elements",
        x.len(),
        y.len()
    );
    if y.is_empty() {
        return;
    }
    if k == 0 && !add {
        y.fill(0.0);
    }
    let (high, wide) = rectangles(m, k, n, matches!(left, Left::Columns(_)));
    let across = n.div_ceil(wide);
    let y = Shared::new(y);
    pool::ranges(m.div_ceil(high) * across, 1, |task| {
        let (row, column) = (task.start / across * high, task.start % across * wide);
        let (rows, columns) = (row..(row + high).min(m), column..(column + wide).min(n));
        // SAFETY: each rectangle belongs to one task.
        unsafe { rectangle(isa, left, Shape { m, k, n }, &pack, &y, &rows, &columns, add) };
        done(rows, columns, &y);
    });
}

/// The height and width of the tasks' rectangles.
///
/// As many rectangles as keep all threads busy to the end, cut so that the least is packed twice.
fn rectangles(m: usize, k: usize, n: usize, tall: bool) -> (usize, usize) {
    let work = m.saturating_mul(n).saturating_mul(k);
    let threads = pool::threads();
    let panels = n.div_ceil(WIDTH);
    if threads == 1 || work <= SERIAL {
        return (m, panels * WIDTH);
    }
    let tasks = threads * if work > 1 << 31 { 4 } else { 2 };
    // What each cut costs: packing weights anew, and reading (or packing) the input anew.
    let cost = |down: usize| {
        let across = tasks / down;
        n as f64 * down as f64 + m as f64 * across as f64 * if tall { 1.0 } else { 0.15 }
    };
    let down = (1..=tasks.min(m.div_ceil(64)))
        .filter(|down| tasks.is_multiple_of(*down) && tasks / down <= panels)
        .min_by(|&a, &b| cost(a).total_cmp(&cost(b)))
        .unwrap_or(1);
    (m.div_ceil(down).next_multiple_of(8), panels.div_ceil(tasks / down) * WIDTH)
}

/// One task.
///
/// # Safety
/// No other thread touches this rectangle of `y` meanwhile.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn rectangle(
    isa: Isa,
    left: Left<'_>,
    Shape { m, k, n }: Shape,
    pack: &impl Fn(Range<usize>, Range<usize>, &mut [f32]),
    y: &Shared<'_, f32>,
    rows: &Range<usize>,
    columns: &Range<usize>,
    add: bool,
) {
    assert!(rows.end <= m && columns.end <= n && m * n <= y.len(), "product: task outside the result");
    let most = if rows.len() < 32 { FEW_COLUMNS } else { COLUMNS };
    let depth = k.min(DEPTH);
    let height = tile_rows(isa);
    let right = most.min(columns.len().next_multiple_of(WIDTH)) * depth;
    let tall = matches!(left, Left::Columns(_));
    let high = rows.len().min(ROWS / height * height);
    pool::scratch(right + if tall { high.next_multiple_of(height) * depth } else { 0 }, |scratch| {
        let (panels, tiles) = scratch.split_at_mut(right);
        for some in cut(columns, most) {
            for ks in cut(&(0..k), DEPTH) {
                for (i, panel) in panels.chunks_exact_mut(ks.len() * WIDTH).enumerate() {
                    let first = some.start + i * WIDTH;
                    if first < some.end {
                        pack(ks.clone(), first..(first + WIDTH).min(some.end), panel);
                    }
                }
                for rows in cut(rows, high) {
                    let (x, xs) = match left {
                        Left::Rows(x) => (&x[rows.start * k + ks.start..], k),
                        Left::Columns(x) => {
                            let from = &x[ks.start * m + rows.start..];
                            float_pack::tall(isa, from, m, rows.len(), ks.len(), height, tiles);
                            (&*tiles, height * ks.len())
                        }
                    };
                    let block = Block {
                        x: x.as_ptr(),
                        xs,
                        rows: rows.len(),
                        w: panels.as_ptr().cast(),
                        ws: ks.len() * STEP,
                        outs: some.len(),
                        k: ks.len(),
                        // SAFETY: inside `y`, as was checked.
                        y: unsafe { y.pointer().add(rows.start * n + some.start) },
                        ys: n,
                        add: add || ks.start > 0,
                    };
                    // SAFETY: the input holds these rows over `ks` (its length was checked by `product`), the panels those
                    // columns, and this part of `y` is this task's.
                    unsafe { if tall { run_words_tall(isa, &block) } else { run_words(isa, &block) } }
                }
            }
        }
    });
}

/// Rows of input in a tile at a level.
fn tile_rows(isa: Isa) -> usize {
    match isa.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => Fused::<crate::lanes::x86::Pair>::ROWS,
        Level::Scalar => Fused::<crate::lanes::Plain>::ROWS,
        #[cfg(target_arch = "x86_64")]
        _ => Fused::<std::arch::x86_64::__m512>::ROWS,
        #[cfg(not(target_arch = "x86_64"))]
        _ => Fused::<crate::lanes::Plain>::ROWS,
    }
}

/// Consecutive ranges of at most `piece` that make up `range`.
pub(crate) fn cut(range: &Range<usize>, piece: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let end = range.end;
    range.clone().step_by(piece.max(1)).map(move |start| start..(start + piece).min(end))
}
