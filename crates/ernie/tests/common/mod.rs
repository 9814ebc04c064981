//! What the tests of the program share: the binary in an empty folder, tiny models, JSON of its answers.
// Each file of tests is a program of its own and uses a part of this.
#![allow(dead_code, unreachable_pub)]

pub mod serving;

use assert_cmd::Command;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// The program, with nothing of the machine's settings showing through.
pub fn ernie(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ernie"));
    command.current_dir(folder).timeout(std::time::Duration::from_secs(120));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("HF_") || name.starts_with("ERNIE_") || name.starts_with("XDG_") {
            command.env_remove(name);
        }
    }
    command.env("HOME", folder).env("HF_HOME", folder.join("hub")).env("NO_COLOR", "1");
    command
}

/// The program as [`ernie`] sets it up, started by a shell after a command such as `ulimit -n 64`.
pub fn ernie_after(before: &str, folder: &Path) -> std::process::Command {
    let program = ernie(folder);
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &format!("{before}; exec \"$0\" \"$@\"")]).arg(program.get_program()).current_dir(folder);
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// What one run of the program left.
pub struct Answer {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Answer {
    /// Standard output as one JSON document.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e} in {}", self.out))
    }
}

/// Runs the program.
pub fn run(folder: &Path, args: &[&str]) -> Answer {
    answer(ernie(folder).args(args))
}

/// Runs the program with text on standard input.
pub fn run_with_input(folder: &Path, args: &[&str], input: &str) -> Answer {
    answer(ernie(folder).args(args).write_stdin(input.to_owned()))
}

/// Runs a prepared command.
pub fn answer(command: &mut Command) -> Answer {
    let output = command.output().expect("the program starts");
    Answer {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).expect("standard output is UTF-8"),
        err: String::from_utf8(output.stderr).expect("standard error is UTF-8"),
    }
}

/// Runs the program and expects success.
pub fn good(folder: &Path, args: &[&str]) -> Answer {
    let answer = run(folder, args);
    assert_eq!(answer.code, 0, "ernie {args:?}: {}", answer.err);
    answer
}

/// Runs the program and expects `code`, one `error:` line and nothing on standard output.
pub fn bad(folder: &Path, args: &[&str], code: i32) -> Answer {
    let answer = run(folder, args);
    assert_eq!(answer.code, code, "ernie {args:?}: {}{}", answer.out, answer.err);
    assert_eq!(answer.out, "", "ernie {args:?}");
    let errors = answer.err.lines().filter(|l| l.starts_with("error: ")).count();
    assert_eq!(errors, 1, "ernie {args:?}: {}", answer.err);
    assert!(!answer.err.contains("panicked"), "ernie {args:?}: {}", answer.err);
    answer
}

/// A recorded tiny checkpoint of the family: `dense`, `moe`, `moe_untied` or `vl`. It has no tokenizer.
pub fn parity(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ernie-model/tests/parity").join(name)
}

/// The text that tiny runs train on.
pub const TEXT: &str = "The fox ran over the hill. The dog ran after the fox. \
    The hill was green and the fox was red. A dog is not a fox, and a hill is not a dog.\n";

/// A tiny MoE with room for a trained tokenizer.
pub const TINY_CONFIG: &str = r#"{
  "architectures": ["Ernie4_5_MoeForCausalLM"], "model_type": "ernie4_5_moe",
  "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
  "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
  "tie_word_embeddings": true, "use_bias": false, "hidden_act": "silu",
  "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "moe_num_shared_experts": 1,
  "moe_layer_start_index": 1, "moe_layer_end_index": 1, "moe_layer_interval": 1, "moe_use_aux_free": true
}"#;

/// A recipe over [`TEXT`] and [`TINY_CONFIG`] that takes seconds.
pub const TINY_RECIPE: &str = r#"
seed = 7
[model]
config = "config.json"
[data]
train = ["train.txt"]
held_out = ["held_out.txt"]
tokenizer = { train = 320 }
documents = "line"
[batch]
rows = 2
seq_len = 32
[optimizer]
lr = 0.01
[schedule]
steps = 6
warmup = 1
[checkpoint]
every = 2
[evaluation]
every = 3
"#;

/// Puts the tiny recipe and its files into `folder`.
pub fn write_tiny_recipe(folder: &Path) {
    fs::write(folder.join("config.json"), TINY_CONFIG).expect("config");
    fs::write(folder.join("train.txt"), TEXT.repeat(40)).expect("train");
    fs::write(folder.join("held_out.txt"), TEXT.repeat(3)).expect("held out");
    fs::write(folder.join("recipe.toml"), TINY_RECIPE).expect("recipe");
}

/// A recipe that trains an adapter in seconds.
const LORA_RECIPE: &str = r#"
[model]
weights = "BASE"
[data]
train = ["chats.jsonl"]
tokenizer = "BASE"
[batch]
rows = 2
seq_len = 64
[objective]
kind = "sft"
[adapter]
rank = 2
[optimizer]
lr = 0.02
[schedule]
steps = 6
warmup = 1
[precision]
compute = "bf16"
[evaluation]
every = 0
"#;

/// What it is trained on.
const CHATS: &str = r#"{"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "The fox."}]}
{"instruction": "Where?", "input": "", "output": "In the wood."}
"#;

/// Puts `lora.toml` and its data into `folder`: an adapter beside `base`.
pub fn write_lora_recipe(folder: &Path, base: &str) {
    fs::write(folder.join("lora.toml"), LORA_RECIPE.replace("BASE", base)).expect("a recipe");
    fs::write(folder.join("chats.jsonl"), CHATS).expect("data");
}

/// A run folder of the tiny recipe, trained once for all tests of a file.
pub fn tiny_run() -> PathBuf {
    static RUN: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    RUN.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        write_tiny_recipe(folder.path());
        good(folder.path(), &["train", "recipe.toml", "--out", "run", "--quiet"]);
        let run = folder.path().join("run");
        (folder, run)
    })
    .1
    .clone()
}
