//! `generate`: complete a prompt, or answer it.

use crate::{
    cli::{
        options::{Json, WeightsOption, parse_ids},
        sampling::SamplingOptions,
    },
    exit::Exit,
    failure::{Failure, Result},
    interrupt, machine,
    model::Model,
    printer::Printer,
};
use ernie_data::chat::Message;
use ernie_model::{CacheFormat, Decoder, PAGE};
use ernie_serve::{
    engine::{Engine, EngineOptions, FinishReason},
    session::{Answer, Session},
};
use serde_json::json;
use std::ops::ControlFlow;

/// Answer or complete a prompt
///
/// A prompt is put into the model's chat template as one user message. With --no-chat it is completed as it
/// stands, and control tokens written out in it are recognised. --ids needs no tokenizer and is never templated.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Example:\n  ernie generate runs/quickstart --no-chat --prompt 'Once upon a time' --max-tokens 100"
)]
pub(crate) struct Args {
    /// The model
    model: String,
    /// The prompt
    #[arg(long, value_name = "T", allow_hyphen_values = true, required_unless_present = "ids")]
    prompt: Option<String>,
    /// The prompt as token ids
    #[arg(long, value_name = "5,6,7", value_parser = parse_ids, conflicts_with_all = ["prompt", "no_chat", "system"])]
    ids: Option<std::vec::Vec<u32>>,
    /// Complete the prompt as it stands
    #[arg(long)]
    no_chat: bool,
    /// A system message before the prompt
    #[arg(long, value_name = "S", conflicts_with = "no_chat", allow_hyphen_values = true)]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingOptions,
    #[command(flatten)]
    weights: WeightsOption,
    #[command(flatten)]
    json: Json,
}

/// Runs the command.
pub(crate) fn run(args: &Args, printer: &Printer) -> Result<Exit> {
    let model = Model::find(&args.model)?;
    let what = args.ids.is_none().then_some("a prompt of text");
    let (loaded, tokenizer, template) = model.load_to_talk(what, &args.weights, args.sampling.seed, printer)?;
    let mut session = Session::new(engine(loaded.decoder, 1)?, tokenizer, template);
    let prompt = match (&args.ids, &args.prompt) {
        (Some(ids), _) => ids.clone(),
        (None, Some(prompt)) if args.no_chat => session.encode_raw(prompt)?,
        (None, prompt) => {
            let system = args.system.iter().map(|s| Message::new("system", s));
            let user = prompt.iter().map(|p| Message::new("user", p));
            session.encode_chat(&system.chain(user).collect::<Vec<_>>())?
        }
    };

    let mut options = args.sampling.get();
    options.cancel = Some(interrupt::flag());
    let guard = interrupt::graceful();
    let mut broken = None;
    let answer = session.generate_ids(prompt, &options, &mut |text| {
        if args.json.json {
            return ControlFlow::Continue(());
        }
        match printer.write(text.as_bytes()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(failure) => {
                broken = Some(failure);
                ControlFlow::Break(())
            }
        }
    })?;
    drop(guard);
    if let Some(failure) = broken {
        return Err(failure);
    }
    if args.json.json {
        printer.json(&json_of(&answer))?;
    } else {
        let end = match &answer.text {
            Some(_) => String::new(),
            None => answer.ids.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
        };
        printer.line(end)?;
        printer.say(printer.faint_talk(&summary(&answer)));
    }
    if answer.finish_reason == FinishReason::Cancelled {
        return Ok(Exit::Interrupted);
    }
    Ok(Exit::Done)
}

/// The fields of the contract.
fn json_of(answer: &Answer) -> serde_json::Value {
    json!({
        "ids": answer.ids,
        "text": answer.text,
        "finish_reason": answer.finish_reason.name(),
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "prefill_s": answer.prefill_s,
        "decode_s": answer.decode_s,
        "tokens_per_s": answer.tokens_per_s().unwrap_or(0.0),
    })
}

/// One line about an answer.
pub(crate) fn summary(answer: &Answer) -> String {
    let speed = answer.tokens_per_s().map_or_else(String::new, |speed| format!(", {speed:.1} tokens/s"));
    let why = match &answer.finish_reason {
        FinishReason::Stop => "",
        FinishReason::Length => ", cut at the limit",
        FinishReason::Cancelled => ", stopped",
        FinishReason::Error(_) => ", failed",
    };
    format!("{} tokens after a prompt of {}{speed}{why}", answer.completion_tokens, answer.prompt_tokens)
}

/// An engine for one user: as many requests at once as `max_running`.
pub(crate) fn engine(decoder: Decoder, max_running: usize) -> Result<Engine> {
    let cache_tokens = cache_tokens(&decoder);
    let options = EngineOptions { max_running, cache_tokens, ..EngineOptions::default() };
    Engine::new(decoder, options).map_err(Failure::from)
}

/// Positions that fit into four fifths of the memory that is free now; no limit where the system does not say.
pub(crate) fn cache_tokens(decoder: &Decoder) -> Option<usize> {
    let width = match decoder.cache_format() {
        CacheFormat::F32 => 4,
        CacheFormat::Bf16 | CacheFormat::Int8 => 2,
    };
    let position = decoder.config().kv_bytes_per_token(width).max(1);
    let tokens = machine::available_bytes()? / 5 * 4 / position;
    Some(usize::try_from(tokens).unwrap_or(usize::MAX).max(PAGE))
}
