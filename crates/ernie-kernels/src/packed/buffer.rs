//! Memory that starts on a cache line.

use std::cell::RefCell;

/// One cache line.
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Owned bytes, 64-byte aligned, a whole number of cache lines.
pub struct Buffer(Vec<Line>);

impl Buffer {
    /// Zeros, `bytes` of them rounded up to a whole line.
    pub fn zeros(bytes: usize) -> Self {
        Buffer(vec![Line([0; 64]); bytes.div_ceil(64)])
    }

    /// As [`Self::zeros`]; `None` when there is no memory for it.
    pub fn try_zeros(bytes: usize) -> Option<Self> {
        let mut lines = Vec::new();
        lines.try_reserve_exact(bytes.div_ceil(64)).ok()?;
        lines.resize(bytes.div_ceil(64), Line([0; 64]));
        Some(Buffer(lines))
    }

    /// All of them.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }

    /// All of them, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

thread_local! {
    /// Buffers that are not in use.
    static SPARE: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
}

/// Spare buffers that a thread keeps.
const KEPT: usize = 4;

/// A buffer of unspecified content for a short time: dropped, it is kept for the next one of its thread. Fresh pages would cost
/// more than what is written to them.
pub(super) struct Scratch(Buffer);

impl Scratch {
    pub(super) fn new(bytes: usize) -> Self {
        let mut buffer = SPARE.with_borrow_mut(Vec::pop).unwrap_or(Buffer(Vec::new()));
        if buffer.0.len() < bytes.div_ceil(64) {
            buffer.0.resize(bytes.div_ceil(64), Line([0; 64]));
        }
        Scratch(buffer)
    }

    /// At least as many as were asked for.
    pub(super) fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buffer = Buffer(std::mem::take(&mut self.0.0));
        // Gone with its thread there is nothing to keep it for.
        let _ = SPARE.try_with(|spare| {
            if let Ok(mut spare) = spare.try_borrow_mut()
                && spare.len() < KEPT
            {
                spare.push(buffer);
            }
        });
    }
}
