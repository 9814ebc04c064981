//! Rows that are taken out of a batch, and put back where they came from.

use crate::error::ensure;
use crate::slice::Slice;
use crate::{Result, Value};

/// Adds each part's rows `[R, n]` to the rows of `x: [T, n]` that it names; all others stay as they are, to the bit. For inference; not recorded.
///
/// # Errors
/// [`crate::Error::Shape`] if a part has other rows than it names, or names one that is not there.
pub fn add_at(x: &Value, parts: &[(&[usize], Value)]) -> Result<Value> {
    let mut sum = x.to_vec()?;
    for (rows, part) in parts {
        each_line(&mut sum, x.shape(), rows, part, |line, added| {
            line.iter_mut().zip(added).for_each(|(x, added)| *x += added);
        })?;
    }
    Value::from_vec(sum, x.shape())
}

/// Rows of several parts `[R, n]` as one batch `[T, n]`: each part's at the rows that it names, which together are all. For inference; not recorded.
///
/// # Errors
/// [`crate::Error::Shape`] as [`add_at`].
pub fn place(parts: &[(&[usize], Value)]) -> Result<Value> {
    let count = parts.iter().map(|(rows, _)| rows.len()).sum();
    let shape = [count, parts.first().map_or(0, |(_, part)| part.dim(1))];
    let mut whole = vec![0.0; shape[0] * shape[1]];
    for (rows, part) in parts {
        each_line(&mut whole, &shape, rows, part, |line, placed| line.copy_from_slice(placed))?;
    }
    Value::from_vec(whole, &shape)
}

/// Hands each row of `part` to `f`, with the row of `all` that it belongs to.
fn each_line(
    all: &mut [f32],
    shape: &[usize],
    rows: &[usize],
    part: &Value,
    f: impl Fn(&mut [f32], &[f32]),
) -> Result<()> {
    let &[count, width] = shape else { return Err(crate::Error::shape("rows", format!("{shape:?}"))) };
    let fits = part.shape() == [rows.len(), width] && rows.iter().all(|&row| row < count);
    ensure(fits, "rows", || format!("{:?} for {} rows of {shape:?}", part.shape(), rows.len()))?;
    let part = Slice::of(part.tensor())?;
    for (&row, line) in rows.iter().zip(part.chunks_exact(width.max(1))) {
        f(&mut all[row * width..(row + 1) * width], line);
    }
    Ok(())
}
