//! ggml's super-blocks of 256 elements with quantised scales.

use super::f16_at;

/// The six-bit scale and minimum of group `j` (of 8) from the 12 bytes that hold them all.
#[inline(always)]
pub(crate) fn scale_and_min(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    }
}

kernel! {
    fn q4_k_row(bytes: &[u8], out: &mut [f32]) {
        // f16 scale, f16 scale of the minimums, 12 bytes of group scales, 128 bytes of nibbles: each 32 bytes hold 64
        // elements, low nibbles first.
        for (out, b) in out.as_chunks_mut::<256>().0.iter_mut().zip(bytes.as_chunks::<144>().0) {
            let (d, d_min) = (f16_at(b, 0), f16_at(b, 2));
            for (pair, (out, q)) in out.as_chunks_mut::<64>().0.iter_mut().zip(b[16..].as_chunks::<32>().0).enumerate() {
                let (s1, m1) = scale_and_min(&b[4..16], 2 * pair);
                let (s2, m2) = scale_and_min(&b[4..16], 2 * pair + 1);
                let (d1, m1) = (d * f32::from(s1), d_min * f32::from(m1));
                let (d2, m2) = (d * f32::from(s2), d_min * f32::from(m2));
                for (out, &q) in out[..32].iter_mut().zip(q) {
                    *out = d1 * f32::from(q & 15) - m1;
                }
                for (out, &q) in out[32..].iter_mut().zip(q) {
                    *out = d2 * f32::from(q >> 4) - m2;
                }
            }
        }
    }
}

kernel! {
    fn q5_k_row(bytes: &[u8], out: &mut [f32]) {
        // As Q4_K, with 32 bytes of fifth bits before the nibbles: bit g of byte i belongs to element i of group g.
        for (out, b) in out.as_chunks_mut::<256>().0.iter_mut().zip(bytes.as_chunks::<176>().0) {
            let (d, d_min) = (f16_at(b, 0), f16_at(b, 2));
            let fifth = &b[16..48];
            for (pair, (out, q)) in out.as_chunks_mut::<64>().0.iter_mut().zip(b[48..].as_chunks::<32>().0).enumerate() {
                let (s1, m1) = scale_and_min(&b[4..16], 2 * pair);
                let (s2, m2) = scale_and_min(&b[4..16], 2 * pair + 1);
                let (d1, m1) = (d * f32::from(s1), d_min * f32::from(m1));
                let (d2, m2) = (d * f32::from(s2), d_min * f32::from(m2));
                for ((out, &q), &h) in out[..32].iter_mut().zip(q).zip(fifth) {
                    *out = d1 * f32::from(q & 15 | (h >> (2 * pair) & 1) << 4) - m1;
                }
                for ((out, &q), &h) in out[32..].iter_mut().zip(q).zip(fifth) {
                    *out = d2 * f32::from(q >> 4 | (h >> (2 * pair + 1) & 1) << 4) - m2;
                }
            }
        }
    }
}

kernel! {
    fn q6_k_row(bytes: &[u8], out: &mut [f32]) {
        // 128 bytes of low nibbles, 64 bytes of upper bit pairs, 16 signed group scales, f16 scale. Each half of 128
        // elements uses 64, 32 and 8 of them; group of element i is i / 16.
        for (out, b) in out.as_chunks_mut::<256>().0.iter_mut().zip(bytes.as_chunks::<210>().0) {
            let d = f16_at(b, 208);
            for (half, out) in out.as_chunks_mut::<128>().0.iter_mut().enumerate() {
                let low = &b[64 * half..][..64];
                let high = &b[128 + 32 * half..][..32];
                let scales = &b[192 + 8 * half..][..8];
                for (quarter, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                    let nibbles = &low[32 * (quarter % 2)..][..32];
                    let (nibble_shift, pair_shift) = (4 * (quarter / 2), 2 * quarter);
                    for (sixteen, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                        let scale = d * f32::from(scales[2 * quarter + sixteen] as i8);
                        let nibbles = &nibbles[16 * sixteen..][..16];
                        let high = &high[16 * sixteen..][..16];
                        for ((out, &n), &h) in out.iter_mut().zip(nibbles).zip(high) {
                            let q = n >> nibble_shift & 15 | (h >> pair_shift & 3) << 4;
                            *out = scale * f32::from(q as i8 - 32);
                        }
                    }
                }
            }
        }
    }
}
