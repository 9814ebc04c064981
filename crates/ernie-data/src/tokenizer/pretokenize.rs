//! Cutting text into words before byte-pair encoding, as the `pre_tokenizer` of a `tokenizer.json` says.
//!
//! Every step takes pieces and gives smaller pieces; empty ones vanish. The meaning of each step is that of the
//! `tokenizers` library; what is not on the list here is refused by name when the file is read. Bytes become the
//! printable characters of byte-level BPE only inside the model, so nothing here needs that alphabet.

use std::borrow::Cow;
use std::ops::Range;

use super::guarded_regex::GuardedRegex;
use crate::Result;

/// The pattern of GPT-2, used by every byte-level step with `use_regex`.
pub(super) const GPT2_PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// What becomes of the matches of a splitting step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behavior {
    Removed,
    Isolated,
    Contiguous,
    MergedWithPrevious,
    MergedWithNext,
}

/// What a splitting step looks for.
#[derive(Debug)]
pub(super) enum Pattern {
    Regex(GuardedRegex),
    Literal(String),
    Chars(fn(char) -> bool),
}

/// When a [`Step::Metaspace`] puts its mark before a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prepend {
    Always,
    /// Only before a piece that begins the whole text.
    First,
    Never,
}

/// One step.
#[derive(Debug)]
pub(super) enum Step {
    Split {
        pattern: Pattern,
        behavior: Behavior,
        invert: bool,
    },
    /// A space before each piece that has none.
    PrefixSpace,
    Metaspace {
        mark: char,
        prepend: Prepend,
        split: bool,
    },
}

/// Runs all steps over one text. `at_start` says that it begins the whole text.
pub(super) fn run<'a>(steps: &[Step], text: Cow<'a, str>, at_start: bool) -> Result<Vec<Cow<'a, str>>> {
    let mut pieces = vec![text];
    for step in steps {
        let mut next = Vec::with_capacity(pieces.len());
        for (i, piece) in pieces.into_iter().enumerate() {
            apply(step, piece, at_start && i == 0, &mut next)?;
        }
        pieces = next;
    }
    Ok(pieces)
}

fn apply<'a>(step: &Step, piece: Cow<'a, str>, at_start: bool, out: &mut Vec<Cow<'a, str>>) -> Result<()> {
    match step {
        Step::Split { pattern, behavior, invert } => {
            let ranges = split(&piece, pattern, *behavior, *invert)?;
            cut(piece, ranges, out);
        }
        Step::PrefixSpace if piece.starts_with(' ') => out.push(piece),
        Step::PrefixSpace => out.push(Cow::Owned(format!(" {piece}"))),
        Step::Metaspace { mark, prepend, split: splits } => {
            let mut text = piece.replace(' ', mark.encode_utf8(&mut [0; 4]));
            let wanted = match prepend {
                Prepend::Always => true,
                Prepend::First => at_start,
                Prepend::Never => false,
            };
            if wanted && !text.starts_with(*mark) {
                text.insert(0, *mark);
            }
            if *splits {
                let ranges = merge(literal(&text, mark.encode_utf8(&mut [0; 4])), Behavior::MergedWithNext);
                cut(Cow::Owned(text), ranges, out);
            } else {
                out.push(Cow::Owned(text));
            }
        }
    }
    Ok(())
}

fn cut<'a>(piece: Cow<'a, str>, ranges: Vec<Range<usize>>, out: &mut Vec<Cow<'a, str>>) {
    let ranges = ranges.into_iter().filter(|r| !r.is_empty());
    match piece {
        Cow::Borrowed(text) => out.extend(ranges.map(|r| Cow::Borrowed(&text[r]))),
        Cow::Owned(text) => out.extend(ranges.map(|r| Cow::Owned(text[r].to_owned()))),
    }
}

fn split(text: &str, pattern: &Pattern, behavior: Behavior, invert: bool) -> Result<Vec<Range<usize>>> {
    let mut found = match pattern {
        Pattern::Regex(regex) => {
            let mut found = Flagged::default();
            regex.for_each(text, |start, end| found.push(start, end))?;
            found.finish(text.len())
        }
        Pattern::Literal(needle) => literal(text, needle),
        Pattern::Chars(is) => {
            let mut found = Flagged::default();
            for (at, c) in text.char_indices().filter(|(_, c)| is(*c)) {
                found.push(at, at + c.len_utf8());
            }
            found.finish(text.len())
        }
    };
    if invert {
        found.iter_mut().for_each(|(_, matched)| *matched = !*matched);
    }
    Ok(merge(found, behavior))
}

fn literal(text: &str, needle: &str) -> Vec<(Range<usize>, bool)> {
    let mut found = Flagged::default();
    if !needle.is_empty() {
        for (at, m) in text.match_indices(needle) {
            found.push(at, at + m.len());
        }
    }
    found.finish(text.len())
}

/// Matches and the gaps between them.
#[derive(Default)]
struct Flagged {
    parts: Vec<(Range<usize>, bool)>,
    done: usize,
}

impl Flagged {
    fn push(&mut self, start: usize, end: usize) {
        if self.done < start {
            self.parts.push((self.done..start, false));
        }
        self.parts.push((start..end, true));
        self.done = end;
    }

    fn finish(mut self, len: usize) -> Vec<(Range<usize>, bool)> {
        if self.done < len {
            self.parts.push((self.done..len, false));
        }
        self.parts
    }
}

fn merge(parts: Vec<(Range<usize>, bool)>, behavior: Behavior) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = Vec::with_capacity(parts.len());
    let mut previous_match = false;
    match behavior {
        Behavior::Isolated => out.extend(parts.into_iter().map(|(r, _)| r)),
        Behavior::Removed => out.extend(parts.into_iter().filter(|(_, m)| !m).map(|(r, _)| r)),
        Behavior::Contiguous => {
            for (range, matched) in parts {
                match out.last_mut() {
                    Some(last) if matched == previous_match => last.end = range.end,
                    _ => out.push(range),
                }
                previous_match = matched;
            }
        }
        Behavior::MergedWithPrevious => {
            for (range, matched) in parts {
                match out.last_mut() {
                    Some(last) if matched && !previous_match => last.end = range.end,
                    _ => out.push(range),
                }
                previous_match = matched;
            }
        }
        Behavior::MergedWithNext => {
            for (range, matched) in parts.into_iter().rev() {
                match out.last_mut() {
                    Some(last) if matched && !previous_match => last.start = range.start,
                    _ => out.push(range),
                }
                previous_match = matched;
            }
            out.reverse();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(behavior: Behavior, text: &str) -> Vec<String> {
        let step = Step::Split { pattern: Pattern::Literal("-".into()), behavior, invert: false };
        run(&[step], Cow::Borrowed(text), true).unwrap().into_iter().map(Cow::into_owned).collect()
    }

    #[test]
    fn behaviors_are_those_of_tokenizers() {
        let text = "the-final--countdown";
        assert_eq!(pieces(Behavior::Removed, text), ["the", "final", "countdown"]);
        assert_eq!(pieces(Behavior::Isolated, text), ["the", "-", "final", "-", "-", "countdown"]);
        assert_eq!(pieces(Behavior::Contiguous, text), ["the", "-", "final", "--", "countdown"]);
        assert_eq!(pieces(Behavior::MergedWithPrevious, text), ["the-", "final-", "-", "countdown"]);
        assert_eq!(pieces(Behavior::MergedWithNext, text), ["the", "-final", "-", "-countdown"]);
    }
}
