//! Rows of input, rounded to bytes in groups where a product asks for it.

use std::ops::Range;
use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use super::brains::Brains;
use super::buffer::Scratch;
use super::rounding;
use crate::level::Isa;
use crate::pool;

/// Elements along a row of input that share a scale: 32, 64 or 128.
///
/// A trade of quality for speed: the dot product of a group becomes a float once.
pub const GROUP: usize = 32;

/// Padding of a row of bytes: whole groups, blocks and super-blocks of every kind of weights.
const UNIT: usize = super::layout::SUPER;

/// What a kernel needs to know about a run of bytes besides the bytes.
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C)]
pub(super) struct Side {
    /// The scale of the group that the run belongs to.
    pub(super) scale: f32,
    /// The run's sum times the scale: what a weight of one everywhere would give.
    pub(super) sum: f32,
    /// Where an accumulator of weights stored with an offset of 128 starts: -128 times the run's integer sum.
    pub(super) start128: i32,
    /// As above, for an offset of 8.
    pub(super) start8: i32,
}

/// Rows as bytes, and then their sides.
pub(super) struct Quantized {
    memory: Scratch,
    rows: usize,
    /// Bytes from a row to the next.
    pub(super) stride: usize,
    /// Sides from a row to the next.
    pub(super) side_stride: usize,
}

impl Quantized {
    /// The bytes and sides of some rows.
    pub(super) fn rows(&self, rows: Range<usize>) -> (&[u8], &[Side]) {
        let (bytes, sides) = self.memory.bytes().split_at(self.rows * self.stride);
        let sides: &[Side] = bytemuck::cast_slice(sides);
        (
            &bytes[rows.start * self.stride..rows.end * self.stride],
            &sides[rows.start * self.side_stride..rows.end * self.side_stride],
        )
    }
}

/// The input of one or more products: rows of floats, and the same rows as bytes once a product has asked for them.
///
/// A group of [`GROUP`] consecutive elements is rounded to the nearest of `-127..=127` times its scale, which is its largest
/// magnitude divided by 127. A group that holds a NaN or an infinity gets the scale NaN, so that all outputs of its row
/// are NaN; groups smaller than 2^-110 everywhere are zeros. The bytes depend on the row alone.
pub struct Activations<'a> {
    x: &'a [f32],
    rows: usize,
    k: usize,
    /// By the length of a run: 16, 32, 64, 128.
    quantized: [OnceLock<Quantized>; 4],
    #[cfg(target_arch = "x86_64")]
    brains: OnceLock<Brains>,
}

impl<'a> Activations<'a> {
    /// Takes `x: [rows, k]`; rounds nothing yet.
    ///
    /// # Panics
    /// When the length does not fit.
    pub fn new(x: &'a [f32], rows: usize, k: usize) -> Self {
        assert!(rows.checked_mul(k) == Some(x.len()), "activations: {} elements, not {rows} rows of {k}", x.len());
        Activations {
            x,
            rows,
            k,
            quantized: [const { OnceLock::new() }; 4],
            #[cfg(target_arch = "x86_64")]
            brains: OnceLock::new(),
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements in a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The floats, `[rows, k]`.
    pub fn floats(&self) -> &'a [f32] {
        self.x
    }

    /// The rows as bf16, made on the first call.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn brains(&self, isa: Isa) -> &Brains {
        self.brains.get_or_init(|| Brains::new(isa, self.x, self.rows, self.k))
    }

    /// The rows as bytes with a side for each run of `run` elements, made on the first call.
    pub(super) fn quantized(&self, isa: Isa, run: usize) -> &Quantized {
        self.quantized[run.ilog2() as usize - 4].get_or_init(|| {
            let (x, rows, k) = (self.x, self.rows, self.k);
            let padded = k.next_multiple_of(UNIT);
            // A line more than the padded row: rows whose distance is a power of two would fight for the same sets of a cache.
            let (stride, side_stride) = (padded + 64, padded / run + 64 / size_of::<Side>());
            let mut memory = Scratch::new(rows * (stride + side_stride * size_of::<Side>()));
            let (bytes, sides) = memory.bytes_mut().split_at_mut(rows * stride);
            let sides = &mut bytemuck::cast_slice_mut(sides)[..rows * side_stride];
            let grain = pool::grain_rows(k);
            pool::rows2((bytes, stride), (sides, side_stride), grain, |first, bytes, sides| {
                let some = bytes.chunks_exact_mut(stride).zip(sides.chunks_exact_mut(side_stride));
                for (i, (bytes, sides)) in some.enumerate() {
                    let bytes = bytemuck::cast_slice_mut(&mut bytes[..padded]);
                    rounding::row(isa, &x[(first + i) * k..][..k], bytes, &mut sides[..padded / run], run);
                }
            });
            Quantized { memory, rows, stride, side_stride }
        })
    }
}
