//! A dense model as a mixture of experts that starts where it left off (sparse upcycling, Komatsuzaki et al., arXiv:2212.05055).
//!
//! Every expert of a layer is a copy of the layer's MLP and the weights of the chosen ones sum to 1, so the mixture computes what the dense model did,
//! whatever the router says. Copies grow apart by the tokens they are sent; to help them, a share of each one's hidden units may be drawn anew
//! (Drop-Upcycling, Nakamura et al., arXiv:2502.19261), at the price of the equality.

use std::borrow::Cow;
use std::cell::RefCell;
use std::path::Path;

use super::random::{drawn, values_from};
use super::{LoadReport, ModelSource, SaveAs, SaveTensor, Weights, WeightsAs, save_into};
use crate::config::{Architecture, MoeConfig};
use crate::{Error, ModelConfig, Result};

/// What a dense model is turned into.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Upcycling {
    /// Experts of each layer, at least 2.
    pub experts: usize,
    /// Experts a token, 1 to [`Self::experts`].
    pub k: usize,
    /// The first layer that becomes a mixture; the family's own is 1.
    pub first_layer: usize,
    /// Share of each expert's hidden units that is drawn anew, 0 to 1; 0 keeps the model what it was.
    pub fresh: f64,
    /// Seeds routers and what is drawn anew.
    pub seed: u64,
}

/// Writes `source` as a mixture of experts into an existing folder, which the caller makes atomic: `config.json`, `generation_config.json` and weights. One
/// tensor is widened at a time. `each` is told the number of tensors written, and of all.
///
/// # Errors
/// [`Error::Request`] for a model that is a mixture already or has biases, or settings outside their ranges; those of [`Weights::open`] and [`save_into`].
pub fn upcycle_into(
    source: &ModelSource,
    folder: &Path,
    to: &Upcycling,
    save_as: SaveAs,
    each: &mut dyn FnMut(usize, usize),
) -> Result<(ModelConfig, LoadReport)> {
    let mut weights = Weights::open(source, WeightsAs::F32)?;
    let dense = weights.config().clone();
    let config = mixture(&dense, to)?;
    for spec in dense.tensors() {
        weights.take_f32(&spec.name, &spec.shape)?;
    }
    let report = weights.finish()?;

    let weights = RefCell::new(Weights::open(source, WeightsAs::F32)?);
    let (specs, spread) = (config.tensors(), config.initializer_range);
    let progress = RefCell::new((0, each));
    let tensors: Vec<SaveTensor<'_>> = specs
        .iter()
        .map(|spec| SaveTensor {
            name: spec.name.clone(),
            shape: spec.shape.clone(),
            values: Box::new(|| {
                let (done, each) = &mut *progress.borrow_mut();
                *done += 1;
                each(*done, specs.len());
                let elements = spec.shape.iter().product();
                if spec.name.ends_with(".mlp.gate.weight") {
                    return Ok(Cow::Owned(values_from(to.seed, &spec.name, 0, elements, spread)));
                }
                if spec.name.ends_with(".e_score_correction_bias") {
                    return Ok(Cow::Owned(vec![0.0; elements]));
                }
                let Some((layer, expert, linear)) = expert_of(&spec.name) else {
                    return Ok(Cow::Owned(weights.borrow_mut().take_f32(&spec.name, &spec.shape)?));
                };
                let mut values = weights.borrow_mut().take_f32(&format!("{layer}.mlp.{linear}"), &spec.shape)?;
                // The same units in all three of an expert's matrices: rows of the first two, columns of the last.
                let units = drawn(to.seed, &format!("{layer}.mlp.experts.{expert}"), dense.intermediate_size, to.fresh);
                if to.fresh > 0.0 {
                    let fresh = values_from(to.seed, &spec.name, 0, elements, deviation(&values));
                    let columns = spec.shape[1];
                    for (at, value) in values.iter_mut().enumerate() {
                        let unit = if linear.starts_with("down") { at % columns } else { at / columns };
                        if units[unit] {
                            *value = fresh[at];
                        }
                    }
                }
                Ok(Cow::Owned(values))
            }),
        })
        .collect();
    save_into(folder, &config, &tensors, &report.kept, save_as)?;
    Ok((config, report))
}

/// The config of the mixture.
fn mixture(dense: &ModelConfig, to: &Upcycling) -> Result<ModelConfig> {
    let wrong = |what: String| Err(Error::Request(what));
    if dense.architecture != Architecture::Dense {
        return wrong("the model is a mixture of experts already, expected a dense one".into());
    }
    if dense.use_bias {
        return wrong("the model has biases, which experts have not; expected one without".into());
    }
    if !(2..=1024).contains(&to.experts) || !(1..=to.experts).contains(&to.k) {
        return wrong(format!(
            "{} experts, {} a token; expected 2 to 1024, and 1 to all of them a token",
            to.experts, to.k
        ));
    }
    let last = dense.num_hidden_layers - 1;
    if to.first_layer > last {
        return wrong(format!("layers from {} on, expected 0 to {last}", to.first_layer));
    }
    if !(0.0..=1.0).contains(&to.fresh) {
        return wrong(format!("a share of {} drawn anew, expected 0 to 1", to.fresh));
    }
    let moe = MoeConfig {
        num_experts: to.experts,
        k: to.k,
        intermediate_size: dense.intermediate_size,
        num_shared_experts: 0,
        layer_start_index: to.first_layer,
        layer_end_index: last,
        layer_interval: 1,
        norm_min: 1e-12,
        use_correction_bias: true,
    };
    let config = ModelConfig { architecture: Architecture::Moe, moe: Some(moe), quantization: None, ..dense.clone() };
    config.check("the mixture")?;
    Ok(config)
}

/// `model.layers.3.mlp.experts.5.up_proj.weight` as the layer, the expert's number and `up_proj.weight`.
fn expert_of(name: &str) -> Option<(&str, &str, &str)> {
    let (layer, rest) = name.split_once(".mlp.experts.")?;
    let (expert, linear) = rest.split_once('.')?;
    Some((layer, expert, linear))
}

/// Root of the mean square.
fn deviation(values: &[f32]) -> f64 {
    let sum: f64 = values.iter().map(|&value| f64::from(value).powi(2)).sum();
    (sum / values.len().max(1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expert_is_known_by_its_name() {
        let name = "model.layers.3.mlp.experts.5.up_proj.weight";
        assert_eq!(expert_of(name), Some(("model.layers.3", "5", "up_proj.weight")));
        assert_eq!(expert_of("model.layers.3.mlp.up_proj.weight"), None);
    }

    #[test]
    fn about_the_share_is_drawn() {
        for share in [0.0, 0.25, 1.0] {
            let units = drawn(7, "model.layers.1.mlp.experts.0", 4000, share);
            let count = units.iter().filter(|&&unit| unit).count() as f64;
            assert!((count / 4000.0 - share).abs() < 0.03, "{share}: {count}");
            assert_eq!(units, drawn(7, "model.layers.1.mlp.experts.0", 4000, share));
        }
    }
}
