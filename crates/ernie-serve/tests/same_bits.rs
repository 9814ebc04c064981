//! A request's tokens and log-probabilities are the same bits alone and in any company, at any chunking, with and
//! without shared prefixes, guesses and giving way; on real decoders with random weights.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use ernie_model::{Decoder, ModelSource, PAGE, WeightsAs, load};
use ernie_serve::engine::{
    Batch, DecoderModel, Engine, EngineOptions, Event, Generate, Model, Request, RequestId, Sampling, Stats, TakeRows,
};
use proptest::prelude::*;

fn decoder(name: &'static str) -> Arc<Decoder> {
    static LOADED: OnceLock<[Arc<Decoder>; 2]> = OnceLock::new();
    let load = |name: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ernie-model/tests/parity").join(name);
        Arc::new(load(&ModelSource::Folder(folder), WeightsAs::F32).unwrap().decoder)
    };
    let [dense, moe] = LOADED.get_or_init(|| [load("dense"), load("moe")]);
    if name == "dense" { dense.clone() } else { moe.clone() }
}

/// The decoder, with rows so cheap that guesses are tried whatever the machine is doing.
struct Eager(DecoderModel);

impl Model for Eager {
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    fn context_length(&self) -> usize {
        self.0.context_length()
    }

    fn eos_ids(&self) -> &[u32] {
        self.0.eos_ids()
    }

    fn block_bytes(&self) -> u64 {
        self.0.block_bytes()
    }

    fn row_cost(&self, _rows: usize) -> Option<f64> {
        Some(0.02)
    }

    fn forward(&mut self, batch: &Batch, take: &mut TakeRows<'_>) -> ernie_serve::Result<()> {
        self.0.forward(batch, take)
    }
}

#[derive(Debug, Clone)]
struct Ask {
    stem: usize,
    tail: Vec<u32>,
    max_tokens: usize,
    seed: Option<u64>,
    penalty: f32,
}

impl Ask {
    fn request(&self) -> Request {
        let stem = (0..self.stem as u32).map(|i| i * 7 % 11);
        let temperature = if self.seed.is_some() { 0.8 } else { 0.0 };
        let sampling = Sampling {
            temperature,
            top_p: 0.95,
            seed: self.seed,
            frequency_penalty: self.penalty,
            ..Sampling::default()
        };
        let generate = Generate {
            max_tokens: self.max_tokens,
            sampling,
            ignore_eos: true,
            logprobs: Some(2),
            ..Generate::default()
        };
        Request::generate(stem.chain(self.tail.iter().copied()).collect(), generate)
    }
}

fn asks() -> impl Strategy<Value = Ask> {
    let stems = prop_oneof![Just(0usize), Just(PAGE), Just(PAGE + 5), Just(2 * PAGE)];
    let tail = prop::collection::vec(0u32..256, 1..12);
    let penalty = prop_oneof![Just(0.0f32), Just(0.7)];
    (stems, tail, 1usize..40, prop::option::of(any::<u64>()), penalty)
        .prop_map(|(stem, tail, max_tokens, seed, penalty)| Ask { stem, tail, max_tokens, seed, penalty })
}

/// Ids, and the bits of all log-probabilities, of each request.
type Said = Vec<Vec<(u32, Vec<u64>)>>;

fn run(decoder: &Arc<Decoder>, options: EngineOptions, asks: &[Ask]) -> (Said, Stats) {
    let model = Eager(DecoderModel::new(decoder.clone()).unwrap());
    let mut engine = Engine::with_model(Box::new(model), options).unwrap();
    let requests: Vec<RequestId> = asks.iter().map(|ask| engine.submit(ask.request()).unwrap()).collect();
    let mut said = vec![Vec::new(); asks.len()];
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            if let Event::Token { request, id, logprob } = event {
                let logprob = logprob.unwrap();
                let bits = std::iter::once(logprob.logprob).chain(logprob.top.iter().map(|top| top.1));
                let at = requests.iter().position(|&other| other == request).unwrap();
                said[at].push((id, bits.map(f64::to_bits).collect()));
            }
        }
    }
    assert_eq!(engine.stats().blocks_held, 0);
    (said, engine.stats())
}

fn plain() -> EngineOptions {
    EngineOptions { max_running: 1, prefix_cache_bytes: 0, draft_tokens: 0, ..EngineOptions::default() }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn any_company_and_any_history(
        name in prop_oneof![Just("dense"), Just("moe")],
        asks in prop::collection::vec(asks(), 1..7),
        max_running in 1usize..5,
        extra in 0usize..40,
        blocks in prop::option::of(4usize..9),
        keep in any::<bool>(),
        draft_tokens in 0usize..6,
    ) {
        let decoder = decoder(name);
        let options = EngineOptions {
            max_running,
            step_tokens: max_running + extra,
            cache_tokens: blocks.map(|blocks| blocks * PAGE),
            prefix_cache_bytes: if keep { 1 << 24 } else { 0 },
            draft_tokens,
            ..EngineOptions::default()
        };
        let (together, _) = run(&decoder, options, &asks);
        for (ask, said) in asks.iter().zip(together) {
            prop_assert_eq!(ask.max_tokens, said.len());
            prop_assert_eq!(&run(&decoder, plain(), std::slice::from_ref(ask)).0[0], &said);
        }
    }
}

#[test]
fn sharing_guessing_and_giving_way_happen_and_change_nothing() {
    for name in ["dense", "moe"] {
        let decoder = decoder(name);
        let ask = |n: u32| Ask {
            stem: PAGE + 5,
            tail: vec![n % 3, 9, 9, 9, 9],
            max_tokens: 2 * PAGE,
            seed: (n % 2 == 1).then_some(u64::from(n)),
            penalty: 0.0,
        };
        let asks: Vec<Ask> = (0..8).map(ask).collect();
        let options =
            EngineOptions { max_running: 4, step_tokens: 20, cache_tokens: Some(6 * PAGE), ..EngineOptions::default() };
        let (together, stats) = run(&decoder, options, &asks);
        assert!(stats.preemptions > 0 && stats.prefix_hit_rows > 0 && stats.accepted > 0, "{name}: {stats:?}");
        for (ask, said) in asks.iter().zip(together) {
            assert!(run(&decoder, plain(), std::slice::from_ref(ask)).0[0] == said, "{name}: {ask:?}");
        }
    }
}
