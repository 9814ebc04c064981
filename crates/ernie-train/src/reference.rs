//! What the model said of every answer before the first step, asked once and kept in the run folder.
//!
//! ```text
//! RUN/reference.safetensors    `train` and `held_out`, f32: the log-probabilities of all answers in the order of the rows
//! ```
//!
//! The file carries the hash of the tokens it was made from; with other data, or without the file, the answers are asked again of the model that the
//! run began with.

use std::collections::BTreeMap;
use std::path::Path;

use ernie_data::packing::Place;
use ernie_data::{Batch, HeldOut, Loader};
use ernie_files::safetensors::Writer;
use ernie_files::{Checkpoint, Dtype, TensorInfo};
use ernie_model::Decoder;
use ernie_nn::no_grad;

use crate::checkpoint::bytes;
use crate::error::Result;
use crate::objective::{Reference, log_probabilities};
use crate::step::tokens;

/// Name of the file in a run folder.
const REFERENCE_FILE: &str = "reference.safetensors";

/// The reference of the training rows, and of the held-out ones.
#[derive(Debug, Default)]
pub(crate) struct References {
    pub(crate) train: Reference,
    pub(crate) held_out: Reference,
}

/// Reads the file of `run` where it fits the data; else asks the model that `model` gives, and writes it.
pub(crate) fn references(
    run: &Path,
    loader: &mut Loader,
    mut held_out: Option<&mut HeldOut>,
    asked: &dyn Fn(u64, u64),
    model: impl FnOnce(&mut dyn FnMut(&Decoder) -> Result<()>) -> Result<()>,
) -> Result<References> {
    let path = run.join(REFERENCE_FILE);
    let held_out_tokens = held_out.as_ref().map_or(String::new(), |held_out| held_out.tokens_sha256().to_owned());
    let marks = BTreeMap::from([
        ("train_tokens_sha256".to_owned(), loader.tokens_sha256()),
        ("held_out_tokens_sha256".to_owned(), held_out_tokens),
    ]);
    let mut places = [Vec::new(), Vec::new()];
    let mut answers = |into: usize, batch: &Batch| {
        places[into].extend(batch.places.iter().map(|place| (*place, 0)));
        let first = places[into].len() - batch.places.len();
        for [chosen, _] in batch.pairs() {
            places[into][first + chosen.start / batch.seq_len].1 += 2;
        }
    };
    loader.pass::<crate::Error>(|batch| {
        answers(0, batch);
        Ok(())
    })?;
    each(&mut held_out, &mut |batch| {
        answers(1, batch);
        Ok(())
    })?;
    if let Some(known) = read(&path, &marks, &places) {
        return Ok(known);
    }

    let mut found = References::default();
    model(&mut |decoder| {
        let (mut done, of) = (0, places.iter().map(Vec::len).sum::<usize>() as u64);
        let mut ask = |batch: &Batch| {
            done += batch.rows as u64;
            asked(done, of);
            let hidden = no_grad(|| decoder.hidden(&tokens(batch), None, &mut ()))?;
            log_probabilities(decoder, &hidden, batch)
        };
        loader.pass::<crate::Error>(|batch| {
            found.train.extend(ask(batch)?);
            Ok(())
        })?;
        each(&mut held_out, &mut |batch| {
            found.held_out.extend(ask(batch)?);
            Ok(())
        })
    })?;
    write(&path, &marks, &places, &found)?;
    Ok(found)
}

fn each(held_out: &mut Option<&mut HeldOut>, visit: &mut dyn FnMut(&Batch) -> Result<()>) -> Result<()> {
    let Some(held_out) = held_out else { return Ok(()) };
    held_out.rewind();
    while let Some(batch) = held_out.next()? {
        visit(&batch)?;
    }
    held_out.rewind();
    Ok(())
}

type Counts = [Vec<(Place, usize)>; 2];

/// The file's numbers; `None` where there is none, or one of other data.
fn read(path: &Path, marks: &BTreeMap<String, String>, places: &Counts) -> Option<References> {
    let file = Checkpoint::open(path).ok()?;
    if marks.iter().any(|(key, value)| file.metadata().get(key) != Some(value)) {
        return None;
    }
    let part = |name: &str, places: &[(Place, usize)]| {
        let stored = file.bytes(name).ok()?;
        let mut words = stored.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word));
        let rows = places.iter().map(|&(place, answers)| (place, words.by_ref().take(answers).collect::<Vec<f32>>()));
        let rows: Reference = rows.collect();
        (rows.values().map(Vec::len).sum::<usize>() == places.iter().map(|(_, answers)| answers).sum::<usize>())
            .then_some(rows)
    };
    Some(References { train: part("train", &places[0])?, held_out: part("held_out", &places[1])? })
}

fn write(path: &Path, marks: &BTreeMap<String, String>, places: &Counts, found: &References) -> Result<()> {
    let flat = |places: &[(Place, usize)], rows: &Reference| -> Vec<f32> {
        places.iter().flat_map(|(place, _)| rows.get(place).into_iter().flatten().copied()).collect()
    };
    let parts = [flat(&places[0], &found.train), flat(&places[1], &found.held_out)];
    let infos = ["train", "held_out"].iter().zip(&parts);
    let infos: Vec<TensorInfo> =
        infos.map(|(name, part)| TensorInfo::new(*name, Dtype::F32, vec![part.len()])).collect();
    let mut writer = Writer::create(path, &infos, marks)?;
    parts.iter().try_for_each(|part| writer.write(&bytes(part)))?;
    Ok(writer.finish()?)
}
