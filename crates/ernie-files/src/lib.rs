//! Bounded readers, maps, atomic writes and the local model store.
