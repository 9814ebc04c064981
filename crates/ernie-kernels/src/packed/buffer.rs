//! Memory that starts on a cache line.

/// One cache line.
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Owned bytes, 64-byte aligned, a whole number of cache lines.
pub(super) struct Buffer(Vec<Line>);

impl Buffer {
    /// Zeros, `bytes` of them rounded up to a whole line.
    pub(super) fn zeros(bytes: usize) -> Self {
        Buffer(vec![Line([0; 64]); bytes.div_ceil(64)])
    }

    pub(super) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}
