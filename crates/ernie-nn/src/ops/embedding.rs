//! Rows of a table, by id.

use crate::error::ensure;
use crate::slice::{Slice, tensor, wide};
use crate::{Result, Value, Weight};

/// `ids: [T]`, table `[V, h]` → `[T, h]`. The gradient is summed per row in the order of `ids`.
///
/// # Errors
/// [`crate::Error::Shape`] if an id is not below `V`.
pub fn embedding(ids: &[u32], table: &Weight) -> Result<Value> {
    let (vocab, hidden) = (table.out_features(), table.in_features());
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
        return Err(crate::Error::shape("embedding", format!("id {id} in a vocabulary of {vocab}")));
    }
    ensure(hidden > 0, "embedding", || "rows of no width".into())?;
    let mut out = vec![0.0; ids.len() * hidden];
    for (&id, row) in ids.iter().zip(out.chunks_exact_mut(hidden)) {
        table.row(id as usize, row)?;
    }
    let out = tensor(out, &[ids.len(), hidden])?;
    let Some(parameter) = table.parameter() else { return Ok(Value::constant(out)) };
    let (ids, trained) = (ids.to_vec(), parameter.clone());
    Ok(Value::from_op(out, &[&parameter.value()], move |gradient| {
        // Added in place: a gradient of its own would be as large as the table, and nearly all zeros.
        let gradient = wide(gradient)?;
        let gradient = Slice::of(&gradient)?;
        trained.accumulate_with(|table| ernie_kernels::embedding::scatter_add(&gradient, &ids, hidden, table))?;
        Ok(vec![None])
    }))
}
