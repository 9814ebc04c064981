//! Numbers out of scores, with their standard errors.

use ernie_data::labelled::Tally;

pub use crate::report::Metric;

/// The mean of zeros and ones, or of anything: its standard error is the sample's standard deviation over √n, as in
/// lm-evaluation-harness. No error for fewer than two values; not a number for none.
pub fn mean(values: &[f64]) -> Metric {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let stderr = (values.len() > 1).then(|| {
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        (squares / (n - 1.0) / n).sqrt()
    });
    Metric { value: mean, stderr }
}

/// Σ numerator / Σ denominator over independent units, with the standard error of a ratio estimator (Cochran, Sampling
/// Techniques, §6.4): units of different size weigh as much as they are long.
pub fn ratio(units: &[(f64, f64)]) -> Metric {
    let (above, below) = units.iter().fold((0.0, 0.0), |sum, unit| (sum.0 + unit.0, sum.1 + unit.1));
    let value = above / below;
    let n = units.len() as f64;
    let stderr = (units.len() > 1 && below > 0.0).then(|| {
        let squares: f64 = units.iter().map(|(x, y)| (x - value * y).powi(2)).sum();
        (squares * n / (n - 1.0)).sqrt() / below
    });
    Metric { value, stderr }
}

/// How far a ratio is above another of the same units in the same order (see [`ratio`]): what a unit adds to the one is taken off what it adds to the other, so
/// what both have in common does not count.
pub fn difference(ours: &[(f64, f64)], theirs: &[(f64, f64)]) -> Metric {
    let (above, below) = (ratio(ours), ratio(theirs));
    let sum = |units: &[(f64, f64)]| units.iter().map(|unit| unit.1).sum::<f64>();
    let (our_size, their_size) = (sum(ours), sum(theirs));
    let n = ours.len() as f64;
    let stderr = (ours.len() > 1 && our_size > 0.0 && their_size > 0.0).then(|| {
        let parts = ours.iter().zip(theirs).map(|(our, their)| {
            (our.0 - above.value * our.1) / our_size - (their.0 - below.value * their.1) / their_size
        });
        (parts.map(|part| part.powi(2)).sum::<f64>() * n / (n - 1.0)).sqrt()
    });
    Metric { value: above.value - below.value, stderr }
}

/// The mean F1 of the labels that were met, with the standard error of the delta method: F1 of a label is a ratio of sums over the texts, `2 right / (texts + given)`, and
/// what each text adds to the mean of these ratios is what its spread is taken of (see [`ratio`]).
pub fn macro_f1(tally: &Tally) -> Metric {
    let labels = tally.labels();
    let value = tally.macro_f1();
    let n = tally.texts() as f64;
    let stderr = (tally.texts() > 1).then(|| {
        let part = |label: usize, right: f64, met: f64| {
            let of = labels.get(&label).copied().unwrap_or_default();
            (2.0 * right - of.f1() * met) / (of.texts + of.given).max(1) as f64
        };
        let squares: f64 = tally
            .cells()
            .map(|(truth, guess, count)| {
                let sum = match truth == guess {
                    true => part(truth, 1.0, 2.0),
                    false => part(truth, 0.0, 1.0) + part(guess, 0.0, 1.0),
                };
                count as f64 * (sum / labels.len() as f64).powi(2)
            })
            .sum();
        (squares * n / (n - 1.0)).sqrt()
    });
    Metric { value, stderr }
}

impl Metric {
    /// exp of it; the error by the delta method.
    pub fn exp(self) -> Self {
        let value = self.value.exp();
        Self { value, stderr: self.stderr.map(|stderr| value * stderr) }
    }

    /// It, times a constant.
    pub fn times(self, factor: f64) -> Self {
        Self { value: self.value * factor, stderr: self.stderr.map(|stderr| stderr * factor.abs()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-12, "{got} for {want}");
    }

    #[test]
    fn accuracy_has_the_harness_error() {
        // 3 of 4: sqrt(0.75 · 0.25 / 3).
        let acc = mean(&[1.0, 1.0, 0.0, 1.0]);
        close(acc.value, 0.75);
        close(acc.stderr.unwrap(), 0.25);
        assert_eq!(mean(&[1.0]), Metric { value: 1.0, stderr: None });
    }

    #[test]
    fn a_ratio_of_equal_units_is_a_mean() {
        let got = ratio(&[(1.0, 2.0), (3.0, 2.0), (5.0, 2.0)]);
        let want = mean(&[0.5, 1.5, 2.5]);
        close(got.value, want.value);
        close(got.stderr.unwrap(), want.stderr.unwrap());
        assert_eq!(ratio(&[(6.0, 3.0)]), Metric { value: 2.0, stderr: None });
    }

    #[test]
    fn a_difference_counts_what_is_not_in_common() {
        let hard = [(8.0, 4.0), (1.0, 2.0), (6.0, 3.0)];
        let same = difference(&hard, &hard);
        assert_eq!((same.value, same.stderr), (0.0, Some(0.0)));
        // Units of one size: the error of the mean of the differences.
        let ours = [(1.0, 1.0), (4.0, 1.0), (2.0, 1.0)];
        let theirs = [(0.5, 1.0), (3.0, 1.0), (2.5, 1.0)];
        let (got, want) = (difference(&ours, &theirs), mean(&[0.5, 1.0, -0.5]));
        close(got.value, want.value);
        close(got.stderr.unwrap(), want.stderr.unwrap());
        assert_eq!(difference(&[(3.0, 2.0)], &[(1.0, 1.0)]), Metric { value: 0.5, stderr: None });
    }

    #[test]
    fn macro_f1_has_the_error_of_its_ratios() {
        let mut tally = Tally::default();
        for (truth, guess, count) in [(0, 0, 40), (0, 1, 10), (1, 1, 30), (1, 0, 20)] {
            (0..count).for_each(|_| tally.add(truth, guess));
        }
        let got = macro_f1(&tally);
        close(got.value, tally.macro_f1());
        // The same by leaving out one text at a time (the jackknife), which agrees for many texts.
        let without: Vec<(f64, f64)> = tally
            .cells()
            .map(|(truth, guess, count)| {
                let mut less = Tally::default();
                for (t, g, c) in tally.cells() {
                    (0..c - u64::from((t, g) == (truth, guess))).for_each(|_| less.add(t, g));
                }
                (less.macro_f1(), count as f64)
            })
            .collect();
        let mean = without.iter().map(|(value, count)| value * count).sum::<f64>() / 100.0;
        let squares: f64 = without.iter().map(|(value, count)| count * (value - mean).powi(2)).sum();
        let jackknife = (squares * 99.0 / 100.0).sqrt();
        assert!((got.stderr.unwrap() / jackknife - 1.0).abs() < 0.03, "{:?} {jackknife}", got.stderr);
        assert_eq!(macro_f1(&Tally::default()).stderr, None);
    }

    #[test]
    fn exp_and_times_carry_the_error() {
        let metric = Metric { value: 2.0, stderr: Some(0.1) };
        close(metric.exp().stderr.unwrap(), 2f64.exp() * 0.1);
        close(metric.times(-3.0).stderr.unwrap(), 0.3);
    }
}
