//! Packing and the loader: nothing lost, nothing doubled, nothing leaking, and stopped anywhere equals not stopped.

use std::collections::BTreeMap;

use ernie_data::loader::MEMORY_BYTES;
use ernie_data::packing::{Builder, IGNORED, TokenStore};
use ernie_data::sampler::SamplerKind;
use ernie_data::source::{Documents, SourceConfig};
use ernie_data::{Batch, ErrorKind, HeldOut, Loader, LoaderConfig, LoaderState, Marks, Reading};
use proptest::prelude::*;

mod common;

const MARKS: Marks = Marks { start: 1, end: 2 };

/// One id a byte, out of the way of the marks.
fn bytes_to_ids(text: &str) -> Vec<u32> {
    text.bytes().map(|b| u32::from(b) + 10).collect()
}

fn store(documents: &[Vec<u32>], seq_len: usize, cap_bytes: u64, dir: &std::path::Path) -> TokenStore {
    let mut builder = Builder::new(seq_len, MARKS, cap_bytes, Some(dir)).unwrap();
    for document in documents {
        builder.document(document, document.len() as u64).unwrap();
    }
    builder.finish().unwrap()
}

fn all_rows(store: &mut TokenStore) -> Batch {
    let mut batch = Batch::new(store.seq_len());
    for row in 0..store.rows() {
        store.append_row(0, row, &mut batch).unwrap();
    }
    batch
}

/// The laws of a packed batch of whole documents in order.
fn check_laws(documents: &[Vec<u32>], batch: &Batch) -> Result<(), TestCaseError> {
    let seq_len = batch.seq_len;
    prop_assert_eq!(batch.ids.len(), batch.rows * seq_len);
    prop_assert_eq!(batch.targets.len(), batch.ids.len());
    prop_assert_eq!(batch.lengths.iter().sum::<usize>(), batch.ids.len());
    // Every id of every document is a target once, in order, and so is every end: nothing lost, nothing doubled.
    let targets: Vec<i64> = batch.targets.iter().copied().filter(|&t| t != IGNORED).collect();
    let expected: Vec<i64> =
        documents.iter().flat_map(|d| d.iter().chain([&MARKS.end])).map(|&id| i64::from(id)).collect();
    prop_assert_eq!(targets, expected);
    // Each stretch belongs to one document: its targets are its own inputs moved by one, and it crosses no row.
    let stream: Vec<(usize, usize)> =
        documents.iter().enumerate().flat_map(|(d, ids)| (0..=ids.len()).map(move |i| (d, i))).collect();
    let mut at = 0;
    for &length in &batch.lengths {
        prop_assert!(length > 0 && at / seq_len == (at + length - 1) / seq_len);
        for p in at..at + length {
            let Some(&(d, i)) = stream.get(p) else {
                prop_assert_eq!((batch.ids[p], batch.targets[p]), (MARKS.end, IGNORED));
                continue;
            };
            prop_assert_eq!(d, stream[at].0, "a stretch over two documents");
            prop_assert_eq!(batch.ids[p], if i == 0 { MARKS.start } else { documents[d][i - 1] });
            prop_assert_eq!(batch.targets[p], i64::from(*documents[d].get(i).unwrap_or(&MARKS.end)));
        }
        at += length;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: common::cases(500), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_token_is_lost_doubled_or_leaked(
        documents in prop::collection::vec(prop::collection::vec(3..1000u32, 0..60), 1..20),
        seq_len in 1..40usize,
        cap_bytes in prop_oneof![Just(u64::MAX), 0..400u64],
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut packed = store(&documents, seq_len, cap_bytes, dir.path());
        let positions: u64 = documents.iter().map(|d| d.len() as u64 + 1).sum();
        prop_assert_eq!(packed.targets(), positions);
        prop_assert_eq!(u64::from(packed.rows()), positions.div_ceil(seq_len as u64));
        prop_assert_eq!(packed.spilled(), positions > cap_bytes / 4);
        let batch = all_rows(&mut packed);
        check_laws(&documents, &batch)?;
        let in_memory = store(&documents, seq_len, u64::MAX, dir.path());
        prop_assert_eq!(in_memory.sha256(), packed.sha256());
    }

    #[test]
    fn stopped_at_any_step_equals_not_stopped(
        texts in prop::collection::vec(prop::collection::vec("[a-z]{1,30}", 1..12), 1..4),
        seq_len in 1..24usize,
        rows in 1..9usize,
        seed in any::<u64>(),
        stop in 0..12usize,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut config = LoaderConfig::new(&[], dir.path());
        config.sources.clear();
        for (i, lines) in texts.iter().enumerate() {
            std::fs::write(dir.path().join(format!("{i}.txt")), lines.join("\n")).unwrap();
            let name = format!("{i}.txt");
            let source = SourceConfig { documents: Documents::Line, ..SourceConfig::new(&[&name]) };
            config.sources.push((source, 1.0 + i as f64));
        }
        let open = || Loader::open(&config, Reading::Text(&bytes_to_ids), MARKS, seq_len, rows, seed).unwrap();
        let mut whole = open();
        for _ in 0..stop {
            whole.next().unwrap();
        }
        let saved = serde_json::to_string(&whole.state()).unwrap();
        let mut resumed = open();
        resumed.restore(&serde_json::from_str::<LoaderState>(&saved).unwrap()).unwrap();
        for _ in 0..6 {
            let batch = whole.next().unwrap();
            prop_assert_eq!(batch.rows, rows);
            prop_assert_eq!(batch.lengths.iter().sum::<usize>(), rows * seq_len);
            prop_assert_eq!(&batch, &resumed.next().unwrap());
        }
        prop_assert_eq!(whole.state(), resumed.state());
    }
}

fn write(dir: &tempfile::TempDir, name: &str, text: &str) {
    std::fs::write(dir.path().join(name), text).unwrap();
}

fn open(dir: &tempfile::TempDir, seq_len: usize, rows: usize) -> ernie_data::Result<Loader> {
    let mut config = LoaderConfig::new(&["*.txt"], dir.path());
    config.sources[0].0.documents = Documents::Line;
    Loader::open(&config, Reading::Text(&bytes_to_ids), MARKS, seq_len, rows, 7)
}

#[test]
fn an_epoch_is_every_row_once() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "a.txt", &(0..100).map(|i| format!("line number {i}\n")).collect::<String>());
    let mut loader = open(&dir, 16, 1).unwrap();
    for epoch in 0..3 {
        assert_eq!(loader.epoch(), epoch);
        let mut seen = BTreeMap::new();
        let mut targets = 0;
        for _ in 0..loader.rows_per_epoch() {
            let batch = loader.next().unwrap();
            targets += batch.unmasked() as u64;
            *seen.entry(batch.places[0].row).or_insert(0) += 1;
        }
        assert_eq!(seen.len() as u64, loader.rows_per_epoch());
        assert_eq!(targets, loader.targets());
    }
}

#[test]
fn one_example_and_a_batch_larger_than_the_data_work() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "a.txt", "hi");
    let mut loader = open(&dir, 8, 5).unwrap();
    assert_eq!((loader.rows_per_epoch(), loader.targets(), loader.text_bytes()), (1, 3, 2));
    let batch = loader.next().unwrap();
    assert_eq!(batch.ids[..8], [1, 114, 115, 2, 2, 2, 2, 2]);
    assert_eq!(batch.targets[..8], [114, 115, 2, -100, -100, -100, -100, -100]);
    assert_eq!(batch.lengths[..2], [3, 5]);
    assert_eq!(batch.positions()[..8], [0, 1, 2, 0, 1, 2, 3, 4]);
    assert_eq!((batch.rows, batch.unmasked()), (5, 15));
    loader.record(&batch.places, &[1.0; 5]);
}

#[test]
fn empty_data_and_bad_settings_are_input_errors() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "a.txt", "\n \n");
    write(&dir, "b.txt", "");
    let fails = |result: ernie_data::Result<Loader>, part: &str| {
        let error = result.err().expect(part);
        assert!(error.kind() == ErrorKind::Input && error.to_string().contains(part), "{error}");
    };
    fails(open(&dir, 8, 1), "the data set is empty");
    write(&dir, "a.txt", "text");
    fails(open(&dir, 0, 1), "data.seq_len");
    fails(open(&dir, 8, 0), "batch rows");
    let mut config = LoaderConfig::new(&["*.txt"], dir.path());
    config.sampler = SamplerKind::Priority;
    fails(Loader::open(&config, Reading::Text(&bytes_to_ids), MARKS, 8, 1, 0), "not built yet");
    let mut config = LoaderConfig::new(&["*.txt"], dir.path());
    config.memory_bytes = 8;
    fails(Loader::open(&config, Reading::Text(&bytes_to_ids), MARKS, 8, 1, 0), "data.memory_bytes");
    config.spill_dir = Some(dir.path().to_owned());
    assert!(Loader::open(&config, Reading::Text(&bytes_to_ids), MARKS, 8, 1, 0).is_ok());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "the spill file has no name to leave behind");
    config.spill_dir = Some(dir.path().join("missing"));
    let error = Loader::open(&config, Reading::Text(&bytes_to_ids), MARKS, 8, 1, 0).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
}

#[test]
fn other_data_under_a_resume_is_an_error_that_says_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "a.txt", "one\ntwo\nthree\n");
    let mut first = open(&dir, 4, 2).unwrap();
    first.next().unwrap();
    let state = first.state();
    open(&dir, 4, 2).unwrap().restore(&state).unwrap();
    open(&dir, 4, 3).unwrap().restore(&state).expect("the position is counted in rows, so other batches may follow");

    let fails = |loader: ernie_data::Result<Loader>, state: &LoaderState, part: &str| {
        let mut loader = loader.unwrap();
        let before = loader.state();
        let error = loader.restore(state).expect_err(part);
        assert!(error.is_input() && error.to_string().contains(part), "{error}");
        assert_eq!(loader.state(), before, "a refused state changes nothing");
    };
    fails(open(&dir, 5, 2), &state, "row length was 4");
    let other_ids = |text: &str| text.chars().map(|c| c as u32 + 20).collect::<Vec<_>>();
    let mut config = LoaderConfig::new(&["*.txt"], dir.path());
    config.sources[0].0.documents = Documents::Line;
    fails(Loader::open(&config, Reading::Text(&other_ids), MARKS, 4, 2, 7), &state, "the tokenizer changed");
    fails(Loader::open(&config, Reading::Text(&bytes_to_ids), MARKS, 4, 2, 8), &state, "the data seed was 7");
    let mut bent = state.clone();
    bent.samplers[0].index = 99;
    fails(open(&dir, 4, 2), &bent, "row 99");
    bent = state.clone();
    bent.drawn.push(1);
    fails(open(&dir, 4, 2), &bent, "number of data sources");
    let moved = tempfile::tempdir().unwrap();
    std::fs::write(moved.path().join("b.txt"), common::gzip(b"one\ntwo\nthree\n")).unwrap();
    open(&moved, 4, 2).unwrap().restore(&state).expect("the same tokens from another place are the same data");
    write(&dir, "a.txt", "one\ntwo\nthrei\n");
    fails(open(&dir, 4, 2), &state, "`a.txt` has other content");
    write(&dir, "a.txt", "one\ntwo\nthree\nfour\n");
    fails(open(&dir, 4, 2), &state, "`a.txt` had 14 bytes and has 19");
    write(&dir, "b.txt", "more");
    fails(open(&dir, 4, 2), &state, "number of data files was 1");
}

#[test]
fn held_out_text_is_covered_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let text = "Ünïcödé line\nsecond\n";
    write(&dir, "a.txt", text);
    for documents in [Documents::File, Documents::Line] {
        let source = SourceConfig { documents, ..SourceConfig::new(&["a.txt"]) };
        let open = |max| HeldOut::open(&source, dir.path(), Reading::Text(&bytes_to_ids), MARKS, 5, 2, max).unwrap();
        let mut pass = open(MEMORY_BYTES);
        assert_eq!(pass.text_bytes(), text.len() as u64, "{documents:?}");
        for _ in 0..2 {
            let (mut targets, mut rows) = (0, 0);
            while let Some(batch) = pass.next().unwrap() {
                targets += batch.unmasked() as u64;
                rows += batch.rows as u32;
            }
            assert_eq!((targets, rows), (pass.targets(), pass.rows()));
            pass.rewind();
        }
        // A model that knows nothing about bytes pays 8 bits for each target.
        let nll = pass.targets() as f64 * 256f64.ln();
        assert!((pass.bits_per_byte(nll) - 8.0 * pass.targets() as f64 / text.len() as f64).abs() < 1e-9);
        let ends = pass.documents();
        assert_eq!(ends, if documents == Documents::File { 1 } else { 2 });
        if documents == Documents::Line {
            assert_eq!(open(1).text_bytes(), "Ünïcödé line\n".len() as u64);
            assert_eq!(pass.targets(), text.len() as u64, "an end for each line break, so 8 bits a byte exactly");
        }
    }
}

#[test]
fn a_document_cut_off_has_no_end_to_predict() {
    let mut builder = Builder::new(4, MARKS, u64::MAX, None).unwrap();
    builder.piece(&[7, 8], 2, false).unwrap();
    builder.piece(&[9], 1, false).unwrap();
    let mut store = builder.finish().unwrap();
    assert_eq!((store.targets(), store.documents(), store.text_bytes()), (3, 1, 3));
    let batch = all_rows(&mut store);
    assert_eq!((batch.ids, batch.targets), (vec![1, 7, 8, 9], vec![7, 8, 9, IGNORED]));
}

#[test]
fn the_bundled_corpus_loads() {
    let train = LoaderConfig::new(&["bundled:train"], ".");
    let mut loader = Loader::open(&train, Reading::Text(&bytes_to_ids), Marks::eos(0), 128, 4, 1).unwrap();
    let held_out = HeldOut::open(
        &SourceConfig::new(&["bundled:held_out"]),
        ".",
        Reading::Text(&bytes_to_ids),
        Marks::eos(0),
        128,
        4,
        u64::MAX,
    )
    .unwrap();
    assert_eq!(loader.text_bytes() + held_out.text_bytes(), 1_483_686);
    assert_eq!((loader.documents(), held_out.documents()), (1, 1));
    assert_eq!(loader.next().unwrap().ids.len(), 512);
    assert_eq!(loader.largest_id(), 10 + 0xe2);
}
