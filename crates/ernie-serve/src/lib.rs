//! The engine: ids in, ids out; sessions over it.
