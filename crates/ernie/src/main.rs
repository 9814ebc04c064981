//! The `ernie` program.
fn main() {}
