//! What a page looks like inside, and how rows get in and out.
//!
//! For each key/value head in turn: the keys, the values, and for int8 the scales of both, `[PAGE]` f32 each. Keys and values
//! lie in panels of [`COLUMNS`] columns, whose rows are lines of as many elements: keys by dimension with positions as
//! columns, so that a score needs no sum across lanes; values by position with dimensions as columns, which are filled up to
//! whole panels. A line of bf16 holds its column `c` beside column `c + 16`, as the lower and the upper half of a 32-bit
//! word, which a shift and a mask widen; in the other formats columns follow each other. Pages of bf16 that tile registers will
//! multiply lie otherwise (`tiles/pairs.rs`): a page is read at the level that it was written at.

use std::ops::Range;

use half::bf16;

use super::super::tile::{self, Tile};
use super::super::{Heads, check_spans};
use super::product::COLUMNS;
#[cfg(target_arch = "x86_64")]
use super::tiles::pairs;
use super::{CacheFormat, PAGE};
use crate::level::{Isa, Level};
use crate::{pool, simd};

/// Sizes and places within a page.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) format: CacheFormat,
    /// Width of a head, `D`.
    pub(super) width: usize,
    /// The same in whole panels.
    pub(super) padded: usize,
    kv_heads: usize,
    /// Whether elements lie in pairs for tile registers.
    pub(super) paired: bool,
}

impl Layout {
    pub(super) fn new(heads: &Heads, format: CacheFormat) -> Self {
        heads.check();
        let width = heads.head_dim;
        let paired = format == CacheFormat::Bf16 && Isa::current().level() == Level::Amx;
        Layout { format, width, padded: width.next_multiple_of(COLUMNS), kv_heads: heads.kv_heads, paired }
    }

    /// Bytes of a line.
    fn line(&self) -> usize {
        self.format.bytes(COLUMNS)
    }

    /// Where the values start in a head's bytes; the keys are before.
    pub(super) fn values(&self) -> usize {
        self.format.bytes(if self.paired { self.padded } else { self.width } * PAGE)
    }

    /// Bytes of a head's values, which the scales follow.
    pub(super) fn value_bytes(&self) -> usize {
        self.format.bytes(PAGE * self.padded)
    }

    fn head_bytes(&self) -> usize {
        self.values() + self.value_bytes() + if self.format == CacheFormat::Int8 { 2 * PAGE * 4 } else { 0 }
    }

    pub(super) fn page_bytes(&self) -> usize {
        self.kv_heads * self.head_bytes()
    }

    /// The bytes of one head.
    pub(super) fn head(&self, head: usize) -> Range<usize> {
        head * self.head_bytes()..(head + 1) * self.head_bytes()
    }

    /// The scales of a head's keys and values, which stand behind its `values`; ones where the format has none.
    pub(super) fn scales(&self, values: &[u8]) -> [[f32; PAGE]; 2] {
        let mut scales = [[1.0; PAGE]; 2];
        let (bytes, _) = values[self.value_bytes()..].as_chunks::<4>();
        for (scale, &bytes) in scales.as_flattened_mut().iter_mut().zip(bytes) {
            *scale = f32::from_le_bytes(bytes);
        }
        scales
    }

    /// Where an element of panels of so many rows lies.
    fn at(&self, rows: usize, row: usize, column: usize) -> usize {
        let (panel, column) = (column / COLUMNS, column % COLUMNS);
        (panel * rows + row) * self.line() + self.format.bytes(place_in_line(self.format, column))
    }

    /// Where the key of a position lies in this dimension, in a head's bytes.
    fn key_at(&self, dimension: usize, place: usize) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.paired {
            return pairs::key_at(self.padded, dimension, place);
        }
        self.at(self.width, dimension, place)
    }

    /// Where the value of a position lies in this dimension, in a head's bytes.
    fn value_at(&self, dimension: usize, place: usize) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.paired {
            return self.values() + pairs::value_at(dimension, place);
        }
        self.values() + self.at(PAGE, place, dimension)
    }
}

/// Which element of a line is that of a column.
#[inline(always)]
fn place_in_line(format: CacheFormat, column: usize) -> usize {
    match format {
        CacheFormat::Bf16 => 2 * (column % 16) + column / 16,
        CacheFormat::F32 | CacheFormat::Int8 => column,
    }
}

/// Bytes of a page: [`PAGE`] positions of one layer, keys and values of all key/value heads. A multiple of 64.
///
/// # Panics
/// When the heads do not divide.
pub fn page_bytes(heads: &Heads, format: CacheFormat) -> usize {
    Layout::new(heads, format).page_bytes()
}

/// Rows that go into one page.
#[derive(Debug)]
pub struct Write<'a> {
    /// The page, of [`page_bytes`] bytes.
    pub page: &'a mut [u8],
    /// The place in the page of the first row: its position modulo [`PAGE`].
    pub first: usize,
    /// The rows among those given to [`write()`].
    pub rows: Range<usize>,
}

/// Stores keys (after RoPE) and values; other positions of the pages keep what they hold.
///
/// A row that holds what is not finite stays so: f32 and bf16 store it, and int8 makes the row NaN.
///
/// # Shapes
/// `k, v: [T, G, D]`
///
/// # Panics
/// When a length does not fit, rows are outside or go twice, or a page would overflow.
pub fn write(k: &[f32], v: &[f32], heads: &Heads, format: CacheFormat, writes: &mut [Write<'_>]) {
    let layout = Layout::new(heads, format);
    let width = heads.kv_width();
    let rows = k.len() / width;
    assert!(k.len() == rows * width && v.len() == k.len(), "attention: {} keys, {} values", k.len(), v.len());
    check_spans(writes.iter().map(|w| w.rows.clone()), rows);
    for w in writes.iter() {
        assert!(
            w.page.len() == layout.page_bytes() && w.first + w.rows.len() <= PAGE,
            "attention: {} rows from {} in a page of {} bytes",
            w.rows.len(),
            w.first,
            w.page.len()
        );
    }
    let isa = Isa::current();
    let grain = (pool::GRAIN / (width * rows.div_ceil(writes.len().max(1))).max(1)).max(1);
    pool::pieces(writes, grain, |_, writes| {
        for w in writes {
            let (first, rows) = (w.first, w.rows.clone());
            if rows.is_empty() {
                continue;
            }
            for head in 0..heads.kv_heads {
                let at = rows.start * width + head * layout.width;
                let stored = &mut w.page[layout.head(head)];
                let (k, v) = (Tile { data: &k[at..], stride: width }, Tile { data: &v[at..], stride: width });
                store_head(isa, &layout, k, v, rows.len(), first, stored);
            }
        }
    });
}

/// Stores `n` rows of one head at places `first..first + n`.
fn store_head(isa: Isa, layout: &Layout, k: Tile<'_>, v: Tile<'_>, n: usize, first: usize, head: &mut [u8]) {
    let d = layout.width;
    #[cfg(target_arch = "x86_64")]
    if layout.paired {
        return pairs::store(isa, d, k, v, n, first, head);
    }
    let mut inverse = [[1.0_f32; PAGE]; 2];
    if layout.format == CacheFormat::Int8 {
        let mut scales = layout.scales(&head[layout.values()..]);
        for ((side, inverse), scales) in [k, v].into_iter().zip(&mut inverse).zip(&mut scales) {
            for i in 0..n {
                (scales[first + i], inverse[i]) = scale_of(largest(isa, &side.data[i * side.stride..][..d]));
            }
        }
        let (bytes, _) = head[layout.values() + layout.value_bytes()..].as_chunks_mut::<4>();
        for (bytes, scale) in bytes.iter_mut().zip(scales.as_flattened()) {
            *bytes = scale.to_le_bytes();
        }
    }
    let [k_inverse, v_inverse] = &inverse;
    let (keys, values) = head.split_at_mut(layout.values());
    let panel = d * layout.line();
    let mut i = 0;
    while i < n {
        let (column, places) = ((first + i) % COLUMNS, first + i);
        let panel = &mut keys[places / COLUMNS * panel..][..panel];
        if column == 0 && n - i >= COLUMNS {
            pool::scratch(d * COLUMNS, |turned| {
                tile::transpose(
                    isa,
                    Tile { data: &k.data[i * k.stride..], stride: k.stride },
                    COLUMNS,
                    d,
                    turned,
                    COLUMNS,
                );
                store_lines(isa, layout.format, turned.as_chunks().0, &k_inverse[i..], panel, layout.line());
            });
            i += COLUMNS;
        } else {
            store_column(isa, layout.format, &k.data[i * k.stride..][..d], k_inverse[i], column, panel);
            i += 1;
        }
    }
    for (i, &inverse) in v_inverse.iter().enumerate().take(n) {
        store_value(isa, layout, &v.data[i * v.stride..][..d], inverse, &mut values[(first + i) * layout.line()..]);
    }
}

kernel! {
    /// Stores lines of keys, each column multiplied with its factor.
    fn store_lines(
        format: CacheFormat,
        lines: &[[f32; COLUMNS]],
        factors: &[f32],
        out: &mut [u8],
        line: usize,
    ) {
        let Some(factors) = factors.first_chunk::<COLUMNS>() else { return };
        for (x, out) in lines.iter().zip(out.chunks_exact_mut(line)) {
            let mut scaled = *x;
            if format == CacheFormat::Int8 {
                scaled.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
            }
            store_line(format, &scaled, out);
        }
    }
}

kernel! {
    /// Stores the key of one position, a column of a panel.
    fn store_column(format: CacheFormat, x: &[f32], factor: f32, column: usize, panel: &mut [u8]) {
        let at = place_in_line(format, column);
        match format {
            CacheFormat::F32 => {
                for (line, x) in panel.as_chunks_mut::<4>().0.as_chunks_mut::<COLUMNS>().0.iter_mut().zip(x) {
                    line[at] = x.to_le_bytes();
                }
            }
            CacheFormat::Bf16 => {
                for (line, &x) in panel.as_chunks_mut::<2>().0.as_chunks_mut::<COLUMNS>().0.iter_mut().zip(x) {
                    line[at] = to_bf16(x).to_le_bytes();
                }
            }
            CacheFormat::Int8 => {
                for (line, &x) in panel.as_chunks_mut::<COLUMNS>().0.iter_mut().zip(x) {
                    line[at] = to_int8(x * factor);
                }
            }
        }
    }
}

kernel! {
    /// Stores the value of one position, a line in each panel; `out` starts with the first.
    fn store_value(layout: &Layout, x: &[f32], factor: f32, out: &mut [u8]) {
        let (format, line) = (layout.format, layout.line());
        for (x, out) in x.chunks(COLUMNS).zip(out.chunks_mut(PAGE * line)) {
            let mut columns = [0.0_f32; COLUMNS];
            columns[..x.len()].copy_from_slice(x);
            if format == CacheFormat::Int8 {
                columns.iter_mut().for_each(|x| *x *= factor);
            }
            store_line(format, &columns, &mut out[..line]);
        }
    }
}

/// Rounds a line to the format. For int8 the elements are within `-127..=127`.
#[inline(always)]
fn store_line(format: CacheFormat, x: &[f32; COLUMNS], out: &mut [u8]) {
    match format {
        CacheFormat::F32 => {
            for (out, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(x) {
                *out = x.to_le_bytes();
            }
        }
        CacheFormat::Bf16 => {
            let (lower, upper) = x.split_at(COLUMNS / 2);
            for ((out, &l), &u) in out.as_chunks_mut::<4>().0.iter_mut().zip(lower).zip(upper) {
                *out = (u32::from(to_bf16(l)) | u32::from(to_bf16(u)) << 16).to_le_bytes();
            }
        }
        CacheFormat::Int8 => {
            for (out, &x) in out.iter_mut().zip(x) {
                *out = to_int8(x);
            }
        }
    }
}

/// The int8 scale of a row with this largest magnitude, and what to multiply by to get to the grid. NaN for a row that is not
/// finite.
#[inline(always)]
fn scale_of(largest: f32) -> (f32, f32) {
    if !largest.is_finite() {
        (f32::NAN, 0.0)
    } else if largest < 1e-36 {
        // The inverse would overflow; nothing a cache holds is so small but zero.
        (0.0, 0.0)
    } else {
        (largest / 127.0, 127.0 / largest)
    }
}

/// The largest magnitude, infinite when an element is NaN.
#[inline(always)]
fn largest_in(row: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; simd::LANES];
    let magnitude = |x: f32| if x.is_nan() { f32::INFINITY } else { x.abs() };
    let (blocks, tail) = row.as_chunks::<{ simd::LANES }>();
    for block in blocks {
        for l in 0..simd::LANES {
            let x = magnitude(block[l]);
            lanes[l] = if x > lanes[l] { x } else { lanes[l] };
        }
    }
    for (l, &x) in tail.iter().enumerate() {
        let x = magnitude(x);
        lanes[l] = if x > lanes[l] { x } else { lanes[l] };
    }
    simd::max(&lanes)
}

kernel! {
    /// As [`largest_in`].
    fn largest(row: &[f32]) -> f32 {
        largest_in(row)
    }
}

/// To nearest, ties to even; a NaN keeps its upper half and is made quiet.
#[inline(always)]
pub(super) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16) as u16;
    let kept = (bits >> 16) as u16 | 0x40;
    if x.is_nan() { kept } else { rounded }
}

/// To nearest, ties to even, of what is within `-127..=127`; a NaN gives any byte.
#[inline(always)]
fn to_int8(x: f32) -> u8 {
    /// 1.5 * 2^23: adding it rounds to the nearest integer, which then stands in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC).to_bits() as u8
}

/// Reads one position back, as [`super::forward`] sees it.
///
/// # Shapes
/// `k, v: [G, D]`
///
/// # Panics
/// When a length does not fit or the place is outside the page.
pub fn read(page: &[u8], place: usize, heads: &Heads, format: CacheFormat, k: &mut [f32], v: &mut [f32]) {
    let layout = Layout::new(heads, format);
    let d = layout.width;
    assert!(
        page.len() == layout.page_bytes() && place < PAGE && k.len() == heads.kv_width() && v.len() == k.len(),
        "attention: place {place} of a page of {} bytes",
        page.len()
    );
    let element = |bytes: &[u8], at: usize| match format {
        CacheFormat::F32 => f32::from_le_bytes(std::array::from_fn(|b| bytes[at + b])),
        CacheFormat::Bf16 => bf16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32(),
        CacheFormat::Int8 => f32::from(bytes[at] as i8),
    };
    for (head, (k, v)) in k.chunks_exact_mut(d).zip(v.chunks_exact_mut(d)).enumerate() {
        let bytes = &page[layout.head(head)];
        let [k_scales, v_scales] = layout.scales(&bytes[layout.values()..]);
        for (i, (k, v)) in k.iter_mut().zip(v).enumerate() {
            *k = element(bytes, layout.key_at(i, place)) * k_scales[place];
            *v = element(bytes, layout.value_at(i, place)) * v_scales[place];
        }
    }
}
