//! Which characters of a rendered text come from callers.
//!
//! A template is a program: it may trim, split, replace or re-case what it is given, so marks put around a caller's
//! text would change what the template does, and marks inside it could be lost. Instead the template runs twice: once
//! with the real texts, and once with every character of a caller replaced by a twin in a private plane, one for one.
//! White space, quotes and backslashes stay, since trimming and JSON treat them apart; no control token is made of
//! them alone. Where both outputs agree in length and in all but the twins, the twins show whose each character is,
//! whatever was done to it.
//!
//! If they do not agree, the template's course depends on words in a message (`'</think>' in content`). Then the second
//! output counts, with the twins turned back: the template did not see those words, and nothing that a caller wrote can
//! pass for the template's.

use std::ops::Range;

/// The private plane: twin = character + this.
const PLANE: u32 = 0xF_0000;

fn twin(c: char) -> char {
    let code = u32::from(c);
    match c {
        '"' | '\\' => c,
        _ if c.is_whitespace() || c.is_control() => c,
        // A caller's own characters of that plane must not pass for twins.
        _ if code >> 16 == PLANE >> 16 => '\u{FFFD}',
        _ if code < 0xFFFE => char::from_u32(code + PLANE).unwrap_or(c),
        _ => c,
    }
}

fn real(c: char) -> Option<char> {
    let code = u32::from(c);
    (code >> 16 == PLANE >> 16).then(|| char::from_u32(code - PLANE)).flatten()
}

/// The text with twins for its characters.
pub(super) fn disguise(text: &str) -> String {
    text.chars().map(twin).collect()
}

/// The text to use, and the byte ranges of it that callers wrote.
pub(super) fn resolve(plain: String, disguised: &str) -> (String, Vec<Range<usize>>) {
    match compare(&plain, disguised) {
        Some(ranges) => (plain, ranges),
        None => {
            let text: String = disguised.chars().map(|c| real(c).unwrap_or(c)).collect();
            let ranges = compare(&text, disguised).unwrap_or_else(|| std::iter::once(0..text.len()).collect());
            (text, ranges)
        }
    }
}

/// Walks both texts side by side; `None` where they differ in more than twins.
fn compare(plain: &str, disguised: &str) -> Option<Vec<Range<usize>>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut other = disguised.chars();
    // White space and quotes between two characters of a caller belong to the caller's range only to keep ranges few.
    let mut neutral = false;
    for (at, c) in plain.char_indices() {
        let d = other.next()?;
        let end = at + c.len_utf8();
        if real(d).is_some() || (d == '\u{FFFD}' && d != c) {
            match ranges.last_mut() {
                Some(last) if last.end == at || neutral => last.end = end,
                _ => ranges.push(at..end),
            }
            neutral = false;
        } else if c != d {
            return None;
        } else {
            let joins = ranges.last().is_some_and(|last| last.end == at) || neutral;
            neutral = joins && (c.is_whitespace() || c == '"' || c == '\\');
        }
    }
    other.next().is_none().then_some(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twins_are_found_whatever_the_template_did() {
        for f in [str::to_uppercase as fn(&str) -> String, str::to_lowercase, |s| s.trim().into(), |s| s[2..].into()] {
            let text = "  Hi <S> \"q\" 中😀 ";
            let (plain, hidden) = (format!("<s>{}</s>", f(text)), format!("<s>{}</s>", f_disguised(f, text)));
            let (out, ranges) = resolve(plain.clone(), &hidden);
            assert_eq!(out, plain);
            let trusted: Vec<usize> =
                plain.match_indices("<s>").map(|(i, _)| i).filter(|i| ranges.iter().all(|r| !r.contains(i))).collect();
            assert_eq!(trusted, [0]);
        }
    }

    fn f_disguised(f: fn(&str) -> String, text: &str) -> String {
        f(&disguise(text))
    }

    #[test]
    fn a_template_that_looked_at_the_words_loses_to_the_disguise() {
        let (out, ranges) = resolve("<s>seen".into(), &format!("<s>{}", disguise("a<s>b")));
        assert_eq!((out.as_str(), ranges.as_slice()), ("<s>a<s>b", std::slice::from_ref(&(3..8))));
    }

    #[test]
    fn callers_characters_of_the_private_plane_are_harmless() {
        let evil: String = "<s>".chars().filter_map(|c| char::from_u32(u32::from(c) + PLANE)).collect();
        let (out, ranges) = resolve(format!("<s>{evil}"), &format!("<s>{}", disguise(&evil)));
        assert_eq!((out, ranges.as_slice()), (format!("<s>{evil}"), std::slice::from_ref(&(3..3 + evil.len()))));
        let (out, _) = resolve("x".into(), &format!("<s>{}", disguise(&evil)));
        assert_eq!(out, "<s>\u{FFFD}\u{FFFD}\u{FFFD}");
    }
}
