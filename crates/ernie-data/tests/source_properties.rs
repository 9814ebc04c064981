//! Random damage to data files: whatever the bytes, reading ends, in documents or in one line of an error.
//!
//! `ERNIE_TEST_CASES` sets the number of cases for each kind of file (2,000 by default).

use std::path::Path;

use ernie_data::ErrorKind;
use ernie_data::source::{Documents, Source, SourceConfig};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

mod common;
use common::{cases, gzip, parquet_file, zstd_bytes};

/// What is done to a file.
#[derive(Debug, Clone)]
enum Damage {
    Cut(f64),
    Flip(Vec<(f64, u8)>),
    Overwrite(f64, Vec<u8>),
    Insert(f64, Vec<u8>),
    Remove(f64, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let place = || 0.0..1.0f64;
    prop_oneof![
        place().prop_map(Damage::Cut),
        prop::collection::vec((place(), 1..=255u8), 1..6).prop_map(Damage::Flip),
        (place(), prop::collection::vec(any::<u8>(), 1..12)).prop_map(|(at, bytes)| Damage::Overwrite(at, bytes)),
        (place(), prop::collection::vec(any::<u8>(), 1..12)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (place(), 1..40usize).prop_map(|(at, count)| Damage::Remove(at, count)),
        // Parquet keeps its figures at the end: aim there too.
        prop::collection::vec((0.6..1.0f64, 1..=255u8), 1..4).prop_map(Damage::Flip),
    ]
}

fn apply(bytes: &[u8], damage: &Damage) -> Vec<u8> {
    let at = |place: f64| ((bytes.len() as f64 * place) as usize).min(bytes.len() - 1);
    let mut out = bytes.to_vec();
    match damage {
        Damage::Cut(place) => out.truncate(at(*place)),
        Damage::Flip(flips) => flips.iter().for_each(|&(place, mask)| out[at(place)] ^= mask),
        Damage::Overwrite(place, with) => {
            for (slot, &byte) in out[at(*place)..].iter_mut().zip(with) {
                *slot = byte;
            }
        }
        Damage::Insert(place, with) => drop(out.splice(at(*place)..at(*place), with.iter().copied())),
        Damage::Remove(place, count) => drop(out.drain(at(*place)..(at(*place) + count).min(bytes.len()))),
    }
    out
}

/// Reads to the end or the first error; the total text stays within what the file can justify.
fn read(path: &Path, config: &SourceConfig) -> Result<(), TestCaseError> {
    let outcome = Source::open(config, Path::new("/")).and_then(|mut source| {
        let mut total = 0;
        while let Some(piece) = source.next()? {
            total += piece.text.len();
        }
        Ok(total)
    });
    match outcome {
        Ok(total) => {
            let size = std::fs::metadata(path).map_or(0, |m| m.len() as usize);
            prop_assert!(total <= (64 << 20) + 4096 * size, "{total} bytes of text from {size}");
        }
        Err(error) => {
            let message = error.to_string();
            prop_assert_eq!(error.kind(), ErrorKind::Input, "{}", message);
            prop_assert!(!message.contains('\n'), "{}", message);
            prop_assert!(message.contains("damaged."), "{}", message);
        }
    }
    Ok(())
}

fn check(suffix: &str, files: &[Vec<u8>], config: &SourceConfig) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(format!("damaged.{suffix}"));
    let config = SourceConfig { paths: vec![path.to_str().unwrap().to_owned()], ..config.clone() };
    let config_of_cases = Config { cases: cases(2000), failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config_of_cases, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let strategy = (0..files.len(), prop::collection::vec(damage(), 1..4));
    runner
        .run(&strategy, |(file, damages)| {
            let mut bytes = files[file].clone();
            for damage in &damages {
                if !bytes.is_empty() {
                    bytes = apply(&bytes, damage);
                }
            }
            std::fs::write(&path, bytes).unwrap();
            read(&path, &config)
        })
        .unwrap();
}

fn lines() -> Vec<u8> {
    let mut text = String::new();
    for i in 0..40 {
        text += &format!(
            "{{\"id\": {i}, \"text\": \"line {i} \\u00e9 漢 {}\", \"tags\": [1, {{\"a\": null}}]}}\n",
            "ab ".repeat(i)
        );
    }
    text.into_bytes()
}

#[test]
fn damaged_jsonl() {
    check("jsonl", &[lines()], &SourceConfig::default());
}

#[test]
fn damaged_gzip() {
    let mut two = gzip(&lines());
    two.extend(gzip(&lines()));
    check("jsonl.gz", &[gzip(&lines()), two], &SourceConfig::default());
    check("txt.gz", &[gzip(&lines())], &SourceConfig { documents: Documents::Line, ..SourceConfig::default() });
}

#[test]
fn damaged_zstd() {
    let mut two = zstd_bytes(&lines());
    two.extend(zstd_bytes(&lines()));
    check("jsonl.zst", &[zstd_bytes(&lines()), two], &SourceConfig::default());
    check(
        "txt.zst",
        &[zstd_bytes(&lines())],
        &SourceConfig { documents: Documents::Paragraph, ..SourceConfig::default() },
    );
}

#[test]
fn damaged_parquet() {
    // A panic inside the Parquet library is caught at our door; its message on stderr would only drown the test's.
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !ernie_data::source::panics_are_caught() {
            usual(panic);
        }
    }));
    let rows: Vec<Option<String>> =
        (0..70).map(|i| (i % 7 != 3).then(|| format!("row {}", "xy".repeat(i % 9)))).collect();
    let mut files = Vec::new();
    for codec in ["none", "snappy", "gzip", "zstd"] {
        for dictionary in [false, true] {
            files.push(parquet_file(&rows, codec, dictionary, 50));
        }
    }
    let outcome = std::panic::catch_unwind(|| check("parquet", &files, &SourceConfig::default()));
    let _ = std::panic::take_hook();
    if let Err(failure) = outcome {
        panic!("{}", failure.downcast_ref::<String>().map_or("not a message", String::as_str));
    }
    if let Some(peak) = common::peak_rss_kib() {
        assert!(peak < 2 << 20, "peak memory {peak} KiB");
    }
}
