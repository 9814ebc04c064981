//! Added tokens: literals that stand for one id, found in the text before anything else happens.
//!
//! A *control* token (special, or named as bos, eos, pad …) is recognised only where the text is trusted; everywhere
//! else its literal is ordinary text. An ordinary added token (ERNIE lists the ten digits so) is vocabulary like any
//! other and is recognised everywhere. Leftmost-longest, as in `tokenizers`.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::LazyLock;

/// Longest literal accepted, in bytes: it bounds the work for a position of the text.
pub(super) const MAX_LITERAL_BYTES: usize = 1024;

/// One added token as the files describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedToken {
    /// The token's id.
    pub id: u32,
    /// The literal.
    pub content: String,
    /// Marked special in its file: left out where special tokens are skipped.
    pub special: bool,
    /// A control token: recognised in trusted text only.
    pub control: bool,
    /// Swallows white space on its left.
    pub lstrip: bool,
    /// Swallows white space on its right.
    pub rstrip: bool,
    /// Only where no word character touches it.
    pub single_word: bool,
    /// Looked for after normalisation rather than before.
    pub normalized: bool,
}

/// Which parts of a text are trusted: sorted, disjoint, not touching.
#[derive(Debug, Clone, Default)]
pub(super) struct Trust(Vec<Range<usize>>);

impl Trust {
    pub(super) fn none() -> Self {
        Self(Vec::new())
    }

    pub(super) fn all(len: usize) -> Self {
        Self(std::iter::once(0..len).collect())
    }

    /// Appends a range; a range that touches the last one prolongs it.
    pub(super) fn push(&mut self, range: Range<usize>) {
        match self.0.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if range.is_empty() => {}
            _ => self.0.push(range),
        }
    }

    /// True when all of `range` lies in one trusted part.
    pub(super) fn covers(&self, range: &Range<usize>) -> bool {
        let after = self.0.partition_point(|r| r.end < range.end);
        self.0.get(after).is_some_and(|r| r.start <= range.start && range.end <= r.end)
    }

    /// The part of this inside `range`, moved to start at 0.
    pub(super) fn within(&self, range: &Range<usize>) -> Self {
        let first = self.0.partition_point(|r| r.end <= range.start);
        let parts = self.0[first..].iter().take_while(|r| r.start < range.end);
        Self(parts.map(|r| r.start.max(range.start) - range.start..r.end.min(range.end) - range.start).collect())
    }

    /// True when everything is trusted, or nothing is: then a change of the text's length does not matter.
    pub(super) fn uniform(&self, len: usize) -> Option<bool> {
        match self.0.as_slice() {
            [] => Some(false),
            [only] if only.start == 0 && only.end == len => Some(true),
            _ => None,
        }
    }
}

/// A trie over byte strings with a payload at the end of some.
#[derive(Debug, Default, Clone)]
pub(super) struct Trie {
    edges: HashMap<(u32, u8), u32>,
    leaves: HashMap<u32, u32>,
    nodes: u32,
    starts: Vec<bool>,
}

impl Trie {
    pub(super) fn insert(&mut self, key: &[u8], value: u32) {
        let Some(&first) = key.first() else { return };
        self.starts.resize(256, false);
        self.starts[usize::from(first)] = true;
        let mut node = 0;
        for &byte in key {
            node = *self.edges.entry((node, byte)).or_insert_with(|| {
                self.nodes += 1;
                self.nodes
            });
        }
        self.leaves.insert(node, value);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.leaves.is_empty()
    }

    /// The longest key at the front of `text` whose value `accept`s: `(bytes, value)`.
    pub(super) fn longest(&self, text: &[u8], accept: impl Fn(usize, u32) -> bool) -> Option<(usize, u32)> {
        if !self.starts.get(usize::from(*text.first()?)).copied().unwrap_or(false) {
            return None;
        }
        let mut node = 0;
        let mut best = None;
        for (i, &byte) in text.iter().enumerate() {
            match self.edges.get(&(node, byte)) {
                Some(next) => node = *next,
                None => break,
            }
            if let Some(value) = self.leaves.get(&node)
                && accept(i + 1, *value)
            {
                best = Some((i + 1, *value));
            }
        }
        best
    }
}

/// A part of a text: an added token, or text still to be tokenised.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    Token(u32),
    Text(Range<usize>),
}

/// Finds added tokens of one sort (before or after normalisation).
#[derive(Debug, Default, Clone)]
pub(super) struct Matcher {
    trie: Trie,
    tokens: Vec<AddedToken>,
}

impl Matcher {
    pub(super) fn add(&mut self, literal: &str, token: AddedToken) {
        self.trie.insert(literal.as_bytes(), self.tokens.len() as u32);
        self.tokens.push(token);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.trie.is_empty()
    }

    /// Cuts `text` at the tokens that may be recognised. Empty texts between tokens are left out.
    pub(super) fn split(&self, text: &str, trust: &Trust) -> Vec<Part> {
        let bytes = text.as_bytes();
        let mut parts = Vec::new();
        let (mut done, mut at) = (0, 0);
        while at < bytes.len() {
            let found = self.trie.longest(&bytes[at..], |len, index| {
                let token = &self.tokens[index as usize];
                !token.control || trust.covers(&(at..at + len))
            });
            let Some((len, index)) = found else {
                at += 1;
                continue;
            };
            let token = &self.tokens[index as usize];
            let (mut start, mut end) = (at, at + len);
            if token.single_word && (text[..start].ends_with(is_word) || text[end..].starts_with(is_word)) {
                at = end;
                continue;
            }
            if token.lstrip {
                start = text[done..start].trim_end().len() + done;
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            if done < start {
                parts.push(Part::Text(done..start));
            }
            parts.push(Part::Token(token.id));
            done = end;
            at = end;
        }
        if done < text.len() {
            parts.push(Part::Text(done..text.len()));
        }
        parts
    }
}

/// A word character as regular expressions see it: marks and joiners too.
fn is_word(c: char) -> bool {
    static WORD: LazyLock<Option<fancy_regex::Regex>> = LazyLock::new(|| fancy_regex::Regex::new(r"^\w").ok());
    let word = WORD.as_ref().and_then(|regex| regex.is_match(c.encode_utf8(&mut [0; 4])).ok());
    word.unwrap_or_else(|| c.is_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32, content: &str, control: bool) -> AddedToken {
        AddedToken {
            id,
            content: content.into(),
            special: control,
            control,
            lstrip: false,
            rstrip: false,
            single_word: false,
            normalized: false,
        }
    }

    fn matcher(tokens: &[AddedToken]) -> Matcher {
        let mut m = Matcher::default();
        for t in tokens {
            m.add(&t.content.clone(), t.clone());
        }
        m
    }

    #[test]
    fn control_tokens_need_trust_over_their_whole_length() {
        let m = matcher(&[token(1, "<s>", true), token(2, "<", false)]);
        let text = "<s><s>";
        let mut trust = Trust::none();
        trust.push(0..4);
        assert_eq!(m.split(text, &trust), [Part::Token(1), Part::Token(2), Part::Text(4..6)]);
        assert_eq!(m.split(text, &Trust::all(6)), [Part::Token(1), Part::Token(1)]);
        let mut trust = Trust::none();
        trust.push(3..4);
        trust.push(4..6);
        assert_eq!(m.split(text, &trust), [Part::Token(2), Part::Text(1..3), Part::Token(1)]);
    }

    #[test]
    fn longest_wins_and_a_refused_long_one_leaves_the_short_one() {
        let m = matcher(&[token(1, "ab", false), token(2, "abc", true)]);
        assert_eq!(m.split("abc", &Trust::none()), [Part::Token(1), Part::Text(2..3)]);
        assert_eq!(m.split("abc", &Trust::all(3)), [Part::Token(2)]);
    }

    #[test]
    fn strips_take_white_space_on_their_side() {
        let mut t = token(1, "<x>", true);
        (t.lstrip, t.rstrip) = (true, true);
        let m = matcher(&[t]);
        let text = "a \u{3000}<x> \n b";
        let parts = m.split(text, &Trust::all(text.len()));
        assert_eq!(parts, [Part::Text(0..1), Part::Token(1), Part::Text(text.len() - 1..text.len())]);
    }
}
