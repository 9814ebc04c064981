//! The tasks as a caller runs them, on models whose answers are known.

use std::collections::HashMap;
use std::io::Write;

use ernie_data::tokenizer::{Tokenizer, TrainOptions, train_bpe};
use ernie_eval::{EvalOptions, Subject, tasks};
use ernie_serve::engine::{Batch, Engine, EngineOptions, Model, Row, TakeRows};

const CONTEXT: usize = 64;

fn tokenizer() -> Tokenizer {
    let texts = ["the cat sat on the mat, and a film was good or bad, negative or positive. Answer: Question: "];
    train_bpe(texts.iter().cycle().take(20), &TrainOptions::ernie(400)).unwrap()
}

/// Says of every id that it is as likely as any other, save that it likes to repeat one word it has read.
struct Echo {
    tokenizer: Tokenizer,
    /// The ids read so far, by block and place in it.
    read: HashMap<(u32, usize), u32>,
    /// After a text with this word…
    word: &'static str,
    /// … this id is likelier.
    then: u32,
}

impl Model for Echo {
    fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size()
    }

    fn context_length(&self) -> usize {
        CONTEXT
    }

    fn eos_ids(&self) -> &[u32] {
        &[]
    }

    fn forward(&mut self, batch: &Batch, take: &mut TakeRows<'_>) -> ernie_serve::Result<()> {
        for (index, chunk) in batch.chunks.iter().enumerate() {
            let block = self.block_tokens();
            let place = |position: usize| (chunk.blocks[position / block], position % block);
            let mut ids: Vec<u32> = (0..chunk.past).map(|position| self.read[&place(position)]).collect();
            for row in chunk.rows.clone() {
                self.read.insert(place(ids.len()), batch.ids[row]);
                ids.push(batch.ids[row]);
                if chunk.wanted.contains(&row) {
                    let mut logits = vec![0.0; self.vocab_size()];
                    let text = self.tokenizer.decode(&ids);
                    let question = text.rsplit("\n\n").next().unwrap_or_default();
                    if !self.word.is_empty() && question.contains(self.word) {
                        logits[self.then as usize] = 1.0;
                    }
                    take(vec![Row { chunk: index, row, numbers: &mut logits }]);
                }
            }
        }
        Ok(())
    }
}

fn engine(word: &'static str, then: u32) -> Engine {
    let model = Echo { tokenizer: tokenizer(), read: HashMap::new(), word, then };
    Engine::with_model(Box::new(model), EngineOptions::default()).unwrap()
}

fn close(got: f64, want: f64) {
    assert!((got - want).abs() < 1e-6 * want.abs(), "{got} for {want}");
}

#[test]
fn a_model_that_knows_nothing_has_the_vocabulary_as_its_perplexity() {
    let (tokenizer, mut engine) = (tokenizer(), engine("", 0));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.txt");
    let text = "the cat sat on the mat. 猫 😀 and so on and on\n".repeat(20);
    std::fs::write(&path, &text).unwrap();
    let mut subject = Subject { engine: &mut engine, tokenizer: &tokenizer, classifier: None };
    let options = EvalOptions { data: Some(path), ..EvalOptions::default() };
    let mut last = (0, 0);
    let task = tasks::find("perplexity").unwrap();
    let report = task.run(&mut subject, &options, &mut |done, total| last = (done, total)).unwrap();
    let vocab_size = tokenizer.vocab_size() as f64;
    let tokens = tokenizer.encode(&text).unwrap().len();
    close(report.value("token_perplexity").unwrap(), vocab_size);
    close(report.value("bits_per_byte").unwrap(), tokens as f64 * vocab_size.log2() / text.len() as f64);
    let words = text.split_whitespace().count() as f64;
    close(report.value("word_perplexity").unwrap(), (tokens as f64 * vocab_size.ln() / words).exp());
    assert!(report.value("bits_per_byte_stderr").unwrap() < 1e-9, "every window is as hard as every other");
    assert_eq!(report.settings["tokens"], tokens);
    assert_eq!(last.0, last.1);
    assert!(last.0 == tokens.div_ceil(CONTEXT));
}

#[test]
fn perplexity_refuses_what_cannot_be() {
    let (tokenizer, mut engine) = (tokenizer(), engine("", 0));
    let mut subject = Subject { engine: &mut engine, tokenizer: &tokenizer, classifier: None };
    let mut check = |options: EvalOptions, words: &str| {
        let error = tasks::find("perplexity").unwrap().run(&mut subject, &options, &mut |_, _| ()).unwrap_err();
        assert!(error.is_input() && error.to_string().contains(words), "{error}");
    };
    check(EvalOptions { max_length: Some(CONTEXT + 1), ..EvalOptions::default() }, "max_length");
    check(EvalOptions { max_length: Some(0), ..EvalOptions::default() }, "max_length");
    check(EvalOptions { limit: Some(0), ..EvalOptions::default() }, "limit");
    check(EvalOptions { shots: 1, ..EvalOptions::default() }, "shots");
    check(EvalOptions { data: Some("/nowhere/at/all.txt".into()), ..EvalOptions::default() }, "/nowhere");
}

#[test]
fn sst2_counts_the_likelier_answer() {
    let tokenizer = tokenizer();
    let [positive, negative] = [" positive", " negative"].map(|word| tokenizer.encode(word).unwrap());
    assert_eq!((positive.len(), negative.len()), (1, 1), "equally long answers, so that only the word decides");
    let positive = positive[0];
    let mut engine = engine("good", positive);
    let mut subject = Subject { engine: &mut engine, tokenizer: &tokenizer, classifier: None };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("dev.tsv"),
        "sentence\tlabel\na good film\t1\na bad film\t0\nalso good\t1\ngood grief\t0\n",
    )
    .unwrap();
    std::fs::write(folder.path().join("train.tsv"), "sentence\tlabel\nbad\t0\ngood\t1\n").unwrap();
    let task = tasks::find("sst2").unwrap();
    for shots in [0, 2] {
        let data = Some(folder.path().to_path_buf());
        let options = EvalOptions { data, shots, ..EvalOptions::default() };
        let report = task.run(&mut subject, &options, &mut |_, _| ()).unwrap();
        assert_eq!((report.n, report.value("acc")), (4, Some(0.75)), "{shots} shots");
        close(report.value("acc_stderr").unwrap(), 0.25);
        assert_eq!(report.settings["majority_share"], 0.5);
    }
    let mut check = |options: EvalOptions, words: &str| {
        let error = task.run(&mut subject, &options, &mut |_, _| ()).unwrap_err();
        assert!(error.is_input() && error.to_string().contains(words), "{error}");
    };
    let data = Some(folder.path().join("dev.tsv"));
    check(EvalOptions::default(), "SST-2.zip");
    check(EvalOptions { data: data.clone(), shots: 3, ..EvalOptions::default() }, "at most 2");
    std::fs::remove_file(folder.path().join("train.tsv")).unwrap();
    check(EvalOptions { data, shots: 1, ..EvalOptions::default() }, "train.tsv");
}

#[test]
fn pairs_follow_the_harness() {
    let (tokenizer, mut engine) = (tokenizer(), engine("", 0));
    let subject = Subject { engine: &mut engine, tokenizer: &tokenizer, classifier: None };
    let encode = |text: &str| tokenizer.encode(text).unwrap();
    let pair = subject.encode_pair("the cat ", "sat").unwrap();
    assert_eq!(pair.context, encode("the cat"));
    assert_eq!([pair.context, pair.continuation].concat(), encode("the cat sat"));
    for context in ["", "  \n"] {
        let pair = subject.encode_pair(context, "sat").unwrap();
        assert_eq!(
            (pair.context, pair.continuation),
            (vec![tokenizer.bos().unwrap()], encode(&format!("{context}sat")))
        );
    }
    let pair = subject.encode_pair("</s>", "</s>").unwrap();
    assert!(pair.context.iter().chain(&pair.continuation).all(|&id| !tokenizer.is_control(id)));
    assert!(subject.encode_pair("x", "").unwrap_err().is_input());
}

#[test]
fn scores_stand_in_order_and_failures_leave_the_engine_idle() {
    let (tokenizer, mut engine) = (tokenizer(), engine("", 0));
    let mut subject = Subject { engine: &mut engine, tokenizer: &tokenizer, classifier: None };
    let pairs: Vec<(String, String)> =
        (0..60).map(|i| ("the cat".to_string(), format!(" sat{}", " on".repeat(i % 7)))).collect();
    let scores = subject.score(&pairs, &mut |_| ()).unwrap();
    for (score, (context, continuation)) in scores.iter().zip(&pairs) {
        let tokens = subject.encode_pair(context, continuation).unwrap().continuation.len();
        assert_eq!(score.tokens, tokens);
        close(score.logprob, -(tokens as f64) * (tokenizer.vocab_size() as f64).ln());
        assert!(!score.greedy);
    }
    let long = [("a".to_string(), " sat".to_string()), ("a".to_string(), "sat ".repeat(200))];
    assert!(subject.score(&long, &mut |_| ()).unwrap_err().is_input());
    while !engine.is_idle() {
        engine.step().unwrap();
    }
    assert_eq!(engine.num_running(), 0);
}

/// The published files themselves, where they are.
#[test]
fn sst2_runs_on_the_published_files() {
    let Some(data) = std::env::var_os("ERNIE_TEST_DATA") else {
        // Past the capture of the test harness, so that it is seen.
        writeln!(std::io::stderr(), "skipped: SST-2 as published (set ERNIE_TEST_DATA)").unwrap();
        return;
    };
    let (tokenizer, mut engine) = (tokenizer(), engine("", 0));
    let mut subject = Subject { engine: &mut engine, tokenizer: &tokenizer, classifier: None };
    let data = Some(std::path::Path::new(&data).join("glue/SST-2"));
    let options = EvalOptions { data, shots: 1, limit: Some(40), ..EvalOptions::default() };
    let report = tasks::find("sst2").unwrap().run(&mut subject, &options, &mut |_, _| ()).unwrap();
    assert_eq!(report.n, 40);
    assert!(report.settings["train"].as_str().unwrap().ends_with("train.tsv.gz"));
}
