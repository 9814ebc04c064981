//! What the dashboard knows of a run.

use ernie_train::{Evaluation, Started, StepReport, balance::RouterBalance, observe::MetricsLine};
use std::{collections::VecDeque, time::Instant};

/// Points of a curve that are kept; beyond them neighbours become their mean.
const POINTS: usize = 1024;

/// Lines of the log that are kept.
const LINES: usize = 50;

/// Speeds that are kept, one a step.
const SPEEDS: usize = 400;

/// A curve that stays short however long the run is.
#[derive(Clone, Debug)]
pub(super) struct Curve {
    points: Vec<(f64, f64)>,
    /// Steps that make one point, and what has come of the next.
    every: u32,
    coming: (f64, f64, u32),
}

impl Default for Curve {
    fn default() -> Self {
        Self { points: Vec::new(), every: 1, coming: (0.0, 0.0, 0) }
    }
}

impl Curve {
    pub(super) fn push(&mut self, step: u64, value: f64) {
        if !value.is_finite() {
            return;
        }
        let (steps, values, count) = self.coming;
        self.coming = (steps + step as f64, values + value, count + 1);
        if self.coming.2 < self.every {
            return;
        }
        let (steps, values, count) = std::mem::take(&mut self.coming);
        self.points.push((steps / f64::from(count), values / f64::from(count)));
        if self.points.len() >= POINTS {
            let halves = self.points.chunks(2);
            let mean =
                |part: &[(f64, f64)], of: fn(&(f64, f64)) -> f64| part.iter().map(of).sum::<f64>() / part.len() as f64;
            self.points = halves.map(|part| (mean(part, |p| p.0), mean(part, |p| p.1))).collect();
            self.every *= 2;
        }
    }

    pub(super) fn points(&self) -> &[(f64, f64)] {
        &self.points
    }
}

/// All that is drawn.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) name: String,
    pub(super) losses: Curve,
    pub(super) held_out: Curve,
    pub(super) newest: StepReport,
    pub(super) newest_held_out: Option<(u64, Evaluation)>,
    pub(super) speeds: VecDeque<u64>,
    pub(super) log: VecDeque<String>,
    /// After which step, and what the model wrote.
    pub(super) sample: Option<(u64, String)>,
    pub(super) stopping: bool,
    run: Option<Started>,
    began: Instant,
}

impl State {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            losses: Curve::default(),
            held_out: Curve::default(),
            newest: StepReport::default(),
            newest_held_out: None,
            speeds: VecDeque::new(),
            log: VecDeque::new(),
            sample: None,
            stopping: false,
            run: None,
            began: Instant::now(),
        }
    }

    /// A step that an earlier part of the run made.
    pub(super) fn past(&mut self, line: &MetricsLine) {
        self.losses.push(line.step, line.loss);
        if let Some(loss) = line.val_loss {
            self.held_out.push(line.step, loss);
        }
    }

    pub(super) fn started(&mut self, run: &Started) {
        run.notes.iter().for_each(|note| self.say(format!("note: {note}")));
        if run.step > 0 {
            self.say(format!("resuming after step {}", run.step));
        }
        self.newest = StepReport { step: run.step, steps: run.steps, tokens: run.tokens, ..StepReport::default() };
        self.began = Instant::now();
        self.run = Some(run.clone());
    }

    pub(super) fn step(&mut self, report: &StepReport) {
        self.losses.push(report.step, report.loss);
        // A speed that is no number becomes 0, and one without an end stays small enough to be summed.
        self.speeds.push_back(report.tokens_per_s.min(1e12) as u64);
        if self.speeds.len() > SPEEDS {
            self.speeds.pop_front();
        }
        self.newest = report.clone();
    }

    pub(super) fn evaluated(&mut self, step: u64, evaluation: &Evaluation) {
        self.held_out.push(step, evaluation.loss);
        self.newest_held_out = Some((step, *evaluation));
        self.say(super::super::evaluation_line(step, evaluation));
    }

    pub(super) fn say(&mut self, line: String) {
        self.log.push_back(line);
        if self.log.len() > LINES {
            self.log.pop_front();
        }
    }

    pub(super) fn parameters(&self) -> u64 {
        self.run.as_ref().map_or(0, |run| run.parameters)
    }

    pub(super) fn router(&self) -> &[RouterBalance] {
        &self.newest.router
    }

    /// Seconds until the last step at the pace so far; none before the first.
    pub(super) fn seconds_left(&self) -> Option<f64> {
        let first = self.run.as_ref()?.step;
        let made = self.newest.step.checked_sub(first).filter(|&made| made > 0)?;
        let left = self.newest.steps.saturating_sub(self.newest.step);
        Some(self.began.elapsed().as_secs_f64() / made as f64 * left as f64)
    }

    /// Mean of the last speeds, in tokens a second.
    pub(super) fn speed(&self) -> u64 {
        let last = self.speeds.iter().rev().take(20);
        let count = last.clone().count().max(1) as u64;
        last.sum::<u64>() / count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_stays_short_and_keeps_its_mean() {
        let mut curve = Curve::default();
        (1..=100_000).for_each(|step| curve.push(step, step as f64));
        curve.push(100_001, f64::NAN);
        assert!((POINTS / 2 - 1..POINTS).contains(&curve.points().len()));
        assert!(curve.points().iter().all(|(step, value)| (step - value).abs() < 1e-6));
        assert!(curve.points().windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
