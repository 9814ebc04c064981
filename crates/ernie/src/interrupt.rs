//! Ctrl-C and SIGTERM.
//!
//! Most commands stop at once. One that has something to finish (a training step, an answer in a
//! conversation) asks for [`graceful`] handling: the first signal then only raises a flag that the
//! command looks at, and a second one stops at once.

use crate::exit::Exit;
use std::sync::{
    Arc, LazyLock, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

static GRACEFUL: AtomicUsize = AtomicUsize::new(0);
static RAISED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
/// What a stop at once must not leave behind.
static LAST: Mutex<Option<fn()>> = Mutex::new(None);

/// Installs the handler. A process that cannot have one still works; it just stops abruptly.
pub(crate) fn install() {
    let raised = flag();
    let _ = ctrlc::set_handler(move || {
        if GRACEFUL.load(Ordering::SeqCst) == 0 || raised.swap(true, Ordering::SeqCst) {
            leave();
        }
    });
}

/// Ends the process at once: the main thread may be anywhere, and nothing else stops it.
pub(crate) fn leave() -> ! {
    let last = *LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(last) = last {
        last();
    }
    #[allow(clippy::exit)]
    std::process::exit(Exit::Interrupted as i32)
}

/// Sets what is done before the process is left at once, in the place of what was set before.
pub(crate) fn before_leaving(last: Option<fn()>) {
    *LAST.lock().unwrap_or_else(PoisonError::into_inner) = last;
}

/// While this lives, the first signal raises the flag instead of ending the process.
#[must_use = "handling is graceful only while the guard lives"]
pub(crate) struct Graceful(());

/// Asks for graceful handling, with a clean flag.
pub(crate) fn graceful() -> Graceful {
    RAISED.store(false, Ordering::SeqCst);
    GRACEFUL.fetch_add(1, Ordering::SeqCst);
    Graceful(())
}

impl Drop for Graceful {
    fn drop(&mut self) {
        GRACEFUL.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The flag, for a library that looks at one.
pub(crate) fn flag() -> Arc<AtomicBool> {
    Arc::clone(&RAISED)
}
