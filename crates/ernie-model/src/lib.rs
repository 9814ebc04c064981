//! The ERNIE-4.5 decoder: config, weights, forward.
