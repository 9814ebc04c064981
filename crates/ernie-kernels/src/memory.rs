//! What happens when the system gives no more memory.
//!
//! Rust's own answer is a line without a cure and `SIGABRT`, which scripts and supervisors take for a crash of the program; and
//! stable Rust has no other hook for it than the allocator itself. [`Checked`] is that hook: a program puts it around its
//! allocator and says how it ends. [`leave`] is the end that works there, where nothing may allocate, lock or unwind.
//!
//! Who asks in a way that could take a refusal (`try_reserve`) is not told apart, because an allocator cannot know: the
//! program ends there too. Sizes from files and requests are therefore bounded before anything is allocated, never by trying.

use std::alloc::{GlobalAlloc, Layout};

/// An allocator that never refuses: where `inner` does, it calls `refused` with the bytes that were asked for.
///
/// It adds one comparison with zero to what `inner` does.
#[derive(Debug)]
pub struct Checked<A> {
    inner: A,
    refused: fn(usize) -> !,
}

impl<A> Checked<A> {
    /// Puts the check around an allocator. `refused` may not allocate.
    pub const fn new(inner: A, refused: fn(usize) -> !) -> Self {
        Self { inner, refused }
    }

    #[inline]
    fn check(&self, block: *mut u8, bytes: usize) -> *mut u8 {
        if block.is_null() {
            self.refuse(bytes);
        }
        block
    }

    #[cold]
    #[inline(never)]
    fn refuse(&self, bytes: usize) -> ! {
        (self.refused)(bytes)
    }
}

// SAFETY: every call goes to `inner` as it came, and what `inner` gave is given on; the check only looks at it.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Checked<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `inner`, which is the same.
        self.check(unsafe { self.inner.alloc(layout) }, layout.size())
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        self.check(unsafe { self.inner.alloc_zeroed(layout) }, layout.size())
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: as above.
        self.check(unsafe { self.inner.realloc(block, layout, bytes) }, bytes)
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { self.inner.dealloc(block, layout) }
    }
}

/// Has mimalloc, where that is the program's allocator, keep what is freed for whoever asks next, and give none of it back to the system.
///
/// A training step frees gigabytes that the next one asks for again, and takes longer than the second that mimalloc waits: given back and
/// taken anew, every page is cleared by the kernel once a step. `MIMALLOC_PURGE_DELAY` in the environment has the last word.
#[cfg(feature = "mimalloc")]
pub fn keep_what_is_freed() {
    // SAFETY: sets a number that the allocator reads when it frees. It is one word, so a thread that frees meanwhile sees the old one or the new.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, -1) };
}

/// `mi_option_purge_delay` of `mimalloc.h`, in milliseconds and below zero for never; the binding names only some of the options.
#[cfg(feature = "mimalloc")]
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Writes `words` to standard error and ends the process with `code`, at once: without destructors, without waiting for
/// a lock that another thread holds, and without memory. Where several threads come here, the first one speaks.
#[cfg(unix)]
pub fn leave(code: i32, words: &[u8]) -> ! {
    use std::sync::atomic::{AtomicBool, Ordering};

    static LEAVING: AtomicBool = AtomicBool::new(false);
    while LEAVING.swap(true, Ordering::SeqCst) {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    // SAFETY: the slice lives until the call is over. What could not be written is lost, and the process ends anyway.
    unsafe { libc::write(libc::STDERR_FILENO, words.as_ptr().cast(), words.len()) };
    // SAFETY: the process ends here; nothing of it is used any more.
    unsafe { libc::_exit(code) }
}

/// As on Unix, as far as the standard library can do it.
#[cfg(not(unix))]
#[allow(clippy::exit)]
pub fn leave(code: i32, words: &[u8]) -> ! {
    use std::io::Write;
    let _ = std::io::stderr().write_all(words);
    std::process::exit(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::alloc::System;

    /// Gives up to a kilobyte.
    struct Poor;

    // SAFETY: the system's allocator with fewer sizes; null says that there is no memory.
    unsafe impl GlobalAlloc for Poor {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            if layout.size() > 1024 {
                return std::ptr::null_mut();
            }
            // SAFETY: as the caller's.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            // SAFETY: as the caller's.
            unsafe { System.dealloc(block, layout) }
        }
    }

    #[test]
    fn what_is_refused_is_told_with_its_size() {
        // A test may unwind where a program would end.
        let allocator = Checked::new(Poor, |bytes| panic!("{bytes} were refused"));
        let layout = |bytes| Layout::from_size_align(bytes, 8).unwrap();
        // SAFETY: sizes above zero, and each block goes back with its own layout.
        unsafe {
            for block in [allocator.alloc(layout(1024)), allocator.alloc_zeroed(layout(1024))] {
                assert!(!block.is_null());
                allocator.dealloc(block, layout(1024));
            }
            let block = allocator.alloc(layout(8));
            let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                allocator.realloc(block, layout(8), 1025);
            }));
            assert_eq!(told.unwrap_err().downcast_ref::<String>().unwrap(), "1025 were refused");
            allocator.dealloc(block, layout(8));
        }
    }

    /// The number of an option is known by its default, which is like no other's near it.
    #[cfg(feature = "mimalloc")]
    #[test]
    fn the_option_is_the_one_that_is_meant() {
        // SAFETY: reads a number.
        let delay = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(delay(), 1000);
        keep_what_is_freed();
        assert_eq!(delay(), -1);
    }
}
