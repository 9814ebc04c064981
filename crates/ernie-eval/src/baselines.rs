//! What a model must beat: a good compressor and a good n-gram, on the same split.
//!
//! Both are measured in bits for each byte of held-out text, the one figure that compares models whatever their
//! tokenizer. Neither needs a model; both are deterministic.

use std::io::Write;

use lzma_rust2::{LzmaOptions, LzmaWriter};

use crate::{Error, Result};

/// Longest context of [`witten_bell_bits_per_byte`], in bytes: with the byte itself a 5-gram.
const CONTEXT_BYTES: usize = 4;

/// Bits for each held-out byte that LZMA (preset 9) needs: the compressed size of both texts together less that of
/// `train` alone, so that it may use all of `train` as the model may.
///
/// # Errors
/// [`Error::Data`] when `held_out` is empty; [`Error::Internal`] when the encoder fails.
pub fn lzma_bits_per_byte(train: &[u8], held_out: &[u8]) -> Result<f64> {
    need_text(held_out)?;
    let alone = lzma_bytes(&[train])?;
    let together = lzma_bytes(&[train, held_out])?;
    Ok(together.saturating_sub(alone) as f64 * 8.0 / held_out.len() as f64)
}

fn lzma_bytes(parts: &[&[u8]]) -> Result<u64> {
    let failed = |error: std::io::Error| Error::Internal(format!("LZMA: {error}"));
    let total: u64 = parts.iter().map(|part| part.len() as u64).sum();
    let mut options = LzmaOptions::with_preset(9);
    // A dictionary beyond the text costs memory and changes nothing.
    options.dict_size = options.dict_size.min(total.next_power_of_two().clamp(1 << 16, 1 << 26) as u32);
    let mut writer = LzmaWriter::new_use_header(Counter(0), &options, Some(total)).map_err(failed)?;
    for part in parts {
        writer.write_all(part).map_err(failed)?;
    }
    Ok(writer.finish().map_err(failed)?.0)
}

/// Counts what is written and keeps nothing.
struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Bits for each held-out byte under an interpolated Witten–Bell byte 5-gram (Witten & Bell 1991, method C) counted on
/// `train`: p(b | ctx) = (c(ctx b) + t(ctx) · p(b | shorter ctx)) / (c(ctx) + t(ctx)), where t counts the different bytes
/// that followed, ending in the uniform 1/256. The counts do not learn from the held-out text.
///
/// # Errors
/// [`Error::Data`] when `held_out` is empty.
pub fn witten_bell_bits_per_byte(train: &[u8], held_out: &[u8]) -> Result<f64> {
    need_text(held_out)?;
    let orders: Vec<Counts> = (0..=CONTEXT_BYTES).map(|order| Counts::of(train, order)).collect();
    // The held-out text follows the training text, so its first bytes have a context.
    let before = &train[train.len().saturating_sub(CONTEXT_BYTES)..];
    let text = [before, held_out].concat();
    let bits: f64 = (before.len()..text.len())
        .map(|at| {
            let mut p = 1.0 / 256.0;
            for (order, counts) in orders.iter().enumerate().take(at + 1) {
                p = counts.interpolate(key(&text[at - order..at]), text[at], p);
            }
            -p.log2()
        })
        .sum();
    Ok(bits / held_out.len() as f64)
}

fn need_text(held_out: &[u8]) -> Result<()> {
    if held_out.is_empty() {
        return Err(Error::Data { at: "held-out text".into(), what: "it is empty (expected some bytes)".into() });
    }
    Ok(())
}

/// Up to seven bytes as a number.
fn key(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |key, &byte| key << 8 | u64::from(byte))
}

/// How often each byte followed each context of one length: sorted by context and byte, which is smaller than a map and
/// lets all followers of a context be read side by side.
struct Counts(Vec<(u64, u32)>);

impl Counts {
    fn of(text: &[u8], order: usize) -> Self {
        let mut keys: Vec<u64> = text.windows(order + 1).map(key).collect();
        keys.sort_unstable();
        let runs = keys.chunk_by(|a, b| a == b);
        Self(runs.map(|run| (run[0], u32::try_from(run.len()).unwrap_or(u32::MAX))).collect())
    }

    /// The probability of `byte` after `context`, given its probability after the shorter context.
    fn interpolate(&self, context: u64, byte: u8, shorter: f64) -> f64 {
        let from = self.0.partition_point(|&(key, _)| key >> 8 < context);
        let followers = self.0[from..].iter().take_while(|&&(key, _)| key >> 8 == context);
        let (mut total, mut types, mut count) = (0.0, 0.0, 0.0);
        for &(key, times) in followers {
            total += f64::from(times);
            types += 1.0;
            if key & 0xff == u64::from(byte) {
                count = f64::from(times);
            }
        }
        if types == 0.0 { shorter } else { (count + types * shorter) / (total + types) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_corpus_gives_the_recorded_figures() {
        let train = ernie_data::bundled::train_text().as_bytes();
        let held_out = ernie_data::bundled::held_out_text().as_bytes();
        let ngram = witten_bell_bits_per_byte(train, held_out).unwrap();
        let lzma = lzma_bits_per_byte(train, held_out).unwrap();
        assert!((ngram - 2.13).abs() < 0.01, "{ngram}");
        assert!((lzma - 2.36).abs() < 0.015, "{lzma}");
    }

    #[test]
    fn probabilities_sum_to_one() {
        let text = b"abracadabra, abracadabra";
        let orders: Vec<Counts> = (0..=2).map(|order| Counts::of(text, order)).collect();
        for context in [&b"ab"[..], b"ra", b"zz", b"a,"] {
            let total: f64 = (0..=255u8)
                .map(|byte| {
                    (0..=2).fold(1.0 / 256.0, |p, order| orders[order].interpolate(key(&context[2 - order..]), byte, p))
                })
                .sum();
            assert!((total - 1.0).abs() < 1e-12, "{total}");
        }
    }

    #[test]
    fn a_repeated_text_is_cheap_and_noise_is_not() {
        let noise: Vec<u8> = (0..4000).map(|i| (ernie_serve::engine::uniform(1, i) * 256.0) as u8).collect();
        let again = &noise[..2000];
        assert!(lzma_bits_per_byte(&noise, again).unwrap() < 0.5);
        assert!(witten_bell_bits_per_byte(&noise[2000..], again).unwrap() > 6.0);
        assert!(lzma_bits_per_byte(b"", b"x").unwrap() > 0.0);
        assert!(witten_bell_bits_per_byte(b"", b"x").unwrap() == 8.0);
        assert!(lzma_bits_per_byte(b"x", b"").unwrap_err().is_input());
    }
}
