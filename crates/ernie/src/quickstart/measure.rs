//! How good, how large and how fast the quickstart's model is, beside two baselines.

use crate::{
    commands::eval::TOGETHER,
    failure::{Failure, Result},
    printer::Printer,
    report::LayerLoad,
};
use ernie_data::{bundled, tokenizer::Tokenizer};
use ernie_eval::{
    EvalOptions, Subject, baselines,
    tasks::{Perplexity, Task},
};
use ernie_model::{Decoder, ModelSource, Probe, Tokens, WeightsAs};
use ernie_nn::{no_grad, ops::Routing};
use ernie_serve::engine::{Engine, EngineOptions, Event, Generate, Request};
use std::path::Path;

/// What one form of the weights is worth.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quality {
    pub(super) bits_per_byte: f64,
    /// Nats a token.
    pub(super) loss: f64,
    pub(super) weight_bytes: u64,
    pub(super) prefill_tokens_per_s: f64,
    pub(super) decode_tokens_per_s: f64,
}

/// Held-out bits per byte of the baselines, on the same split.
#[derive(Clone, Copy, Debug)]
pub(super) struct Baselines {
    pub(super) lzma: f64,
    pub(super) ngram: f64,
}

/// Windows of 256 held-out tokens that are looked at to see how experts share the work.
const LOAD_WINDOWS: usize = 32;

/// Tokens read and written when speed is measured, and how often; the median counts.
const PREFILL_TOKENS: usize = 160;
const DECODE_TOKENS: usize = 64;
const REPEATS: usize = 3;

/// LZMA and the 5-gram.
pub(super) fn baselines(printer: &Printer) -> Result<Baselines> {
    let (train, held_out) = (bundled::train_text().as_bytes(), bundled::held_out_text().as_bytes());
    let lzma = baselines::lzma_bits_per_byte(train, held_out)?;
    let ngram = baselines::witten_bell_bits_per_byte(train, held_out)?;
    printer.say(format!("  LZMA needs {lzma:.3} bits per byte, a Witten–Bell byte 5-gram {ngram:.3}"));
    Ok(Baselines { lzma, ngram })
}

/// Loads a model in one form and measures it.
pub(super) fn quality(model: &Path, weights: WeightsAs, printer: &Printer) -> Result<Quality> {
    let loaded = ernie_model::load(&ModelSource::Folder(model.to_owned()), weights)?;
    let tokenizer = Tokenizer::from_folder(model)?;
    let weight_bytes = loaded.decoder.weight_bytes();
    // Speed is that of the model alone: nothing remembered between repeats, nothing guessed.
    let options =
        EngineOptions { max_running: TOGETHER, prefix_cache_bytes: 0, draft_tokens: 0, ..EngineOptions::default() };
    let mut engine = Engine::new(loaded.decoder, options)?;
    let mut subject = Subject { engine: &mut engine, tokenizer: &tokenizer, classifier: None };
    let report = Perplexity.run(&mut subject, &EvalOptions::default(), &mut |_, _| {})?;
    let value = |name: &str| {
        report.value(name).ok_or_else(|| Failure::defect(format!("the perplexity task has no finite {name}")))
    };
    let bits_per_byte = value("bits_per_byte")?;
    let loss = value("token_perplexity")?.ln();

    let ids = tokenizer.encode(bundled::held_out_text())?;
    let prompt: Vec<u32> = ids.into_iter().take(PREFILL_TOKENS).collect();
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for _ in 0..REPEATS {
        let generate = Generate { max_tokens: DECODE_TOKENS, ignore_eos: true, ..Generate::default() };
        engine.submit(Request::generate(prompt.clone(), generate))?;
        while !engine.is_idle() {
            for event in engine.step()? {
                if let Event::Finished { usage, .. } = event {
                    prefill.push(usage.prompt_tokens as f64 / usage.prefill_s.max(1e-9));
                    decode.push((usage.completion_tokens.max(2) - 1) as f64 / usage.decode_s.max(1e-9));
                }
            }
        }
    }
    printer.say(format!("  nano needs {bits_per_byte:.3} bits per byte (loss {loss:.3} nats a token)"));
    Ok(Quality {
        bits_per_byte,
        loss,
        weight_bytes,
        prefill_tokens_per_s: median(prefill),
        decode_tokens_per_s: median(decode),
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Counts which experts were chosen.
#[derive(Default)]
struct Choices(Vec<(usize, Vec<u64>)>);

impl Probe for Choices {
    fn routing(&mut self, layer: usize, routing: &Routing) {
        let usage = routing.usage();
        match self.0.iter_mut().find(|(known, _)| *known == layer) {
            Some((_, sums)) => sums.iter_mut().zip(usage).for_each(|(sum, n)| *sum += u64::from(n)),
            None => self.0.push((layer, usage.into_iter().map(u64::from).collect())),
        }
    }
}

/// How the held-out text spreads over the experts.
pub(super) fn expert_load(model: &Path) -> Result<Vec<LayerLoad>> {
    let decoder: Decoder = ernie_model::load(&ModelSource::Folder(model.to_owned()), WeightsAs::Native)?.decoder;
    let ids = Tokenizer::from_folder(model)?.encode(bundled::held_out_text())?;
    let mut choices = Choices::default();
    for window in ids.chunks(256).take(LOAD_WINDOWS) {
        let tokens = Tokens::packed(window.to_vec(), &[window.len()]);
        no_grad(|| decoder.hidden(&tokens, None, &mut choices))?;
    }
    Ok(choices
        .0
        .into_iter()
        .map(|(layer, usage)| {
            let total = usage.iter().sum::<u64>().max(1) as f64;
            LayerLoad { layer, shares: usage.iter().map(|n| *n as f64 / total).collect() }
        })
        .collect())
}
