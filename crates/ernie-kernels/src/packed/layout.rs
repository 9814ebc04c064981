//! Where a weight lies in packed memory.
//!
//! A matrix is cut into panels of 16 outputs. A panel is its scales (none for [`Kind::Int8`]) followed by its weights, both whole
//! cache lines, and panels follow each other, so that one thread's share of a product is one straight stream:
//!
//! * bytes: line `k / 4` holds, for each output, the four weights `k..k + 4`, each stored as weight + 128;
//! * nibbles: line `k / 8` holds `k..k + 4` in its low and `k + 4..k + 8` in its high nibbles, stored as they are;
//! * half scales: for each block 16 f16 scales, then 16 f16 minimums where there are any;
//! * sub-scales: for each 256 elements 16 f16 super-scales (and 16 super-minimums, negated), then for each block 16 signed bytes
//!   of scales (and 16 of minimums).
//!
//! Rows are padded with weights that count nothing because the activations are zero there.

use super::activations::GROUP;
use crate::Format;

/// Outputs in a panel.
pub(super) const PANEL: usize = 16;

/// Elements that share a super-scale.
pub(super) const SUPER: usize = 256;

/// How the weights of a packed matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Bytes `-127..=127` and one f32 scale a row.
    Int8,
    /// Signed bytes in blocks along a row.
    Blocks8(Blocks),
    /// Four bits in blocks along a row: `0..=15` where a block has a minimum, `-8..=7` where it has none.
    Blocks4(Blocks),
}

/// The blocks of a [`Kind`]: elements along a row that share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Blocks {
    /// Elements in a block: 16, 32, 64 or 128.
    pub elements: usize,
    /// Whether a block has a minimum, which is added to `scale * value`.
    pub minimum: bool,
    /// How scales and minimums are stored.
    pub scales: Scales,
}

/// How the scales of [`Blocks`] are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scales {
    /// An f16 a block.
    Half,
    /// A signed byte a block, times an f16 for each 256 elements: exactly ggml's numbers, whose product needs more bits than an
    /// f16 has.
    Sub,
}

impl Kind {
    /// Four bits, rounded to nearest between the least and the largest weight of each group of 32, 64 or 128.
    ///
    /// # Panics
    /// For another group.
    pub fn int4(group: usize) -> Self {
        assert!(matches!(group, 32 | 64 | 128), "int4: groups of {group}, not 32, 64 or 128");
        Kind::Blocks4(Blocks { elements: group, minimum: true, scales: Scales::Half })
    }

    /// The kind that holds a stored format's numbers exactly; `None` for the formats of plain floats.
    pub fn of(format: Format) -> Option<Self> {
        let blocks = |elements, minimum, scales| Blocks { elements, minimum, scales };
        Some(match format {
            Format::F32 | Format::F16 | Format::Bf16 => return None,
            Format::Int8 => Kind::Int8,
            Format::Q8_0 | Format::Q5_0 => Kind::Blocks8(blocks(32, false, Scales::Half)),
            Format::Q5_1 => Kind::Blocks8(blocks(32, true, Scales::Half)),
            Format::Q4_0 => Kind::Blocks4(blocks(32, false, Scales::Half)),
            Format::Q4_1 => Kind::Blocks4(blocks(32, true, Scales::Half)),
            Format::Q4K => Kind::Blocks4(blocks(32, true, Scales::Sub)),
            Format::Q5K => Kind::Blocks8(blocks(32, true, Scales::Sub)),
            Format::Q6K => Kind::Blocks8(blocks(16, false, Scales::Sub)),
        })
    }

    pub(super) fn blocks(self) -> Option<Blocks> {
        match self {
            Kind::Int8 => None,
            Kind::Blocks8(blocks) | Kind::Blocks4(blocks) => Some(blocks),
        }
    }

    pub(super) fn nibbles(self) -> bool {
        matches!(self, Kind::Blocks4(_))
    }

    /// Elements along a row that share a scale; `None` where a whole row does.
    pub fn block(self) -> Option<usize> {
        self.blocks().map(|b| b.elements)
    }

    /// Whether weights have a minimum, which is added to `scale * integer`.
    pub fn has_minimum(self) -> bool {
        self.blocks().is_some_and(|b| b.minimum)
    }

    /// What a stored value is more than the weight's integer.
    pub(super) fn offset(self) -> i32 {
        match self {
            Kind::Blocks4(Blocks { minimum: true, .. }) => 0,
            Kind::Blocks4(_) => 8,
            _ => 128,
        }
    }

    /// Elements along a row whose integer dot product is exact before it becomes a float: the smaller of a block and an
    /// activation group.
    pub(super) fn run(self) -> usize {
        self.blocks().map_or(GROUP, |b| b.elements.min(GROUP))
    }
}

/// The sizes that follow from a kind and a shape.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) kind: Kind,
    pub(super) out: usize,
    pub(super) k: usize,
    /// Elements of a row with its padding: whole groups, blocks and super-blocks.
    pub(super) padded: usize,
    /// Elements of a row that nothing reaches across: a group, a block or a super-block, the largest.
    pub(super) unit: usize,
    /// Bytes of a panel's scales, which come first.
    pub(super) scale_bytes: usize,
    /// Bytes of a panel's weights.
    pub(super) weight_bytes: usize,
}

impl Layout {
    /// # Panics
    /// When the sizes overflow, or a block is none of those allowed.
    pub(super) fn new(kind: Kind, out: usize, k: usize) -> Self {
        let (unit, block) = match kind.blocks() {
            None => (GROUP, GROUP),
            Some(Blocks { scales: Scales::Half, elements, .. }) => (elements.max(GROUP), elements),
            Some(Blocks { scales: Scales::Sub, elements, .. }) => (SUPER, elements),
        };
        assert!(matches!(block, 16 | 32 | 64 | 128), "packed: blocks of {block} elements");
        let padded = k.checked_next_multiple_of(unit).expect("packed: a row's length overflows");
        let each = 1 + usize::from(kind.has_minimum());
        let scale_bytes = match kind.blocks().map(|b| b.scales) {
            None => 0,
            Some(Scales::Half) => padded / block * 2 * PANEL * each,
            Some(Scales::Sub) => (padded / SUPER * 2 + padded / block) * PANEL * each,
        };
        let weight_bytes = if kind.nibbles() { padded * PANEL / 2 } else { padded * PANEL };
        let scale_bytes = scale_bytes.next_multiple_of(64);
        let layout = Layout { kind, out, k, padded, unit, scale_bytes, weight_bytes };
        assert!(layout.panel_bytes().checked_mul(layout.panels()).is_some(), "packed: a matrix's size overflows");
        layout
    }

    pub(super) fn panels(&self) -> usize {
        self.out.div_ceil(PANEL)
    }

    pub(super) fn panel_bytes(&self) -> usize {
        self.scale_bytes + self.weight_bytes
    }

    /// Bytes of a panel's scales that are f16, which come first.
    pub(super) fn half_bytes(&self) -> usize {
        match self.kind.blocks() {
            None => 0,
            Some(Blocks { scales: Scales::Half, .. }) => self.scale_bytes,
            Some(Blocks { scales: Scales::Sub, .. }) => self.subs_start(),
        }
    }

    /// Where the sub-scales start in a panel.
    pub(super) fn subs_start(&self) -> usize {
        self.padded / SUPER * 2 * PANEL * self.each()
    }

    fn each(&self) -> usize {
        1 + usize::from(self.kind.has_minimum())
    }

    /// Where the byte of weight `k` of output `o < 16` is in a panel, and how far it is shifted.
    fn place(&self, o: usize, k: usize) -> (usize, u32) {
        let (line, shift) = self.line(k);
        (self.scale_bytes + line * 64 + o * 4 + k % 4, shift)
    }

    /// The line of a panel's weights that weight `k` is on, and how far it is shifted.
    fn line(&self, k: usize) -> (usize, u32) {
        let step = k / 4;
        if self.kind.nibbles() { (step / 2, 4 * (step % 2) as u32) } else { (step, 0) }
    }

    /// Lines of a panel's weights: as many words has each output.
    pub(super) fn lines(&self) -> usize {
        self.weight_bytes / 64
    }

    /// The integer of weight `k` of a panel's output `o`.
    pub(super) fn integer(&self, panel: &[u8], o: usize, k: usize) -> i32 {
        let (at, shift) = self.place(o, k);
        let stored = if self.kind.nibbles() { panel[at] >> shift & 15 } else { panel[at] };
        i32::from(stored) - self.kind.offset()
    }

    /// The scale and minimum of a panel's output `o` in a block; 1 and 0 where a row has one scale.
    pub(super) fn scale(&self, panel: &[u8], o: usize, block: usize) -> (f32, f32) {
        let half = |at: usize| half::f16::from_le_bytes([panel[at], panel[at + 1]]).to_f32();
        let (each, minimum) = (self.each(), self.kind.has_minimum());
        match self.kind.blocks() {
            None => (1.0, 0.0),
            Some(Blocks { scales: Scales::Half, .. }) => {
                let at = block * 32 * each + o * 2;
                (half(at), if minimum { half(at + 32) } else { 0.0 })
            }
            Some(Blocks { scales: Scales::Sub, elements, .. }) => {
                let upper = block * elements / SUPER * 32 * each + o * 2;
                let sub = self.subs_start() + block * PANEL * each + o;
                let byte = |at: usize| f32::from(panel[at] as i8);
                (half(upper) * byte(sub), if minimum { half(upper + 32) * byte(sub + PANEL) } else { 0.0 })
            }
        }
    }
}

/// One output of a panel, for writing. Its weights are collected in a row of their own first, because in the panel each four of
/// them lie on another cache line.
pub(super) struct Row<'a> {
    pub(super) layout: &'a Layout,
    /// The panel's scales.
    pub(super) scales: &'a mut [u8],
    /// What the output has of each of the panel's lines.
    pub(super) words: &'a mut [u32],
    pub(super) output: usize,
}

impl Row<'_> {
    /// Writes stored values (with their offset) from element `k` on, a multiple of eight.
    pub(super) fn values(&mut self, k: usize, stored: &[u8]) {
        let (whole, tail) = stored.as_chunks::<8>();
        let mut last = [0; 8];
        last[..tail.len()].copy_from_slice(tail);
        let eights = whole.iter().chain((!tail.is_empty()).then_some(&last));
        let halves = eights
            .map(|&[a, b, c, d, e, f, g, h]| (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])));
        if self.layout.kind.nibbles() {
            // No byte exceeds 15, so none is shifted into its neighbour.
            self.words(k, halves.map(|(low, high)| low | high << 4));
        } else {
            self.words(k, halves.flat_map(|(low, high)| [low, high]));
        }
    }

    /// Writes this output's four bytes of the lines from element `k` on.
    #[inline(always)]
    pub(super) fn words(&mut self, k: usize, words: impl Iterator<Item = u32>) {
        let (line, _) = self.layout.line(k);
        for (to, word) in self.words[line..].iter_mut().zip(words) {
            *to = word.to_le();
        }
    }

    /// Writes a block's scale and minimum, f16 bits.
    pub(super) fn half(&mut self, block: usize, scale: u16, minimum: u16) {
        let at = block * 32 * self.layout.each() + self.output * 2;
        self.scales[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        if self.layout.kind.has_minimum() {
            self.scales[at + 32..at + 34].copy_from_slice(&minimum.to_le_bytes());
        }
    }

    /// Writes a super-block's scale and minimum, f16 bits.
    pub(super) fn upper(&mut self, index: usize, scale: u16, minimum: u16) {
        self.half(index, scale, minimum);
    }

    /// Writes a block's sub-scale and sub-minimum.
    pub(super) fn sub(&mut self, block: usize, scale: i8, minimum: i8) {
        let at = self.layout.subs_start() + block * PANEL * self.layout.each() + self.output;
        self.scales[at] = scale as u8;
        if self.layout.kind.has_minimum() {
            self.scales[at + PANEL] = minimum as u8;
        }
    }
}
