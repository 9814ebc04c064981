//! The learning rate of every step: warm-up, then stable and decay, half a cosine, or constant.
//!
//! A pure function of the step, so that a resumed run needs no state for it.

use crate::recipe::{Schedule, ScheduleKind};

/// Learning rate of step `step` (counted from 0) as a share of the peak.
///
/// * Warm-up: `(step + 1) / (warmup + 1)`, so that no step is wasted at rate 0.
/// * `wsd` (arXiv:2404.06395): 1 until the last `decay_share` of the steps, then `1 − sqrt(x)` down to `final_share`
///   (the decay of ERNIE-4.5's pre-training; arXiv:2405.18392 §4), `x` from 0 to 1.
/// * `cosine` (arXiv:1608.03983): from the end of warm-up to the last step, down to `final_share`.
/// * `constant`: 1.
///
/// Always finite, in `0..=1`; after the last step it stays where it ended.
pub fn share(schedule: &Schedule, step: u64) -> f64 {
    if step < schedule.warmup {
        return (step + 1) as f64 / (schedule.warmup + 1) as f64;
    }
    let last = schedule.final_share;
    match schedule.kind {
        ScheduleKind::Constant => 1.0,
        ScheduleKind::Wsd => {
            let decay = (schedule.steps as f64 * schedule.decay_share).round() as u64;
            let stable = schedule.steps.saturating_sub(decay).max(schedule.warmup);
            1.0 - (1.0 - last) * progress(step, stable, schedule.steps).sqrt()
        }
        ScheduleKind::Cosine => {
            let progress = progress(step, schedule.warmup, schedule.steps);
            last + (1.0 - last) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
        }
    }
}

/// How far `step` is from `start` (0, not decayed) to the last step before `end` (1); 0 where there is no stretch.
fn progress(step: u64, start: u64, end: u64) -> f64 {
    let length = end.saturating_sub(start);
    if length == 0 || step < start { 0.0 } else { ((step - start + 1) as f64 / length as f64).min(1.0) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn schedule(kind: ScheduleKind, steps: u64, warmup: u64) -> Schedule {
        Schedule { steps, warmup, kind, decay_share: 0.2, final_share: 0.1 }
    }

    #[test]
    fn warm_up_rises_to_the_peak() {
        for kind in [ScheduleKind::Wsd, ScheduleKind::Cosine, ScheduleKind::Constant] {
            let s = schedule(kind, 1000, 9);
            assert_eq!(share(&s, 0), 0.1);
            assert_eq!(share(&s, 8), 0.9);
            assert!(share(&s, 9) > 0.999);
        }
    }

    #[test]
    fn wsd_is_stable_then_falls_by_the_root() {
        let s = schedule(ScheduleKind::Wsd, 1000, 10);
        assert_eq!(share(&s, 10), 1.0);
        assert_eq!(share(&s, 799), 1.0);
        // A quarter of the way down, the root has taken half.
        assert!((share(&s, 849) - (1.0 - 0.9 * 0.5)).abs() < 1e-12);
        assert!((share(&s, 999) - 0.1).abs() < 1e-12);
        assert!((share(&s, 5000) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn cosine_is_half_way_in_the_middle() {
        let s = schedule(ScheduleKind::Cosine, 1000, 0);
        assert!((share(&s, 499) - 0.55).abs() < 1e-12);
        assert!((share(&s, 999) - 0.1).abs() < 1e-12);
    }

    proptest! {
        #[test]
        fn always_between_zero_and_one(
            steps in 1u64..10_000, warmup in 0u64..12_000, decay in 0.0..=1.0f64, last in 0.0..=1.0f64, step in 0u64..20_000, kind in 0..3,
        ) {
            let kind = [ScheduleKind::Wsd, ScheduleKind::Cosine, ScheduleKind::Constant][kind as usize];
            let s = Schedule { steps, warmup, kind, decay_share: decay, final_share: last };
            let now = share(&s, step);
            prop_assert!((0.0..=1.0).contains(&now), "{now}");
            if step >= warmup {
                prop_assert!(share(&s, step + 1) <= now + 1e-12);
            }
        }
    }
}
