//! SentencePiece's compiled normalisation rules (`precompiled_charsmap`): a double-array trie of byte strings, and the
//! replacements they point to.
//!
//! Layout: u32 length of the trie in bytes, the trie as u32 units, the replacements, each ended by a zero byte. Every
//! unit comes from a file, so every index is checked; a broken rule behaves as if it were absent. (The crate that reads
//! this for `tokenizers` indexes unchecked and takes the shortest rule, where SentencePiece takes the longest.)

/// Longest rule and longest replacement, in bytes; the longest in use have 18 and 33. Bounds the work and the growth
/// for each byte of text.
const MAX_RULE_BYTES: usize = 128;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Charsmap {
    units: Vec<u32>,
    replacements: String,
}

impl Charsmap {
    /// Reads the blob; an empty one has no rules.
    pub(super) fn read(blob: &[u8]) -> Result<Self, String> {
        if blob.is_empty() {
            return Ok(Self::default());
        }
        let (length, rest) = blob.split_first_chunk::<4>().ok_or("precompiled_charsmap is shorter than its header")?;
        let length = u32::from_le_bytes(*length) as usize;
        if !length.is_multiple_of(4) || length == 0 || length > rest.len() {
            return Err(format!(
                "precompiled_charsmap says its trie has {length} bytes (expected a multiple of 4, at most {})",
                rest.len()
            ));
        }
        let (trie, replacements) = rest.split_at(length);
        let units = trie.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let replacements: String = String::from_utf8(replacements.to_vec())
            .map_err(|_| "precompiled_charsmap: replacements are not UTF-8".to_owned())?;
        if let Some(long) = replacements.split('\0').map(str::len).find(|len| *len > MAX_RULE_BYTES) {
            return Err(format!(
                "precompiled_charsmap: a replacement of {long} bytes (expected at most {MAX_RULE_BYTES})"
            ));
        }
        Ok(Self { units, replacements })
    }

    /// The longest rule at the front of `text`: how many bytes it takes, and what stands for them.
    pub(super) fn longest(&self, text: &[u8]) -> Option<(usize, &str)> {
        let mut at = offset(*self.units.first()?);
        let mut best = None;
        for (i, &byte) in text.iter().take(MAX_RULE_BYTES).enumerate() {
            at ^= byte as usize;
            let unit = *self.units.get(at)?;
            if unit & 0x8000_00FF != u32::from(byte) {
                break;
            }
            at ^= offset(unit);
            if unit >> 8 & 1 == 1 {
                let Some(value) = self.units.get(at) else { break };
                best = Some((i + 1, (value & 0x7FFF_FFFF) as usize));
            }
        }
        let (length, start) = best?;
        let text = self.replacements.get(start..)?;
        Some((length, text.split('\0').next().unwrap_or_default()))
    }
}

fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_blobs_are_errors_or_harmless() {
        assert!(Charsmap::read(&[1, 0, 0]).is_err());
        assert!(Charsmap::read(&[8, 0, 0, 0, 1, 2, 3, 4]).is_err());
        assert!(Charsmap::read(&[4, 0, 0, 0, 1, 2, 3, 4, 0xFF]).is_err());
        let mut state = 1u32;
        for _ in 0..5_000 {
            let mut blob = vec![64, 0, 0, 0];
            for _ in 0..16 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                blob.extend((state >> (state & 15)).to_le_bytes());
            }
            blob.extend("é\0x".as_bytes());
            let map = Charsmap::read(&blob).unwrap();
            for byte in 0..=255u8 {
                let _ = map.longest(&[byte, byte.wrapping_add(1), 0, 255]);
            }
        }
    }
}
