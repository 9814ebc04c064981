//! Places for connections: so many at once.
//!
//! Whoever opens connections and says nothing would keep everybody else out for as long as he opens new ones. So at the limit a
//! newcomer takes the place of the connection that has been silent for the longest time since it was opened; only where all have
//! spoken is there no place for him.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// How long a newcomer waits for the place that was taken from another: a task has to end, which it does at once.
const HANDOVER: Duration = Duration::from_millis(100);

/// The places of a server.
pub(super) struct Places {
    free: Arc<Semaphore>,
    silent: Mutex<Silent>,
    /// Connections closed for want of a place: newcomers, or silent ones in favour of newcomers.
    closed: Counter,
}

/// Connections that have said nothing yet, in the order in which they came.
#[derive(Default)]
struct Silent {
    came: u64,
    wanted: BTreeMap<u64, Arc<Notify>>,
}

/// A connection's place, which comes back when this is dropped.
pub(super) struct Place {
    /// To be dropped when the connection has said something.
    pub(super) silence: Silence,
    /// Told when the place is wanted by another.
    pub(super) wanted: Arc<Notify>,
    pub(super) permit: OwnedSemaphorePermit,
}

/// While this lives, its connection counts as silent.
pub(super) struct Silence {
    places: Arc<Places>,
    number: u64,
}

impl Places {
    pub(super) fn new(limit: usize, closed: Counter) -> Arc<Self> {
        let free = Arc::new(Semaphore::new(limit.clamp(1, Semaphore::MAX_PERMITS)));
        Arc::new(Self { free, silent: Mutex::default(), closed })
    }

    /// A place, of a silent connection if need be.
    pub(super) async fn take(self: &Arc<Self>) -> Option<Place> {
        let permit = match self.free.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                self.closed.inc();
                let (_, oldest) = self.silent().wanted.pop_first()?;
                oldest.notify_one();
                timeout(HANDOVER, self.free.clone().acquire_owned()).await.ok()?.ok()?
            }
        };
        let wanted = Arc::new(Notify::new());
        let mut silent = self.silent();
        silent.came += 1;
        let number = silent.came;
        silent.wanted.insert(number, wanted.clone());
        drop(silent);
        Some(Place { silence: Silence { places: self.clone(), number }, wanted, permit })
    }

    fn silent(&self) -> MutexGuard<'_, Silent> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        self.places.silent().wanted.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection that lives until its place is wanted.
    fn connection(place: Place) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move {
            place.wanted.notified().await;
            drop(place);
        })
    }

    #[tokio::test]
    async fn the_longest_silent_gives_way_and_who_has_spoken_stays() {
        let closed = Counter::default();
        let places = Places::new(3, closed.clone());
        let spoken = places.take().await.expect("free");
        let Place { silence, wanted: _, permit } = spoken;
        drop(silence);
        let first = connection(places.take().await.expect("free"));
        let second = connection(places.take().await.expect("free"));
        let newcomer = places.take().await.expect("the first one's");
        first.await.expect("it has ended");
        assert!(!second.is_finished() && closed.get() == 1);
        drop(newcomer.silence);
        let another = places.take().await.expect("the second one's");
        second.await.expect("it has ended");
        drop(another.silence);
        assert!(places.take().await.is_none(), "all have spoken");
        assert_eq!(closed.get(), 3);
        drop(permit);
        assert!(places.take().await.is_some());
    }
}
