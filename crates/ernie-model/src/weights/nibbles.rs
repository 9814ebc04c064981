//! Four-bit weights as compressed-tensors packs them: into blocks on the way in, out of floats on the way out.
//!
//! A row's integers `0..=15` lie eight to a 32-bit number, the first in the lowest bits, so that element `2 i` is the lower half of byte `i`. A group of a row
//! has a scale, and a zero where it is not 8; zeros lie eight rows to a 32-bit number. A weight is `(integer - zero) * scale`.
//!
//! On the way in a group becomes ggml blocks of 32: Q4_0, `(integer - 8) * scale`, or Q4_1, `integer * scale + minimum` with the minimum `-zero * scale`. Scale and
//! minimum are f16 there. What is written here has f16 scales and no zeros, and is read exactly. Of another program's, a scale of more bits than an f16 is
//! rounded, and so is a minimum whose product has more: by at most one part in 2,048.

use ernie_nn::quantize::int4_rows;

use super::Format;
use crate::config::INT4_GROUP;

/// Elements of a ggml block.
const BLOCK: usize = 32;

/// Rows whose zeros share a number.
const ROWS: usize = 8;

/// The 4-bit numbers of a matrix as they are stored.
pub(super) struct Packed<'a> {
    /// Rows and columns; a row is whole blocks.
    pub(super) shape: [usize; 2],
    /// Half a byte a weight.
    pub(super) integers: &'a [u8],
    /// `[rows, groups]`
    pub(super) scales: &'a [f32],
    /// `[rows / 8 rounded up, groups]`, 32-bit numbers; `None` where 8 is zero everywhere.
    pub(super) zeros: Option<&'a [u8]>,
}

impl Packed<'_> {
    /// The same as blocks, row by row.
    ///
    /// # Panics
    /// When a length does not fit the shape, or groups are no whole blocks; [`Self::check`] tells.
    pub(super) fn blocks(&self) -> (Format, Vec<u8>) {
        let [rows, columns] = self.shape;
        let groups = self.scales.len() / rows.max(1);
        let (blocks, each) = (columns / BLOCK, columns / groups.max(1) / BLOCK);
        let format = if self.zeros.is_some() { Format::Q4_1 } else { Format::Q4_0 };
        let mut bytes = Vec::with_capacity(rows * blocks * format.block_bytes());
        for (at, integers) in self.integers.as_chunks::<{ BLOCK / 2 }>().0.iter().enumerate() {
            let (row, group) = (at / blocks, at % blocks / each);
            let scale = half::f16::from_f32(self.scales[row * groups + group]);
            bytes.extend(scale.to_le_bytes());
            if let Some(zeros) = self.zeros {
                let word = &zeros[(row / ROWS * groups + group) * 4..];
                let zero = word[row % ROWS / 2] >> (4 * (row % 2)) & 15;
                bytes.extend(half::f16::from_f32(-f32::from(zero) * scale.to_f32()).to_le_bytes());
            }
            bytes.extend(reordered(integers));
        }
        (format, bytes)
    }

    /// What does not fit, if anything.
    pub(super) fn check(&self) -> Result<(), String> {
        let [rows, columns] = self.shape;
        let groups = self.scales.len().checked_div(rows).unwrap_or(0);
        if rows == 0 || groups == 0 || !columns.is_multiple_of(groups) || !(columns / groups).is_multiple_of(BLOCK) {
            return Err(format!("{groups} groups in rows of {columns}; expected groups of whole {BLOCK}s"));
        }
        let zeros = rows.div_ceil(ROWS).checked_mul(groups * 4);
        if self.scales.len() != rows * groups
            || rows.checked_mul(columns / 2) != Some(self.integers.len())
            || self.zeros.is_some_and(|given| Some(given.len()) != zeros)
        {
            return Err(format!("integers, scales and zeros do not make {rows} rows of {columns}"));
        }
        Ok(())
    }
}

/// The sixteen bytes of a block, of neighbours, as ggml has them: of elements sixteen apart.
fn reordered(neighbours: &[u8; BLOCK / 2]) -> [u8; BLOCK / 2] {
    let element = |i: usize| neighbours[i / 2] >> (4 * (i % 2)) & 15;
    std::array::from_fn(|i| element(i) | element(i + BLOCK / 2) << 4)
}

/// Rounds rows of `columns`, a whole number of groups: `weight_packed` and `weight_scale`, which is f16.
pub(super) fn int4_of(values: &[f32], columns: usize) -> (Vec<u8>, Vec<u8>) {
    let mut integers = vec![0; values.len() / 2];
    let mut scales = vec![0.0; values.len() / INT4_GROUP];
    int4_rows(values, columns, INT4_GROUP, &mut integers, &mut scales);
    (integers, scales.into_iter().flat_map(|scale| half::f16::from_f32(scale).to_le_bytes()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ernie_nn::formats::widen_row;

    #[test]
    fn what_is_rounded_comes_back_as_blocks() {
        let (rows, columns) = (11, 96);
        let values: Vec<f32> = (0..rows * columns).map(|i| ((i * 7919 % 1009) as f32 - 300.0) * 1e-3).collect();
        let (integers, scales) = int4_of(&values, columns);
        let scales = scales.as_chunks::<2>().0.iter().map(|&bytes| half::f16::from_le_bytes(bytes).to_f32());
        let scales: Vec<f32> = scales.collect();
        let packed = Packed { shape: [rows, columns], integers: &integers, scales: &scales, zeros: None };
        packed.check().unwrap();
        let (format, blocks) = packed.blocks();
        assert_eq!(format, Format::Q4_0);
        let mut row = vec![0.0; columns];
        for (at, values) in values.chunks_exact(columns).enumerate() {
            widen_row(format, &blocks[at * columns / 32 * 18..][..columns / 32 * 18], &mut row);
            for (column, (back, value)) in row.iter().zip(values).enumerate() {
                let scale = scales[at * 3 + column / 32];
                assert!((back - value).abs() <= 1.01 * scale.abs(), "{at} {column}: {back} {value}");
                let integer = integers[(at * columns + column) / 2] >> (4 * (column % 2)) & 15;
                assert_eq!(*back, (f32::from(integer) - 8.0) * scale);
            }
        }
    }

    #[test]
    fn zeros_of_eight_rows_share_a_number() {
        let (rows, columns) = (11, 64);
        let integers: Vec<u8> = (0..rows * columns / 2).map(|i| (i * 73 % 251) as u8).collect();
        let scales: Vec<f32> = (0..rows * 2).map(|i| 0.5 + i as f32).collect();
        let zero = |row: usize, group: usize| (row * 3 + group * 5) as u32 % 16;
        let word = |at: usize| (0..8).map(|row| zero(at / 2 * 8 + row, at % 2) << (4 * row)).sum::<u32>();
        let zeros: Vec<u8> = (0..4).flat_map(|at| word(at).to_le_bytes()).collect();
        let packed = Packed { shape: [rows, columns], integers: &integers, scales: &scales, zeros: Some(&zeros) };
        packed.check().unwrap();
        let (format, blocks) = packed.blocks();
        assert_eq!(format, Format::Q4_1);
        let mut back = vec![0.0; columns];
        for row in 0..rows {
            widen_row(format, &blocks[row * 40..][..40], &mut back);
            for (column, back) in back.iter().enumerate() {
                let integer = integers[(row * columns + column) / 2] >> (4 * (column % 2)) & 15;
                let (zero, scale) = (zero(row, column / 32) as f32, scales[row * 2 + column / 32]);
                assert_eq!(*back, (f32::from(integer) - zero) * scale, "{row} {column}");
            }
        }
    }

    #[test]
    fn longer_groups_and_a_zero_in_the_middle() {
        let integers: Vec<u8> = (0..128).map(|i| (i * 73 % 251) as u8).collect();
        let packed = Packed { shape: [2, 128], integers: &integers, scales: &[0.5, -2.0], zeros: None };
        packed.check().unwrap();
        let (format, blocks) = packed.blocks();
        assert_eq!((format, blocks.len()), (Format::Q4_0, 2 * 4 * 18));
        let mut row = [0.0; 128];
        widen_row(format, &blocks[4 * 18..], &mut row);
        for (i, back) in row.iter().enumerate() {
            let integer = integers[64 + i / 2] >> (4 * (i % 2)) & 15;
            assert_eq!(*back, (f32::from(integer) - 8.0) * -2.0, "{i}");
        }
        for (shape, scales) in [([2, 96], 2), ([2, 128], 3), ([0, 128], 2), ([1, 128], 8), ([4, 128], 4)] {
            let scales = vec![1.0; scales];
            assert!(Packed { shape, integers: &integers, scales: &scales, zeros: None }.check().is_err(), "{shape:?}");
        }
    }
}
