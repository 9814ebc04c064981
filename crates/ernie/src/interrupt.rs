//! Ctrl-C and SIGTERM.
//!
//! Most commands stop at once. One that has something to finish (a training step, an answer in a
//! conversation) asks for [`graceful`] handling: the first signal then only raises a flag that the
//! command looks at, and a second one stops at once.

use crate::exit::Exit;
use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

static GRACEFUL: AtomicUsize = AtomicUsize::new(0);
static RAISED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Installs the handler. A process that cannot have one still works; it just stops abruptly.
pub(crate) fn install() {
    let raised = flag();
    let _ = ctrlc::set_handler(move || {
        if GRACEFUL.load(Ordering::SeqCst) == 0 || raised.swap(true, Ordering::SeqCst) {
            // The main thread may be anywhere; only leaving the process stops it.
            #[allow(clippy::exit)]
            std::process::exit(Exit::Interrupted as i32);
        }
    });
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
