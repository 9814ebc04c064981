//! A packed matrix, and how one is built while its rows are read.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::buffer::Buffer;
use super::encode;
use super::layout::{Kind, Layout, PANEL, Row};
use crate::formats::{self, Format};
use crate::level::Isa;
use crate::{Rows, pool};

/// A weight matrix `[out, k]`, repacked into panels of 16 outputs that serve one row of input and many alike.
pub struct Matrix {
    pub(super) layout: Layout,
    panels: Buffer,
    /// One scale an output, padded to whole panels; empty where blocks have scales.
    row_scales: Vec<f32>,
}

impl Matrix {
    /// Packs stored rows in the kind that holds their numbers exactly ([`Kind::of`]).
    ///
    /// # Panics
    /// When a length does not fit, or the rows are plain floats.
    pub fn pack(rows: &Rows<'_>) -> Self {
        let kind = Kind::of(rows.format);
        let kind = kind.unwrap_or_else(|| panic!("packed: {} rows are no integers", rows.format.name()));
        Matrix::quantize(kind, rows)
    }

    /// Packs stored rows in a kind of choice; see [`Builder::push_rows`].
    ///
    /// # Panics
    /// As [`Builder::push_rows`].
    pub fn quantize(kind: Kind, rows: &Rows<'_>) -> Self {
        let mut builder = Builder::new(kind, rows.out_features, rows.in_features);
        builder.push_rows(rows);
        builder.finish()
    }

    /// How its weights are stored.
    pub fn kind(&self) -> Kind {
        self.layout.kind
    }

    /// Outputs: rows of the matrix.
    pub fn out_features(&self) -> usize {
        self.layout.out
    }

    /// Elements in a row.
    pub fn in_features(&self) -> usize {
        self.layout.k
    }

    /// Bytes of memory that it holds, padding included: about what a product with one row reads.
    pub fn bytes(&self) -> usize {
        self.panels.bytes().len() + size_of_val(self.row_scales.as_slice())
    }

    /// Writes a row as floats: `integer * scale + minimum`, each operation rounded once, which for stored formats are the
    /// floats of [`formats::widen_row`], and for [`Kind::Int8`] the integer times the row's scale.
    ///
    /// # Panics
    /// When the row does not exist or `to` has another length.
    pub fn widen_row(&self, row: usize, to: &mut [f32]) {
        assert!(row < self.layout.out && to.len() == self.layout.k, "packed: row {row} into {} floats", to.len());
        let run = self.layout.kind.blocks().map_or(self.layout.k.max(1), |b| b.elements);
        for (block, to) in to.chunks_mut(run).enumerate() {
            let (scale, minimum) = self.scale(row, block);
            for (i, to) in to.iter_mut().enumerate() {
                *to = self.integer(row, block * run + i) as f32 * scale + minimum;
            }
        }
    }

    /// The integer of a weight.
    ///
    /// # Panics
    /// When there is no such weight.
    pub fn integer(&self, row: usize, k: usize) -> i32 {
        assert!(row < self.layout.out && k < self.layout.k, "packed: weight {row}, {k}");
        self.layout.integer(self.panel(row / PANEL), row % PANEL, k)
    }

    /// The scale and minimum of a block of a row; of [`Kind::Int8`], whose rows are one block, the scale and 0.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn scale(&self, row: usize, block: usize) -> (f32, f32) {
        assert!(row < self.layout.out, "packed: row {row}");
        match self.row_scales.get(row) {
            Some(&scale) => (scale, 0.0),
            None => self.layout.scale(self.panel(row / PANEL), row % PANEL, block),
        }
    }

    pub(super) fn panel(&self, index: usize) -> &[u8] {
        &self.panels.bytes()[index * self.layout.panel_bytes()..][..self.layout.panel_bytes()]
    }

    /// All panels from the first on.
    pub(super) fn panels(&self) -> &[u8] {
        self.panels.bytes()
    }

    pub(super) fn row_scales(&self) -> &[f32] {
        &self.row_scales
    }
}

/// Whether the bits of an f16 are a number's.
fn is_finite(half: [u8; 2]) -> bool {
    u16::from_le_bytes(half) & 0x7c00 != 0x7c00
}

/// Builds a [`Matrix`] from rows that come a few at a time, so that no second whole copy is ever held.
pub struct Builder {
    matrix: Matrix,
    filled: usize,
    non_finite: usize,
}

impl Builder {
    /// A matrix of `out` rows of `k` elements, none of which is there yet.
    ///
    /// # Panics
    /// When the size overflows, or a block of `kind` is not 16, 32, 64 or 128 elements.
    pub fn new(kind: Kind, out: usize, k: usize) -> Self {
        let layout = Layout::new(kind, out, k);
        let scales = if kind == Kind::Int8 { layout.panels() * PANEL } else { 0 };
        let panels = Buffer::zeros(layout.panels() * layout.panel_bytes());
        // Rows of nothing need not be brought.
        let filled = if k == 0 { out } else { 0 };
        Builder { matrix: Matrix { layout, panels, row_scales: vec![0.0; scales] }, filled, non_finite: 0 }
    }

    /// Rows still to come.
    pub fn missing(&self) -> usize {
        self.matrix.layout.out - self.filled
    }

    /// Elements so far that were NaN (now 0) or infinite (now the end of the grid), and of blocks that were moved as they are, scales and
    /// minimums that are no numbers; callers that must not accept them look here.
    pub fn non_finite(&self) -> usize {
        self.non_finite
    }

    /// Takes the next rows, `[n, k]`, rounding them to nearest: to `-127..=127` times an f16-rounded scale a row
    /// ([`Kind::Int8`]), or to `0..=15` times an f16 scale plus an f16 minimum a group ([`Kind::int4`]).
    ///
    /// # Panics
    /// When they are no whole rows or too many, or the kind is one of ggml's blocks.
    pub fn push(&mut self, rows: &[f32]) {
        let k = self.matrix.layout.k;
        let count = rows.len().checked_div(k).unwrap_or(0);
        assert!(count * k == rows.len(), "packed: {} floats are no whole rows of {k}", rows.len());
        self.push_rows(&Rows::from_f32(rows, count, k));
    }

    /// Takes the next rows as they are stored: moved exactly when the kind is the format's own ([`Kind::of`]), otherwise widened
    /// to floats and rounded as by [`Self::push`].
    ///
    /// # Panics
    /// When a length does not fit, there are too many rows, or the kind is another format's blocks.
    pub fn push_rows(&mut self, rows: &Rows<'_>) {
        let row_bytes = rows.check();
        let layout = self.matrix.layout;
        if layout.k == 0 && rows.in_features == 0 {
            return;
        }
        assert!(
            rows.in_features == layout.k && rows.out_features <= self.missing(),
            "packed: {} rows of {} where {} of {} are missing",
            rows.out_features,
            rows.in_features,
            self.missing(),
            layout.k
        );
        let (isa, start, end) = (Isa::current(), self.filled, self.filled + rows.out_features);
        self.filled = end;
        if rows.out_features == 0 {
            return;
        }
        let panels = start / PANEL..end.div_ceil(PANEL);
        let size = layout.panel_bytes();
        let bytes = &mut self.matrix.panels.bytes_mut()[panels.start * size..panels.end * size];
        let has_scales = !self.matrix.row_scales.is_empty();
        // A place for each panel's scales, kept or not.
        let mut none = if has_scales { Vec::new() } else { vec![0.0; panels.len() * PANEL] };
        let scales = match has_scales {
            true => &mut self.matrix.row_scales[panels.start * PANEL..panels.end * PANEL],
            false => &mut none,
        };
        let exact = Kind::of(rows.format) == Some(layout.kind);
        let non_finite = AtomicUsize::new(0);
        pool::rows2((bytes, size), (scales, PANEL), 1, |first, bytes, scales| {
            let (mut floats, mut stored) = (vec![0.0; if exact { 0 } else { layout.k }], Vec::new());
            let lines = layout.lines();
            let mut words = vec![0; PANEL * lines];
            for (i, (panel, scales)) in bytes.chunks_exact_mut(size).zip(scales.chunks_exact_mut(PANEL)).enumerate() {
                let base = (panels.start + first + i) * PANEL;
                let (panel_scales, weights) = panel.split_at_mut(layout.scale_bytes);
                let some = start.max(base)..end.min(base + PANEL);
                for (index, words) in some.clone().zip(words.chunks_exact_mut(lines)) {
                    let mut row = Row { layout: &layout, scales: panel_scales, words, output: index - base };
                    let bytes = &rows.bytes[(index - start) * row_bytes..][..row_bytes];
                    let scale = rows.scales.map_or(1.0, |s| s[index - start]);
                    if exact {
                        encode::stored(&mut row, rows.format, bytes);
                        scales[index - base] = scale;
                        continue;
                    }
                    formats::widen(isa, rows.format, bytes, &mut floats);
                    if rows.format == Format::Int8 {
                        floats.iter_mut().for_each(|x| *x *= scale);
                    }
                    non_finite.fetch_add(floats.iter().filter(|x| !x.is_finite()).count(), Ordering::Relaxed);
                    encode::floats(isa, &mut row, &floats, &mut scales[index - base], &mut stored);
                }
                encode::lines(isa, &words, lines, some.start - base, some.len(), weights);
                if exact && some.end == layout.out.min(base + PANEL) {
                    // Once for a panel, when it is whole, and while it is in the cache.
                    let halves = panel_scales[..layout.half_bytes()].as_chunks::<2>().0;
                    non_finite.fetch_add(halves.iter().filter(|&&half| !is_finite(half)).count(), Ordering::Relaxed);
                }
            }
        });
        self.non_finite += non_finite.into_inner();
    }

    /// The matrix.
    ///
    /// # Panics
    /// When rows are missing.
    pub fn finish(self) -> Matrix {
        assert!(self.missing() == 0, "packed: {} of {} rows are missing", self.missing(), self.matrix.layout.out);
        self.matrix
    }
}
