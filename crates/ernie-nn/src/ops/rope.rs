//! Rotary position embedding, interleaved pairs.

use std::sync::Arc;

use ernie_kernels::floats::FloatVec;
use ernie_kernels::rope::{self as kernel, Table};

use crate::error::ensure;
use crate::slice::{View, from_floats};
use crate::{Result, Value};

/// Cosines and sines of a pass: a row of angles for each row of the batch, shared by all heads and layers.
#[derive(Clone)]
pub struct Angles(Arc<Rows>);

struct Rows {
    table: Table,
    /// Row `i` of the batch turns by row `i` of the table.
    order: Vec<u32>,
}

impl Angles {
    /// Angles `position · theta^(-2i/D)` for pairs `i = 0..D/2`. `head_dim` is even.
    pub fn new(positions: &[u32], head_dim: usize, theta: f64) -> Self {
        let table = Table::of_positions(theta, head_dim, positions.iter().copied());
        Self(Arc::new(Rows { table, order: (0..positions.len() as u32).collect() }))
    }

    /// Cosines and sines of a row, `D/2` each.
    pub fn at(&self, row: usize) -> (&[f32], &[f32]) {
        self.0.table.at(row)
    }
}

/// Rotates each adjacent pair `(x[2i], x[2i+1])` of each head by its angle (Su et al., arXiv:2104.09864).
///
/// # Shapes
/// `x: [T, heads · D]` → the same; `angles` holds `T` rows of `D/2`.
pub fn rope(x: &Value, angles: &Angles) -> Result<Value> {
    let (rows, width, head_dim) = (x.dim(0), x.dim(1), angles.0.table.head_dim());
    ensure(head_dim > 0 && width.is_multiple_of(head_dim) && rows == angles.0.order.len(), "rope", || {
        format!("x {:?}, {} rows of angles for heads of {head_dim}", x.shape(), angles.0.order.len())
    })?;
    let heads = width / head_dim;
    let kind = x.width();
    let mut y = FloatVec::zeros(kind, rows * width);
    kernel::forward(x.view()?.floats(), &mut y, &angles.0.order, heads, &angles.0.table);
    let angles = angles.clone();
    Ok(Value::from_op(from_floats(y, &[rows, width])?, &[x], move |dy| {
        let mut dx = FloatVec::zeros(kind, rows * width);
        kernel::backward(View::of(dy)?.floats(), &mut dx, &angles.0.order, heads, &angles.0.table);
        Ok(vec![Some(from_floats(dx, &[rows, width])?)])
    }))
}
