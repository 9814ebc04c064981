//! The engine on real decoders: the recorded answers of the reference implementation, and the same bits in any company.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ernie_files::Checkpoint;
use ernie_model::{ContiguousCache, Decoder, ModelSource, Tokens, WeightsAs, load};
use ernie_nn::no_grad;
use ernie_serve::engine::{
    Batch, Chunk, DecoderModel, Engine, EngineOptions, Event, FinishReason, Generate, Model, Pooling, Request, Sampling,
};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ernie-model/tests/parity").join(name)
}

fn decoder(name: &str) -> Arc<Decoder> {
    Arc::new(load(&ModelSource::Folder(folder(name)), WeightsAs::F32).unwrap().decoder)
}

fn recorded_ids(name: &str, tensor: &str) -> Vec<u32> {
    let reference = Checkpoint::open(&folder(name).join("reference.safetensors")).unwrap();
    let bytes = reference.bytes(tensor).unwrap();
    bytes.chunks_exact(8).map(|id| i64::from_le_bytes(id.try_into().unwrap()) as u32).collect()
}

fn drain(engine: &mut Engine) -> Vec<Event> {
    let mut events = Vec::new();
    while !engine.is_idle() {
        events.extend(engine.step().unwrap());
    }
    events
}

fn ids(events: &[Event]) -> Vec<u32> {
    let id = |event: &Event| match event {
        Event::Token { id, .. } => Some(*id),
        _ => None,
    };
    events.iter().filter_map(id).collect()
}

#[test]
fn greedy_ids_are_the_recorded_ones() {
    for name in ["dense", "moe", "moe_untied"] {
        let all = recorded_ids(name, "generate.greedy_ids");
        let prompt = all[..8].to_vec();
        let decoder = decoder(name);
        for step_tokens in [1, 3, 512] {
            let options = EngineOptions { max_running: 1, step_tokens, ..EngineOptions::default() };
            let mut engine = Engine::new(decoder.clone(), options).unwrap();
            let generate = Generate { max_tokens: 24, ignore_eos: true, ..Generate::default() };
            engine.submit(Request::generate(prompt.clone(), generate)).unwrap();
            assert_eq!(ids(&drain(&mut engine)), all[8..], "{name}, {step_tokens} rows a step");
        }
        if let Some(at) = all[8..].iter().position(|&id| id == 2) {
            let mut engine = Engine::new(decoder, EngineOptions::default()).unwrap();
            let generate = Generate { max_tokens: 24, ..Generate::default() };
            engine.submit(Request::generate(prompt, generate)).unwrap();
            let events = drain(&mut engine);
            assert_eq!(ids(&events), all[8..8 + at], "{name} stops at its end-of-sequence id");
            let last = events.last().unwrap();
            assert!(matches!(last, Event::Finished { reason: FinishReason::Stop, stop_id: Some(2), .. }));
        }
    }
}

fn logits(decoder: &Arc<Decoder>, prompt: &[u32], step_tokens: usize) -> Vec<f32> {
    let options = EngineOptions { max_running: 1, step_tokens, ..EngineOptions::default() };
    let mut engine = Engine::new(decoder.clone(), options).unwrap();
    engine.submit(Request::logits(prompt.to_vec())).unwrap();
    let rows = drain(&mut engine).into_iter().filter_map(|event| match event {
        Event::Logits { rows, .. } => Some(rows),
        _ => None,
    });
    rows.flatten().collect()
}

#[test]
fn any_chunking_gives_the_same_bits() {
    for name in ["dense", "moe_untied"] {
        let decoder = decoder(name);
        let prompt: Vec<u32> = (0..41).map(|i| i * 97 % 256).collect();
        let whole = logits(&decoder, &prompt, 512);
        assert_eq!(whole.len(), 41 * 256);
        for step_tokens in [1, 2, 7, 16, 40] {
            assert!(logits(&decoder, &prompt, step_tokens) == whole, "{name}: chunks of {step_tokens} differ");
        }
    }
}

#[test]
fn any_company_gives_the_same_bits() {
    for name in ["dense", "moe"] {
        let decoder = decoder(name);
        let prompts: Vec<Vec<u32>> =
            [5u32, 1, 17, 9].iter().map(|&n| (0..n).map(|i| (i * 31 + n * 7) % 256).collect()).collect();
        let run = |members: &[usize]| -> Vec<Vec<f32>> {
            let mut model = DecoderModel::new(decoder.clone()).unwrap();
            let mut batch = Batch::default();
            for &member in members {
                let rows = batch.ids.len()..batch.ids.len() + prompts[member].len();
                batch.ids.extend(&prompts[member]);
                let blocks = vec![batch.chunks.len() as u32];
                batch.chunks.push(Chunk { blocks, past: 0, wanted: rows.clone(), hidden: false, adapter: None, rows });
            }
            let mut out = vec![Vec::new(); members.len()];
            model
                .forward(&batch, &mut |rows| rows.iter().for_each(|row| out[row.chunk].extend_from_slice(row.numbers)))
                .unwrap();
            out
        };
        let together = run(&[0, 1, 2, 3]);
        for (member, logits) in together.iter().enumerate() {
            assert!(run(&[member])[0] == *logits, "{name}: prompt {member} differs in company");
        }
    }
}

#[test]
fn seeded_answers_are_the_same_alone_and_in_company() {
    let decoder = decoder("moe");
    let request = |n: u32| {
        let sampling = Sampling { temperature: 0.9, top_p: 0.95, seed: Some(u64::from(n)), ..Sampling::default() };
        let generate = Generate { max_tokens: 12, sampling, ignore_eos: true, ..Generate::default() };
        Request::generate((0..=n).map(|i| i * 13 % 256).collect(), generate)
    };
    let mut together =
        Engine::new(decoder.clone(), EngineOptions { max_running: 3, step_tokens: 5, ..EngineOptions::default() })
            .unwrap();
    let members: Vec<_> = (0..6).map(|n| together.submit(request(n)).unwrap()).collect();
    let events = drain(&mut together);
    for (n, member) in members.into_iter().enumerate() {
        let mut alone = Engine::new(decoder.clone(), EngineOptions::default()).unwrap();
        alone.submit(request(n as u32)).unwrap();
        let own: Vec<Event> = events.iter().filter(|event| event.request() == member).cloned().collect();
        assert_eq!(ids(&own), ids(&drain(&mut alone)), "request {n}");
    }
}

#[test]
fn scores_agree_with_logits() {
    let decoder = decoder("dense");
    let all: Vec<u32> = (0..20).map(|i| i * 11 % 256).collect();
    let rows = logits(&decoder, &all, 512);
    let mut engine = Engine::new(decoder, EngineOptions::default()).unwrap();
    engine.submit(Request::score(all[..6].to_vec(), all[6..].to_vec())).unwrap();
    let events = drain(&mut engine);
    let Event::Scored { tokens, .. } = &events[0] else { panic!("{events:?}") };
    assert_eq!(tokens.len(), 14);
    for (i, score) in tokens.iter().enumerate() {
        let row = &rows[(5 + i) * 256..(6 + i) * 256];
        let sum = row.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
        assert!((score.logprob - (f64::from(row[all[6 + i] as usize]) - sum)).abs() < 1e-5);
    }
}

/// The vector of a prompt that shares the engine with others.
fn embedding(decoder: &Arc<Decoder>, prompt: &[u32], pooling: Pooling, options: EngineOptions) -> Vec<f32> {
    let mut engine = Engine::new(decoder.clone(), options).unwrap();
    let generate = Generate { max_tokens: 9, ignore_eos: true, ..Generate::default() };
    engine.submit(Request::generate(prompt[..5].to_vec(), generate)).unwrap();
    let id = engine.submit(Request::embed(prompt.to_vec(), pooling)).unwrap();
    let vector = |event| match event {
        Event::Embedded { request, embedding } => (request == id).then_some(embedding),
        _ => None,
    };
    drain(&mut engine).into_iter().find_map(vector).unwrap()
}

#[test]
fn embeddings_are_the_final_hidden_states_however_they_are_cut() {
    for name in ["dense", "moe"] {
        let decoder = decoder(name);
        let prompt = recorded_ids(name, "generate.greedy_ids");
        let mut tokens = Tokens::default();
        // With a cache, as the engine has one: the pass without is another kernel's, equal within rounding.
        let mut cache = ContiguousCache::new(decoder.config());
        tokens.push(cache.add_slot(), 0, &prompt);
        let hidden = no_grad(|| decoder.hidden(&tokens, Some(&mut cache), &mut ())).unwrap().to_vec().unwrap();
        let rows: Vec<&[f32]> = hidden.chunks_exact(decoder.config().hidden_size).collect();
        let mean: Vec<f32> = (0..rows[0].len())
            .map(|at| (rows.iter().map(|row| f64::from(row[at])).sum::<f64>() / rows.len() as f64) as f32)
            .collect();
        for step_tokens in [2, 7, 512] {
            let options = || EngineOptions { max_running: 2, step_tokens, ..EngineOptions::default() };
            assert_eq!(embedding(&decoder, &prompt, Pooling::Mean, options()), mean, "{name}, {step_tokens}");
            assert_eq!(embedding(&decoder, &prompt, Pooling::Last, options()), rows[rows.len() - 1], "{name}");
        }
    }
}
