//! The engine's promises, on a model that can be computed on paper.

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use ernie_serve::engine::{
    Engine, EngineOptions, Event, FinishReason, Generate, Request, RequestId, Sampling, Verdict, Watcher, Work,
};
use support::{FakeModel, Ledger, VOCAB, greedy_of, logits_after};

fn engine(options: EngineOptions) -> (Engine, Arc<Mutex<Ledger>>) {
    let (model, ledger) = FakeModel::new(64, &[2]);
    (Engine::with_model(model, options).unwrap(), ledger)
}

fn tokens(max_tokens: usize) -> Generate {
    Generate { max_tokens, ignore_eos: true, ..Generate::default() }
}

/// The greedy answer to `prompt`, ignoring end-of-sequence.
fn greedy(prompt: &[u32], tokens: usize) -> Vec<u32> {
    greedy_of(None, prompt, tokens, usize::MAX)
}

/// Runs until idle; answers and reasons by request.
fn drain(engine: &mut Engine) -> BTreeMap<RequestId, (Vec<u32>, FinishReason)> {
    let mut answers: BTreeMap<RequestId, Vec<u32>> = BTreeMap::new();
    let mut over = BTreeMap::new();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            match event {
                Event::Token { request, id, .. } => answers.entry(request).or_default().push(id),
                Event::Finished { request, reason, .. } => {
                    over.insert(request, (answers.remove(&request).unwrap_or_default(), reason));
                }
                _ => {}
            }
        }
    }
    over
}

fn alone(prompt: Vec<u32>, generate: Generate) -> (Vec<u32>, FinishReason) {
    let (mut engine, _) = engine(EngineOptions::default());
    engine.submit(Request::generate(prompt, generate)).unwrap();
    drain(&mut engine).pop_first().unwrap().1
}

#[test]
fn greedy_answers_are_the_models() {
    assert_eq!(alone(vec![5, 6, 7], tokens(12)), (greedy(&[5, 6, 7], 12), FinishReason::Length));
}

#[test]
fn end_of_sequence_ends_the_answer_and_is_no_part_of_it() {
    let (prompt, full) = (0..VOCAB as u32)
        .map(|id| (vec![id], greedy(&[id], 40)))
        .find(|(_, full)| full.iter().position(|&id| id == 2).is_some_and(|at| at > 0))
        .unwrap();
    let at = full.iter().position(|&id| id == 2).unwrap();
    let (mut engine, _) = engine(EngineOptions::default());
    let generate = || Generate { ignore_eos: false, ..tokens(40) };
    engine.submit(Request::generate(prompt.clone(), generate())).unwrap();
    let mut answer = Vec::new();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            match event {
                Event::Token { id, .. } => answer.push(id),
                Event::Finished { reason, stop_id, usage, .. } => {
                    assert_eq!((reason, stop_id), (FinishReason::Stop, Some(2)));
                    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (1, at));
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(answer, full[..at]);
    let stop = full[0];
    let stopped = alone(prompt, Generate { stop_ids: vec![stop], ..generate() });
    assert_eq!(stopped, (vec![], FinishReason::Stop));
}

#[test]
fn the_context_ends_an_answer() {
    let (answer, reason) = alone(vec![1; 60], tokens(usize::MAX));
    assert_eq!((answer.len(), reason), (4, FinishReason::Length));
}

#[test]
fn scores_are_log_softmax_of_the_continuation() {
    let (mut engine, _) = engine(EngineOptions { step_tokens: 16, ..EngineOptions::default() });
    let (prompt, mut continuation) = (vec![3, 1, 4], greedy(&[3, 1, 4], 2));
    continuation.push(9);
    engine.submit(Request::new(prompt.clone(), Work::Score { continuation: continuation.clone(), top: 2 })).unwrap();
    let events = engine.step().unwrap();
    let Event::Scored { tokens, .. } = &events[0] else { panic!("{events:?}") };
    assert!(matches!(&events[1], Event::Finished { reason: FinishReason::Stop, .. }));
    let mut ids = prompt;
    for (score, &id) in tokens.iter().zip(&continuation) {
        let logits: Vec<f64> = logits_after(&ids).iter().map(|&l| f64::from(l)).collect();
        let sum = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
        assert_eq!(score.id, id);
        assert!((score.logprob - (logits[id as usize] - sum)).abs() < 1e-5);
        let best = greedy(&ids, 1)[0];
        assert_eq!((score.greedy, score.top[0].0), (best == id, best));
        ids.push(id);
    }
    assert!(tokens[0].greedy && tokens[1].greedy && tokens.len() == 3);
}

#[test]
fn logits_come_in_order_however_they_are_cut() {
    let (mut engine, _) = engine(EngineOptions { max_running: 2, step_tokens: 3, ..EngineOptions::default() });
    let prompt: Vec<u32> = (0..8).collect();
    engine.submit(Request::logits(prompt.clone())).unwrap();
    let mut all = Vec::new();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            if let Event::Logits { first, rows, .. } = event {
                assert_eq!(first * VOCAB, all.len());
                all.extend(rows);
            }
        }
    }
    let expect: Vec<f32> = (1..=8).flat_map(|n| logits_after(&prompt[..n])).collect();
    assert_eq!(all, expect);
}

#[test]
fn log_probabilities_are_the_models_own() {
    let (mut engine, _) = engine(EngineOptions::default());
    let sampling = Sampling { logit_bias: vec![(11, 100.0)], ..Sampling::default() };
    let generate = Generate { sampling, logprobs: Some(1), ..tokens(1) };
    engine.submit(Request::generate(vec![4], generate)).unwrap();
    let events = engine.step().unwrap();
    let Event::Token { id: 11, logprob: Some(logprob), .. } = &events[0] else { panic!("{events:?}") };
    let logits: Vec<f64> = logits_after(&[4]).iter().map(|&l| f64::from(l)).collect();
    let sum = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
    assert!((logprob.logprob - (logits[11] - sum)).abs() < 1e-5);
    assert_eq!(logprob.top[0].0, greedy(&[4], 1)[0]);
}

#[test]
fn a_watcher_sees_each_token_and_can_stop() {
    struct Count(Arc<Mutex<Vec<u32>>>);
    impl Watcher for Count {
        fn accept(&mut self, id: u32) -> Verdict {
            let mut seen = self.0.lock().unwrap();
            seen.push(id);
            if seen.len() == 3 { Verdict::Stop } else { Verdict::Continue }
        }
    }
    let seen = Arc::new(Mutex::new(Vec::new()));
    let generate = Generate { watcher: Some(Box::new(Count(seen.clone()))), ..tokens(10) };
    let (answer, reason) = alone(vec![8], generate);
    assert_eq!((&answer, reason), (&greedy(&[8], 3), FinishReason::Stop));
    assert_eq!(*seen.lock().unwrap(), answer);
}

#[test]
fn impossible_requests_are_refused_at_the_door() {
    let (mut engine, _) = engine(EngineOptions { cache_tokens: Some(40), max_waiting: 1, ..EngineOptions::default() });
    let mut check = |request: Request, input: bool, words: &str| {
        let error = engine.submit(request).unwrap_err();
        assert_eq!(error.is_input(), input, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(engine.is_idle());
    };
    check(Request::generate(vec![], tokens(1)), true, "prompt is empty");
    check(Request::logits(vec![]), true, "prompt is empty");
    check(Request::score(vec![1], vec![]), true, "continuation is empty");
    check(Request::generate(vec![1, VOCAB as u32], tokens(1)), true, "token id 23 at index 1");
    check(Request::score(vec![1], vec![u32::MAX]), true, "continuation: token id");
    check(Request::generate(vec![1; 64], tokens(1)), true, "the context holds 64");
    check(Request::logits(vec![1; 65]), true, "the context holds 64");
    check(Request::score(vec![1; 60], vec![1; 6]), true, "the context holds 64");
    check(Request::generate(vec![1], tokens(0)), true, "max_tokens");
    check(Request::generate(vec![1], tokens(1)).with_adapter(Some(2)), true, "adapter is 2: expected one of the 2");
    let logprobs = Generate { logprobs: Some(1_000_000), ..tokens(1) };
    check(Request::generate(vec![1], logprobs), true, "logprobs");
    let stop = Generate { stop_ids: vec![99], ..tokens(1) };
    check(Request::generate(vec![1], stop), true, "stop_ids");
    let hot = Sampling { temperature: f32::NAN, ..Sampling::default() };
    check(Request::generate(vec![1], Generate { sampling: hot, ..tokens(1) }), true, "temperature");
    check(Request::generate(vec![1; 30], tokens(20)), false, "needs 49 tokens of cache");
    engine.submit(Request::logits(vec![1])).unwrap();
    let error = engine.submit(Request::logits(vec![1])).unwrap_err();
    assert!(!error.is_input() && error.to_string().contains("the limit is 1"), "{error}");
}

#[test]
fn bad_options_are_refused() {
    let check = |options: EngineOptions, words: &str| {
        let (model, _) = FakeModel::new(64, &[]);
        let error = Engine::with_model(model, options).err().unwrap();
        assert!(error.is_input() && error.to_string().contains(words), "{error}");
    };
    check(EngineOptions { max_running: 0, ..EngineOptions::default() }, "max_running");
    check(EngineOptions { step_tokens: 3, ..EngineOptions::default() }, "step_tokens");
    check(EngineOptions { ageing_steps: 0, ..EngineOptions::default() }, "ageing_steps");
    check(EngineOptions { cache_tokens: Some(3), ..EngineOptions::default() }, "cache_tokens");
    check(EngineOptions { context_length: Some(65), ..EngineOptions::default() }, "context_length");
}

#[test]
fn damaged_logits_fail_one_request_and_no_other() {
    let (mut engine, ledger) = engine(EngineOptions::default());
    ledger.lock().unwrap().poison = Some(22);
    let bad = engine.submit(Request::generate(vec![1, 22], tokens(5))).unwrap();
    let good = engine.submit(Request::generate(vec![5, 6, 7], tokens(2))).unwrap();
    let mut over = drain(&mut engine);
    let FinishReason::Error(message) = &over[&bad].1 else { panic!("{over:?}") };
    assert!(message.contains("not finite"), "{message}");
    assert_eq!(over.remove(&good).unwrap().0, greedy(&[5, 6, 7], 2));
    assert_eq!(engine.stats().blocks_held, 0);
}

#[test]
fn a_model_that_fails_once_costs_one_step() {
    let (mut engine, ledger) = engine(EngineOptions::default());
    ledger.lock().unwrap().fail = true;
    let bad = engine.submit(Request::generate(vec![1], tokens(5))).unwrap();
    let over = drain(&mut engine);
    assert!(matches!(&over[&bad].1, FinishReason::Error(message) if message.contains("told to fail")));
    let good = engine.submit(Request::generate(vec![5], tokens(3))).unwrap();
    assert_eq!(drain(&mut engine)[&good].0, greedy(&[5], 3));
    assert_eq!(engine.stats().blocks_held, 0);
}
