//! Plain floats, bytes, and ggml's blocks of 32.

use super::f16_at;

kernel! {
    fn f32_row(bytes: &[u8], out: &mut [f32]) {
        for (out, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *out = f32::from_le_bytes(*b);
        }
    }
}

kernel! {
    fn f16_row(bytes: &[u8], out: &mut [f32]) {
        for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *out = super::f16_bits_to_f32(u16::from_le_bytes(*b));
        }
    }
}

kernel! {
    fn bf16_row(bytes: &[u8], out: &mut [f32]) {
        for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *out = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
        }
    }
}

kernel! {
    fn int8_row(bytes: &[u8], out: &mut [f32]) {
        for (out, &b) in out.iter_mut().zip(bytes) {
            *out = f32::from(b as i8);
        }
    }
}

kernel! {
    fn q8_0_row(bytes: &[u8], out: &mut [f32]) {
        // f16 scale, 32 signed bytes.
        for (out, b) in out.as_chunks_mut::<32>().0.iter_mut().zip(bytes.as_chunks::<34>().0) {
            let d = f16_at(b, 0);
            for (out, &q) in out.iter_mut().zip(&b[2..]) {
                *out = f32::from(q as i8) * d;
            }
        }
    }
}

kernel! {
    fn q4_0_row(bytes: &[u8], out: &mut [f32]) {
        // f16 scale, 16 bytes: the low nibbles are elements 0..16, the high ones 16..32.
        for (out, b) in out.as_chunks_mut::<32>().0.iter_mut().zip(bytes.as_chunks::<18>().0) {
            let d = f16_at(b, 0);
            // Two loops: each vectorises, the two stores of one loop did not.
            for (out, &q) in out[..16].iter_mut().zip(&b[2..]) {
                *out = (i32::from(q & 15) - 8) as f32 * d;
            }
            for (out, &q) in out[16..].iter_mut().zip(&b[2..]) {
                *out = (i32::from(q >> 4) - 8) as f32 * d;
            }
        }
    }
}

kernel! {
    fn q4_1_row(bytes: &[u8], out: &mut [f32]) {
        // f16 scale, f16 minimum, 16 bytes of nibbles as in Q4_0.
        for (out, b) in out.as_chunks_mut::<32>().0.iter_mut().zip(bytes.as_chunks::<20>().0) {
            let (d, m) = (f16_at(b, 0), f16_at(b, 2));
            for (out, &q) in out[..16].iter_mut().zip(&b[4..]) {
                *out = f32::from(q & 15) * d + m;
            }
            for (out, &q) in out[16..].iter_mut().zip(&b[4..]) {
                *out = f32::from(q >> 4) * d + m;
            }
        }
    }
}

/// The fifth bits of a block: bit `i` belongs to element `i`.
#[inline(always)]
fn fifth_bits(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

kernel! {
    fn q5_0_row(bytes: &[u8], out: &mut [f32]) {
        // f16 scale, 32 fifth bits, 16 bytes of nibbles.
        for (out, b) in out.as_chunks_mut::<32>().0.iter_mut().zip(bytes.as_chunks::<22>().0) {
            let (d, fifth) = (f16_at(b, 0), fifth_bits(b, 2));
            for (i, (out, &q)) in out[..16].iter_mut().zip(&b[6..]).enumerate() {
                *out = ((u32::from(q & 15) | (fifth >> i & 1) << 4) as i32 - 16) as f32 * d;
            }
            for (i, (out, &q)) in out[16..].iter_mut().zip(&b[6..]).enumerate() {
                *out = ((u32::from(q >> 4) | (fifth >> (i + 16) & 1) << 4) as i32 - 16) as f32 * d;
            }
        }
    }
}

kernel! {
    fn q5_1_row(bytes: &[u8], out: &mut [f32]) {
        // f16 scale, f16 minimum, 32 fifth bits, 16 bytes of nibbles.
        for (out, b) in out.as_chunks_mut::<32>().0.iter_mut().zip(bytes.as_chunks::<24>().0) {
            let (d, m, fifth) = (f16_at(b, 0), f16_at(b, 2), fifth_bits(b, 4));
            for (i, (out, &q)) in out[..16].iter_mut().zip(&b[8..]).enumerate() {
                *out = (u32::from(q & 15) | (fifth >> i & 1) << 4) as i32 as f32 * d + m;
            }
            for (i, (out, &q)) in out[16..].iter_mut().zip(&b[8..]).enumerate() {
                *out = (u32::from(q >> 4) | (fifth >> (i + 16) & 1) << 4) as i32 as f32 * d + m;
            }
        }
    }
}
