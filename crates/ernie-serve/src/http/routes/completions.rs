//! `POST /v1/completions`: continuations of text or token ids, with `echo` and log-probabilities for evaluation.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::chat::{Shape, usage};
use crate::engine::{Request, Work};
use crate::http::answer::{self, Answer, Delta, Limits, Said, Tokens, Whole};
use crate::http::body::JsonBody;
use crate::http::error::{ApiError, ApiResult};
use crate::http::fields::kind;
use crate::http::guard::Deadline;
use crate::http::limits::MAX_TOP_LOGPROBS;
use crate::http::logprobs::{self, Position};
use crate::http::manner::{self, Manner};
use crate::http::params::{Params, token_ids};
use crate::http::sse::{self, Events, Speaker};
use crate::http::state::{App, Model};
use crate::http::thread::Update;

/// OpenAI's default.
const DEFAULT_MAX_TOKENS: usize = 16;

/// A prompt as it was sent.
#[derive(Debug, Clone)]
pub(super) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// The handler.
pub(super) async fn completions(
    State(app): State<Arc<App>>,
    Extension(deadline): Extension<Deadline>,
    body: JsonBody,
) -> ApiResult<Response> {
    let model = app.model()?;
    let mut fields = body.fields;
    let mut params = Params::take(&mut fields, &app, &model)?;
    params.logprobs = fields.count("logprobs", 0..=MAX_TOP_LOGPROBS)?;
    let echo = fields.bool("echo")?.unwrap_or(false);
    let least = if echo { 0 } else { 1 };
    let most = app.config.limits.output_tokens as u64;
    let max_tokens = fields.count("max_tokens", least..=most)?.unwrap_or(DEFAULT_MAX_TOKENS.min(most as usize));
    manner::refuse(&mut fields)?;
    let prompt = fields.need("prompt", "text, token ids, or a list of either")?;
    let prompts = prompts(prompt, "prompt", &model, app.config.limits.batch)?;

    let place = app.admit(prompts.len() * params.choices)?;
    let mut limits = Limits { deadline: deadline.0, phases: app.phases() };
    let encode = model.clone();
    let encoded = answer::aside(move || prompts.into_iter().map(|prompt| prompt.encode(&encode)).collect());
    let prompts: Vec<(String, Vec<u32>)> = limits.within(encoded).await??;
    for (_, ids) in &prompts {
        app.check_prompt(ids)?;
    }
    let scores = match params.logprobs.filter(|_| echo) {
        Some(top) => score(&model, params.asked.adapter, &prompts, top, &mut limits).await?,
        None => Vec::new(),
    };
    let stream = Shown {
        shape: Shape { id: app.name("cmpl-"), created: app.now(), model: params.asked.name.clone() },
        loaded: model.clone(),
        echoes: if echo { echoes(&prompts, scores, params.choices) } else { Vec::new() },
        offsets: vec![0; prompts.len() * params.choices],
        include_usage: params.include_usage,
        return_token_ids: params.return_token_ids,
        with_logprobs: params.logprobs.is_some(),
    };
    let ids: Vec<Vec<u32>> = prompts.into_iter().map(|(_, ids)| ids).collect();
    if max_tokens == 0 {
        return Ok(stream.only_echo(&ids, params.stream));
    }
    let answer = Answer::start(&model, ids, &params, max_tokens, Manner::default(), limits, place).await?;
    if params.stream {
        return Ok(sse::respond(answer, stream));
    }
    let (wholes, tokens) = answer::collect(answer).await?;
    Ok(super::json(&stream.whole(wholes, tokens)))
}

/// One prompt or several, `limit` at most.
pub(super) fn prompts(value: Value, name: &str, model: &Model, limit: usize) -> ApiResult<Vec<Prompt>> {
    let expected = "text, token ids, or a list of either";
    let list = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(list) if list.is_empty() => return Err(ApiError::field(name, "empty", expected)),
        Value::Array(list) => list,
        other => return Err(ApiError::field(name, kind(&other), expected)),
    };
    if list[0].is_number() {
        return Ok(vec![Prompt::Ids(token_ids(&list, name, model.vocab_size)?)]);
    }
    if list.len() > limit {
        return Err(ApiError::field(
            name,
            format!("{} prompts", list.len()),
            format!("at most {limit} in one request"),
        ));
    }
    list.into_iter()
        .enumerate()
        .map(|(at, value)| match value {
            Value::String(text) => Ok(Prompt::Text(text)),
            Value::Array(ids) => Ok(Prompt::Ids(token_ids(&ids, &format!("{name}[{at}]"), model.vocab_size)?)),
            other => Err(ApiError::field(&format!("{name}[{at}]"), kind(&other), "text or token ids")),
        })
        .collect()
}

impl Prompt {
    /// The prompt as text and ids. Text never becomes a control token; a beginning-of-text id is put in front where the
    /// tokenizer's files say so.
    pub(super) fn encode(self, model: &Model) -> ApiResult<(String, Vec<u32>)> {
        match self {
            Self::Ids(ids) => {
                let text = model.tokenizer.as_ref().map(|tokenizer| tokenizer.decode_skipping_special(&ids));
                Ok((text.unwrap_or_default(), ids))
            }
            Self::Text(text) => {
                let tokenizer = model.tokenizer_for("prompt")?;
                let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
                let ids = bos.into_iter().chain(tokenizer.encode(&text)?).collect();
                Ok((text, ids))
            }
        }
    }
}

/// The log-probabilities of each prompt's ids after its first.
async fn score(
    model: &Model,
    adapter: Option<usize>,
    prompts: &[(String, Vec<u32>)],
    top: usize,
    limits: &mut Limits,
) -> ApiResult<Vec<Vec<Position>>> {
    let mut scores: Vec<Vec<Position>> = prompts
        .iter()
        .map(|(_, ids)| ids.first().map(|&id| Position { id, logprob: None, top: Vec::new() }).into_iter().collect())
        .collect();
    // One id alone has nothing before it.
    let scored: Vec<usize> = (0..prompts.len()).filter(|&at| prompts[at].1.len() > 1).collect();
    let requests = scored.iter().map(|&at| {
        let ids = &prompts[at].1;
        let work = Work::Score { continuation: ids[1..].to_vec(), top };
        Request::new(ids[..1].to_vec(), work).with_adapter(adapter)
    });
    let requests: Vec<Request> = requests.collect();
    if requests.is_empty() {
        return Ok(scores);
    }
    let mut updates = limits.within(model.engine.submit(requests, 2 * scored.len())).await??;
    let mut open = scored.len();
    while open > 0 {
        let update = limits.within(updates.recv()).await?;
        match update.ok_or_else(|| ApiError::failed("the engine failed"))? {
            (index, Update::Scored(tokens)) => {
                let positions = tokens.into_iter().map(|token| Position {
                    id: token.id,
                    logprob: Some(token.logprob),
                    top: token.top,
                });
                scores[scored[index]].extend(positions);
            }
            (_, Update::Finished { reason: crate::engine::FinishReason::Error(message), .. }) => {
                return Err(ApiError::failed(message));
            }
            (_, Update::Finished { .. }) => open -= 1,
            _ => {}
        }
    }
    Ok(scores)
}

/// What stands before each choice's own text.
#[derive(Default)]
struct Echo {
    text: String,
    positions: Arc<Vec<Position>>,
}

fn echoes(prompts: &[(String, Vec<u32>)], scores: Vec<Vec<Position>>, choices: usize) -> Vec<Echo> {
    let mut scores = scores.into_iter();
    let mut out = Vec::with_capacity(prompts.len() * choices);
    for (text, _) in prompts {
        let positions = Arc::new(scores.next().unwrap_or_default());
        out.extend((0..choices).map(|_| Echo { text: text.clone(), positions: positions.clone() }));
    }
    out
}

/// How completions are shown, whole and as a stream.
struct Shown {
    shape: Shape,
    loaded: Arc<Model>,
    echoes: Vec<Echo>,
    /// Characters of each choice so far.
    offsets: Vec<usize>,
    include_usage: bool,
    return_token_ids: bool,
    with_logprobs: bool,
}

impl Shown {
    fn choice(
        &mut self,
        index: usize,
        text: &str,
        positions: &[Position],
        ids: &[Said],
        finish: Option<&str>,
    ) -> Value {
        let logprobs = match (&self.loaded.tokenizer, self.offsets.get_mut(index)) {
            (Some(tokenizer), Some(offset)) if self.with_logprobs => logprobs::completion(tokenizer, positions, offset),
            _ => Value::Null,
        };
        let mut choice = json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish});
        if self.return_token_ids {
            choice["token_ids"] = ids.iter().map(|said| said.id).collect();
        }
        choice
    }

    fn chunk(&self, choice: Value) -> Value {
        let mut value = self.shape.value("text_completion");
        value["choices"] = json!([choice]);
        if self.include_usage {
            value["usage"] = Value::Null;
        }
        value
    }

    fn whole(mut self, wholes: Vec<Whole>, tokens: Tokens) -> Value {
        let mut echoes = std::mem::take(&mut self.echoes).into_iter();
        let mut choices = Vec::with_capacity(wholes.len());
        for (index, whole) in wholes.into_iter().enumerate() {
            let echo = echoes.next().unwrap_or_default();
            let own: Vec<Position> = whole.tokens.iter().filter_map(Position::of).collect();
            let mut choice =
                self.choice(index, &(echo.text + &whole.text), &echo.positions, &whole.tokens, Some(whole.finish));
            let more = self.choice(index, "", &own, &[], None);
            join(&mut choice["logprobs"], &more["logprobs"]);
            choices.push(choice);
        }
        let mut value = self.shape.value("text_completion");
        value["choices"] = choices.into();
        value["usage"] = usage(tokens);
        value
    }

    /// The answer where no token is asked for.
    fn only_echo(mut self, prompts: &[Vec<u32>], stream: bool) -> Response {
        let tokens = Tokens { prompt: prompts.iter().map(Vec::len).sum(), completion: 0 };
        let wholes = vec![Whole { finish: "length", ..Whole::default() }; self.echoes.len()];
        if !stream {
            return super::json(&self.whole(wholes, tokens));
        }
        let mut out = Events::default();
        self.open(&mut out);
        let finished = |index| Delta { index, finish: Some("length"), ..Delta::default() };
        self.say((0..wholes.len()).map(finished).collect(), &mut out);
        self.close(tokens, &mut out);
        sse::finished(out)
    }
}

/// Puts the lists of one `logprobs` object behind those of another.
fn join(first: &mut Value, second: &Value) {
    let (Some(first), Some(second)) = (first.as_object_mut(), second.as_object()) else { return };
    for (name, list) in first {
        if let (Some(list), Some(more)) = (list.as_array_mut(), second.get(name).and_then(Value::as_array)) {
            list.extend(more.iter().cloned());
        }
    }
}

impl Speaker for Shown {
    fn open(&mut self, out: &mut Events) {
        for (index, echo) in std::mem::take(&mut self.echoes).into_iter().enumerate() {
            let choice = self.choice(index, &echo.text, &echo.positions, &[], None);
            out.data(&self.chunk(choice));
        }
    }

    fn say(&mut self, deltas: Vec<Delta>, out: &mut Events) {
        for delta in deltas {
            let positions: Vec<Position> = delta.tokens.iter().filter_map(Position::of).collect();
            let silent = delta.spoken.text.is_empty() && positions.is_empty() && delta.finish.is_none();
            if !silent || self.return_token_ids {
                let choice = self.choice(delta.index, &delta.spoken.text, &positions, &delta.tokens, delta.finish);
                out.data(&self.chunk(choice));
            }
        }
    }

    fn close(&mut self, tokens: Tokens, out: &mut Events) {
        if self.include_usage {
            let mut value = self.shape.value("text_completion");
            value["choices"] = json!([]);
            value["usage"] = usage(tokens);
            out.data(&value);
        }
        out.done();
    }
}
