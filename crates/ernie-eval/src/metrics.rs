//! Numbers out of scores, with their standard errors.

use crate::report::Metric;

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
    fn exp_and_times_carry_the_error() {
        let metric = Metric { value: 2.0, stderr: Some(0.1) };
        close(metric.exp().stderr.unwrap(), 2f64.exp() * 0.1);
        close(metric.times(-3.0).stderr.unwrap(), 0.3);
    }
}
