//! All of this crate's data side behind one face: files in, shuffled batches out, stopped and resumed at any row.
//!
//! Opening reads and tokenises the data once, as a stream, into a [`TokenStore`] for each source. From then on a batch
//! is the mixture's choice of source and the sampler's choice of row, as often as there are rows in the batch; a batch
//! larger than the data simply runs on into the next epoch. [`LoaderState`] is small, plain data; it carries marks of
//! the files and a hash of every token, so that resuming on other data is an error instead of another run; files that were only moved, or
//! compressed anew, give the same tokens and go on.
//!
//! [`HeldOut`] is the pass without chance: every row once, in order.
//!
//! ```
//! use ernie_data::source::SourceConfig;
//! use ernie_data::{HeldOut, Loader, LoaderConfig, Marks, Reading};
//!
//! # fn main() -> ernie_data::Result<()> {
//! let bytes = |text: &str| text.bytes().map(u32::from).collect();
//! let marks = Marks::eos(256);
//! let config = LoaderConfig::new(&["bundled:train"], ".");
//! let mut loader = Loader::open(&config, Reading::Text(&bytes), marks, 128, 4, 42)?;
//! let batch = loader.next()?;
//! assert_eq!((batch.ids.len(), batch.lengths.iter().sum::<usize>()), (512, 512));
//!
//! let saved = loader.state();
//! let next = loader.next()?;
//! let mut resumed = Loader::open(&config, Reading::Text(&bytes), marks, 128, 4, 42)?;
//! resumed.restore(&saved)?;
//! assert_eq!(resumed.next()?, next);
//!
//! let source = SourceConfig::new(&["bundled:held_out"]);
//! let mut held_out = HeldOut::open(&source, ".", Reading::Text(&bytes), marks, 128, 4, 10_000)?;
//! while let Some(batch) = held_out.next()? {
//!     assert!(batch.rows <= 4);
//! }
//! # Ok(())
//! # }
//! ```

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::mixture::Mixture;
use crate::packing::{Batch, Builder, Group, Marks, Packer, Place, TokenStore};
use crate::sampler::{self, Sampler, SamplerKind, SamplerState};
use crate::source::{FileMark, Format, Source, SourceConfig};
use crate::{Error, Result};

/// How records become tokens.
#[derive(Clone, Copy)]
pub enum Reading<'a> {
    /// Text to ids, without marks.
    Text(&'a dyn Fn(&str) -> Vec<u32>),
    /// A line of a JSONL file to groups of examples, each of which stays whole in a row; an error says what is wrong with the line.
    Examples(&'a dyn Fn(&str) -> std::result::Result<Vec<Group>, String>),
}

impl Reading<'_> {
    /// The source as this reads it.
    fn of(self, source: &SourceConfig) -> SourceConfig {
        match self {
            Self::Text(_) => source.clone(),
            Self::Examples(_) => SourceConfig { format: Format::Jsonl, whole_lines: true, ..source.clone() },
        }
    }
}

/// How much of the tokens stays in memory by default, over all sources: 1 GiB, 268 million tokens.
pub const MEMORY_BYTES: u64 = 1 << 30;

/// What a [`Loader`] reads and how.
#[derive(Debug, Clone)]
pub struct LoaderConfig {
    /// Sources with their weights in the mixture (of any sum).
    pub sources: Vec<(SourceConfig, f64)>,
    /// Folder that relative globs start from.
    pub base_dir: PathBuf,
    /// How rows are chosen inside a source.
    pub sampler: SamplerKind,
    /// Tokens beyond this many bytes (4 each) go to an unnamed file in `spill_dir`.
    pub memory_bytes: u64,
    /// Where that file may be made: the run folder. Without one, more data than `memory_bytes` is an error.
    pub spill_dir: Option<PathBuf>,
}

impl LoaderConfig {
    /// One source of files matching `globs`, with every default.
    pub fn new(globs: &[&str], base_dir: impl Into<PathBuf>) -> Self {
        LoaderConfig {
            sources: vec![(SourceConfig::new(globs), 1.0)],
            base_dir: base_dir.into(),
            sampler: SamplerKind::default(),
            memory_bytes: MEMORY_BYTES,
            spill_dir: None,
        }
    }
}

/// Where a loader stands, and on which data. Restoring it gives the batches that would have come next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderState {
    /// Format of this state.
    pub version: u32,
    /// The seed of every order.
    pub seed: u64,
    /// Positions in a row.
    pub seq_len: usize,
    /// Rows drawn from each source, by the mixture.
    pub drawn: Vec<u64>,
    /// Each source's sampler.
    pub samplers: Vec<SamplerState>,
    /// Each source's data.
    pub data: Vec<DataMark>,
}

/// What tells one state of a source from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataMark {
    /// The files in order, to say what changed.
    pub files: Vec<FileMark>,
    /// SHA-256 of all tokens and document borders: it decides.
    pub tokens_sha256: String,
}

/// The format of [`LoaderState`].
const STATE_VERSION: u32 = 1;

/// Endless shuffled batches for training.
pub struct Loader {
    stores: Vec<TokenStore>,
    samplers: Vec<Box<dyn Sampler>>,
    mixture: Mixture,
    data: Vec<DataMark>,
    seed: u64,
    seq_len: usize,
    rows: usize,
    notes: Vec<String>,
}

impl Loader {
    /// Reads, tokenises and packs the data of `config` for batches of `rows` rows of `seq_len` positions.
    ///
    /// # Errors
    /// Input errors name the file and line, or the setting, at fault; [`Error::Io`] when a file cannot be read.
    pub fn open(
        config: &LoaderConfig,
        reading: Reading<'_>,
        marks: Marks,
        seq_len: usize,
        rows: usize,
        seed: u64,
    ) -> Result<Self> {
        check_rows(rows)?;
        let weights: Vec<f64> = config.sources.iter().map(|(_, weight)| *weight).collect();
        let mixture = Mixture::new(&weights, seed)?;
        let share = config.memory_bytes / config.sources.len() as u64;
        let mut loader = Loader {
            stores: Vec::new(),
            samplers: Vec::new(),
            mixture,
            data: Vec::new(),
            seed,
            seq_len,
            rows,
            notes: Vec::new(),
        };
        for (i, (source, _)) in config.sources.iter().enumerate() {
            let mut source = Source::open(&reading.of(source), &config.base_dir)?;
            let builder = Builder::new(seq_len, marks, share, config.spill_dir.as_deref())?;
            let store = fill(&mut source, reading, builder, u64::MAX, &mut loader.notes)?;
            loader.samplers.push(sampler::new(config.sampler, store.rows(), seed, i as u64)?);
            loader.data.push(DataMark { files: source.marks()?, tokens_sha256: store.sha256().to_owned() });
            loader.notes.extend(source.notes());
            loader.stores.push(store);
        }
        Ok(loader)
    }

    /// The next batch: always `rows` rows.
    ///
    /// # Errors
    /// [`Error::Io`] if spilled tokens cannot be read.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Batch> {
        let mut batch = Batch::new(self.seq_len);
        for _ in 0..self.rows {
            let source = self.mixture.draw();
            let row = self.samplers[source].draw();
            self.stores[source].append_row(source as u32, row, &mut batch)?;
        }
        Ok(batch)
    }

    /// Shows every row once, in order, in batches of up to `rows` rows; what comes next does not change.
    ///
    /// # Errors
    /// [`Error::Io`] if spilled tokens cannot be read; those of `visit`.
    pub fn pass<E: From<Error>>(
        &mut self,
        mut visit: impl FnMut(&Batch) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        for (source, store) in self.stores.iter_mut().enumerate() {
            let mut row = 0;
            while row < store.rows() {
                let mut batch = Batch::new(self.seq_len);
                while batch.rows < self.rows && row < store.rows() {
                    store.append_row(source as u32, row, &mut batch)?;
                    row += 1;
                }
                visit(&batch)?;
            }
        }
        Ok(())
    }

    /// SHA-256 over the tokens of every source.
    pub fn tokens_sha256(&self) -> String {
        self.data.iter().map(|data| data.tokens_sha256.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// Tells the samplers the mean losses that a step measured on the rows of a batch ([`Batch::places`]).
    pub fn record(&mut self, places: &[Place], losses: &[f32]) {
        for (i, sampler) in self.samplers.iter_mut().enumerate() {
            let (rows, losses): (Vec<u32>, Vec<f32>) = places
                .iter()
                .zip(losses)
                .filter(|(place, _)| place.source as usize == i)
                .map(|(place, loss)| (place.row, *loss))
                .unzip();
            sampler.record(&rows, &losses);
        }
    }

    /// The state to save with a checkpoint.
    pub fn state(&self) -> LoaderState {
        LoaderState {
            version: STATE_VERSION,
            seed: self.seed,
            seq_len: self.seq_len,
            drawn: self.mixture.counts().to_vec(),
            samplers: self.samplers.iter().map(|s| s.state()).collect(),
            data: self.data.clone(),
        }
    }

    /// Goes on from a saved state. On an error the loader is as it was.
    ///
    /// # Errors
    /// [`Error::Resume`], saying what differs, if the state is of other data, another tokenizer, seed or row length.
    pub fn restore(&mut self, state: &LoaderState) -> Result<()> {
        self.check(state)?;
        let before = self.state();
        let outcome = self.set(state);
        if outcome.is_err() {
            self.set(&before)?;
        }
        outcome
    }

    /// Tokens with a loss in one pass over every source.
    pub fn targets(&self) -> u64 {
        self.stores.iter().map(TokenStore::targets).sum()
    }

    /// Rows in one pass over every source.
    pub fn rows_per_epoch(&self) -> u64 {
        self.stores.iter().map(|s| u64::from(s.rows())).sum()
    }

    /// Documents over every source.
    pub fn documents(&self) -> u64 {
        self.stores.iter().map(TokenStore::documents).sum()
    }

    /// Bytes of text over every source.
    pub fn text_bytes(&self) -> u64 {
        self.stores.iter().map(TokenStore::text_bytes).sum()
    }

    /// The largest id that a batch can hold: it must be below the model's `vocab_size`.
    pub fn largest_id(&self) -> u32 {
        self.stores.iter().map(TokenStore::largest_id).max().unwrap_or(0)
    }

    /// Passes completed by the source that has completed the fewest.
    pub fn epoch(&self) -> u64 {
        let completed = |i: usize| {
            let state = self.samplers[i].state();
            state.epoch + u64::from(state.index == self.stores[i].rows())
        };
        (0..self.stores.len()).map(completed).min().unwrap_or(0)
    }

    /// One line each about what a reader of the log should know (bytes that were not UTF-8, empty documents).
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    fn check(&self, state: &LoaderState) -> Result<()> {
        let differs = |what: &str, then: &dyn std::fmt::Display, now: &dyn std::fmt::Display| {
            Err(Error::Resume(format!("{what} was {then} in the checkpoint and is {now} now")))
        };
        if state.version != STATE_VERSION {
            return differs("the format of the data position", &state.version, &STATE_VERSION);
        }
        if state.seed != self.seed {
            return differs("the data seed", &state.seed, &self.seed);
        }
        if state.seq_len != self.seq_len {
            return differs("the row length", &state.seq_len, &self.seq_len);
        }
        let sources = [state.drawn.len(), state.samplers.len(), state.data.len()];
        if sources.iter().any(|&n| n != self.stores.len()) {
            return differs("the number of data sources", &sources[2], &self.stores.len());
        }
        for (then, now) in state.data.iter().zip(&self.data) {
            // The tokens decide: data that was moved or compressed anew gives the same batches. The files say what changed.
            if then.tokens_sha256 == now.tokens_sha256 {
                continue;
            }
            if then.files.len() != now.files.len() {
                return differs("the number of data files", &then.files.len(), &now.files.len());
            }
            return Err(Error::Resume(match then.files.iter().zip(&now.files).find(|(then, now)| then != now) {
                Some((then, now)) => format!("the data changed since the checkpoint: {}", then.difference(now)),
                None => {
                    "the data or the tokenizer changed since the checkpoint: the same files give other tokens".into()
                }
            }));
        }
        Ok(())
    }

    fn set(&mut self, state: &LoaderState) -> Result<()> {
        for (sampler, state) in self.samplers.iter_mut().zip(&state.samplers) {
            sampler.restore(state)?;
        }
        self.mixture.restore(&state.drawn)
    }
}

/// Every row once, in order, for evaluation.
pub struct HeldOut {
    store: TokenStore,
    rows: usize,
    at: u32,
    notes: Vec<String>,
}

impl HeldOut {
    /// Reads, tokenises and packs the data of `source` for batches of at most `rows` rows. Reading stops at the end of
    /// the first piece (a document, or 64 KiB of one) that brings the text to `max_bytes` or beyond.
    ///
    /// The tokens stay in memory: more than [`MEMORY_BYTES`] of them is an error.
    ///
    /// # Errors
    /// As [`Loader::open`].
    pub fn open(
        source: &SourceConfig,
        base_dir: impl Into<PathBuf>,
        reading: Reading<'_>,
        marks: Marks,
        seq_len: usize,
        rows: usize,
        max_bytes: u64,
    ) -> Result<Self> {
        check_rows(rows)?;
        let mut source = Source::open(&reading.of(source), &base_dir.into())?;
        let builder = Builder::new(seq_len, marks, MEMORY_BYTES, None)?;
        let mut notes = Vec::new();
        let store = fill(&mut source, reading, builder, max_bytes, &mut notes)?;
        notes.extend(source.notes());
        Ok(HeldOut { store, rows, at: 0, notes })
    }

    /// The next batch, of up to `rows` rows; `None` after the last row.
    ///
    /// # Errors
    /// None today; spilled tokens would be read here.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Batch>> {
        let mut batch = Batch::new(self.store.seq_len());
        while batch.rows < self.rows && self.at < self.store.rows() {
            self.store.append_row(0, self.at, &mut batch)?;
            self.at += 1;
        }
        Ok((batch.rows > 0).then_some(batch))
    }

    /// Starts another pass.
    pub fn rewind(&mut self) {
        self.at = 0;
    }

    /// Targets with a loss in a pass: the divisor of the mean loss.
    pub fn targets(&self) -> u64 {
        self.store.targets()
    }

    /// Bytes of text that a pass covers: `bits_per_byte = total_nll_nats / ln 2 / text_bytes`.
    pub fn text_bytes(&self) -> u64 {
        self.store.text_bytes()
    }

    /// Bits per byte from the total negative log-likelihood of a whole pass, in nats.
    pub fn bits_per_byte(&self, total_nll_nats: f64) -> f64 {
        total_nll_nats / std::f64::consts::LN_2 / self.text_bytes() as f64
    }

    /// Documents in a pass.
    pub fn documents(&self) -> u64 {
        self.store.documents()
    }

    /// Rows in a pass.
    pub fn rows(&self) -> u32 {
        self.store.rows()
    }

    /// The largest id that a batch can hold: it must be below the model's `vocab_size`.
    pub fn largest_id(&self) -> u32 {
        self.store.largest_id()
    }

    /// SHA-256 over the tokens.
    pub fn tokens_sha256(&self) -> &str {
        self.store.sha256()
    }

    /// One line each about what a reader of the log should know.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// Tokenises a source to its end, or until `max_bytes` of text are in.
fn fill(
    source: &mut Source,
    reading: Reading<'_>,
    mut builder: Builder,
    max_bytes: u64,
    notes: &mut Vec<String>,
) -> Result<TokenStore> {
    let store = match reading {
        Reading::Text(encode) => {
            while builder.text_bytes() < max_bytes {
                let Some(piece) = source.next()? else { break };
                builder.piece(&encode(&piece.text), piece.text.len() as u64 + piece.separator_bytes, piece.ends)?;
            }
            builder.finish()?
        }
        Reading::Examples(examine) => {
            let (mut packer, mut bytes) = (Packer::new(builder), 0);
            while bytes < max_bytes {
                let Some(piece) = source.next()? else { break };
                for group in examine(&piece.text).map_err(|what| source.fault(&what))? {
                    bytes += group.iter().map(|example| example.text_bytes).sum::<u64>();
                    packer.push(group)?;
                }
            }
            notes.extend(packer.notes());
            packer.finish()?
        }
    };
    if store.text_bytes() == 0 {
        return Err(Error::Data { at: source.describe(), what: "no text in it: the data set is empty".into() });
    }
    Ok(store)
}

fn check_rows(rows: usize) -> Result<()> {
    if rows == 0 || rows > 1 << 20 {
        return Err(Error::Setting { key: "batch rows".into(), what: format!("{rows} is outside 1 to {}", 1 << 20) });
    }
    Ok(())
}
