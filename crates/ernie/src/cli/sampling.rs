//! How tokens are chosen, as it is typed for `generate` and `chat`.

use ernie_serve::{engine::Sampling, session::Options};

/// Options of every command that writes text.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SamplingOptions {
    /// Tokens to write at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) max_tokens: usize,
    /// 0 always takes the likeliest token; higher is more varied
    #[arg(long, value_name = "X", default_value_t = 0.8, allow_negative_numbers = true)]
    temperature: f32,
    /// Keep the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 0.95, allow_negative_numbers = true)]
    top_p: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Drop tokens less likely than this share of the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    min_p: f32,
    /// Make tokens that stand in the text already less likely; 1 is off
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    repetition_penalty: f32,
    /// End the answer before this text; may be given many times
    #[arg(long, value_name = "S", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Go on when the model says that it is done
    #[arg(long)]
    ignore_eos: bool,
    /// Seeds the choice of tokens, and the weights of a preset
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
}

impl SamplingOptions {
    /// The options of the session, without a way to cancel.
    pub(crate) fn get(&self) -> Options {
        Options {
            max_tokens: self.max_tokens,
            sampling: Sampling {
                temperature: self.temperature,
                top_p: self.top_p,
                top_k: self.top_k,
                min_p: self.min_p,
                repetition_penalty: self.repetition_penalty,
                seed: Some(self.seed),
                ..Sampling::default()
            },
            stop: self.stop.clone(),
            grammar: None,
            ignore_eos: self.ignore_eos,
            cancel: None,
        }
    }
}
