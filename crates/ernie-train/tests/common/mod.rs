//! Tiny models and data for whole runs that take milliseconds.

#![allow(dead_code, unreachable_pub)]

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use ernie_train::{Finished, Observer, Options, Recipe, Result, StepReport, Trainer};

/// A folder with data, model shapes and a recipe, removed at the end.
pub struct Room {
    pub folder: tempfile::TempDir,
}

const DENSE: &str = r#"{"architectures":["Ernie4_5ForCausalLM"],"model_type":"ernie4_5","hidden_act":"silu","hidden_size":16,
"intermediate_size":24,"num_hidden_layers":2,"num_attention_heads":2,"num_key_value_heads":1,"head_dim":8,
"max_position_embeddings":64,"rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":true,"use_bias":false,
"initializer_range":0.05,"vocab_size":300,"bos_token_id":1,"eos_token_id":2,"pad_token_id":0}"#;

const MOE: &str = r#"{"architectures":["Ernie4_5_MoeForCausalLM"],"model_type":"ernie4_5_moe","hidden_act":"silu","hidden_size":16,
"intermediate_size":24,"num_hidden_layers":3,"num_attention_heads":2,"num_key_value_heads":1,"head_dim":8,
"max_position_embeddings":64,"rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":false,"use_bias":false,
"initializer_range":0.05,"vocab_size":300,"bos_token_id":1,"eos_token_id":2,"pad_token_id":0,
"moe_num_experts":4,"moe_k":2,"moe_intermediate_size":8,"moe_num_shared_experts":1,"moe_layer_start_index":1,
"moe_layer_end_index":2,"moe_layer_interval":1,"moe_use_aux_free":true}"#;

const RECIPE: &str = r#"
seed = 3
[model]
config = "KIND.json"
[data]
train = ["train.txt"]
held_out = ["held_out.txt"]
tokenizer = { train = 300 }
documents = "line"
[batch]
rows = 2
seq_len = 16
grad_accum = 2
[objective]
router_balance = 0.01
router_z = 0.001
[optimizer]
lr = 0.01
[schedule]
steps = 8
warmup = 2
[checkpoint]
every = 3
keep = 0
[evaluation]
every = 4
batches = 2
"#;

impl Room {
    /// A room with the first `bytes` of the held-out text to train on.
    pub fn new(bytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = ernie_data::bundled::held_out_text();
        let cut = |from: usize, to: usize| {
            let start = (from..).find(|&at| text.is_char_boundary(at)).unwrap();
            let end = (to..).find(|&at| text.is_char_boundary(at)).unwrap();
            text[start..end].to_owned()
        };
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("train.txt", &cut(0, bytes));
        write("held_out.txt", &cut(60_000, 60_800));
        write("dense.json", DENSE);
        write("moe.json", MOE);
        for kind in ["dense", "moe"] {
            let recipe = RECIPE.replace("KIND", kind);
            write(&format!("{kind}.toml"), &recipe);
            write(&format!("{kind}-bf16.toml"), &format!("{recipe}[precision]\ncompute = \"bf16\"\n"));
            let recipe = recipe.replace("[data]", "mtp_layers = 2\n[data]");
            write(&format!("{kind}-mtp.toml"), &recipe);
            write(&format!("{kind}-mtp-bf16.toml"), &format!("{recipe}[precision]\ncompute = \"bf16\"\n"));
        }
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The recipe `kind` with `overrides`.
    pub fn recipe(&self, kind: &str, overrides: &[&str]) -> Result<Recipe> {
        let overrides: Vec<String> = overrides.iter().map(|&item| item.to_owned()).collect();
        Recipe::load(&self.path(&format!("{kind}.toml")), &overrides, self.folder.path())
    }

    pub fn trainer(&self, kind: &str, out: &str, resume: bool, overrides: &[&str]) -> Result<Trainer> {
        let resolve = |_: &str| None;
        let options =
            Options { out: self.path(out), resume, commit: "0000000".into(), resolve: &resolve, asked: &|_, _| () };
        Trainer::prepare(self.recipe(kind, overrides)?, &options)
    }

    /// Prepares and runs to the end.
    pub fn run(&self, kind: &str, out: &str, resume: bool, overrides: &[&str]) -> Result<Finished> {
        self.trainer(kind, out, resume, overrides)?.run(&mut [], &AtomicBool::new(false))
    }

    /// Prepares, runs, and is asked to stop while step `at` is being reported.
    pub fn stop_at(&self, kind: &str, out: &str, resume: bool, at: u64) -> Result<Finished> {
        struct Stop<'a>(&'a AtomicBool, u64);
        impl Observer for Stop<'_> {
            fn step(&mut self, report: &StepReport) -> Result<()> {
                if report.step >= self.1 {
                    self.0.store(true, std::sync::atomic::Ordering::SeqCst);
                }
                Ok(())
            }
        }
        let stop = AtomicBool::new(at == 0);
        self.trainer(kind, out, resume, &[])?.run(&mut [&mut Stop(&stop, at)], &stop)
    }
}

/// Every file of a checkpoint with its bytes, but for the one that holds times of nothing.
pub fn files(checkpoint: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![checkpoint.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(checkpoint).unwrap().to_owned();
                found.push((name, std::fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// Copies a folder with all that is in it.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// Asserts that two checkpoints are the same, byte for byte.
pub fn assert_same(a: &Path, b: &Path) {
    let (a_files, b_files) = (files(a), files(b));
    let names = |files: &[(PathBuf, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&a_files), names(&b_files));
    for ((name, a_bytes), (_, b_bytes)) in a_files.iter().zip(&b_files) {
        assert!(a_bytes == b_bytes, "{} differs between {} and {}", name.display(), a.display(), b.display());
    }
}
