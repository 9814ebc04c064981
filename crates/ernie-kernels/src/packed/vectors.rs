//! Sixteen outputs as one value on every level: what the byte kernels are generic over.
//!
//! As with [`crate::lanes`], the methods vanish into a `#[target_feature]` function that a kernel is instantiated in. All levels
//! give the same bits: the dot products are exact integers, and every float operation is one that IEEE 754 rounds once
//! (multiplication, fused multiply-add, conversion).

/// Sixteen outputs.
///
/// # Safety
/// Every method demands that the processor has the features of the implementing type; those with pointers also that the
/// stated number of bytes may be read or written there. No pointer needs alignment.
pub(super) trait Vectors {
    /// Sixteen i32.
    type Ints: Copy;
    /// Sixteen f32.
    type Floats: Copy;
    /// 64 weights: four of each output.
    type Weights: Copy;
    /// Four activations, for every output.
    type Input: Copy;

    unsafe fn ints(x: i32) -> Self::Ints;
    unsafe fn splat(x: f32) -> Self::Floats;
    /// Reads 64 bytes.
    unsafe fn weights(at: *const u8) -> Self::Weights;
    /// Reads 64 bytes as the low and the high nibbles.
    unsafe fn nibbles(at: *const u8) -> [Self::Weights; 2];
    /// Reads four signed bytes.
    unsafe fn input(at: *const u8) -> Self::Input;
    /// `sums + w · x`, exact for weights `0..=255`.
    unsafe fn dot(sums: Self::Ints, w: Self::Weights, x: Self::Input) -> Self::Ints;
    unsafe fn floats(x: Self::Ints) -> Self::Floats;
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// Reads 16 f16.
    unsafe fn halves(at: *const u8) -> Self::Floats;
    /// Reads 16 signed bytes.
    unsafe fn bytes(at: *const u8) -> Self::Floats;
    /// Reads 16 f32.
    unsafe fn load(at: *const f32) -> Self::Floats;
    /// Writes the first `n <= 16`.
    unsafe fn store(x: Self::Floats, at: *mut f32, n: usize);
    /// Writes 64 bytes of weights, each increased by `by`.
    unsafe fn put(w: Self::Weights, by: u8, at: *mut u8);
    /// Asks for the cache line at an address, which need not be readable.
    unsafe fn prefetch(at: *const u8);
}

/// No vectors.
pub(super) struct Plain;

impl Vectors for Plain {
    type Ints = [i32; 16];
    type Floats = [f32; 16];
    type Weights = [u8; 64];
    type Input = [i8; 4];

    #[inline(always)]
    unsafe fn ints(x: i32) -> [i32; 16] {
        [x; 16]
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 16] {
        [x; 16]
    }

    #[inline(always)]
    unsafe fn weights(at: *const u8) -> [u8; 64] {
        // SAFETY: readable by contract; the type has no alignment.
        unsafe { at.cast::<[u8; 64]>().read() }
    }

    #[inline(always)]
    unsafe fn nibbles(at: *const u8) -> [[u8; 64]; 2] {
        // SAFETY: as above.
        let both = unsafe { Self::weights(at) };
        [both.map(|b| b & 15), both.map(|b| b >> 4)]
    }

    #[inline(always)]
    unsafe fn input(at: *const u8) -> [i8; 4] {
        // SAFETY: as above.
        unsafe { at.cast::<[i8; 4]>().read() }
    }

    #[inline(always)]
    unsafe fn dot(sums: [i32; 16], w: [u8; 64], x: [i8; 4]) -> [i32; 16] {
        std::array::from_fn(|o| (0..4).fold(sums[o], |sum, j| sum + i32::from(w[o * 4 + j]) * i32::from(x[j])))
    }

    #[inline(always)]
    unsafe fn floats(x: [i32; 16]) -> [f32; 16] {
        x.map(|x| x as f32)
    }

    #[inline(always)]
    unsafe fn mul(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|o| a[o] * b[o])
    }

    #[inline(always)]
    unsafe fn fma(a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        // A call into libm where the target has no such instruction: once for some tens of integer products.
        std::array::from_fn(|o| a[o].mul_add(b[o], c[o]))
    }

    #[inline(always)]
    unsafe fn halves(at: *const u8) -> [f32; 16] {
        // SAFETY: as above.
        let bits = unsafe { at.cast::<[[u8; 2]; 16]>().read() };
        bits.map(|b| crate::formats::f16_bits_to_f32(u16::from_le_bytes(b)))
    }

    #[inline(always)]
    unsafe fn bytes(at: *const u8) -> [f32; 16] {
        // SAFETY: as above.
        unsafe { at.cast::<[i8; 16]>().read() }.map(f32::from)
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> [f32; 16] {
        // SAFETY: as above.
        unsafe { at.cast::<[f32; 16]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(x: [f32; 16], at: *mut f32, n: usize) {
        // SAFETY: `n <= 16` elements are writable by contract.
        unsafe { std::ptr::copy_nonoverlapping(x.as_ptr().cast::<u8>(), at.cast::<u8>(), n * 4) };
    }

    #[inline(always)]
    unsafe fn put(w: [u8; 64], by: u8, at: *mut u8) {
        // SAFETY: writable by contract; the type has no alignment.
        unsafe { at.cast::<[u8; 64]>().write(w.map(|w| w.wrapping_add(by))) };
    }

    #[inline(always)]
    unsafe fn prefetch(_at: *const u8) {}
}

/// AVX2 and AVX-512. Every `unsafe` block in here rests on the trait's contract: the features are there, and pointers may be
/// followed.
#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use super::Vectors;

    /// 512-bit vectors, with or without VNNI.
    pub(crate) struct Wide<const VNNI: bool>;

    impl<const VNNI: bool> Vectors for Wide<VNNI> {
        type Ints = __m512i;
        type Floats = __m512;
        type Weights = __m512i;
        type Input = __m512i;

        #[inline(always)]
        unsafe fn ints(x: i32) -> __m512i {
            // SAFETY: see the module.
            unsafe { _mm512_set1_epi32(x) }
        }

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            // SAFETY: see the module.
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn weights(at: *const u8) -> __m512i {
            // SAFETY: see the module.
            unsafe { _mm512_loadu_si512(at.cast()) }
        }

        #[inline(always)]
        unsafe fn nibbles(at: *const u8) -> [__m512i; 2] {
            // SAFETY: see the module.
            unsafe {
                let (both, low) = (_mm512_loadu_si512(at.cast()), _mm512_set1_epi8(15));
                [_mm512_and_si512(both, low), _mm512_and_si512(_mm512_srli_epi16::<4>(both), low)]
            }
        }

        #[inline(always)]
        unsafe fn input(at: *const u8) -> __m512i {
            // SAFETY: see the module.
            unsafe { _mm512_set1_epi32(at.cast::<i32>().read_unaligned()) }
        }

        #[inline(always)]
        unsafe fn dot(sums: __m512i, w: __m512i, x: __m512i) -> __m512i {
            // SAFETY: see the module.
            unsafe {
                if VNNI {
                    return _mm512_dpbusd_epi32(sums, w, x);
                }
                // Even and odd bytes as 16-bit numbers: the byte instruction would saturate.
                let even = _mm512_and_si512(w, _mm512_set1_epi16(255));
                let odd = _mm512_srli_epi16::<8>(w);
                let x_even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(x));
                let x_odd = _mm512_srai_epi16::<8>(x);
                let sums = _mm512_add_epi32(sums, _mm512_madd_epi16(even, x_even));
                _mm512_add_epi32(sums, _mm512_madd_epi16(odd, x_odd))
            }
        }

        #[inline(always)]
        unsafe fn floats(x: __m512i) -> __m512 {
            // SAFETY: see the module.
            unsafe { _mm512_cvtepi32_ps(x) }
        }

        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            // SAFETY: see the module.
            unsafe { _mm512_mul_ps(a, b) }
        }

        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: see the module.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        unsafe fn halves(at: *const u8) -> __m512 {
            // SAFETY: see the module.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
        }

        #[inline(always)]
        unsafe fn bytes(at: *const u8) -> __m512 {
            // SAFETY: see the module.
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))) }
        }

        #[inline(always)]
        unsafe fn load(at: *const f32) -> __m512 {
            // SAFETY: see the module.
            unsafe { _mm512_loadu_ps(at) }
        }

        #[inline(always)]
        unsafe fn store(x: __m512, at: *mut f32, n: usize) {
            // SAFETY: see the module.
            unsafe {
                if n == 16 {
                    _mm512_storeu_ps(at, x);
                } else {
                    _mm512_mask_storeu_ps(at, ((1_u32 << n) - 1) as __mmask16, x);
                }
            }
        }

        #[inline(always)]
        unsafe fn put(w: __m512i, by: u8, at: *mut u8) {
            // SAFETY: see the module.
            unsafe { _mm512_storeu_si512(at.cast(), _mm512_add_epi8(w, _mm512_set1_epi8(by as i8))) }
        }

        #[inline(always)]
        unsafe fn prefetch(at: *const u8) {
            // SAFETY: see the module.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
    }

    /// Two 256-bit vectors.
    pub(crate) struct Pair;

    impl Vectors for Pair {
        type Ints = [__m256i; 2];
        type Floats = [__m256; 2];
        type Weights = [__m256i; 2];
        type Input = __m256i;

        #[inline(always)]
        unsafe fn ints(x: i32) -> [__m256i; 2] {
            // SAFETY: see the module.
            unsafe { [_mm256_set1_epi32(x); 2] }
        }

        #[inline(always)]
        unsafe fn splat(x: f32) -> [__m256; 2] {
            // SAFETY: see the module.
            unsafe { [_mm256_set1_ps(x); 2] }
        }

        #[inline(always)]
        unsafe fn weights(at: *const u8) -> [__m256i; 2] {
            // SAFETY: see the module.
            unsafe { [_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(32).cast())] }
        }

        #[inline(always)]
        unsafe fn nibbles(at: *const u8) -> [[__m256i; 2]; 2] {
            // SAFETY: see the module.
            unsafe {
                let ([a, b], low) = (Self::weights(at), _mm256_set1_epi8(15));
                let high = |x| _mm256_and_si256(_mm256_srli_epi16::<4>(x), low);
                [[_mm256_and_si256(a, low), _mm256_and_si256(b, low)], [high(a), high(b)]]
            }
        }

        #[inline(always)]
        unsafe fn input(at: *const u8) -> __m256i {
            // SAFETY: see the module.
            unsafe { _mm256_set1_epi32(at.cast::<i32>().read_unaligned()) }
        }

        #[inline(always)]
        unsafe fn dot(sums: [__m256i; 2], w: [__m256i; 2], x: __m256i) -> [__m256i; 2] {
            // SAFETY: see the module.
            unsafe {
                // Even and odd bytes as 16-bit numbers: the byte instruction would saturate.
                let x_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
                let x_odd = _mm256_srai_epi16::<8>(x);
                let one = |sums, w| {
                    let even = _mm256_and_si256(w, _mm256_set1_epi16(255));
                    let odd = _mm256_srli_epi16::<8>(w);
                    let sums = _mm256_add_epi32(sums, _mm256_madd_epi16(even, x_even));
                    _mm256_add_epi32(sums, _mm256_madd_epi16(odd, x_odd))
                };
                [one(sums[0], w[0]), one(sums[1], w[1])]
            }
        }

        #[inline(always)]
        unsafe fn floats(x: [__m256i; 2]) -> [__m256; 2] {
            // SAFETY: see the module.
            unsafe { [_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])] }
        }

        #[inline(always)]
        unsafe fn mul(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: see the module.
            unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        }

        #[inline(always)]
        unsafe fn fma(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: see the module.
            unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        }

        #[inline(always)]
        unsafe fn halves(at: *const u8) -> [__m256; 2] {
            // SAFETY: see the module.
            unsafe {
                let half = |at: *const u8| _mm256_cvtph_ps(_mm_loadu_si128(at.cast()));
                [half(at), half(at.add(16))]
            }
        }

        #[inline(always)]
        unsafe fn bytes(at: *const u8) -> [__m256; 2] {
            // SAFETY: see the module.
            unsafe {
                let half = |at: *const u8| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast())));
                [half(at), half(at.add(8))]
            }
        }

        #[inline(always)]
        unsafe fn load(at: *const f32) -> [__m256; 2] {
            // SAFETY: see the module.
            unsafe { [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))] }
        }

        #[inline(always)]
        unsafe fn store(x: [__m256; 2], at: *mut f32, n: usize) {
            // SAFETY: see the module.
            unsafe {
                if n == 16 {
                    _mm256_storeu_ps(at, x[0]);
                    _mm256_storeu_ps(at.add(8), x[1]);
                } else {
                    let mut all = [0.0_f32; 16];
                    _mm256_storeu_ps(all.as_mut_ptr(), x[0]);
                    _mm256_storeu_ps(all.as_mut_ptr().add(8), x[1]);
                    std::ptr::copy_nonoverlapping(all.as_ptr().cast::<u8>(), at.cast::<u8>(), n * 4);
                }
            }
        }

        #[inline(always)]
        unsafe fn put(w: [__m256i; 2], by: u8, at: *mut u8) {
            // SAFETY: see the module.
            unsafe {
                let by = _mm256_set1_epi8(by as i8);
                _mm256_storeu_si256(at.cast(), _mm256_add_epi8(w[0], by));
                _mm256_storeu_si256(at.add(32).cast(), _mm256_add_epi8(w[1], by));
            }
        }

        #[inline(always)]
        unsafe fn prefetch(at: *const u8) {
            // SAFETY: see the module.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
    }
}
