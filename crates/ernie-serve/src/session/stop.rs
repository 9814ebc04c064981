//! Stop strings: text goes in piece by piece, comes out as early as is safe, and never with a part of a stop string.
//!
//! What ends an answer is the stop string that is complete first, counted in bytes of the text; the longest of them when
//! several are complete at the same byte. That depends on the text alone, never on how it was cut into tokens.

use crate::{Error, Result};

/// Stop strings of one request at most.
pub const MAX_STOP_STRINGS: usize = 64;

/// Bytes of one stop string at most.
pub const MAX_STOP_BYTES: usize = 1024;

/// Holds text back while it may become a stop string.
#[derive(Debug, Clone, Default)]
pub struct StopFilter {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopFilter {
    /// A filter for these strings; none at all lets everything through.
    ///
    /// # Errors
    /// [`Error::Parameter`] for an empty string, one above [`MAX_STOP_BYTES`], or more than [`MAX_STOP_STRINGS`].
    pub fn new(stops: &[String]) -> Result<Self> {
        if stops.len() > MAX_STOP_STRINGS {
            let expected = format!("at most {MAX_STOP_STRINGS} strings");
            return Err(Error::parameter("stop", format!("{} strings", stops.len()), expected));
        }
        if stops.iter().any(String::is_empty) {
            return Err(Error::parameter("stop", "an empty string", "strings of at least one character"));
        }
        if let Some(long) = stops.iter().find(|stop| stop.len() > MAX_STOP_BYTES) {
            let expected = format!("at most {MAX_STOP_BYTES} bytes each");
            return Err(Error::parameter("stop", format!("{} bytes long", long.len()), expected));
        }
        Ok(Self { stops: stops.to_vec(), ..Self::default() })
    }

    /// Takes more text; gives what is safe to show. After a stop string it gives nothing more.
    pub fn push(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(text);
        let first = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start)))
            .min();
        if let Some((_, start)) = first {
            self.stopped = true;
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// The end of the text: gives what was held back, which is no stop string after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Whether a stop string has come.
    pub fn stopped(&self) -> bool {
        self.stopped
    }
}

/// Bytes of the longest end of `text` that is a beginning of `stop`, short of all of it.
pub(super) fn overlap(text: &str, stop: &str) -> usize {
    let (text, stop) = (text.as_bytes(), stop.as_bytes());
    let longest = text.len().min(stop.len() - 1);
    (1..=longest).rev().find(|&n| text[text.len() - n..] == stop[..n]).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(ToString::to_string).collect();
        let mut filter = StopFilter::new(&stops).unwrap();
        let mut out: String = pieces.iter().map(|piece| filter.push(piece)).collect();
        out += &filter.finish();
        (out, filter.stopped())
    }

    #[test]
    fn a_stop_string_across_pieces_is_never_shown() {
        assert_eq!(run(&["END"], &["one E", "N", "D two"]), ("one ".into(), true));
        assert_eq!(run(&["END"], &["one E", "N"]), ("one EN".into(), false));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]), ("a".into(), true));
        assert_eq!(run(&[], &["a", "b"]), ("ab".into(), false));
        assert_eq!(run(&["。\n"], &["好", "。", "\n"]), ("好".into(), true));
    }

    #[test]
    fn the_string_that_is_complete_first_counts() {
        assert_eq!(run(&["abcd", "bc"], &["xabcd"]), ("xa".into(), true));
        assert_eq!(run(&["bc", "abc"], &["xabcd"]), ("x".into(), true));
    }

    #[test]
    fn text_is_given_as_early_as_is_safe() {
        let mut filter = StopFilter::new(&["\n\n".into()]).unwrap();
        assert_eq!(filter.push("a\n"), "a");
        assert_eq!(filter.push("b"), "\nb");
    }

    #[test]
    fn senseless_strings_are_refused() {
        let check = |stops: Vec<String>| assert!(StopFilter::new(&stops).unwrap_err().is_input());
        check(vec![String::new()]);
        check(vec!["x".into(); MAX_STOP_STRINGS + 1]);
        check(vec!["x".repeat(MAX_STOP_BYTES + 1)]);
    }

    /// The rule, on the whole text at once.
    fn expect(stops: &[String], text: &str) -> (String, bool) {
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let longest = stops.iter().filter(|stop| text[..end].ends_with(*stop)).map(|s| s.len()).max();
            if let Some(bytes) = longest {
                return (text[..end - bytes].to_string(), true);
            }
        }
        (text.to_string(), false)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

        #[test]
        fn any_cut_gives_the_same_text(
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            text in "[abcé]{0,40}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let chars: Vec<char> = text.chars().collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(chars.len() + 1)).collect();
            cuts.extend([0, chars.len()]);
            cuts.sort_unstable();
            let mut filter = StopFilter::new(&stops).unwrap();
            let mut out = String::new();
            let whole = expect(&stops, &text);
            for pair in cuts.windows(2) {
                out += &filter.push(&chars[pair[0]..pair[1]].iter().collect::<String>());
                prop_assert!(whole.0.starts_with(&out), "{:?} shows too much of {:?}", out, whole);
            }
            out += &filter.finish();
            prop_assert_eq!((out, filter.stopped()), whole);
        }
    }
}
