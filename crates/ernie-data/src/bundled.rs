//! The small English corpus inside the program: five public-domain books, so that the first run needs no download.
//!
//! One paragraph a line, 1.48 MB; `assets/CREDITS.md` names the books. The last 5 % are held out, cut at a line border,
//! the same cut for everyone who compares with it (models, LZMA, n-grams). Recipes reach it as the paths
//! `bundled:train` and `bundled:held_out`.

use std::io::Read;
use std::sync::OnceLock;

static COMPRESSED: &[u8] = include_bytes!("../assets/demo_corpus_en.txt.gz");

/// The share of the corpus, in percent of its bytes, that is held out (the end of it, rounded to a whole line).
pub const HELD_OUT_PERCENT: usize = 5;

/// The whole corpus, decompressed once.
pub fn corpus() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let mut text = String::new();
        flate2::read::GzDecoder::new(COMPRESSED)
            .read_to_string(&mut text)
            .expect("the corpus is part of the program, and a test decompresses it");
        text
    })
}

/// The first 95 %, for training.
pub fn train_text() -> &'static str {
    corpus().split_at(border()).0
}

/// The last 5 %, for evaluation: never trained on by the shipped recipes.
pub fn held_out_text() -> &'static str {
    corpus().split_at(border()).1
}

/// The text of a path such as `bundled:train`; `None` if the path does not begin with `bundled:`, `Some(None)` if it
/// does and names nothing.
pub(crate) fn by_path(path: &str) -> Option<Option<&'static str>> {
    let name = path.strip_prefix("bundled:")?;
    Some(match name {
        "train" => Some(train_text()),
        "held_out" => Some(held_out_text()),
        "corpus" => Some(corpus()),
        _ => None,
    })
}

/// Where the held-out part begins: after the first line that ends at or beyond 95 % of the bytes.
fn border() -> usize {
    let text = corpus();
    let at = text.len() - text.len() * HELD_OUT_PERCENT / 100;
    match text.as_bytes()[at..].iter().position(|&b| b == b'\n') {
        Some(line) => at + line + 1,
        None => text.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_at_a_line_and_loses_nothing() {
        let (train, held_out) = (train_text(), held_out_text());
        assert_eq!(corpus().len(), 1_483_686);
        assert_eq!(train.len() + held_out.len(), corpus().len());
        assert!(train.ends_with('\n') && !held_out.starts_with('\n'));
        let share = held_out.len() as f64 / corpus().len() as f64;
        assert!((0.049..=0.05).contains(&share), "{share}");
    }

    #[test]
    fn paths_name_it() {
        assert_eq!(by_path("bundled:train"), Some(Some(train_text())));
        assert_eq!(by_path("bundled:nothing"), Some(None));
        assert_eq!(by_path("books/*.txt"), None);
    }
}
