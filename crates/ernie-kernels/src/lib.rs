//! Numeric kernels over slices, each with a scalar twin.
