//! Blocks of the cache: who holds which.
//!
//! A block is a number that stands for a page of the model's cache. Handles are counted; when the last one is dropped
//! the number is free again, so nothing has to remember to give blocks back. The pool holds no keys and no values.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Gives blocks away, at most as many as it has.
#[derive(Debug)]
pub(super) struct BlockPool {
    free: Arc<Mutex<Free>>,
    capacity: usize,
}

/// The numbers nobody holds: `returned`, and all from `next` on.
#[derive(Debug, Default)]
struct Free {
    returned: Vec<u32>,
    next: u32,
}

/// A handle of one block. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Block(Arc<Lease>);

#[derive(Debug)]
struct Lease {
    id: u32,
    free: Arc<Mutex<Free>>,
}

impl BlockPool {
    /// A pool of `capacity` blocks; more than 2³² − 1 count as that many.
    pub(super) fn new(capacity: usize) -> Self {
        Self { free: Arc::default(), capacity: capacity.min(u32::MAX as usize) }
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Blocks that somebody holds.
    pub(super) fn used(&self) -> usize {
        let free = lock(&self.free);
        free.next as usize - free.returned.len()
    }

    /// Blocks that nobody holds.
    pub(super) fn free(&self) -> usize {
        self.capacity - self.used()
    }

    /// A block that nobody else holds, one that was used before if there is one. `None` when all are held.
    pub(super) fn take(&self) -> Option<Block> {
        let mut free = lock(&self.free);
        let id = match free.returned.pop() {
            Some(id) => id,
            None if (free.next as usize) < self.capacity => {
                free.next += 1;
                free.next - 1
            }
            None => return None,
        };
        Some(Block(Arc::new(Lease { id, free: self.free.clone() })))
    }
}

impl Block {
    /// Its number, below the pool's capacity.
    pub(super) fn id(&self) -> u32 {
        self.0.id
    }

    /// Handles of it that exist.
    pub(super) fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        lock(&self.free).returned.push(self.id);
    }
}

fn lock(free: &Mutex<Free>) -> MutexGuard<'_, Free> {
    // A push and a pop leave the list whole wherever a thread may have died.
    free.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_are_conserved(capacity in 0usize..8, acts in prop::collection::vec((0u8..3, any::<u8>()), 0..200)) {
            let pool = BlockPool::new(capacity);
            let mut held: Vec<Block> = Vec::new();
            for (act, at) in acts {
                match act {
                    0 => match pool.take() {
                        Some(block) => {
                            prop_assert!(held.iter().all(|other| other.id() != block.id()), "given away twice");
                            prop_assert!((block.id() as usize) < capacity);
                            held.push(block);
                        }
                        None => prop_assert_eq!(pool.free(), 0),
                    },
                    1 if !held.is_empty() => held.push(held[at as usize % held.len()].clone()),
                    2 if !held.is_empty() => { held.swap_remove(at as usize % held.len()); }
                    _ => {}
                }
                let mut ids: Vec<u32> = held.iter().map(Block::id).collect();
                ids.sort_unstable();
                ids.dedup();
                prop_assert_eq!(pool.used(), ids.len());
                prop_assert_eq!(pool.free(), capacity - ids.len());
                for block in &held {
                    prop_assert_eq!(block.holders(), held.iter().filter(|other| other.id() == block.id()).count());
                }
            }
        }
    }
}
