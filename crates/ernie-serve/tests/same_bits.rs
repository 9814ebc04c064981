//! A request's tokens and log-probabilities are the same bits alone and in any company, at any chunking, with and
//! without shared prefixes, guesses and giving way, through whichever adapter its neighbours go; on real decoders with
//! random weights.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use ernie_model::{Adaptation, Decoder, ModelSource, PAGE, WeightsAs, load};
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

/// The three adapters of the tests, each of its own kind: what they change, their ranks and their scales differ.
fn adaptation(number: usize) -> Adaptation {
    let (rank, alpha) = [(2, 8.0), (4, 3.0), (3, 6.0)][number];
    let targets: &[&str] = match number {
        0 => &["q_proj", "v_proj"],
        1 => &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        _ => &["o_proj", "up_proj", "down_proj"],
    };
    let targets = targets.iter().map(|&name| name.to_owned()).collect();
    Adaptation { rank, alpha, rslora: number == 1, targets, experts: number > 0 }
}

/// Adapts a decoder by one of them, and shakes what would begin as nothing.
fn adapt(decoder: &mut Decoder, number: usize) {
    decoder.adapt(&adaptation(number), number as u64).unwrap();
    for (at, (_, adapter)) in decoder.adapters().into_iter().enumerate() {
        let [_, b] = adapter.parameters().unwrap();
        let shaken = (0..b.elements()).map(|i| ((i * 37 + at * 11 + number * 5) % 29) as f32 / 58.0 - 0.25);
        b.set(&shaken.collect::<Vec<f32>>()).unwrap();
    }
}

/// A decoder with all three to choose from, and as many with one that everything goes through.
struct Adapted {
    base: Arc<Decoder>,
    all: Arc<Decoder>,
    single: Vec<Arc<Decoder>>,
}

fn adapted(name: &str, weights: WeightsAs) -> Adapted {
    let load = || {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ernie-model/tests/parity").join(name);
        load(&ModelSource::Folder(folder), weights).unwrap().decoder
    };
    let mut all = load();
    (0..3).for_each(|number| adapt(&mut all, number));
    all.offer_adapters();
    all.pack_adapters().unwrap();
    let single = |number| {
        let mut decoder = load();
        adapt(&mut decoder, number);
        Arc::new(decoder)
    };
    Adapted { base: Arc::new(load()), all: Arc::new(all), single: (0..3).map(single).collect() }
}

impl Adapted {
    /// Whether a request that was answered among others has the bits that it has alone: from the same decoder, and from the
    /// one that has its adapter and no other, or none at all.
    fn check(&self, ask: &Ask, said: &[(u32, Vec<u64>)]) {
        let alone = &run(&self.all, plain(), std::slice::from_ref(ask)).0[0];
        assert!(alone == said, "{ask:?} in company");
        let own = ask.adapter.map_or(&self.base, |number| &self.single[number]);
        let bare = Ask { adapter: None, ..ask.clone() };
        assert!(run(own, plain(), &[bare]).0[0] == said, "{ask:?} beside other adapters");
    }
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

    fn adapters(&self) -> usize {
        self.0.adapters()
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
    adapter: Option<usize>,
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
        Request::generate(stem.chain(self.tail.iter().copied()).collect(), generate).with_adapter(self.adapter)
    }
}

/// Requests that go through one of so many adapters, or none.
fn asks(adapters: usize) -> impl Strategy<Value = Ask> {
    let adapter = (0..=adapters).prop_map(|number| number.checked_sub(1));
    let stems = prop_oneof![Just(0usize), Just(PAGE), Just(PAGE + 5), Just(2 * PAGE)];
    let tail = prop::collection::vec(0u32..256, 1..12);
    let penalty = prop_oneof![Just(0.0f32), Just(0.7)];
    (adapter, stems, tail, 1usize..40, prop::option::of(any::<u64>()), penalty).prop_map(
        |(adapter, stem, tail, max_tokens, seed, penalty)| Ask { adapter, stem, tail, max_tokens, seed, penalty },
    )
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
        asks in prop::collection::vec(asks(0), 1..7),
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
            adapter: None,
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

/// The kinds of a model and of its weights that adapters stand beside.
fn beside_all_kinds(mut check: impl FnMut(&Adapted)) {
    use WeightsAs::{Bf16, F32, Int4, Int8};
    for (name, all) in [("dense", &[Bf16, Int8][..]), ("moe", &[F32, Bf16, Int8, Int4])] {
        all.iter().for_each(|&weights| check(&adapted(name, weights)));
    }
}

#[test]
fn rows_of_all_adapters_share_steps_and_change_nothing() {
    beside_all_kinds(|adapted| {
        let ask = |n: u32| Ask {
            adapter: (n as usize % 4).checked_sub(1),
            stem: PAGE + 5,
            tail: vec![n / 4, 9, 9, 9, 9],
            max_tokens: 2 * PAGE,
            seed: (n > 3).then_some(u64::from(n)),
            penalty: 0.0,
        };
        let asks: Vec<Ask> = (0..8).map(ask).collect();
        let options =
            EngineOptions { max_running: 4, step_tokens: 20, cache_tokens: Some(6 * PAGE), ..EngineOptions::default() };
        let (together, stats) = run(&adapted.all, options, &asks);
        assert!(stats.preemptions > 0 && stats.prefix_hit_rows > 0 && stats.accepted > 0, "{stats:?}");
        asks.iter().zip(&together).for_each(|(ask, said)| adapted.check(ask, said));
        // They are four different models.
        for number in 0..3 {
            assert_ne!(together[0], together[number + 1], "adapter {number} changes nothing");
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn any_company_through_any_adapters(
        name in prop_oneof![Just("dense"), Just("moe")],
        asks in prop::collection::vec(asks(3), 2..7),
        max_running in 2usize..6,
        extra in 0usize..40,
        blocks in prop::option::of(4usize..9),
        draft_tokens in 0usize..6,
    ) {
        static ADAPTED: OnceLock<[Adapted; 2]> = OnceLock::new();
        let [dense, moe] = ADAPTED.get_or_init(|| ["dense", "moe"].map(|name| adapted(name, WeightsAs::F32)));
        let adapted = if name == "dense" { dense } else { moe };
        let options = EngineOptions {
            max_running,
            step_tokens: max_running + extra,
            cache_tokens: blocks.map(|blocks| blocks * PAGE),
            draft_tokens,
            ..EngineOptions::default()
        };
        let (together, _) = run(&adapted.all, options, &asks);
        asks.iter().zip(&together).for_each(|(ask, said)| adapted.check(ask, said));
    }
}
