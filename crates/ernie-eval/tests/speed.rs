//! What a measurement of speed asks of the engine, seen by a model that keeps a record.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex};

use ernie_eval::speed::{Workload, measure, options};
use ernie_serve::engine::{Batch, Engine, Model, Row, TakeRows};

const VOCAB: usize = 97;
const CONTEXT: usize = 4096;

/// One pass: for each chunk the positions before it and its rows.
type Pass = Vec<(usize, usize)>;

#[derive(Default)]
struct Record {
    passes: Vec<Pass>,
    /// The rows of each chunk.
    ids: Vec<Vec<u32>>,
}

struct Recorder {
    record: Arc<Mutex<Record>>,
    broken: bool,
}

impl Model for Recorder {
    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn context_length(&self) -> usize {
        CONTEXT
    }

    fn eos_ids(&self) -> &[u32] {
        // Every id ends an answer, unless the measurement ignores that.
        const ALL: [u32; VOCAB] = {
            let mut all = [0; VOCAB];
            let mut id = 0;
            while id < VOCAB {
                all[id] = id as u32;
                id += 1;
            }
            all
        };
        &ALL
    }

    fn forward(&mut self, batch: &Batch, take: &mut TakeRows<'_>) -> ernie_serve::Result<()> {
        let mut record = self.record.lock().unwrap();
        record.passes.push(batch.chunks.iter().map(|chunk| (chunk.past, chunk.rows.len())).collect());
        for (index, chunk) in batch.chunks.iter().enumerate() {
            record.ids.push(batch.ids[chunk.rows.clone()].to_vec());
            for row in chunk.wanted.clone() {
                take(vec![Row { chunk: index, row, numbers: &mut [if self.broken { f32::NAN } else { 0.0 }; VOCAB] }]);
            }
        }
        Ok(())
    }
}

fn engine(max_running: usize, broken: bool) -> (Engine, Arc<Mutex<Record>>) {
    let record = Arc::new(Mutex::new(Record::default()));
    let model = Recorder { record: record.clone(), broken };
    let options = options(max_running);
    (Engine::with_model(Box::new(model), options).unwrap(), record)
}

fn workload() -> Workload {
    Workload { prompt_tokens: 20, gen_tokens: 7, batch: 3, context: 0, repeat: 2, seed: 1 }
}

#[test]
fn prompts_share_passes_and_answers_go_in_step() {
    let (mut engine, record) = engine(3, false);
    let mut rounds = Vec::new();
    let speed = measure(&mut engine, &workload(), &mut |done| rounds.push(done)).unwrap();
    assert_eq!(rounds, [1, 2, 3]);
    assert!(speed.prefill_tokens_per_s.median > 0.0 && speed.decode_tokens_per_s.p10 > 0.0);
    let record = record.lock().unwrap();
    assert!(engine.is_idle() && engine.stats().blocks_held == 0, "nothing is left behind");
    assert_eq!(record.passes.iter().filter(|pass| **pass == [(0, 20); 3]).count(), 3, "{:?}", record.passes);
    let steps = record.passes.iter().filter(|pass| pass.len() == 3 && pass.iter().all(|&(_, rows)| rows == 1));
    // Each round starts the answers with a prompt of one token, then makes its steps.
    assert_eq!(steps.count(), 3 * (1 + 7), "{:?}", record.passes);
}

#[test]
fn a_context_is_read_before_the_clock_starts() {
    let (mut engine, record) = engine(3, false);
    measure(&mut engine, &Workload { context: 1000, repeat: 1, ..workload() }, &mut |_| {}).unwrap();
    let record = record.lock().unwrap();
    // The prompt alone makes a pass, with exactly the context before it.
    assert_eq!(record.passes.iter().filter(|pass| **pass == [(1000, 20)]).count(), 2 * 3);
    let late = record.passes.iter().rev().take(7).flatten().map(|&(past, _)| past).min();
    assert!(late.is_some_and(|past| past >= 1000), "{late:?}");
}

#[test]
fn no_two_prompts_and_no_answers_are_alike() {
    let (mut engine, record) = engine(3, false);
    measure(&mut engine, &workload(), &mut |_| {}).unwrap();
    let ids = &record.lock().unwrap().ids;
    let prompts: Vec<&Vec<u32>> = ids.iter().filter(|rows| rows.len() == 20).collect();
    assert_eq!((prompts.len(), prompts.iter().collect::<HashSet<_>>().len()), (9, 9));
    // The model alone would say the same id every time.
    let said: BTreeSet<u32> = ids.iter().filter(|rows| rows.len() == 1).map(|rows| rows[0]).collect();
    assert!(said.len() > 30, "{said:?}");
    assert_eq!(engine.stats().drafted, 0, "nothing is guessed");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let refuse = |workload: Workload| measure(&mut engine(3, false).0, &workload, &mut |_| {}).unwrap_err().to_string();
    assert!(refuse(Workload { prompt_tokens: 0, ..workload() }).contains("prompt-tokens"));
    assert!(refuse(Workload { gen_tokens: 0, ..workload() }).contains("gen-tokens"));
    assert!(refuse(Workload { batch: 0, ..workload() }).contains("batch"));
    assert!(refuse(Workload { repeat: 0, ..workload() }).contains("repeat"));
    let long = refuse(Workload { context: 4090, ..workload() });
    assert!(long.contains("4096"), "{long}");
    assert!(refuse(Workload { context: usize::MAX, ..workload() }).contains("4096"));
    let error = measure(&mut engine(3, true).0, &workload(), &mut |_| {}).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("not finite"), "{error}");
}
