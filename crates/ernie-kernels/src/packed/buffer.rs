//! Memory that starts on a cache line.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::cell::RefCell;

/// One cache line.
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Owned bytes, 64-byte aligned, a whole number of cache lines.
///
/// They come zeroed from the system, which gives a page when it is first touched: by the thread that fills it, not by
/// whoever asks for the memory.
pub struct Buffer(Vec<Line>);

impl Buffer {
    /// Zeros, `bytes` of them rounded up to a whole line.
    pub fn zeros(bytes: usize) -> Self {
        let lines = bytes.div_ceil(64);
        Buffer(zeroed(lines).unwrap_or_else(|| match Layout::array::<Line>(lines) {
            Ok(layout) => handle_alloc_error(layout),
            Err(_) => panic!("a buffer of {bytes} bytes is not addressable"),
        }))
    }

    /// As [`Self::zeros`]; `None` when there is no memory for it.
    pub fn try_zeros(bytes: usize) -> Option<Self> {
        zeroed(bytes.div_ceil(64)).map(Buffer)
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

fn zeroed(lines: usize) -> Option<Vec<Line>> {
    if lines == 0 {
        return Some(Vec::new());
    }
    let layout = Layout::array::<Line>(lines).ok()?;
    // SAFETY: the layout has a size.
    let start = unsafe { alloc_zeroed(layout) }.cast::<Line>();
    if start.is_null() {
        return None;
    }
    prefer_huge_pages(start.cast(), layout.size());
    // SAFETY: the memory is what the global allocator gives for a vector of `lines` lines; a line of zero bytes is one.
    Some(unsafe { Vec::from_raw_parts(start, lines, lines) })
}

/// Asks for pages of 2 MiB where a buffer holds several: a matrix then costs a few hundred page faults while it is filled
/// instead of a hundred thousand, and its reader crosses fewer borders. A wish, not a need.
#[cfg(target_os = "linux")]
fn prefer_huge_pages(start: *mut u8, bytes: usize) {
    const HUGE: usize = 2 << 20;
    let skip = start.align_offset(HUGE);
    let whole = bytes.saturating_sub(skip) / HUGE * HUGE;
    if whole >= 2 * HUGE {
        // SAFETY: the range lies inside an allocation of ours; the advice changes how it is backed, not what it holds.
        unsafe { libc::madvise(start.wrapping_add(skip).cast(), whole, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn prefer_huge_pages(_start: *mut u8, _bytes: usize) {}

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
