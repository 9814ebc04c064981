//! What a page looks like inside, and how rows get in and out.
//!
//! For each key/value head in turn: keys by dimension, `[D, PAGE]`, so that 16 positions are the lanes of a vector and a score
//! needs no sum across lanes; values by position, `[PAGE, D']`, where `D'` is `D` rounded up to whole vectors; and for int8
//! the scales of the keys and of the values, `[PAGE]` f32 each. A walk over a head is one forward read.

use std::ops::Range;

use half::bf16;

use super::super::tile::{self, Tile};
use super::super::{Heads, check_spans};
use super::{CacheFormat, PAGE};
use crate::level::Isa;
use crate::{pool, simd};

/// Sizes and places within a page.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) format: CacheFormat,
    /// Width of a head, `D`.
    pub(super) width: usize,
    /// The same in whole vectors, `D'`.
    pub(super) padded: usize,
    kv_heads: usize,
}

impl Layout {
    pub(super) fn new(heads: &Heads, format: CacheFormat) -> Self {
        heads.check();
        let width = heads.head_dim;
        Layout { format, width, padded: width.next_multiple_of(16), kv_heads: heads.kv_heads }
    }

    /// Bytes of an element.
    pub(super) fn element(&self) -> usize {
        match self.format {
            CacheFormat::F32 => 4,
            CacheFormat::Bf16 => 2,
            CacheFormat::Int8 => 1,
        }
    }

    /// Where the values start in a head's bytes; the keys are before.
    pub(super) fn values(&self) -> usize {
        self.width * PAGE * self.element()
    }

    /// Where the scales of keys, and then those of values, start in a head's bytes.
    fn scales(&self) -> usize {
        self.values() + PAGE * self.padded * self.element()
    }

    fn head_bytes(&self) -> usize {
        self.scales() + if self.format == CacheFormat::Int8 { 2 * PAGE * 4 } else { 0 }
    }

    pub(super) fn page_bytes(&self) -> usize {
        self.kv_heads * self.head_bytes()
    }

    /// The bytes of one head.
    pub(super) fn head(&self, head: usize) -> Range<usize> {
        head * self.head_bytes()..(head + 1) * self.head_bytes()
    }

    /// The scales of a head's keys and values, ones where the format has none.
    pub(super) fn head_scales(&self, head: &[u8]) -> [[f32; PAGE]; 2] {
        let mut scales = [[1.0; PAGE]; 2];
        let (bytes, _) = head[self.scales()..].as_chunks::<4>();
        for (scale, &bytes) in scales.as_flattened_mut().iter_mut().zip(bytes) {
            *scale = f32::from_le_bytes(bytes);
        }
        scales
    }

    /// Floats that a row's partial result takes: its sums, their maximum and their total.
    pub(super) fn partial(&self) -> usize {
        self.padded + 2
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
                if rows.len() < FEW {
                    for i in 0..rows.len() {
                        let row = at + i * width..at + i * width + layout.width;
                        store_row(isa, &layout, &k[row.clone()], &v[row], first + i, stored);
                    }
                    continue;
                }
                let (k, v) = (Tile { data: &k[at..], stride: width }, Tile { data: &v[at..], stride: width });
                store_head(isa, &layout, k, v, rows.len(), first, stored);
            }
        }
    });
}

/// Rows from which on keys are turned in squares; fewer are scattered, a row at a time.
const FEW: usize = 16;

kernel! {
    /// Stores a row of one head at a place.
    fn store_row(layout: &Layout, k: &[f32], v: &[f32], place: usize, head: &mut [u8]) {
        let mut inverse = [1.0_f32; 2];
        if layout.format == CacheFormat::Int8 {
            let (scales, _) = head[layout.scales()..].as_chunks_mut::<4>();
            for ((inverse, x), at) in inverse.iter_mut().zip([k, v]).zip([place, PAGE + place]) {
                let scale;
                (scale, *inverse) = scale_of(largest_in(x));
                scales[at] = scale.to_le_bytes();
            }
        }
        let (keys, values) = head.split_at_mut(layout.values());
        match layout.format {
            CacheFormat::F32 => {
                let (keys, values) = (keys.as_chunks_mut::<4>().0, values.as_chunks_mut::<4>().0);
                for (keys, x) in keys.as_chunks_mut::<PAGE>().0.iter_mut().zip(k) {
                    keys[place] = x.to_le_bytes();
                }
                for (value, x) in values[place * layout.padded..].iter_mut().zip(v) {
                    *value = x.to_le_bytes();
                }
            }
            CacheFormat::Bf16 => {
                let (keys, values) = (keys.as_chunks_mut::<2>().0, values.as_chunks_mut::<2>().0);
                for (keys, &x) in keys.as_chunks_mut::<PAGE>().0.iter_mut().zip(k) {
                    keys[place] = to_bf16(x);
                }
                for (value, &x) in values[place * layout.padded..].iter_mut().zip(v) {
                    *value = to_bf16(x);
                }
            }
            CacheFormat::Int8 => {
                for (keys, &x) in keys.as_chunks_mut::<PAGE>().0.iter_mut().zip(k) {
                    keys[place] = to_int8(x * inverse[0]);
                }
                for (value, &x) in values[place * layout.padded..].iter_mut().zip(v) {
                    *value = to_int8(x * inverse[1]);
                }
            }
        }
    }
}

/// Stores `n` rows of one head at places `first..first + n`.
fn store_head(isa: Isa, layout: &Layout, k: Tile<'_>, v: Tile<'_>, n: usize, first: usize, head: &mut [u8]) {
    let (d, size) = (layout.width, layout.element());
    let mut inverse = [[1.0_f32; PAGE]; 2];
    if layout.format == CacheFormat::Int8 {
        let mut scales = layout.head_scales(head);
        for ((side, inverse), scales) in [k, v].into_iter().zip(&mut inverse).zip(&mut scales) {
            for i in 0..n {
                (scales[first + i], inverse[i]) = scale_of(largest(isa, &side.data[i * side.stride..][..d]));
            }
        }
        let (bytes, _) = head[layout.scales()..].as_chunks_mut::<4>();
        for (bytes, scale) in bytes.iter_mut().zip(scales.as_flattened()) {
            *bytes = scale.to_le_bytes();
        }
    }
    let [k_inverse, v_inverse] = &inverse;
    let (keys, rest) = head.split_at_mut(layout.values());
    pool::scratch(d * n + d, |scratch| {
        let (turned, scaled) = scratch.split_at_mut(d * n);
        tile::transpose(isa, k, n, d, turned, n);
        for (x, keys) in turned.chunks_exact_mut(n).zip(keys.chunks_exact_mut(PAGE * size)) {
            if layout.format == CacheFormat::Int8 {
                x.iter_mut().zip(k_inverse).for_each(|(x, &inverse)| *x *= inverse);
            }
            store(isa, layout.format, x, &mut keys[first * size..(first + n) * size]);
        }
        for (i, values) in rest.chunks_exact_mut(layout.padded * size).skip(first).take(n).enumerate() {
            let x = &v.data[i * v.stride..][..d];
            if layout.format == CacheFormat::Int8 {
                scaled.iter_mut().zip(x).for_each(|(s, &x)| *s = x * v_inverse[i]);
                store(isa, layout.format, scaled, &mut values[..d * size]);
            } else {
                store(isa, layout.format, x, &mut values[..d * size]);
            }
        }
    });
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
fn to_bf16(x: f32) -> [u8; 2] {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16) as u16;
    let kept = (bits >> 16) as u16 | 0x40;
    (if x.is_nan() { kept } else { rounded }).to_le_bytes()
}

/// To nearest, ties to even, of what is within `-127..=127`; a NaN gives any byte.
#[inline(always)]
fn to_int8(x: f32) -> u8 {
    /// 1.5 * 2^23: adding it rounds to the nearest integer, which then stands in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC).to_bits() as u8
}

kernel! {
    /// Rounds to the format, little-endian. For int8 the elements are within `-127..=127`.
    fn store(format: CacheFormat, x: &[f32], out: &mut [u8]) {
        match format {
            CacheFormat::F32 => {
                for (out, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(x) {
                    *out = x.to_le_bytes();
                }
            }
            CacheFormat::Bf16 => {
                for (out, &x) in out.as_chunks_mut::<2>().0.iter_mut().zip(x) {
                    *out = to_bf16(x);
                }
            }
            CacheFormat::Int8 => {
                for (out, &x) in out.iter_mut().zip(x) {
                    *out = to_int8(x);
                }
            }
        }
    }
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
    let element = |bytes: &[u8], i: usize| match format {
        CacheFormat::F32 => f32::from_le_bytes(std::array::from_fn(|b| bytes[4 * i + b])),
        CacheFormat::Bf16 => bf16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32(),
        CacheFormat::Int8 => f32::from(bytes[i] as i8),
    };
    for (head, (k, v)) in k.chunks_exact_mut(d).zip(v.chunks_exact_mut(d)).enumerate() {
        let bytes = &page[layout.head(head)];
        let [k_scales, v_scales] = layout.head_scales(bytes);
        for (i, (k, v)) in k.iter_mut().zip(v).enumerate() {
            *k = element(bytes, i * PAGE + place) * k_scales[place];
            *v = element(&bytes[layout.values()..], place * layout.padded + i) * v_scales[place];
        }
    }
}
