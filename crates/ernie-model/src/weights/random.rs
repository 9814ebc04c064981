//! Fresh weights from a seed: each tensor has its own stream, keyed by its name, so that neither the order of
//! drawing nor the number of threads changes a value.
//!
//! Matrices and routers are normal with the config's `initializer_range`, norms are 1, biases 0, as in the
//! reference.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::config::Role;

/// Values drawn from one stream before the next begins.
const RUN: usize = 1 << 16;

/// The values of the tensor `name`.
pub(super) fn values(seed: u64, name: &str, elements: usize, std: f64) -> Vec<f32> {
    match Role::of(name) {
        Role::Norm => return vec![1.0; elements],
        Role::Bias | Role::CorrectionBias => return vec![0.0; elements],
        Role::Embedding | Role::Head | Role::Score | Role::Linear | Role::Router => {}
    }
    values_from(seed, name, 0, elements, std)
}

/// `count` values of a matrix from element `start` on, which is where a stream begins: a multiple of [`RUN`].
pub(super) fn values_from(seed: u64, name: &str, start: usize, count: usize, std: f64) -> Vec<f32> {
    debug_assert!(start.is_multiple_of(RUN));
    let mut out = vec![0.0; count];
    spread(seed, name, start / RUN, std, &mut out);
    out
}

/// Fills `out` from run number `first` on, on all cores.
fn spread(seed: u64, name: &str, first: usize, std: f64, out: &mut [f32]) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let runs = out.len().div_ceil(RUN);
    let share = runs.div_ceil(threads).max(1);
    if runs < 4 || threads < 2 {
        return fill(seed, name, first, std, out);
    }
    std::thread::scope(|scope| {
        for (index, part) in out.chunks_mut(share * RUN).enumerate() {
            scope.spawn(move || fill(seed, name, first + index * share, std, part));
        }
    });
}

/// Fills `out` from run number `first` on.
fn fill(seed: u64, name: &str, first: usize, std: f64, out: &mut [f32]) {
    for (index, part) in out.chunks_mut(RUN).enumerate() {
        let mut rng = stream(seed, name, (first + index) as u64);
        // Box and Muller (1958): two uniform numbers make two normal ones.
        for pair in part.chunks_mut(2) {
            let (a, b) = (rng.next_u32(), rng.next_u32());
            let radius = (-2.0 * ((f64::from(a) + 0.5) / 4_294_967_296.0).ln()).sqrt() * std;
            let (sin, cos) = (f64::from(b) / 4_294_967_296.0 * std::f64::consts::TAU).sin_cos();
            for (value, part) in pair.iter_mut().zip([cos, sin]) {
                *value = (radius * part) as f32;
            }
        }
    }
}

/// `elements` values uniform in `-most..most`, of the stream of `name`.
pub(crate) fn uniform(seed: u64, name: &str, elements: usize, most: f64) -> Vec<f32> {
    let mut rng = stream(seed, name, 0);
    let mut draw = || ((f64::from(rng.next_u32()) + 0.5) / 2_147_483_648.0 - 1.0) * most;
    (0..elements).map(|_| draw() as f32).collect()
}

/// Which of `count` things are drawn, each with a chance of `share`, by the stream of `name`.
pub(super) fn drawn(seed: u64, name: &str, count: usize, share: f64) -> Vec<bool> {
    let mut rng = stream(seed, name, 0);
    (0..count).map(|_| (f64::from(rng.next_u32()) + 0.5) / 4_294_967_296.0 < share).collect()
}

fn stream(seed: u64, name: &str, run: u64) -> ChaCha8Rng {
    // FNV-1a spreads the name over 64 bits; equal hashes would give equal values, not wrong ones.
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mut key = [0_u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&hash.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(run);
    rng
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_depend_on_seed_and_name_only() {
        let name = "model.layers.0.self_attn.q_proj.weight";
        let long = values(1, name, 5 * RUN + 3, 0.02);
        let mut alone = vec![0.0; 5 * RUN + 3];
        fill(1, name, 0, 0.02, &mut alone);
        assert!(long == alone, "threads change nothing");
        assert_eq!(values(1, name, 1000, 0.02), long[..1000]);
        assert_eq!(values_from(1, name, 2 * RUN, RUN + 7, 0.02), long[2 * RUN..3 * RUN + 7]);
        assert_ne!(values(2, name, 10, 0.02), long[..10]);
        assert_ne!(values(1, "model.layers.1.self_attn.q_proj.weight", 10, 0.02), long[..10]);
    }

    #[test]
    fn matrices_are_normal_and_the_rest_is_neutral() {
        let values = |name| super::values(7, name, 200_000, 0.02);
        let drawn = values("lm_head.weight");
        let mean = drawn.iter().map(|&x| f64::from(x)).sum::<f64>() / drawn.len() as f64;
        let variance = drawn.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / drawn.len() as f64;
        let beyond = drawn.iter().filter(|x| x.abs() > 0.04).count() as f64 / drawn.len() as f64;
        assert!(mean.abs() < 2e-4 && (variance.sqrt() - 0.02).abs() < 2e-4, "{mean} {variance}");
        assert!((beyond - 0.0455).abs() < 0.003, "{beyond}");
        assert!(values("model.norm.weight").iter().all(|&x| x == 1.0));
        assert!(values("model.layers.1.mlp.moe_statics.e_score_correction_bias").iter().all(|&x| x == 0.0));
        assert!(values("model.layers.1.self_attn.q_proj.bias").iter().all(|&x| x == 0.0));
    }
}
