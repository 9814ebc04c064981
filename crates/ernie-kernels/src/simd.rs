//! What kernels share: the macro that compiles one safe body for every [`Level`](crate::Level), fixed-lane sums, and a
//! vectorisable `exp`.
//!
//! A body is written with the constant `FMA` in sight: `fma::<FMA>` fuses where the hardware does (a call into libm would be
//! a hundred times slower on the plain level). Sums run over 16 lanes in every level and are folded in one fixed tree, so the
//! two vector levels agree bit for bit and the plain one differs only by the fusing.

/// Number of partial sums in every reduction.
pub(crate) const LANES: usize = 16;

/// Defines a kernel: one body, an instance for each level, and the choice between them by the leading [`Isa`](crate::level::Isa).
macro_rules! kernel {
    ($(#[$meta:meta])* fn $name:ident ( $($arg:ident : $ty:ty),* $(,)? ) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)] // Kernels take plain slices and counts.
        pub(crate) fn $name(isa: $crate::level::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[allow(clippy::too_many_arguments, clippy::extra_unused_type_parameters)]
            #[inline(always)]
            fn body<const FMA: bool>($($arg: $ty),*) $(-> $ret)? $body

            #[allow(clippy::too_many_arguments)]
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2")]
            fn avx512($($arg: $ty),*) $(-> $ret)? { body::<true>($($arg),*) }

            #[allow(clippy::too_many_arguments)]
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2")]
            fn avx2($($arg: $ty),*) $(-> $ret)? { body::<true>($($arg),*) }

            match isa.level() {
                #[cfg(target_arch = "x86_64")]
                $crate::Level::Avx512
                | $crate::Level::Avx512Vnni
                | $crate::Level::Avx512Bf16
                | $crate::Level::Amx => {
                    // SAFETY: an `Isa` of this level exists only after the processor was found to have all its features.
                    unsafe { avx512($($arg),*) }
                }
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::Level::Avx2 => unsafe { avx2($($arg),*) },
                _ => body::<false>($($arg),*),
            }
        }
    };
}

/// `a * b + c`, fused when the level has the instruction.
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Folds sixteen partial sums in the fixed tree that all levels share: lanes 8 apart, then 4, 2, 1.
#[inline(always)]
pub(crate) fn fold(lanes: [f32; LANES]) -> f32 {
    let mut eight = [0.0_f32; 8];
    for l in 0..8 {
        eight[l] = lanes[l] + lanes[l + 8];
    }
    let mut four = [0.0_f32; 4];
    for l in 0..4 {
        four[l] = eight[l] + eight[l + 4];
    }
    (four[0] + four[2]) + (four[1] + four[3])
}

/// The sum over `f(a, b)` folded into lanes, where `f(a, b, sum)` adds one term to a partial sum.
#[inline(always)]
pub(crate) fn sum2(a: &[f32], b: &[f32], f: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a_blocks, a_tail) = a.as_chunks::<LANES>();
    let (b_blocks, b_tail) = b.as_chunks::<LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for l in 0..LANES {
            lanes[l] = f(a[l], b[l], lanes[l]);
        }
    }
    for (l, (&a, &b)) in a_tail.iter().zip(b_tail).enumerate() {
        lanes[l] = f(a, b, lanes[l]);
    }
    fold(lanes)
}

/// The largest element, `-inf` of none. A NaN is passed over.
#[inline(always)]
pub(crate) fn max(a: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, tail) = a.as_chunks::<LANES>();
    for a in blocks {
        for l in 0..LANES {
            lanes[l] = if a[l] > lanes[l] { a[l] } else { lanes[l] };
        }
    }
    for (l, &a) in tail.iter().enumerate() {
        lanes[l] = if a > lanes[l] { a } else { lanes[l] };
    }
    // A tree, as in `fold`: sixteen dependent comparisons would take longer than the loop above over a short row.
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let eight: [f32; 8] = std::array::from_fn(|l| larger(lanes[l], lanes[l + 8]));
    let four: [f32; 4] = std::array::from_fn(|l| larger(eight[l], eight[l + 4]));
    larger(larger(four[0], four[2]), larger(four[1], four[3]))
}

/// `e^x` in single precision, branch-free so that loops over it vectorise; within 2 units in the last place.
///
/// Cody–Waite reduction by ln 2 in two parts, a polynomial of degree 6, and scaling by the power of two in two steps, so that
/// subnormal results and the overflow to infinity come out right. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it rounds to the nearest integer, which then stands in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    // Written as selections, not `clamp`, so that NaN passes through.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = fma::<FMA>(x, std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = fma::<FMA>(n, -0.693_359_4, x);
    let r = fma::<FMA>(n, 2.121_944_4e-4, r);
    let p = fma::<FMA>(1.987_569_1e-4, r, 1.398_199_9e-3);
    let p = fma::<FMA>(p, r, 8.333_452e-3);
    let p = fma::<FMA>(p, r, 4.166_579_6e-2);
    let p = fma::<FMA>(p, r, 1.666_666_5e-1);
    let p = fma::<FMA>(p, r, 0.5);
    let y = fma::<FMA>(p, r * r, r) + 1.0;
    let exponent = (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
    let half = exponent >> 1;
    let rest = exponent.wrapping_sub(half);
    let power = |e: i32| f32::from_bits((e.wrapping_add(127) as u32) << 23);
    y * power(half) * power(rest)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

kernel! {
    /// Replaces each element by its exponential (used by tests and by [`crate::elementwise::exp`]).
    fn exp_slice(a: &mut [f32]) {
        for a in a {
            *a = exp::<FMA>(*a);
        }
    }
}
