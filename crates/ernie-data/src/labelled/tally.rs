//! What was said of texts whose labels are known: accuracy and F1.

use std::collections::BTreeMap;

/// How often each label was given to texts of each: a confusion matrix without its zeros.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    cells: BTreeMap<(usize, usize), u64>,
}

/// What there is of one label.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OfLabel {
    /// Texts that have it.
    pub texts: u64,
    /// Texts that were given it.
    pub given: u64,
    /// Texts of both kinds.
    pub right: u64,
}

impl OfLabel {
    /// The harmonic mean of precision and recall, `2 right / (texts + given)`.
    pub fn f1(&self) -> f64 {
        2.0 * self.right as f64 / (self.texts + self.given).max(1) as f64
    }
}

impl Tally {
    /// Counts a text of label `truth` that was given `guess`.
    pub fn add(&mut self, truth: usize, guess: usize) {
        *self.cells.entry((truth, guess)).or_default() += 1;
    }

    /// Counts what `other` has counted.
    pub fn join(&mut self, other: &Self) {
        other.cells.iter().for_each(|(cell, count)| *self.cells.entry(*cell).or_default() += count);
    }

    /// Each pair of true and given label that was met, and how often.
    pub fn cells(&self) -> impl Iterator<Item = (usize, usize, u64)> {
        self.cells.iter().map(|(&(truth, guess), &count)| (truth, guess, count))
    }

    /// Texts.
    pub fn texts(&self) -> u64 {
        self.cells.values().sum()
    }

    /// Texts that were given their own label.
    pub fn right(&self) -> u64 {
        self.cells().filter(|(truth, guess, _)| truth == guess).map(|(.., count)| count).sum()
    }

    /// What there is of each label that a text has or was given.
    pub fn labels(&self) -> BTreeMap<usize, OfLabel> {
        let mut labels: BTreeMap<usize, OfLabel> = BTreeMap::new();
        for (truth, guess, count) in self.cells() {
            labels.entry(truth).or_default().texts += count;
            labels.entry(guess).or_default().given += count;
            if truth == guess {
                labels.entry(truth).or_default().right += count;
            }
        }
        labels
    }

    /// The mean of the F1 of all labels that a text has or was given, each weighing the same.
    pub fn macro_f1(&self) -> f64 {
        let labels = self.labels();
        labels.values().map(OfLabel::f1).sum::<f64>() / labels.len().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f1_is_that_of_the_textbook() {
        let mut tally = Tally::default();
        for (truth, guess, count) in [(0, 0, 6), (0, 1, 2), (1, 1, 3), (1, 0, 1), (2, 0, 1)] {
            (0..count).for_each(|_| tally.add(truth, guess));
        }
        assert_eq!((tally.texts(), tally.right()), (13, 9));
        // Precision 6/8 and recall 6/8; 3/5 and 3/4; nothing right of the third.
        let expected = [0.75, 2.0 / 3.0, 0.0];
        let found: Vec<f64> = tally.labels().values().map(OfLabel::f1).collect();
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}");
        assert!((tally.macro_f1() - expected.iter().sum::<f64>() / 3.0).abs() < 1e-12);
        let mut twice = tally.clone();
        twice.join(&tally);
        assert_eq!((twice.texts(), twice.macro_f1()), (26, tally.macro_f1()));
        assert_eq!(Tally::default().macro_f1(), 0.0);
    }
}
