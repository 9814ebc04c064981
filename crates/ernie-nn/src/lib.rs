//! Tensors with gradients, ops, one Linear.
