//! Every recorded number of the reference implementation: layer by layer, logits, a padded batch, greedy ids.
//!
//! `parity/README.md` says how the numbers were made. Tolerance: 1e-4 absolute on float32 (sums in another
//! order), equality on ids and expert choices. Gradients and training losses are compared in `ernie-train`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ernie_files::{Checkpoint, Dtype};
use ernie_model::decoder::Routing;
use ernie_model::{ContiguousCache, Decoder, ModelSource, Probe, Tokens, WeightsAs, load};
use ernie_nn::{Value, no_grad};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const TEXT: [&str; 3] = ["dense", "moe", "moe_untied"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(name)
}

/// The recorded tensors of one folder.
struct Reference(Checkpoint);

impl Reference {
    fn open(name: &str) -> Self {
        Self(Checkpoint::open(&folder(name).join("reference.safetensors")).expect("recorded numbers"))
    }

    fn has(&self, name: &str) -> bool {
        self.0.info(name).is_some()
    }

    fn f32(&self, name: &str) -> Vec<f32> {
        assert_eq!(self.0.info(name).map(|info| info.dtype), Some(Dtype::F32), "{name}");
        let bytes = self.0.bytes(name).expect("recorded");
        bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    }

    fn ids(&self, name: &str) -> Vec<i64> {
        assert_eq!(self.0.info(name).map(|info| info.dtype), Some(Dtype::I64), "{name}");
        let bytes = self.0.bytes(name).expect("recorded");
        bytes.as_chunks::<8>().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect()
    }

    fn rows(&self, name: &str) -> Vec<Vec<u32>> {
        let width = self.0.info(name).expect("recorded").shape[1];
        self.ids(name).chunks(width).map(|row| row.iter().map(|&id| id as u32).collect()).collect()
    }
}

fn model(name: &str, weights: WeightsAs) -> Decoder {
    load(&ModelSource::Folder(folder(name)), weights).expect("a parity checkpoint loads").decoder
}

fn close(what: &str, ours: &[f32], theirs: &[f32], tolerance: f32) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: off by {worst}");
}

/// Keeps everything a pass shows.
#[derive(Default)]
struct Recorder {
    values: BTreeMap<String, Vec<f32>>,
    routing: BTreeMap<usize, Seen>,
}

/// Router logits, chosen experts and their weights.
type Seen = (Vec<f32>, Vec<u32>, Vec<f32>);

impl Probe for Recorder {
    fn records(&self) -> bool {
        true
    }

    fn record(&mut self, name: &str, value: &Value) {
        self.values.insert(name.into(), value.to_vec().expect("readable"));
    }

    fn routing(&mut self, layer: usize, routing: &Routing) {
        let read = |value: &Value| value.to_vec().expect("readable");
        self.routing.insert(layer, (read(&routing.logits), routing.indices.clone(), read(&routing.weights)));
    }
}

/// Compares one recorded forward pass, whose names start with `prefix` and whose router is called `gate`.
fn compare_pass(model: &Decoder, reference: &Reference, prefix: &str, gate: &str) -> Outcome {
    let rows = reference.rows(&format!("{prefix}input_ids"));
    let lengths: Vec<usize> = rows.iter().map(Vec::len).collect();
    let mut seen = Recorder::default();
    let logits = no_grad(|| {
        let hidden = model.hidden(&Tokens::packed(rows.concat(), &lengths), None, &mut seen)?;
        model.logits(&hidden)?.to_vec().map_err(ernie_model::Error::from)
    })?;
    for (name, value) in &seen.values {
        let name = format!("{prefix}{name}");
        if reference.has(&name) {
            close(&name, value, &reference.f32(&name), 1e-4);
        }
    }
    for (layer, (router_logits, indices, weights)) in &seen.routing {
        let at = format!("{prefix}layer.{layer}.{gate}");
        close(&at, router_logits, &reference.f32(&format!("{at}.router_logits")), 1e-4);
        let (want, want_weights) =
            (reference.ids(&format!("{at}.topk_index")), reference.f32(&format!("{at}.topk_weights")));
        let k = indices.len() / rows.concat().len();
        // The order inside a token is not part of the contract.
        let sorted = |ids: Vec<i64>, weights: &[f32]| {
            let mut pairs: Vec<(i64, f32)> = ids.into_iter().zip(weights.iter().copied()).collect();
            pairs.chunks_mut(k).for_each(|token| token.sort_by_key(|pair| pair.0));
            pairs.into_iter().unzip::<_, _, Vec<_>, Vec<_>>()
        };
        let (ours, our_weights) = sorted(indices.iter().map(|&i| i64::from(i)).collect(), weights);
        let (theirs, their_weights) = sorted(want, &want_weights);
        assert_eq!(ours, theirs, "{at}: experts chosen");
        close(&at, &our_weights, &their_weights, 1e-4);
    }
    close(&format!("{prefix}logits"), &logits, &reference.f32(&format!("{prefix}logits")), 1e-4);
    Ok(())
}

/// Decodes greedily with a cache, eos ignored, until the recorded length.
fn greedy(model: &Decoder, want: &[i64], prompt: usize) -> Outcome {
    let want: Vec<u32> = want.iter().map(|&id| id as u32).collect();
    let mut cache = ContiguousCache::new(model.config());
    let slot = cache.add_slot();
    let mut ids = want[..prompt].to_vec();
    while ids.len() < want.len() {
        let past = cache.past(slot);
        let mut tokens = Tokens::default();
        tokens.push(slot, past, &ids[past..]);
        let last = tokens.len() - 1;
        let logits = model.forward_logits(&tokens, Some(&mut cache), &[last])?;
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
        ids.push(best.expect("a vocabulary") as u32);
    }
    assert_eq!(ids, want);
    Ok(())
}

#[test]
fn every_layer_and_the_logits_are_those_of_the_reference() -> Outcome {
    for name in TEXT {
        compare_pass(&model(name, WeightsAs::F32), &Reference::open(name), "", "gate")?;
    }
    Ok(())
}

#[test]
fn the_text_side_of_a_vision_model_is_that_of_the_reference() -> Outcome {
    let (vl, reference) = (model("vl", WeightsAs::Native), Reference::open("vl"));
    compare_pass(&vl, &reference, "text.", "text_moe.gate")?;
    greedy(&vl, &reference.ids("text.generate.greedy_ids"), 16)
}

#[test]
fn bf16_logits_are_near_those_of_the_reference() -> Outcome {
    for name in TEXT {
        let (model, reference) = (model(name, WeightsAs::Bf16), Reference::open(name));
        let rows = reference.rows("input_ids");
        let tokens = Tokens::packed(rows.concat(), &rows.iter().map(Vec::len).collect::<Vec<_>>());
        let all: Vec<usize> = (0..tokens.len()).collect();
        let logits = model.forward_logits(&tokens, None, &all)?;
        let (want, exact) = (reference.f32("bf16.logits"), reference.f32("logits"));
        let vocab = model.config().vocab_size;
        let distances = |a: &[f32], b: &[f32]| {
            let row = |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
            let mut rows: Vec<f32> = a.chunks(vocab).zip(b.chunks(vocab)).map(row).collect();
            rows.sort_by(f32::total_cmp);
            rows
        };
        // Loosely: the middle row is no farther from the reference's bf16 than that is from its own float32, within a
        // half again. A token whose experts change at a rounding moves a whole row, so the last rows may be far.
        let (ours, theirs) = (distances(&logits, &want), distances(&want, &exact));
        let middle = ours.len() / 2;
        assert!(
            ours[middle] <= 1.5 * theirs[middle],
            "{name}: {} from the reference, {}",
            ours[middle],
            theirs[middle]
        );
        assert!(ours[ours.len() * 9 / 10] <= 10.0 * theirs[middle], "{name}: {ours:?}");
    }
    Ok(())
}

#[test]
fn a_padded_row_gives_the_logits_of_its_tokens_alone() -> Outcome {
    for name in TEXT {
        let (model, reference) = (model(name, WeightsAs::F32), Reference::open(name));
        let (rows, mask) = (reference.rows("input_ids"), reference.rows("padded.attention_mask"));
        // Sequences of different length in one batch need no padding here: padding is left out.
        let kept: Vec<Vec<u32>> = rows
            .iter()
            .zip(&mask)
            .map(|(row, mask)| row.iter().zip(mask).filter(|(_, mask)| **mask == 1).map(|(&id, _)| id).collect())
            .collect();
        let tokens = Tokens::packed(kept.concat(), &kept.iter().map(Vec::len).collect::<Vec<_>>());
        let all: Vec<usize> = (0..tokens.len()).collect();
        let logits = model.forward_logits(&tokens, None, &all)?;
        let vocab = model.config().vocab_size;
        let want: Vec<f32> = reference
            .f32("padded.logits")
            .chunks(vocab)
            .zip(mask.concat())
            .filter(|(_, mask)| *mask == 1)
            .flat_map(|(row, _)| row.to_vec())
            .collect();
        close(&format!("{name}: padded"), &logits, &want, 1e-4);
    }
    Ok(())
}

#[test]
fn greedy_decoding_gives_the_ids_of_the_reference() -> Outcome {
    for name in TEXT {
        greedy(&model(name, WeightsAs::F32), &Reference::open(name).ids("generate.greedy_ids"), GREEDY_PROMPT)?;
    }
    Ok(())
}

/// The recorded sequences begin with this many prompt tokens.
const GREEDY_PROMPT: usize = 8;

#[test]
fn a_cached_pass_is_the_same_bit_for_bit_in_any_cut_and_company() -> Outcome {
    for name in TEXT {
        let (model, reference) = (model(name, WeightsAs::F32), Reference::open(name));
        let rows = reference.rows("input_ids");
        let tokens = Tokens::sequence(rows[0].clone());
        let all: Vec<usize> = (0..tokens.len()).collect();
        let mut cache = ContiguousCache::new(model.config());
        cache.add_slot();
        let whole = model.forward_logits(&tokens, Some(&mut cache), &all)?;
        // Without a cache another kernel attends, the one with gradients: the same numbers, but for rounding.
        let uncached = model.forward_logits(&tokens, None, &all)?;
        let largest = uncached.iter().fold(1.0_f32, |max, x| max.max(x.abs()));
        for (a, b) in whole.iter().zip(&uncached) {
            assert!((a - b).abs() <= 1e-5 * largest, "{name}: {a} with a cache, {b} without");
        }
        for cut in [1, 3, 7, 19, 20] {
            let mut cache = ContiguousCache::new(model.config());
            let (company, slot) = (cache.add_slot(), cache.add_slot());
            let mut logits = Vec::new();
            for chunk in rows[0].chunks(cut) {
                let mut tokens = Tokens::default();
                tokens.push(company, cache.past(company), &rows[1][..cut.min(2)]);
                let start = tokens.len();
                tokens.push(slot, cache.past(slot), chunk);
                let rows: Vec<usize> = (start..tokens.len()).collect();
                logits.extend(model.forward_logits(&tokens, Some(&mut cache), &rows)?);
            }
            assert!(logits == whole, "{name}: cut every {cut}");
        }
    }
    Ok(())
}

#[test]
fn later_tokens_do_not_change_earlier_logits() -> Outcome {
    for name in TEXT {
        let (model, reference) = (model(name, WeightsAs::F32), Reference::open(name));
        let ids = reference.rows("input_ids").remove(0);
        let vocab = model.config().vocab_size;
        let rows: Vec<usize> = (0..10).collect();
        let short = model.forward_logits(&Tokens::sequence(ids[..10].to_vec()), None, &rows)?;
        let mut other = ids;
        other[10..].iter_mut().for_each(|id| *id = (*id + 1) % vocab as u32);
        assert!(short == model.forward_logits(&Tokens::sequence(other), None, &rows)?, "{name}");
    }
    Ok(())
}
