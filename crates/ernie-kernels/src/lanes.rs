//! Sixteen floats as one value on every level: what the hand-written matrix kernels are generic over.
//!
//! A kernel generic over [`Lanes`] is instantiated inside a `#[target_feature]` function (see `with_lanes!`), into which all of
//! these always-inlined methods disappear. Outside such a function they would be slow, not wrong on a processor that has the
//! features. No sum runs across lanes, so all levels agree up to the fusing of multiply and add.

use crate::formats::f16_bits_to_f32;

/// Sixteen floats.
///
/// # Safety
/// Every method demands that the processor has the features of the implementing type; those with pointers also that the
/// stated number of elements may be read or written there. No pointer needs alignment.
pub(crate) trait Lanes: Copy {
    /// Rows (at most 6) of an outer-product block.
    const OUTER_ROWS: usize;
    /// Vectors (4 or 1) across an outer-product block.
    const OUTER_COLUMNS: usize;

    unsafe fn zero() -> Self;
    unsafe fn splat(x: f32) -> Self;
    /// Reads 16 elements.
    unsafe fn load(at: *const f32) -> Self;
    /// Writes 16 elements.
    unsafe fn store(self, at: *mut f32);
    /// `self * b + c`.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn sub(self, b: Self) -> Self;
    /// The larger of each two lanes; that of `b` where either is NaN.
    unsafe fn max(self, b: Self) -> Self;
    /// The float whose bits are the lane's, 23 places further up.
    unsafe fn shift_to_exponent(self) -> Self;
    /// Each even lane and the odd one after it change places.
    unsafe fn swap_pairs(self) -> Self;
    /// Reads 8 elements, each of which goes to two lanes, an even one and the one after it.
    unsafe fn load_twice(at: *const f32) -> Self;
    /// Reads 16 signed bytes.
    unsafe fn load_i8(at: *const u8) -> Self;
    /// Reads 16 pairs of bfloat16 as floats: the firsts of the pairs, and the seconds.
    unsafe fn load_bf16_pairs(at: *const u8) -> [Self; 2];
    /// Reads 16 pairs of half-precision floats: the firsts of the pairs, and the seconds.
    unsafe fn load_f16_pairs(at: *const u8) -> [Self; 2];

    /// The largest lane, where none is NaN.
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        let mut lanes = [0.0_f32; 16];
        // SAFETY: the array holds 16 elements.
        unsafe { self.store(lanes.as_mut_ptr()) };
        crate::simd::max(&lanes)
    }

    /// Writes the transpose of 16 rows to 16 rows; rows are `from` and `to` elements apart.
    #[inline(always)]
    unsafe fn transpose(source: *const f32, from: usize, target: *mut f32, to: usize) {
        for i in 0..16 {
            for j in 0..16 {
                // SAFETY: 16 elements of 16 rows are readable, and writable, by contract.
                unsafe { target.add(j * to + i).write_unaligned(source.add(i * from + j).read_unaligned()) };
            }
        }
    }

    /// Reads the first `n <= 16` elements, zeros for the rest.
    #[inline(always)]
    unsafe fn load_part(at: *const f32, n: usize) -> Self {
        let mut buffer = [0.0_f32; 16];
        // SAFETY: `n <= 16` elements are readable by contract, and the buffer holds 16.
        unsafe {
            std::ptr::copy_nonoverlapping(at.cast::<u8>(), buffer.as_mut_ptr().cast::<u8>(), n * 4);
            Self::load(buffer.as_ptr())
        }
    }

    /// Writes the first `n <= 16` elements.
    #[inline(always)]
    unsafe fn store_part(self, at: *mut f32, n: usize) {
        let mut buffer = [0.0_f32; 16];
        // SAFETY: `n <= 16` elements are writable by contract, and the buffer holds 16.
        unsafe {
            self.store(buffer.as_mut_ptr());
            std::ptr::copy_nonoverlapping(buffer.as_ptr().cast::<u8>(), at.cast::<u8>(), n * 4);
        }
    }
}

/// The plain level: an array that the compiler vectorises as far as the target goes.
#[derive(Clone, Copy)]
pub(crate) struct Plain([f32; 16]);

impl Lanes for Plain {
    const OUTER_ROWS: usize = 2;
    const OUTER_COLUMNS: usize = 1;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Plain([0.0; 16])
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Plain([x; 16])
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: 16 elements are readable by contract; no alignment is assumed.
        Plain(unsafe { at.cast::<[f32; 16]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: 16 elements are writable by contract; no alignment is assumed.
        unsafe { at.cast::<[f32; 16]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        Plain(std::array::from_fn(|l| self.0[l] * b.0[l] + c.0[l]))
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        Plain(std::array::from_fn(|l| self.0[l] * b.0[l]))
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Plain(std::array::from_fn(|l| self.0[l] + b.0[l]))
    }

    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        Plain(std::array::from_fn(|l| self.0[l] - b.0[l]))
    }

    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        Plain(std::array::from_fn(|l| if self.0[l] > b.0[l] { self.0[l] } else { b.0[l] }))
    }

    #[inline(always)]
    unsafe fn shift_to_exponent(self) -> Self {
        Plain(self.0.map(|x| f32::from_bits(x.to_bits() << 23)))
    }

    #[inline(always)]
    unsafe fn swap_pairs(self) -> Self {
        Plain(std::array::from_fn(|l| self.0[l ^ 1]))
    }

    #[inline(always)]
    unsafe fn load_twice(at: *const f32) -> Self {
        // SAFETY: 8 elements are readable by contract; no alignment is assumed.
        let eight = unsafe { at.cast::<[f32; 8]>().read_unaligned() };
        Plain(std::array::from_fn(|l| eight[l / 2]))
    }

    #[inline(always)]
    unsafe fn load_i8(at: *const u8) -> Self {
        // SAFETY: 16 bytes are readable by contract.
        let bytes = unsafe { at.cast::<[i8; 16]>().read_unaligned() };
        Plain(bytes.map(f32::from))
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(at: *const u8) -> [Self; 2] {
        // SAFETY: 64 bytes are readable by contract.
        let pairs = unsafe { at.cast::<[[u8; 4]; 16]>().read_unaligned() }.map(u32::from_le_bytes);
        [Plain(pairs.map(|p| f32::from_bits(p << 16))), Plain(pairs.map(|p| f32::from_bits(p & 0xFFFF_0000)))]
    }

    #[inline(always)]
    unsafe fn load_f16_pairs(at: *const u8) -> [Self; 2] {
        // SAFETY: 64 bytes are readable by contract.
        let pairs = unsafe { at.cast::<[[u8; 4]; 16]>().read_unaligned() }.map(u32::from_le_bytes);
        [Plain(pairs.map(|p| f16_bits_to_f32(p as u16))), Plain(pairs.map(|p| f16_bits_to_f32((p >> 16) as u16)))]
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    //! The vector levels. Every `unsafe` block below rests on the trait's contract: the features are there (AVX2, FMA and F16C
    //! for [`Pair`], AVX-512 F, BW, DQ and VL for `__m512`) and the stated elements may be touched; all loads and stores are
    //! the unaligned ones.
    use std::arch::x86_64::*;

    use super::Lanes;

    /// Two 256-bit registers.
    #[derive(Clone, Copy)]
    pub(crate) struct Pair(__m256, __m256);

    impl Lanes for Pair {
        const OUTER_ROWS: usize = 6;
        const OUTER_COLUMNS: usize = 1;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: see the module.
            unsafe { Pair(_mm256_setzero_ps(), _mm256_setzero_ps()) }
        }

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: see the module.
            unsafe { Pair(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
        }

        #[inline(always)]
        unsafe fn load(at: *const f32) -> Self {
            // SAFETY: see the module.
            unsafe { Pair(_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))) }
        }

        #[inline(always)]
        unsafe fn store(self, at: *mut f32) {
            // SAFETY: see the module.
            unsafe {
                _mm256_storeu_ps(at, self.0);
                _mm256_storeu_ps(at.add(8), self.1);
            }
        }

        #[inline(always)]
        unsafe fn fma(self, b: Self, c: Self) -> Self {
            // SAFETY: see the module.
            unsafe { Pair(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)) }
        }

        #[inline(always)]
        unsafe fn mul(self, b: Self) -> Self {
            // SAFETY: see the module.
            unsafe { Pair(_mm256_mul_ps(self.0, b.0), _mm256_mul_ps(self.1, b.1)) }
        }

        #[inline(always)]
        unsafe fn add(self, b: Self) -> Self {
            // SAFETY: see the module.
            unsafe { Pair(_mm256_add_ps(self.0, b.0), _mm256_add_ps(self.1, b.1)) }
        }

        #[inline(always)]
        unsafe fn sub(self, b: Self) -> Self {
            // SAFETY: see the module.
            unsafe { Pair(_mm256_sub_ps(self.0, b.0), _mm256_sub_ps(self.1, b.1)) }
        }

        #[inline(always)]
        unsafe fn max(self, b: Self) -> Self {
            // SAFETY: see the module.
            unsafe { Pair(_mm256_max_ps(self.0, b.0), _mm256_max_ps(self.1, b.1)) }
        }

        #[inline(always)]
        unsafe fn shift_to_exponent(self) -> Self {
            // SAFETY: see the module.
            unsafe {
                let shift = |x| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(x)));
                Pair(shift(self.0), shift(self.1))
            }
        }

        #[inline(always)]
        unsafe fn swap_pairs(self) -> Self {
            // SAFETY: see the module.
            unsafe { Pair(_mm256_permute_ps::<0xB1>(self.0), _mm256_permute_ps::<0xB1>(self.1)) }
        }

        #[inline(always)]
        unsafe fn load_twice(at: *const f32) -> Self {
            // SAFETY: see the module.
            unsafe {
                let eight = _mm256_loadu_ps(at);
                let low = _mm256_permutevar8x32_ps(eight, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
                let high = _mm256_permutevar8x32_ps(eight, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7));
                Pair(low, high)
            }
        }

        #[inline(always)]
        unsafe fn load_i8(at: *const u8) -> Self {
            // SAFETY: see the module.
            unsafe {
                let widen = |p: *const u8| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())));
                Pair(widen(at), widen(at.add(8)))
            }
        }

        #[inline(always)]
        unsafe fn load_bf16_pairs(at: *const u8) -> [Self; 2] {
            // SAFETY: see the module.
            unsafe {
                let (a, b) = (_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(32).cast()));
                let first = |p| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(p));
                let second = |p| _mm256_castsi256_ps(_mm256_and_si256(p, _mm256_set1_epi32(0xFFFF_0000_u32 as i32)));
                [Pair(first(a), first(b)), Pair(second(a), second(b))]
            }
        }

        #[inline(always)]
        unsafe fn load_f16_pairs(at: *const u8) -> [Self; 2] {
            // SAFETY: see the module.
            unsafe {
                let (a, b) = (_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(32).cast()));
                // The low halves of eight lanes, side by side: no saturation, as both halves are below 2^16.
                let narrow = |p| {
                    let packed = _mm256_packus_epi32(p, p);
                    _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b1000>(packed)))
                };
                let first = |p| narrow(_mm256_and_si256(p, _mm256_set1_epi32(0xFFFF)));
                let second = |p| narrow(_mm256_srli_epi32::<16>(p));
                [Pair(first(a), first(b)), Pair(second(a), second(b))]
            }
        }
    }

    impl Lanes for __m512 {
        const OUTER_ROWS: usize = 6;
        const OUTER_COLUMNS: usize = 4;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: see the module.
            unsafe { _mm512_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: see the module.
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(at: *const f32) -> Self {
            // SAFETY: see the module.
            unsafe { _mm512_loadu_ps(at) }
        }

        #[inline(always)]
        unsafe fn store(self, at: *mut f32) {
            // SAFETY: see the module.
            unsafe { _mm512_storeu_ps(at, self) }
        }

        #[inline(always)]
        unsafe fn fma(self, b: Self, c: Self) -> Self {
            // SAFETY: see the module.
            unsafe { _mm512_fmadd_ps(self, b, c) }
        }

        #[inline(always)]
        unsafe fn mul(self, b: Self) -> Self {
            // SAFETY: see the module.
            unsafe { _mm512_mul_ps(self, b) }
        }

        #[inline(always)]
        unsafe fn add(self, b: Self) -> Self {
            // SAFETY: see the module.
            unsafe { _mm512_add_ps(self, b) }
        }

        #[inline(always)]
        unsafe fn sub(self, b: Self) -> Self {
            // SAFETY: see the module.
            unsafe { _mm512_sub_ps(self, b) }
        }

        #[inline(always)]
        unsafe fn max(self, b: Self) -> Self {
            // SAFETY: see the module.
            unsafe { _mm512_max_ps(self, b) }
        }

        #[inline(always)]
        unsafe fn shift_to_exponent(self) -> Self {
            // SAFETY: see the module.
            unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(self))) }
        }

        #[inline(always)]
        unsafe fn swap_pairs(self) -> Self {
            // SAFETY: see the module.
            unsafe { _mm512_permute_ps::<0xB1>(self) }
        }

        #[inline(always)]
        unsafe fn load_twice(at: *const f32) -> Self {
            // SAFETY: see the module.
            unsafe {
                let lanes = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
                _mm512_permutexvar_ps(lanes, _mm512_castps256_ps512(_mm256_loadu_ps(at)))
            }
        }

        #[inline(always)]
        unsafe fn load_i8(at: *const u8) -> Self {
            // SAFETY: see the module.
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))) }
        }

        #[inline(always)]
        unsafe fn load_bf16_pairs(at: *const u8) -> [Self; 2] {
            // SAFETY: see the module.
            unsafe {
                let pairs = _mm512_loadu_si512(at.cast());
                let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xFFFF_0000_u32 as i32));
                [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(second)]
            }
        }

        #[inline(always)]
        unsafe fn load_f16_pairs(at: *const u8) -> [Self; 2] {
            // SAFETY: see the module.
            unsafe {
                let pairs = _mm512_loadu_si512(at.cast());
                let second = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(pairs));
                [_mm512_cvtph_ps(_mm512_cvtepi32_epi16(pairs)), _mm512_cvtph_ps(second)]
            }
        }

        #[inline(always)]
        unsafe fn largest(self) -> f32 {
            // SAFETY: see the module.
            unsafe { _mm512_reduce_max_ps(self) }
        }

        #[inline(always)]
        unsafe fn transpose(source: *const f32, from: usize, target: *mut f32, to: usize) {
            // SAFETY: see the module; 16 elements of 16 rows are readable, and writable, by contract.
            unsafe {
                // Loops rather than closures: a closure does not have the features of the function that it is written in.
                let mut rows = [_mm512_setzero_ps(); 16];
                for (i, row) in rows.iter_mut().enumerate() {
                    *row = _mm512_loadu_ps(source.add(i * from));
                }
                // Pairs, then fours within quarters, then quarters across registers.
                let mut pairs = rows;
                for (i, pair) in pairs.iter_mut().enumerate() {
                    let (a, b) = (rows[i & !1], rows[i | 1]);
                    *pair = if i & 1 == 0 { _mm512_unpacklo_ps(a, b) } else { _mm512_unpackhi_ps(a, b) };
                }
                // `fours[4 g + c]`: column `c` of each quarter, of rows `4 g .. 4 g + 4`.
                let mut fours = pairs;
                for (i, four) in fours.iter_mut().enumerate() {
                    let (g, c) = (i & !3, i & 3);
                    let (a, b) = (_mm512_castps_pd(pairs[g + c / 2]), _mm512_castps_pd(pairs[g + 2 + c / 2]));
                    *four =
                        _mm512_castpd_ps(if c & 1 == 0 { _mm512_unpacklo_pd(a, b) } else { _mm512_unpackhi_pd(a, b) });
                }
                for c in 0..4 {
                    let (a, b, d, e) = (fours[c], fours[4 + c], fours[8 + c], fours[12 + c]);
                    // Quarters 0 and 2, and 1 and 3, of two registers each.
                    let (even, odd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xDD>(a, b));
                    let (even2, odd2) = (_mm512_shuffle_f32x4::<0x88>(d, e), _mm512_shuffle_f32x4::<0xDD>(d, e));
                    _mm512_storeu_ps(target.add(c * to), _mm512_shuffle_f32x4::<0x88>(even, even2));
                    _mm512_storeu_ps(target.add((4 + c) * to), _mm512_shuffle_f32x4::<0x88>(odd, odd2));
                    _mm512_storeu_ps(target.add((8 + c) * to), _mm512_shuffle_f32x4::<0xDD>(even, even2));
                    _mm512_storeu_ps(target.add((12 + c) * to), _mm512_shuffle_f32x4::<0xDD>(odd, odd2));
                }
            }
        }

        #[inline(always)]
        unsafe fn load_part(at: *const f32, n: usize) -> Self {
            // SAFETY: see the module; masked lanes are not touched.
            unsafe { _mm512_maskz_loadu_ps(mask(n), at) }
        }

        #[inline(always)]
        unsafe fn store_part(self, at: *mut f32, n: usize) {
            // SAFETY: see the module; masked lanes are not touched.
            unsafe { _mm512_mask_storeu_ps(at, mask(n), self) }
        }
    }

    /// The first `n <= 16` lanes.
    #[inline(always)]
    fn mask(n: usize) -> __mmask16 {
        ((1_u32 << n) - 1) as __mmask16
    }
}

/// Defines a dispatching function around a kernel that is generic over [`Lanes`]: `name(isa, ...)` calls `kernel::<V>(...)`
/// inside a function compiled for the level.
macro_rules! with_lanes {
    ($(#[$meta:meta])* unsafe fn $name:ident = $kernel:ident ( $($arg:ident : $ty:ty),* $(,)? )) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)] // Kernels take plain pointers and counts.
        pub(crate) unsafe fn $name(isa: $crate::level::Isa, $($arg: $ty),*) {
            #[allow(clippy::too_many_arguments)]
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2")]
            unsafe fn avx512($($arg: $ty),*) {
                // SAFETY: the features are enabled here; the rest is the caller's contract.
                unsafe { $kernel::<std::arch::x86_64::__m512>($($arg),*) }
            }

            #[allow(clippy::too_many_arguments)]
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2")]
            unsafe fn avx2($($arg: $ty),*) {
                // SAFETY: the features are enabled here; the rest is the caller's contract.
                unsafe { $kernel::<$crate::lanes::x86::Pair>($($arg),*) }
            }

            match isa.level() {
                #[cfg(target_arch = "x86_64")]
                $crate::Level::Avx512
                | $crate::Level::Avx512Vnni
                | $crate::Level::Avx512Bf16
                | $crate::Level::Amx => {
                    // SAFETY: an `Isa` of this level exists only after the processor was found to have all its features; the
                    // rest is the caller's contract.
                    unsafe { avx512($($arg),*) }
                }
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::Level::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: `Plain` needs no features; the rest is the caller's contract.
                _ => unsafe { $kernel::<$crate::lanes::Plain>($($arg),*) },
            }
        }
    };
}
