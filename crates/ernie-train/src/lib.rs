//! Recipes, objectives, optimisers, checkpoints, observers.
