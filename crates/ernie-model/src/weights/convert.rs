//! From stored bytes to floats, a few rows at a time; rounding to 8 bits; and the check that every value is finite.

use ernie_nn::{formats, quantize};

use super::Format;

/// The number type a tensor is stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Format(Format),
    /// 64-bit floats, narrowed to f32.
    F64,
}

impl Kind {
    /// Bytes of `elements` stored in rows of `columns`; `None` if they are no whole number of blocks.
    pub(super) fn bytes(self, rows: usize, columns: usize) -> Option<usize> {
        match self {
            Kind::Format(format) => format.row_bytes(columns)?.checked_mul(rows),
            Kind::F64 => columns.checked_mul(8)?.checked_mul(rows),
        }
    }
}

/// Values that are widened at a time while rounding; keeps the buffer small against the tensor.
const CHUNK_ELEMENTS: usize = 1 << 18;

/// What is said of a tensor that [`all_finite`] does not pass.
pub(super) const NOT_FINITE: &str = "holds values that are not finite (NaN or infinity)";

/// All values as f32.
pub(super) fn widen(kind: Kind, bytes: &[u8], scales: Option<&[f32]>, [rows, columns]: [usize; 2]) -> Vec<f32> {
    let mut out = vec![0.0; rows * columns];
    if columns > 0 {
        let reader = Reader { kind, bytes, scales, columns };
        for (row, out) in out.chunks_exact_mut(columns).enumerate() {
            reader.row(row, out);
        }
    }
    out
}

/// Rounds f32 rows to int8 with one f16-representable scale each.
pub(super) fn int8_of(values: &[f32], columns: usize) -> (Vec<u8>, Vec<f32>) {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    let rows = values.len().checked_div(columns).unwrap_or(0);
    Reader { kind: Kind::Format(Format::F32), bytes, scales: None, columns }.int8(rows)
}

/// Rows of stored values.
pub(super) struct Reader<'a> {
    pub(super) kind: Kind,
    pub(super) bytes: &'a [u8],
    /// A factor a row.
    pub(super) scales: Option<&'a [f32]>,
    pub(super) columns: usize,
}

impl Reader<'_> {
    /// Widens a row.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        // The length was checked against the shape when the tensor was found.
        let Some(row_bytes) = self.kind.bytes(1, self.columns) else { return };
        let Some(bytes) = self.bytes.get(row * row_bytes..(row + 1) * row_bytes) else { return };
        match self.kind {
            Kind::Format(format) => formats::widen_row(format, bytes, out),
            Kind::F64 => {
                for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
                    *value = f64::from_le_bytes(*bytes) as f32;
                }
            }
        }
        if let Some(scale) = self.scales.and_then(|scales| scales.get(row)) {
            out.iter_mut().for_each(|value| *value *= scale);
        }
    }

    /// Widens some rows at a time and hands them on.
    fn each_chunk(&mut self, rows: usize, mut sink: impl FnMut(&[f32])) {
        if self.columns == 0 || rows == 0 {
            return;
        }
        let at_once = (CHUNK_ELEMENTS / self.columns).clamp(1, rows);
        let mut values = vec![0.0; at_once * self.columns];
        for first in (0..rows).step_by(at_once) {
            let here = at_once.min(rows - first);
            let values = &mut values[..here * self.columns];
            for (offset, out) in values.chunks_exact_mut(self.columns).enumerate() {
                self.row(first + offset, out);
            }
            sink(values);
        }
    }

    fn int8(&mut self, rows: usize) -> (Vec<u8>, Vec<f32>) {
        let columns = self.columns;
        let mut out = vec![0_u8; rows * columns];
        let mut scales = vec![0.0; rows];
        let mut done = 0;
        self.each_chunk(rows, |values| {
            let here = values.len() / columns;
            let out: &mut [i8] = bytemuck::cast_slice_mut(&mut out[done * columns..(done + here) * columns]);
            quantize::int8_rows(values, columns, out, &mut scales[done..done + here]);
            done += here;
        });
        (out, scales)
    }
}

/// Whether every stored value is finite, after narrowing where that is done; see [`formats::all_finite`].
pub(super) fn all_finite(kind: Kind, bytes: &[u8]) -> bool {
    match kind {
        Kind::F64 => bytes.as_chunks::<8>().0.iter().all(|wide| (f64::from_le_bytes(*wide) as f32).is_finite()),
        Kind::Format(format) => formats::all_finite(format, bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn int8_keeps_a_scale_a_row_and_widens_back() {
        let values = [127.0, -127.0, 0.5, 0.25, 0.0, 0.0];
        let (out, scales) = int8_of(&values, 2);
        assert_eq!(scales[0], 1.0);
        assert_eq!(scales[2], 0.0);
        let back = widen(Kind::Format(Format::Int8), &out, Some(&scales), [3, 2]);
        for (back, value) in back.iter().zip(values) {
            assert!((back - value).abs() <= 0.5 * 0.5 / 127.0 + 1e-3, "{back} {value}");
        }
    }

    #[test]
    fn a_double_that_no_float_holds_is_no_number() {
        assert!(all_finite(Kind::F64, &1e30_f64.to_le_bytes()));
        assert!(!all_finite(Kind::F64, &1e300_f64.to_le_bytes()));
    }
}
