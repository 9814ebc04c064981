//! Looking up rows of a table by id, and adding gradients back to them.

use crate::formats;
use crate::level::Isa;
use crate::linear::Rows;
use crate::pool::{self, grain_rows};

/// Columns of the table that one task adds to: its rows stay in cache while the ids go by.
const COLUMNS: usize = 64;

/// Writes row `ids[i]` of the table to row `i` of `out`, widened and scaled.
///
/// # Shapes
/// `table: [V, width]`, `ids: [T]` → `out: [T, width]`
///
/// # Panics
/// When a length does not fit, or an id is outside the table: check ids where they come in.
pub fn gather(table: &Rows<'_>, ids: &[u32], out: &mut [f32]) {
    let width = table.in_features;
    assert_eq!(out.len(), ids.len() * width, "embedding: {} outputs for {} ids of {width}", out.len(), ids.len());
    let row_bytes = table.check();
    if out.is_empty() {
        return;
    }
    let isa = Isa::current();
    pool::pieces(out, width * grain_rows(width), |at, out| {
        for (out, &id) in out.chunks_exact_mut(width).zip(&ids[at / width..]) {
            let id = id as usize;
            assert!(id < table.out_features, "embedding: id {id} in a table of {} rows", table.out_features);
            formats::widen(isa, table.format, &table.bytes[id * row_bytes..][..row_bytes], out);
            if let Some(scales) = table.scales {
                for out in out {
                    *out *= scales[id];
                }
            }
        }
    });
}

/// `d_table[ids[i]] += d_out[i]`, in row order for every element, whatever the threads.
///
/// # Shapes
/// `d_out: [T, width]`, `ids: [T]` → `d_table: [V, width]`
///
/// # Panics
/// When a length does not fit or an id is outside the table.
pub fn scatter_add(d_out: &[f32], ids: &[u32], width: usize, d_table: &mut [f32]) {
    assert_eq!(d_out.len(), ids.len() * width, "embedding: {} gradients for {} ids of {width}", d_out.len(), ids.len());
    if d_out.is_empty() {
        return;
    }
    assert!(d_table.len().is_multiple_of(width), "embedding: table of {} elements in rows of {width}", d_table.len());
    let rows = d_table.len() / width;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
        panic!("embedding: id {id} in a table of {rows} rows");
    }
    let table = pool::Shared::new(d_table);
    pool::ranges(width.div_ceil(COLUMNS), 1, |stripes| {
        for stripe in stripes {
            let columns = stripe * COLUMNS..((stripe + 1) * COLUMNS).min(width);
            for (d_out, &id) in d_out.chunks_exact(width).zip(ids) {
                let start = id as usize * width;
                // SAFETY: a task writes the columns of its own stripes only, and one row at a time.
                let d_row = unsafe { table.part(start + columns.start..start + columns.end) };
                for (d, &g) in d_row.iter_mut().zip(&d_out[columns.clone()]) {
                    *d += g;
                }
            }
        }
    });
}
