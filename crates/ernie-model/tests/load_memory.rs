//! While a model is loaded, memory holds its weights in their final form and little more: never a second whole copy.
//!
//! A test program of its own, because memory is counted by process. Linux alone says how much of it is not mapped files.
#![cfg(target_os = "linux")]

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ernie_model::weights::{SaveAs, SaveTensor, save};
use ernie_model::{ModelConfig, ModelSource, WeightsAs, load};

const MIB: u64 = 1 << 20;

/// Bytes of this process's memory that belong to no file.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// The largest of [`anonymous`] while `f` runs.
fn peak_of<T>(f: impl FnOnce() -> T) -> (T, u64) {
    let (done, peak) = (AtomicBool::new(false), AtomicU64::new(anonymous()));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(anonymous(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let result = f();
        peak.fetch_max(anonymous(), Ordering::Relaxed);
        done.store(true, Ordering::Relaxed);
        (result, peak.load(Ordering::Relaxed))
    })
}

#[test]
fn loading_never_holds_a_second_copy() {
    let mut config = ModelConfig::preset("ernie-4.5-0.3b").unwrap();
    // One matrix that alone is twice the allowance.
    (config.vocab_size, config.num_hidden_layers) = (32 * 1024, 1);
    let values = |elements: usize| (0..elements).map(|i| (i * 37 % 255) as f32 / 255.0 - 0.5).collect::<Vec<f32>>();
    let specs = config.tensors();
    let tensors: Vec<SaveTensor<'_>> = specs
        .iter()
        .map(|spec| {
            let elements = spec.shape.iter().product();
            SaveTensor {
                name: spec.name.clone(),
                shape: spec.shape.clone(),
                values: Box::new(move || Ok(Cow::Owned(values(elements)))),
            }
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    save(&path, &config, &tensors, &[], SaveAs::F32).unwrap();

    for weights in [WeightsAs::Native, WeightsAs::Bf16, WeightsAs::Int8, WeightsAs::Int4] {
        let before = anonymous();
        let (loaded, peak) = peak_of(|| load(&ModelSource::Folder(path.clone()), weights).unwrap());
        let held = loaded.decoder.weight_bytes();
        let most = held + held / 10 + 64 * MIB;
        let took = peak.saturating_sub(before);
        assert!(took <= most, "{weights:?}: {} MiB for {} MiB of weights", took / MIB, held / MIB);
        assert!(took >= held / 2, "{weights:?}: {} MiB cannot hold {} MiB of weights", took / MIB, held / MIB);
    }
}
