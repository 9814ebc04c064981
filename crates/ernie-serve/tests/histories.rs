//! The engine over any history: nothing leaks, nobody starves, and every answer is the one that the request gets alone,
//! whatever is shared, guessed, taken back or computed again on the way.

mod support;

use std::collections::{BTreeMap, HashSet};

use ernie_serve::engine::{
    Engine, EngineOptions, Event, FinishReason, Generate, Request, RequestId, Sampling, Stats, TokenScore,
};
use proptest::prelude::*;
use support::{ADAPTERS, BLOCK, FakeModel, VOCAB, greedy_of, logits_after, read_through};

const CONTEXT: usize = 64;

/// What a history of random events does to an engine.
#[derive(Debug, Clone)]
enum Act {
    Generate { adapter: Option<usize>, prompt: Vec<u32>, max_tokens: usize, seed: Option<u64>, priority: i32 },
    Score { adapter: Option<usize>, prompt: Vec<u32>, continuation: Vec<u32> },
    Logits { adapter: Option<usize>, prompt: Vec<u32> },
    Cancel(usize),
    Forget,
    Step,
}

impl Act {
    fn request(&self) -> Request {
        match self.clone() {
            Self::Generate { adapter, prompt, max_tokens, seed, priority } => {
                Request::generate(prompt, generate(max_tokens, seed)).with_priority(priority).with_adapter(adapter)
            }
            Self::Score { adapter, prompt, continuation } => Request::score(prompt, continuation).with_adapter(adapter),
            Self::Logits { adapter, prompt } => Request::logits(prompt).with_adapter(adapter),
            Self::Cancel(_) | Self::Forget | Self::Step => unreachable!("no request"),
        }
    }
}

/// Prompts that often begin alike, and often repeat themselves.
fn prompts() -> impl Strategy<Value = Vec<u32>> {
    let stem = (0usize..20, 0u32..3)
        .prop_map(|(length, kind)| (0..length as u32).map(|i| (i % 5 + kind) % 7).collect::<Vec<u32>>());
    let tail = prop::collection::vec(0..VOCAB as u32, 1..5);
    (stem, tail).prop_map(|(stem, tail)| [stem, tail].concat())
}

fn acts() -> impl Strategy<Value = Act> {
    let continuation = prop::collection::vec(0..VOCAB as u32, 1..8);
    let adapter = || prop_oneof![2 => Just(None), 1 => (0..ADAPTERS).prop_map(Some)];
    prop_oneof![
        9 => (adapter(), prompts(), 1usize..20, prop::option::of(any::<u64>()), -1i32..3).prop_map(
            |(adapter, prompt, max_tokens, seed, priority)| Act::Generate { adapter, prompt, max_tokens, seed, priority }
        ),
        3 => (adapter(), prompts(), continuation)
            .prop_map(|(adapter, prompt, continuation)| Act::Score { adapter, prompt, continuation }),
        1 => (adapter(), prompts()).prop_map(|(adapter, prompt)| Act::Logits { adapter, prompt }),
        4 => any::<prop::sample::Index>().prop_map(|at| Act::Cancel(at.index(1000))),
        1 => Just(Act::Forget),
        20 => Just(Act::Step),
    ]
}

fn generate(max_tokens: usize, seed: Option<u64>) -> Generate {
    let sampling = match seed {
        Some(_) => Sampling { temperature: 1.0, top_p: 0.9, presence_penalty: 0.5, seed, ..Sampling::default() },
        None => Sampling::default(),
    };
    Generate { max_tokens, sampling, ignore_eos: true, ..Generate::default() }
}

fn plain() -> EngineOptions {
    EngineOptions { prefix_cache_bytes: 0, draft_tokens: 0, ..EngineOptions::default() }
}

/// The request alone, nothing shared and nothing guessed: its tokens or scores.
fn alone(request: Request, memory: usize) -> (Vec<u32>, Vec<TokenScore>) {
    let mut engine = Engine::with_model(FakeModel::with_memory(CONTEXT, &[], memory).0, plain()).unwrap();
    engine.submit(request).unwrap();
    let (mut answer, mut scores) = (Vec::new(), Vec::new());
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            match event {
                Event::Token { id, .. } => answer.push(id),
                Event::Scored { tokens, .. } => scores = tokens,
                _ => {}
            }
        }
    }
    (answer, scores)
}

/// The logits at each position of a prompt that an adapter reads.
fn all_logits(adapter: Option<usize>, prompt: &[u32], memory: usize) -> Vec<f32> {
    let prompt = read_through(adapter, prompt);
    (1..=prompt.len()).flat_map(|end| logits_after(&prompt[end.saturating_sub(memory)..end])).collect()
}

/// Runs a history to its end; what the engine has done.
fn run(options: EngineOptions, memory: usize, history: Vec<Act>) -> Result<Stats, TestCaseError> {
    let (model, ledger) = FakeModel::with_memory(CONTEXT, &[], memory);
    let mut engine = Engine::with_model(model, options.clone()).unwrap();
    let mut asked: BTreeMap<RequestId, Act> = BTreeMap::new();
    let mut answers: BTreeMap<RequestId, Vec<u32>> = BTreeMap::new();
    let mut scores: BTreeMap<RequestId, Vec<TokenScore>> = BTreeMap::new();
    let mut logits: BTreeMap<RequestId, Vec<f32>> = BTreeMap::new();
    let mut open: Vec<RequestId> = Vec::new();
    let mut cancelled: HashSet<RequestId> = HashSet::new();
    let end = std::iter::repeat_n(Act::Step, 20_000);
    for act in history.into_iter().chain(end) {
        match &act {
            Act::Generate { .. } | Act::Score { .. } | Act::Logits { .. } => {
                let id = engine.submit(act.request()).unwrap();
                asked.insert(id, act);
                open.push(id);
            }
            Act::Cancel(at) if !open.is_empty() => {
                let id = open[at % open.len()];
                prop_assert!(engine.cancel(id) || cancelled.contains(&id));
                prop_assert!(!engine.cancel(id), "cancelled twice");
                cancelled.insert(id);
            }
            Act::Cancel(_) => {}
            Act::Forget => engine.forget_prefixes(),
            Act::Step => {
                if open.is_empty() {
                    continue;
                }
                let events = engine.step().unwrap();
                for event in events {
                    let id = event.request();
                    prop_assert!(open.contains(&id), "an event after the end");
                    match event {
                        Event::Token { id: token, .. } => answers.entry(id).or_default().push(token),
                        Event::Scored { tokens, .. } => prop_assert!(scores.insert(id, tokens).is_none()),
                        Event::Logits { first, rows, .. } => {
                            let all = logits.entry(id).or_default();
                            prop_assert_eq!(first * VOCAB, all.len(), "a row is missing or comes twice");
                            all.extend(rows);
                        }
                        Event::Embedded { .. } => prop_assert!(false, "nobody asked for a vector"),
                        Event::Finished { reason, .. } => {
                            prop_assert_eq!(reason == FinishReason::Cancelled, cancelled.contains(&id));
                            open.retain(|&other| other != id);
                        }
                    }
                }
            }
        }
        let stats = engine.stats();
        prop_assert!(stats.blocks_held + stats.blocks_idle <= stats.blocks.unwrap_or(usize::MAX));
        prop_assert!(stats.blocks_idle as u64 <= options.prefix_cache_bytes);
        prop_assert!(stats.running <= options.max_running);
        prop_assert!(ledger.lock().unwrap().rows.iter().all(|&rows| rows <= options.step_tokens));
    }
    prop_assert!(engine.is_idle() && open.is_empty(), "somebody starves");
    let stats = engine.stats();
    prop_assert_eq!(stats.blocks_held, 0, "a block leaks");
    prop_assert_eq!(stats.finished, asked.len() as u64);
    for (id, act) in &asked {
        let answer = answers.remove(id).unwrap_or_default();
        match act {
            Act::Generate { adapter, prompt, max_tokens, seed, .. } => {
                let full = match seed {
                    Some(_) => alone(act.request(), memory).0,
                    None => greedy_of(*adapter, prompt, *max_tokens, memory),
                };
                let expect = if cancelled.contains(id) { &full[..answer.len()] } else { &full[..] };
                prop_assert_eq!(&answer[..], expect);
            }
            _ if cancelled.contains(id) => {}
            Act::Score { .. } => prop_assert_eq!(scores.remove(id), Some(alone(act.request(), memory).1)),
            Act::Logits { adapter, prompt } => {
                prop_assert_eq!(logits.remove(id), Some(all_logits(*adapter, prompt, memory)));
            }
            Act::Cancel(_) | Act::Forget | Act::Step => {}
        }
    }
    Ok(stats)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(120) })]

    /// At least 12,000 random arrivals, cancellations and steps.
    #[test]
    fn answers_do_not_depend_on_the_history(
        max_running in 1usize..6,
        extra in 0usize..20,
        cache_blocks in prop::option::of(11usize..24),
        prefix_cache_bytes in prop_oneof![Just(0u64), 1u64..40],
        draft_tokens in 0usize..6,
        memory in prop_oneof![Just(1usize), Just(2), Just(usize::MAX)],
        history in prop::collection::vec(acts(), 100..140),
    ) {
        let options = EngineOptions {
            max_running,
            step_tokens: max_running + extra,
            cache_tokens: cache_blocks.map(|blocks| blocks * BLOCK),
            prefix_cache_bytes,
            draft_tokens,
            ageing_steps: 4,
            ..EngineOptions::default()
        };
        run(options, memory, history)?;
    }
}

#[test]
fn a_history_meets_sharing_guessing_and_giving_way() {
    let history = (0..60).flat_map(|i: u32| {
        let prompt = (0..16).map(|j| j % 5).chain([i % 7]).collect();
        [Act::Generate { adapter: None, prompt, max_tokens: 18, seed: None, priority: (i % 3) as i32 }, Act::Step]
    });
    let options =
        EngineOptions { max_running: 6, step_tokens: 24, cache_tokens: Some(12 * BLOCK), ..EngineOptions::default() };
    let stats = run(options, 1, history.collect()).unwrap();
    assert!(stats.preemptions > 0 && stats.preempted_rows > 0, "{stats:?}");
    assert!(stats.prefix_hit_rows > 0 && stats.prefix_hit_rows < stats.prompt_rows, "{stats:?}");
    assert!(stats.accepted > 0 && stats.accepted <= stats.drafted, "{stats:?}");
    assert_eq!(stats.tokens, 60 * 18);
}

#[test]
fn the_next_turn_reads_only_what_is_new() {
    let (model, ledger) = FakeModel::new(CONTEXT, &[]);
    let mut engine = Engine::with_model(model, EngineOptions { draft_tokens: 0, ..EngineOptions::default() }).unwrap();
    let mut turn = |prompt: &[u32]| -> (Vec<u32>, usize) {
        let before: usize = ledger.lock().unwrap().rows.iter().sum();
        engine.submit(Request::generate(prompt.to_vec(), generate(6, None))).unwrap();
        let mut answer = Vec::new();
        while !engine.is_idle() {
            let events = engine.step().unwrap();
            answer.extend(events.iter().filter_map(|event| match event {
                Event::Token { id, .. } => Some(*id),
                _ => None,
            }));
        }
        (answer, ledger.lock().unwrap().rows.iter().sum::<usize>() - before)
    };
    let mut conversation: Vec<u32> = (0..10).collect();
    let (answer, rows) = turn(&conversation);
    assert_eq!((rows, answer.len()), (10 + 5, 6));
    conversation.extend(answer);
    conversation.extend([20, 21]);
    // 15 positions were read, so three blocks of four are full.
    assert_eq!(turn(&conversation).1, 18 - 12 + 5);
    assert_eq!(turn(&conversation).1, 18 - 16 + 5, "the last row of a prompt is always read");
}

#[test]
fn equal_prompts_that_come_together_are_read_once() {
    let (model, ledger) = FakeModel::new(CONTEXT, &[]);
    let mut engine = Engine::with_model(model, EngineOptions { draft_tokens: 0, ..EngineOptions::default() }).unwrap();
    let prompt: Vec<u32> = (0..17).collect();
    for seed in 0..4 {
        engine.submit(Request::generate(prompt.clone(), generate(6, Some(seed)))).unwrap();
    }
    engine.submit(Request::generate(vec![9; 5], generate(6, None))).unwrap();
    while !engine.is_idle() {
        engine.step().unwrap();
    }
    // The first reads all, beside the one that is unlike; the others find all but the last row.
    assert_eq!(ledger.lock().unwrap().rows[..3], [17 + 5, 2 + 3, 5]);
    assert_eq!(engine.stats().prefix_hit_rows, 3 * 16);
}

#[test]
fn what_one_adapter_has_read_is_nothing_to_another() {
    let (model, _) = FakeModel::new(CONTEXT, &[]);
    let mut engine = Engine::with_model(model, EngineOptions { draft_tokens: 0, ..EngineOptions::default() }).unwrap();
    let prompt: Vec<u32> = (0..17).collect();
    let all = [None, Some(0), Some(1)];
    // Together first, then one after the other: each finds its own.
    for (round, hits) in [(vec![&all[..]], 0), (all.chunks(1).collect(), 3 * 16)] {
        for adapters in round {
            for &adapter in adapters {
                engine.submit(Request::generate(prompt.clone(), generate(6, None)).with_adapter(adapter)).unwrap();
            }
            let mut answers: BTreeMap<RequestId, Vec<u32>> = BTreeMap::new();
            while !engine.is_idle() {
                for event in engine.step().unwrap() {
                    if let Event::Token { request, id, .. } = event {
                        answers.entry(request).or_default().push(id);
                    }
                }
            }
            for (answer, &adapter) in answers.values().zip(adapters) {
                assert_eq!(*answer, greedy_of(adapter, &prompt, 6, usize::MAX), "{adapter:?}");
            }
        }
        assert_eq!(engine.stats().prefix_hit_rows, hits);
    }
}

#[test]
fn urgent_requests_go_first_and_waiting_makes_urgent() {
    let order = |ageing_steps: usize, urgent: usize| -> usize {
        let options = EngineOptions { max_running: 1, ageing_steps, ..plain() };
        let mut engine = Engine::with_model(FakeModel::new(CONTEXT, &[]).0, options).unwrap();
        let patient = engine.submit(Request::generate(vec![1], generate(2, None))).unwrap();
        for n in 0..urgent {
            engine.submit(Request::generate(vec![2], generate(2, None)).with_priority(3)).unwrap();
            assert!(n > 0 || engine.num_waiting() == 2);
        }
        let mut over = Vec::new();
        while !engine.is_idle() {
            for event in engine.step().unwrap() {
                if let Event::Finished { request, .. } = event {
                    over.push(request);
                }
            }
        }
        over.iter().position(|&request| request == patient).unwrap()
    };
    assert_eq!(order(1_000_000, 20), 20);
    // Those who came at the same time age as fast; who waits gains on those yet to come only.
    assert_eq!(order(1, 20), 20);
    let mut engine = Engine::with_model(
        FakeModel::new(CONTEXT, &[]).0,
        EngineOptions { max_running: 1, ageing_steps: 2, ..plain() },
    )
    .unwrap();
    let patient = engine.submit(Request::generate(vec![1], generate(2, None)).with_priority(-5)).unwrap();
    for steps in 0..1000 {
        engine.submit(Request::generate(vec![2], generate(2, None))).unwrap();
        let done = |event: &Event| matches!(event, Event::Finished { request, .. } if *request == patient);
        if engine.step().unwrap().iter().any(done) {
            assert!(steps > 5);
            return;
        }
    }
    panic!("the patient request starved");
}
