//! Tasks, metrics and baselines.
