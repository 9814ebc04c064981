//! The load study on a model of paper, whose steps cost what a function says.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ernie_eval::load::{Comparison, Policy, StudyOptions, Workload, run, study};
use ernie_serve::engine::{Batch, Engine, EngineOptions, Model, Row, TakeRows};

const VOCAB: usize = 8;

/// Answers with a function of the last id and its position, and tells how many rows its passes had.
struct Paper {
    rows: Arc<AtomicUsize>,
}

impl Model for Paper {
    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn context_length(&self) -> usize {
        4096
    }

    fn eos_ids(&self) -> &[u32] {
        &[]
    }

    fn forward(&mut self, batch: &Batch, take: &mut TakeRows<'_>) -> ernie_serve::Result<()> {
        self.rows.store(batch.ids.len(), Ordering::Relaxed);
        for (index, chunk) in batch.chunks.iter().enumerate() {
            for row in chunk.wanted.clone() {
                let mut logits = [0.0; VOCAB];
                let position = chunk.past + row - chunk.rows.start;
                logits[(batch.ids[row] as usize * 3 + position) % VOCAB] = 1.0;
                take(vec![Row { chunk: index, row, numbers: &mut logits }]);
            }
        }
        Ok(())
    }
}

/// An engine, and the seconds of its steps: `base_s`, and `row_s` for each row.
fn engine(base_s: f64, row_s: f64) -> (Engine, impl FnMut(f64) -> f64) {
    let rows = Arc::new(AtomicUsize::new(0));
    // Guesses depend on measured time, which means nothing here.
    let options = EngineOptions { draft_tokens: 0, ..EngineOptions::default() };
    let engine = Engine::with_model(Box::new(Paper { rows: rows.clone() }), options).unwrap();
    (engine, move |_| base_s + row_s * rows.load(Ordering::Relaxed) as f64)
}

/// 8-bit weights of a small model on two cores: 10 ms to read them, then 1 ms a row.
fn small_model() -> (Engine, impl FnMut(f64) -> f64) {
    engine(0.010, 0.001)
}

#[test]
fn continuous_batching_beats_both_baselines_by_what_is_claimed() {
    let (mut engine, mut seconds) = small_model();
    let comparisons = study(&mut engine, &StudyOptions::default(), &mut seconds).unwrap();
    let [dynamic, single]: [Comparison; 2] = comparisons.try_into().unwrap();
    assert_eq!(dynamic.baseline, Policy::DynamicBatch { most: 16, window_s: 0.0 });
    assert!(dynamic.latency_change < -0.22, "{dynamic:?}");
    assert!(single.latency_change < -0.22, "{single:?}");
    assert!(dynamic.saturation_per_s > 1.5 * single.saturation_per_s, "batches share the weights");
    let times = dynamic.continuous_times;
    assert!(times.first_token_mean_s < times.mean_s && times.p50_s < times.p95_s && times.p95_s <= times.p99_s);
}

#[test]
fn one_at_a_time_is_the_queue_of_the_books() {
    // One prompt row and ten tokens, 0.1 s together: a queue with constant service, load 0.7. Pollaczek and Khinchine:
    // mean wait = service · load / (2 (1 − load)).
    let (mut engine, mut seconds) = engine(0.010, 0.0);
    let workload =
        Workload { requests: 20_000, prompt_tokens: 1.0, answer_tokens: 10.0, spread: 0.0, ..Workload::default() };
    let arrivals = workload.arrivals(VOCAB, 7.0).unwrap();
    let outcome = run(&mut engine, Policy::OneAtATime, &arrivals, &mut seconds).unwrap();
    let expect = 0.1 * (1.0 + 0.7 / (2.0 * 0.3));
    assert!((outcome.timing().mean_s / expect - 1.0).abs() < 0.05, "{} for {expect}", outcome.timing().mean_s);
    assert!(outcome.latency_s.iter().all(|&latency| latency > 0.1 - 1e-9));
}

#[test]
fn a_batch_is_closed_until_all_of_it_is_done() {
    let (mut engine, mut seconds) = engine(1.0, 0.0);
    let mut arrivals = Workload { requests: 10, spread: 0.0, ..Workload::default() }.arrivals(VOCAB, 1.0).unwrap();
    arrivals.truncate(4);
    for (arrival, (at_s, max_tokens)) in arrivals.iter_mut().zip([(0.0, 2), (0.0, 9), (0.5, 1), (100.0, 3)]) {
        arrival.prompt.truncate(1);
        (arrival.at_s, arrival.max_tokens) = (at_s, max_tokens);
    }
    let mut latency = |policy| run(&mut engine, policy, &arrivals, &mut seconds).unwrap().latency_s;
    assert_eq!(latency(Policy::Continuous), [2.0, 9.0, 1.5, 3.0]);
    assert_eq!(latency(Policy::DynamicBatch { most: 2, window_s: 0.0 }), [2.0, 9.0, 9.5, 3.0]);
    // All but the last are in one batch, half a second later; the last does not wait for others: there are none.
    assert_eq!(latency(Policy::DynamicBatch { most: 8, window_s: 0.5 }), [2.5, 9.5, 1.0, 3.0]);
    assert_eq!(latency(Policy::OneAtATime), [2.0, 11.0, 11.5, 3.0]);
}

#[test]
fn what_cannot_be_is_refused() {
    let (mut engine, mut seconds) = small_model();
    let mut check = |options: StudyOptions, words: &str| {
        let error = study(&mut engine, &options, &mut seconds).unwrap_err();
        assert!(error.is_input() && error.to_string().contains(words), "{error}");
    };
    check(StudyOptions { load: 1.0, ..StudyOptions::default() }, "load");
    check(StudyOptions { load: f64::NAN, ..StudyOptions::default() }, "load");
    check(StudyOptions { batch: 17, ..StudyOptions::default() }, "batch");
    check(StudyOptions { batch: 0, ..StudyOptions::default() }, "batch");
    check(StudyOptions { window_s: -1.0, ..StudyOptions::default() }, "window_s");
    let workload = Workload { most_tokens: 100_000, prompt_tokens: 90_000.0, ..Workload::default() };
    check(StudyOptions { workload, ..StudyOptions::default() }, "the context holds 4096");
}
