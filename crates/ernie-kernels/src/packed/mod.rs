//! Weights repacked once into the order in which the products read them.

pub mod float;
pub(crate) mod float_blocks;
pub(crate) mod float_pack;
mod float_tile;
