//! Slices of floats in one of two widths: 32 bits, or bfloat16 where a step of training may round what it keeps.
//!
//! Arithmetic is in 32 bits for both. A kernel takes its numbers a piece at a time, which is the slice itself or
//! a widened copy in the first-level cache, and gives them back the same way.

use std::borrow::Cow;
use std::ops::Range;

pub use half::bf16;

#[cfg(target_arch = "x86_64")]
use crate::Level;
use crate::level::Isa;
use crate::packed::float_pack::bf16_bits;
use crate::pool::{self, Shared};

/// Elements that a kernel takes at a time: four such pieces fit in a first-level cache.
pub(crate) const PIECE: usize = 2048;

/// In which width floats are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Width {
    /// 32 bits.
    #[default]
    F32,
    /// The upper half of these, rounded to nearest.
    Bf16,
}

/// Floats to read.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    /// 32 bits each.
    F32(&'a [f32]),
    /// bfloat16.
    Bf16(&'a [bf16]),
}

/// Floats to write.
#[derive(Debug)]
pub enum FloatsMut<'a> {
    /// 32 bits each.
    F32(&'a mut [f32]),
    /// bfloat16.
    Bf16(&'a mut [bf16]),
}

/// Floats of one's own.
#[derive(Clone, Debug, PartialEq)]
pub enum FloatVec {
    /// 32 bits each.
    F32(Vec<f32>),
    /// bfloat16.
    Bf16(Vec<bf16>),
}

impl<'a> Floats<'a> {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Floats::F32(x) => x.len(),
            Floats::Bf16(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Their width.
    pub fn width(&self) -> Width {
        match self {
            Floats::F32(_) => Width::F32,
            Floats::Bf16(_) => Width::Bf16,
        }
    }

    /// Some of them.
    ///
    /// # Panics
    /// When the range is outside.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Floats<'a> {
        match self {
            Floats::F32(x) => Floats::F32(&x[range]),
            Floats::Bf16(x) => Floats::Bf16(&x[range]),
        }
    }

    /// Some of them in 32 bits: as they lie, or widened into `buffer`, which is as long as the range.
    pub(crate) fn read<'b>(&self, isa: Isa, range: Range<usize>, buffer: &'b mut [f32]) -> &'b [f32]
    where
        'a: 'b,
    {
        match self {
            Floats::F32(x) => &x[range],
            Floats::Bf16(x) => {
                let (x, buffer) = (&x[range.clone()], &mut buffer[..range.len()]);
                widen_slice(isa, x, buffer);
                buffer
            }
        }
    }

    /// All of them in 32 bits.
    pub fn to_vec(&self) -> Vec<f32> {
        match self {
            Floats::F32(x) => crate::fresh::copy(x),
            Floats::Bf16(x) => {
                let mut wide = crate::fresh::zeros(x.len());
                let isa = Isa::current();
                pool::pieces(&mut wide, pool::GRAIN, |at, wide| widen_slice(isa, &x[at..at + wide.len()], wide));
                wide
            }
        }
    }

    /// The first of which `f` says yes, in 32 bits.
    pub fn find(&self, f: impl Fn(f32) -> bool) -> Option<f32> {
        match self {
            Floats::F32(x) => x.iter().copied().find(|&x| f(x)),
            Floats::Bf16(x) => x.iter().map(|x| x.to_f32()).find(|&x| f(x)),
        }
    }

    /// As they lie in a file, little-endian: without a copy where memory lies so already.
    pub fn bytes(&self) -> Cow<'a, [u8]> {
        match self {
            Floats::F32(x) if cfg!(target_endian = "little") => Cow::Borrowed(bytemuck::cast_slice(x)),
            Floats::Bf16(x) if cfg!(target_endian = "little") => Cow::Borrowed(bytemuck::cast_slice(x)),
            Floats::F32(x) => Cow::Owned(x.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Floats::Bf16(x) => Cow::Owned(x.iter().flat_map(|x| x.to_le_bytes()).collect()),
        }
    }

    /// All of them, rounded where `width` is the smaller one.
    pub fn to_width(&self, width: Width) -> FloatVec {
        match (self, width) {
            (Floats::Bf16(x), Width::Bf16) => FloatVec::Bf16(x.to_vec()),
            (_, Width::F32) => FloatVec::F32(self.to_vec()),
            (Floats::F32(x), Width::Bf16) => {
                let mut narrow = FloatVec::zeros(Width::Bf16, x.len());
                narrow.view_mut().set(x);
                narrow
            }
        }
    }
}

macro_rules! from {
    ($($kind:ident of $element:ty),*) => {$(
        impl<'a> From<&'a [$element]> for Floats<'a> {
            fn from(x: &'a [$element]) -> Self {
                Floats::$kind(x)
            }
        }
        impl<'a> From<&'a Vec<$element>> for Floats<'a> {
            fn from(x: &'a Vec<$element>) -> Self {
                Floats::$kind(x)
            }
        }
        impl<'a> From<&'a mut [$element]> for FloatsMut<'a> {
            fn from(x: &'a mut [$element]) -> Self {
                FloatsMut::$kind(x)
            }
        }
        impl<'a> From<&'a mut Vec<$element>> for FloatsMut<'a> {
            fn from(x: &'a mut Vec<$element>) -> Self {
                FloatsMut::$kind(x)
            }
        }
    )*};
}

from!(F32 of f32, Bf16 of bf16);

impl<'a> From<&'a FloatVec> for Floats<'a> {
    fn from(x: &'a FloatVec) -> Self {
        x.view()
    }
}

impl<'a> From<&'a mut FloatVec> for FloatsMut<'a> {
    fn from(x: &'a mut FloatVec) -> Self {
        x.view_mut()
    }
}

impl<'a> FloatsMut<'a> {
    /// All of them in 32 bits.
    pub fn to_vec(&self) -> Vec<f32> {
        match self {
            FloatsMut::F32(x) => Floats::F32(x).to_vec(),
            FloatsMut::Bf16(x) => Floats::Bf16(x).to_vec(),
        }
    }

    /// Replaces all of them, rounding where they are narrower.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn set(self, x: &[f32]) {
        assert_eq!(self.len(), x.len(), "floats: lengths differ");
        let (isa, shared) = (Isa::current(), SharedFloats::new(self));
        pool::ranges(x.len(), pool::GRAIN, |range| {
            let x = &x[range.clone()];
            // SAFETY: the ranges do not overlap.
            unsafe { shared.write_all(isa, range, x) };
        });
    }

    /// Replaces all of them by what [`Floats::bytes`] gave; they are given back to read.
    ///
    /// # Panics
    /// When there are more or fewer bytes than they take.
    pub fn set_bytes(self, bytes: &[u8]) -> Floats<'a> {
        match self {
            FloatsMut::F32(x) => {
                assert_eq!(bytes.len(), 4 * x.len(), "floats: lengths differ");
                x.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(x, &word)| *x = f32::from_le_bytes(word));
                Floats::F32(x)
            }
            FloatsMut::Bf16(x) => {
                assert_eq!(bytes.len(), 2 * x.len(), "floats: lengths differ");
                x.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(x, &half)| *x = bf16::from_le_bytes(half));
                Floats::Bf16(x)
            }
        }
    }

    /// As they are, to read.
    pub fn view(&self) -> Floats<'_> {
        match self {
            FloatsMut::F32(x) => Floats::F32(x),
            FloatsMut::Bf16(x) => Floats::Bf16(x),
        }
    }

    /// Some of them.
    ///
    /// # Panics
    /// When the range is outside.
    #[must_use]
    pub fn part_mut(self, range: Range<usize>) -> FloatsMut<'a> {
        match self {
            FloatsMut::F32(x) => FloatsMut::F32(&mut x[range]),
            FloatsMut::Bf16(x) => FloatsMut::Bf16(&mut x[range]),
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        match self {
            FloatsMut::F32(x) => x.len(),
            FloatsMut::Bf16(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl FloatVec {
    /// How many.
    pub fn len(&self) -> usize {
        self.view().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `n` zeros.
    pub fn zeros(width: Width, n: usize) -> Self {
        match width {
            Width::F32 => FloatVec::F32(crate::fresh::zeros(n)),
            // Zeroed pages come from the system, and are first touched by the threads that write them.
            Width::Bf16 => FloatVec::Bf16(bytemuck::zeroed_vec(n)),
        }
    }

    /// As they are, to read.
    pub fn view(&self) -> Floats<'_> {
        match self {
            FloatVec::F32(x) => Floats::F32(x),
            FloatVec::Bf16(x) => Floats::Bf16(x),
        }
    }

    /// As they are, to write.
    pub fn view_mut(&mut self) -> FloatsMut<'_> {
        match self {
            FloatVec::F32(x) => FloatsMut::F32(x),
            FloatVec::Bf16(x) => FloatsMut::Bf16(x),
        }
    }
}

/// [`FloatsMut`] that several threads write, each its own part.
pub(crate) enum SharedFloats<'a> {
    F32(Shared<'a, f32>),
    Bf16(Shared<'a, bf16>),
}

impl<'a> SharedFloats<'a> {
    pub(crate) fn new(floats: FloatsMut<'a>) -> Self {
        match floats {
            FloatsMut::F32(x) => SharedFloats::F32(Shared::new(x)),
            FloatsMut::Bf16(x) => SharedFloats::Bf16(Shared::new(x)),
        }
    }

    /// Lets `f` write a range, in place or in `buffer` first, whose content is not specified.
    ///
    /// # Safety
    /// As [`Shared::part`].
    pub(crate) unsafe fn write<R>(
        &self,
        isa: Isa,
        range: Range<usize>,
        buffer: &mut [f32],
        f: impl FnOnce(&mut [f32]) -> R,
    ) -> R {
        match self {
            // SAFETY: by contract.
            SharedFloats::F32(x) => f(unsafe { x.part(range) }),
            SharedFloats::Bf16(x) => {
                let buffer = &mut buffer[..range.len()];
                let result = f(buffer);
                // SAFETY: by contract.
                narrow_slice(isa, buffer, unsafe { x.part(range) });
                result
            }
        }
    }

    /// Writes `x` to a range.
    ///
    /// # Safety
    /// As [`Shared::part`].
    pub(crate) unsafe fn write_all(&self, isa: Isa, range: Range<usize>, x: &[f32]) {
        match self {
            // SAFETY: by contract.
            SharedFloats::F32(y) => unsafe { y.part(range) }.copy_from_slice(x),
            // SAFETY: by contract.
            SharedFloats::Bf16(y) => narrow_slice(isa, x, unsafe { y.part(range) }),
        }
    }
}

kernel! {
    fn widen_slice(x: &[bf16], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = f32::from_bits(u32::from(x.to_bits()) << 16);
        }
    }
}

kernel! {
    fn narrow_bits(x: &[f32], y: &mut [bf16]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = bf16::from_bits(bf16_bits(x));
        }
    }
}

/// Rounds to nearest, ties to even. Subnormal numbers become zeros where the processor has an instruction for it, as they do when it
/// multiplies them.
///
/// # Panics
/// When the lengths differ.
fn narrow_slice(isa: Isa, x: &[f32], y: &mut [bf16]) {
    assert_eq!(x.len(), y.len(), "floats: lengths differ");
    #[cfg(target_arch = "x86_64")]
    if isa.level() >= Level::Avx512Bf16 {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,bmi1,bmi2")]
        unsafe fn wide(x: &[f32], y: &mut [bf16]) {
            use std::arch::x86_64::*;
            for at in (0..x.len()).step_by(32) {
                let mask = u32::MAX >> (32 - (x.len() - at).min(32));
                // SAFETY: what is masked is neither read nor written; the transmutation only renames bits.
                unsafe {
                    let from = x.as_ptr().add(at);
                    let low = _mm512_maskz_loadu_ps(mask as __mmask16, from);
                    let high = _mm512_maskz_loadu_ps((mask >> 16) as __mmask16, from.wrapping_add(16));
                    let pairs = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                    _mm512_mask_storeu_epi16(y.as_mut_ptr().add(at).cast(), mask, pairs);
                }
            }
        }
        // SAFETY: an `Isa` of this level exists only after the processor was found to have all its features.
        return unsafe { wide(x, y) };
    }
    narrow_bits(isa, x, y);
}

/// Scratch of whole pieces, in pieces.
pub(crate) fn buffers<const N: usize>(scratch: &mut [f32]) -> [&mut [f32]; N] {
    let mut pieces = scratch.chunks_exact_mut(PIECE);
    std::array::from_fn(|_| pieces.next().unwrap_or_default())
}

/// Cuts `range` into consecutive pieces of at most [`PIECE`].
pub(crate) fn cut(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(PIECE).map(move |start| start..(start + PIECE).min(end))
}
