//! What the quickstart's model writes.

use crate::{commands::generate::engine, failure::Result, report::Sample};
use ernie_data::{chat::ChatTemplate, tokenizer::Tokenizer};
use ernie_model::{ModelSource, WeightsAs};
use ernie_serve::{
    engine::Sampling,
    session::{Options, Session},
};
use std::{ops::ControlFlow, path::Path};

/// Beginnings in the manner of the books.
const PROMPTS: [&str; 3] = ["Once upon a time", "“Oh dear!” said Alice", "The captain looked"];
const TOKENS: usize = 80;

/// Continues each beginning.
pub(super) fn write(model: &Path, seed: u64) -> Result<Vec<Sample>> {
    let loaded = ernie_model::load(&ModelSource::Folder(model.to_owned()), WeightsAs::Native)?;
    let tokenizer = Tokenizer::from_folder(model)?;
    let mut session = Session::new(engine(loaded.decoder, 1)?, tokenizer, ChatTemplate::default_ernie());
    let options = Options {
        max_tokens: TOKENS,
        sampling: Sampling { temperature: 0.7, top_p: 0.9, seed: Some(seed), ..Sampling::default() },
        ignore_eos: true,
        ..Options::default()
    };
    PROMPTS
        .iter()
        .map(|prompt| {
            let answer = session.complete(prompt, &options, &mut |_| ControlFlow::Continue(()))?;
            Ok(Sample { prompt: (*prompt).to_owned(), text: answer.text.unwrap_or_default() })
        })
        .collect()
}
