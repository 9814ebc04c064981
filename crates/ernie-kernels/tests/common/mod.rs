//! What the tests share: a small generator of numbers, every level of this machine, and comparisons that say where.
#![allow(dead_code, reason = "each test binary uses its part")]

use ernie_kernels::{Level, supported_levels, with_level};

/// SplitMix64: enough for test data.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In `low..=high`.
    pub(crate) fn between(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }

    /// In `-1..1`, with exact zeros now and then.
    pub(crate) fn unit(&mut self) -> f32 {
        let bits = self.next();
        if bits.is_multiple_of(97) { 0.0 } else { (bits >> 40) as f32 / (1_u64 << 23) as f32 - 1.0 }
    }

    pub(crate) fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit()).collect()
    }

    pub(crate) fn scaled(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.unit() * scale).collect()
    }
}

/// Runs `f` once for each level that this processor has.
pub(crate) fn each_level(mut f: impl FnMut(Level)) {
    for level in supported_levels() {
        with_level(level, || f(level)).unwrap();
    }
}

/// Every pair within `absolute + relative * |expected|`.
#[track_caller]
pub(crate) fn close(got: &[f32], expected: &[f32], absolute: f32, relative: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: lengths");
    for (i, (&g, &e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= absolute + relative * e.abs(), "{what}: element {i} is {g}, expected {e}");
    }
}

/// Equal bits (zeros of either sign are equal).
#[track_caller]
pub(crate) fn same(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: lengths");
    for (i, (&g, &e)) in got.iter().zip(expected).enumerate() {
        assert!(g == e || g.is_nan() && e.is_nan(), "{what}: element {i} is {g:e}, expected {e:e}");
    }
}
