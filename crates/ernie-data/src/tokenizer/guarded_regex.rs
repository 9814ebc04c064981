//! A regular expression from a file, run so that neither its author nor the text can make it hang.
//!
//! Pre-tokenizer patterns use look-ahead, so they need a backtracking engine, and a backtracking engine needs limits.
//! `fancy-regex` counts the backtracks of one match, which leaves three holes: a pattern may stay just below that limit
//! at every position, a sub-pattern handed to the linear engine is not counted, and large counted repeats cost no
//! backtrack at all. So: repeats are bounded when the pattern is read, the backtrack limit falls as the text grows, and
//! a clock is read between matches. A limit that is reached is an error, never a silently different split.
//!
//! Nearly every published pattern ends in `|\s+(?!\S)|\s+`: a run of white space, but for the last character where text
//! follows. The look-ahead would send the whole pattern to the backtracking engine, whose stack a million spaces
//! overflow. So that ending is read as `|\s+`, and the last character is given back here; the rest then usually runs in
//! the linear engine, which is also several times faster.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use fancy_regex::{Expr, Regex, RegexBuilder};

use crate::{Error, Result};

/// Longest pattern accepted, in bytes. The longest in use (o200k) has about 400.
const MAX_PATTERN_BYTES: usize = 16 * 1024;
/// Largest product of nested counted repeats.
const MAX_REPEAT: usize = 1000;
/// Deepest nesting of a pattern's syntax tree.
const MAX_DEPTH: usize = 64;
/// Texts longer than each bound get the backtrack limit beside it.
const TIERS: [(usize, usize); 4] = [(4 << 10, 1_000_000), (64 << 10, 100_000), (1 << 20, 10_000), (usize::MAX, 2_000)];
/// Time allowed for one split: a fixed part and a part for every MiB.
const BASE_TIME: Duration = Duration::from_secs(4);
const TIME_PER_MIB: Duration = Duration::from_secs(4);

/// See the module.
#[derive(Debug)]
pub(super) struct GuardedRegex {
    pattern: String,
    /// Compiled with the limits of each tier; boxed, since most steps hold no pattern.
    tiers: Box<[OnceLock<Option<Regex>>; 4]>,
    base_time: Duration,
    /// The pattern's ending was rewritten: see the module.
    gives_back: bool,
}

/// The usual ending, and what it is read as.
const ENDING: &str = r"|\s+(?!\S)|\s+";
const REWRITTEN: &str = r"|(?P<white_space_run>\s+)";

impl GuardedRegex {
    /// Compiles `pattern` and checks its shape.
    pub(super) fn new(pattern: &str) -> std::result::Result<Self, String> {
        if pattern.len() > MAX_PATTERN_BYTES {
            return Err(format!("pattern of {} bytes (expected at most {MAX_PATTERN_BYTES})", pattern.len()));
        }
        nesting(pattern)?;
        let tree = Expr::parse_tree(pattern)
            .map_err(|e| format!("pattern {:?}: {}", shorten(pattern), one_line(&e.to_string())))?;
        check(&tree.expr, 1, 0).map_err(|e| format!("pattern {:?}: {e}", shorten(pattern)))?;
        let rewritten = pattern.strip_suffix(ENDING).map(|start| format!("{start}{REWRITTEN}"));
        let gives_back = rewritten.is_some();
        let pattern = rewritten.as_deref().unwrap_or(pattern);
        let this = Self { pattern: pattern.to_owned(), tiers: Default::default(), base_time: BASE_TIME, gives_back };
        let first = build(pattern, TIERS[0].1).map_err(|e| format!("pattern {:?}: {e}", shorten(pattern)))?;
        let _ = this.tiers[0].set(Some(first));
        Ok(this)
    }

    /// Calls `found` with every match, in order.
    ///
    /// # Errors
    /// [`Error::Encode`] when the pattern needs more steps or time than the limits allow.
    pub(super) fn for_each(&self, text: &str, mut found: impl FnMut(usize, usize)) -> Result<()> {
        let tier = TIERS.iter().position(|(bytes, _)| text.len() <= *bytes).unwrap_or(TIERS.len() - 1);
        let regex = self.tiers[tier]
            .get_or_init(|| build(&self.pattern, TIERS[tier].1).ok())
            .as_ref()
            .ok_or_else(|| Error::Internal("a pattern compiled once and not again".into()))?;
        let allowed = self.base_time + TIME_PER_MIB * u32::try_from(text.len() >> 20).unwrap_or(u32::MAX >> 8);
        let started = Instant::now();
        let backtracks = |e: fancy_regex::Error| {
            Error::Encode(format!(
                "the tokenizer's pattern {:?} backtracks too much on this text ({})",
                shorten(&self.pattern),
                one_line(&e.to_string())
            ))
        };
        let mut at = 0;
        while at <= text.len() {
            let Some(m) = regex.find_from_pos(text, at).map_err(backtracks)? else { break };
            if started.elapsed() > allowed {
                return Err(Error::Encode(format!(
                    "the tokenizer's pattern {:?} took more than {:.1} s on {} bytes",
                    shorten(&self.pattern),
                    allowed.as_secs_f64(),
                    text.len()
                )));
            }
            let (start, mut end) = (m.start(), m.end());
            if self.gives_back
                && end < text.len()
                && let Some(shorter) = run_without_last(m.as_str())
                && regex
                    .captures_from_pos(text, start)
                    .map_err(backtracks)?
                    .is_some_and(|c| c.name("white_space_run").is_some())
            {
                end = start + shorter;
            }
            found(start, end);
            // An empty match makes no progress by itself.
            at = if end > start { end } else { end + text[end..].chars().next().map_or(1, char::len_utf8) };
        }
        Ok(())
    }
}

/// For white space of two or more characters: its length without the last.
fn run_without_last(text: &str) -> Option<usize> {
    let (last, _) = text.char_indices().next_back()?;
    (last > 0 && text.chars().all(char::is_whitespace)).then_some(last)
}

fn build(pattern: &str, backtracks: usize) -> std::result::Result<Regex, String> {
    RegexBuilder::new(pattern)
        .backtrack_limit(backtracks)
        .delegate_size_limit(8 << 20)
        .delegate_dfa_size_limit(8 << 20)
        .build()
        .map_err(|e| one_line(&e.to_string()))
}

/// Parentheses and brackets must not nest deeply: the parser below recurses.
fn nesting(pattern: &str) -> std::result::Result<(), String> {
    let mut depth = 0usize;
    let mut escaped = false;
    for c in pattern.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '(' | '[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(format!("pattern nests deeper than {MAX_DEPTH}"));
                }
            }
            ')' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// Refuses what no tokenizer needs and what could cost without being counted.
fn check(expr: &Expr, repeats: usize, depth: usize) -> std::result::Result<(), String> {
    if depth > 4 * MAX_DEPTH {
        return Err(format!("nests deeper than {MAX_DEPTH}"));
    }
    match expr {
        Expr::Concat(parts) | Expr::Alt(parts) => parts.iter().try_for_each(|e| check(e, repeats, depth + 1)),
        Expr::Group(e) | Expr::LookAround(e, _) | Expr::AtomicGroup(e) => check(e, repeats, depth + 1),
        Expr::Repeat { child, lo, hi, .. } => {
            let bound = if *hi == usize::MAX { *lo } else { *hi };
            let repeats = repeats.saturating_mul(bound.max(1));
            if repeats > MAX_REPEAT {
                return Err(format!("repeats {repeats} times (expected at most {MAX_REPEAT})"));
            }
            check(child, repeats, depth + 1)
        }
        Expr::Empty | Expr::Any { .. } | Expr::Assertion(_) | Expr::Literal { .. } | Expr::Delegate { .. } => Ok(()),
        _ => Err("back-references, conditions and subroutines are not supported".into()),
    }
}

pub(super) fn shorten(text: &str) -> String {
    let mut out: String = text.chars().take(60).collect();
    if out.len() < text.len() {
        out.push('…');
    }
    out
}

/// Error texts are one line, whatever a library thinks.
pub(super) fn one_line(text: &str) -> String {
    let mut out = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if out.chars().count() > 300 {
        out = out.chars().take(300).collect::<String>() + "…";
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_patterns_end_in_an_error_soon() {
        for pattern in ["(a+)+$", "(a|aa)+$", "(?=(a+)+$)a|a", "(?=.*z)a|a", ".*z|a", r"(?:(?=(?:a|aa)+b)|a)"] {
            let started = Instant::now();
            let mut regex = GuardedRegex::new(pattern).unwrap();
            regex.base_time = Duration::from_millis(300);
            for text in ["a".repeat(30) + "b", "a".repeat(4_000), "a".repeat(400_000) + "c"] {
                let _ = regex.for_each(&text, |_, _| {});
            }
            assert!(started.elapsed() < Duration::from_secs(30), "{pattern}: {:?}", started.elapsed());
        }
    }

    #[test]
    fn white_space_gives_its_last_character_back() {
        let pattern = r" ?\p{L}+|\s*[\r\n]+|\s+(?!\S)|\s+";
        let regex = GuardedRegex::new(pattern).unwrap();
        let engine = Regex::new(pattern).unwrap();
        for text in
            ["a   b", "a \n  b", "  ", "a\t\u{3000}\u{85} 1", " \n\n a", "", "x \r ", "   \u{301}", " a  b   c    "]
        {
            let mut got = Vec::new();
            regex.for_each(text, |s, e| got.push((s, e))).unwrap();
            let expected: Vec<_> = engine.find_iter(text).map(|m| m.unwrap()).map(|m| (m.start(), m.end())).collect();
            assert_eq!(got, expected, "{text:?}");
        }
    }

    #[test]
    fn patterns_with_huge_repeats_or_depth_are_refused() {
        let deep = "(".repeat(100_000);
        let balanced = "(".repeat(500) + &")".repeat(500);
        for pattern in ["(?:a{1000}){1000}", "a{2000000000}", r"(a)\1", "[", "(?<=a+", &deep, &balanced] {
            let error = GuardedRegex::new(pattern).unwrap_err();
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
