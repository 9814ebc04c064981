//! The model as the engine sees it: rows in, logits out, keys and values kept in numbered blocks.
//!
//! [`DecoderModel`] is the one that matters. The trait is the seam where tests and load studies put a model whose
//! answers can be computed on paper. Which block belongs to whom is the engine's business; the model stores.

use std::ops::Range;
use std::sync::Arc;

use ernie_model::{Decoder, PAGE, PagedCache, Tokens};
use ernie_nn::no_grad;

use crate::Result;

/// The rows of one forward pass, of any number of requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Ids of all rows.
    pub ids: Vec<u32>,
    /// Who owns which rows, in the order of `ids`, without gaps.
    pub chunks: Vec<Chunk>,
}

/// One request's part of a [`Batch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The request's blocks, in the order of positions, as many as its rows need. The block of position `p` is entry
    /// `p / block_tokens`. Blocks before `past` may stand in other chunks too; those written never do.
    pub blocks: Vec<u32>,
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// Positions of this request already in the cache: the first row's position.
    pub past: usize,
    /// Rows of the batch, within `rows`, whose logits are wanted.
    pub wanted: Range<usize>,
    /// Of the wanted rows, the final hidden states are wanted in place of logits.
    pub hidden: bool,
    /// The adapter that its rows go through, by its number.
    pub adapter: Option<usize>,
}

/// What a wanted row came to.
#[derive(Debug)]
pub struct Row<'a> {
    /// The chunk that the row belongs to.
    pub chunk: usize,
    /// Its number in the batch.
    pub row: usize,
    /// Its logits or its hidden states, to be changed at will.
    pub numbers: &'a mut [f32],
}

/// Receives wanted rows, some at a time: those of a chunk together and in order.
pub type TakeRows<'a> = dyn FnMut(Vec<Row<'_>>) + 'a;

/// What the engine needs of a model.
pub trait Model: Send {
    /// Number of token ids.
    fn vocab_size(&self) -> usize;
    /// Positions of the longest sequence.
    fn context_length(&self) -> usize;
    /// Ids by which the model says that it is done.
    fn eos_ids(&self) -> &[u32];
    /// How many adapters requests may choose from.
    fn adapters(&self) -> usize {
        0
    }
    /// Positions of a block, at least 1.
    fn block_tokens(&self) -> usize {
        PAGE
    }
    /// Bytes of a block; 0 for a model that stores nothing.
    fn block_bytes(&self) -> u64 {
        0
    }
    /// What one row more costs in a pass of `rows` rows, in tokens that the same time would have given (0 to 1), where
    /// the model knows. With `None` the engine measures it, to decide whether trying guesses pays.
    fn row_cost(&self, rows: usize) -> Option<f64> {
        let _ = rows;
        None
    }
    /// Runs the batch, puts its rows into their blocks and hands over the wanted logits.
    ///
    /// A row's logits must be the same bits whatever else is in the batch, whatever adapter that goes through, and however a prompt is cut into
    /// chunks.
    ///
    /// # Errors
    /// When the model cannot run; every request of the batch then fails.
    fn forward(&mut self, batch: &Batch, take: &mut TakeRows<'_>) -> Result<()>;
}

/// Rows of logits that exist at the same time, so that a long prompt does not need `[tokens, vocab]` at once.
const LOGIT_ROWS: usize = 64;

/// A decoder with a paged cache.
pub struct DecoderModel {
    decoder: Arc<Decoder>,
    cache: PagedCache,
    eos_ids: Vec<u32>,
}

impl DecoderModel {
    /// Puts an empty cache beside `decoder`, in the format that suits its weights ([`Decoder::cache_format`]).
    ///
    /// # Errors
    /// When the heads of the model do not divide, which a checked config excludes.
    pub fn new(decoder: Arc<Decoder>) -> Result<Self> {
        let cache = PagedCache::new(decoder.config(), decoder.cache_format())?;
        let eos_ids = decoder.config().eos_token_ids.clone();
        Ok(Self { decoder, cache, eos_ids })
    }

    /// Bytes that the cache holds now.
    pub fn cache_bytes(&self) -> u64 {
        self.cache.bytes()
    }
}

impl Model for DecoderModel {
    fn vocab_size(&self) -> usize {
        self.decoder.config().vocab_size
    }

    fn context_length(&self) -> usize {
        self.decoder.config().max_position_embeddings
    }

    fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    fn adapters(&self) -> usize {
        self.decoder.num_adapters()
    }

    fn block_bytes(&self) -> u64 {
        self.cache.block_bytes()
    }

    fn forward(&mut self, batch: &Batch, take: &mut TakeRows<'_>) -> Result<()> {
        let mut tokens = Tokens::default();
        for (index, chunk) in batch.chunks.iter().enumerate() {
            tokens.push(index, chunk.past, &batch.ids[chunk.rows.clone()]);
            tokens.adapters.extend(chunk.adapter.map(|adapter| (chunk.rows.clone(), adapter)));
        }
        self.cache.begin(batch.chunks.iter().map(|chunk| chunk.blocks.as_slice()), &tokens.spans)?;
        let wanted: Vec<(usize, usize)> = batch
            .chunks
            .iter()
            .enumerate()
            .flat_map(|(index, chunk)| chunk.wanted.clone().map(move |row| (index, row)))
            .collect();
        no_grad(|| {
            let hidden = self.decoder.hidden(&tokens, Some(&mut self.cache), &mut ())?;
            if wanted.is_empty() {
                return Ok(());
            }
            let width = self.decoder.config().hidden_size;
            let (as_they_are, wanted): (Vec<_>, Vec<_>) =
                wanted.into_iter().partition(|&(chunk, _)| batch.chunks[chunk].hidden);
            let chosen = |some: &[(usize, usize)]| hidden.rows(&some.iter().map(|&(_, row)| row).collect::<Vec<_>>());
            if !as_they_are.is_empty() {
                take(rows(&as_they_are, &mut chosen(&as_they_are)?.to_vec()?, width));
            }
            for part in wanted.chunks(LOGIT_ROWS) {
                let mut logits = self.decoder.logits_of(&chosen(part)?)?;
                take(rows(part, &mut logits, self.decoder.config().vocab_size));
            }
            Ok(())
        })
    }
}

/// Rows `width` wide of these chunks and numbers.
fn rows<'a>(some: &[(usize, usize)], numbers: &'a mut [f32], width: usize) -> Vec<Row<'a>> {
    let numbers = numbers.chunks_exact_mut(width);
    some.iter().zip(numbers).map(|(&(chunk, row), numbers)| Row { chunk, row, numbers }).collect()
}
