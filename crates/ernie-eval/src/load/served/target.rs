//! One streamed completion, as its reader sees it.

use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use ernie_serve::engine::Sampling;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::load::setting;
use crate::{Error, Result};

/// The longest line of a stream that is read: no event of a completion comes near it.
const MOST_LINE: u64 = 1 << 20;

/// A server that speaks OpenAI's API, with the model that is asked for there.
pub struct Target {
    agent: ureq::Agent,
    url: String,
    model: String,
    key: Option<String>,
}

/// A prompt of ids, how long the answer is and how it is picked, and after how many tokens its reader goes away.
pub(super) struct Ask<'a> {
    pub(super) prompt: &'a [u32],
    pub(super) max_tokens: usize,
    pub(super) sampling: &'a Sampling,
    pub(super) leave_after: Option<usize>,
}

/// What became of a request. Times are seconds from the start of the run.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// When it was due: waiting for a free connection or a slow dispatcher counts as latency.
    pub due_s: f64,
    /// When its first token came.
    pub first_token_s: Option<f64>,
    /// Between the arrivals of later pieces, in seconds.
    pub gaps_s: Vec<f64>,
    /// When it ended.
    pub end_s: f64,
    /// Tokens of the answer, as the server counts them; where its reader left, as many as had come.
    pub tokens: usize,
    /// How it ended.
    pub ended: Ended,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// With its whole answer.
    Answered,
    /// Its reader went away, as planned.
    Left,
    /// Otherwise.
    Failed(Failure),
}

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// The server answered with this status.
    Status(u16),
    /// Nobody took the connection.
    Refused,
    /// The connection or the stream ended before the answer did.
    Cut,
    /// The server said so in the stream.
    InStream,
    /// It took longer than a request may.
    Timeout,
    /// More requests were open than this side can hold.
    ClientLimit,
}

impl Failure {
    /// A name for tables: `429`, `refused`, `cut`, `in_stream`, `timeout`, `client_limit`.
    pub fn name(self) -> String {
        match self {
            Self::Status(status) => status.to_string(),
            Self::Refused => "refused".into(),
            Self::Cut => "cut".into(),
            Self::InStream => "in_stream".into(),
            Self::Timeout => "timeout".into(),
            Self::ClientLimit => "client_limit".into(),
        }
    }
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    text: String,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    completion_tokens: usize,
}

impl Target {
    /// A server at `url` (`http://host:port`, with or without `/v1`). Without a model's name the first that it lists is
    /// taken. A request may take `timeout_s` in all.
    ///
    /// # Errors
    /// [`Error::Setting`] for another kind of address, [`Error::Server`] when it does not answer or lists no model.
    pub fn connect(url: &str, model: Option<&str>, key: Option<&str>, timeout_s: f64) -> Result<Self> {
        let expected = "an address like http://127.0.0.1:8080";
        let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        if rest.is_none_or(|rest| rest.is_empty() || rest.starts_with('/')) {
            return Err(setting("url", url, expected));
        }
        let timeout = Duration::try_from_secs_f64(timeout_s).ok().filter(|timeout| !timeout.is_zero());
        let timeout = timeout.ok_or_else(|| setting("timeout_s", timeout_s, "seconds above 0"))?;
        let config = ureq::Agent::config_builder();
        let config = config.timeout_global(Some(timeout)).http_status_as_error(false).proxy(None);
        let url = url.trim_end_matches('/');
        let mut target = Self {
            // A connection a request. One that is kept may be closed by the server while the next request is on its way
            // (some do after each stream), which would count against the server.
            agent: config.max_idle_connections(0).build().into(),
            url: url.strip_suffix("/v1").unwrap_or(url).to_owned(),
            model: String::new(),
            key: key.map(str::to_owned),
        };
        target.model = match model {
            Some(model) => model.to_owned(),
            None => target.first_model()?,
        };
        Ok(target)
    }

    /// The server's address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The model's name.
    pub fn model(&self) -> &str {
        &self.model
    }

    fn failed(&self, what: impl Into<String>) -> Error {
        Error::Server { url: self.url.clone(), what: what.into() }
    }

    fn first_model(&self) -> Result<String> {
        let mut get = self.agent.get(format!("{}/v1/models", self.url));
        if let Some(key) = &self.key {
            get = get.header("authorization", format!("Bearer {key}"));
        }
        let mut answer = get.call().map_err(|error| self.failed(error.to_string()))?;
        let status = answer.status().as_u16();
        if status != 200 {
            return Err(self.failed(format!("/v1/models answers with status {status}")));
        }
        let body = answer.body_mut().with_config().limit(MOST_LINE).read_to_vec();
        let body: Option<Value> = body.ok().and_then(|body| serde_json::from_slice(&body).ok());
        let name = body.as_ref().and_then(|body| body.pointer("/data/0/id")).and_then(Value::as_str);
        name.map(str::to_owned).ok_or_else(|| self.failed("/v1/models lists no model"))
    }

    /// Asks once, and says in the server's words why it does not answer.
    ///
    /// # Errors
    /// [`Error::Server`] when it does not.
    pub fn check(&self, prompt: &[u32]) -> Result<()> {
        let ask = Ask { prompt, max_tokens: 1, sampling: &Sampling::default(), leave_after: None };
        let mut answer = self.post(&ask).map_err(|error| self.failed(error.to_string()))?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().with_config().limit(MOST_LINE).read_to_vec().unwrap_or_default();
        if status == 200 {
            return Ok(());
        }
        let body: Option<Value> = serde_json::from_slice(&body).ok();
        let said = body.as_ref().and_then(|body| body.pointer("/error/message")).and_then(Value::as_str);
        let said = said.map_or_else(String::new, |said| format!(": {}", said.chars().take(200).collect::<String>()));
        Err(self.failed(format!("a trial request is answered with status {status}{said}")))
    }

    fn post(&self, ask: &Ask<'_>) -> std::result::Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let Sampling { temperature, top_k, top_p, min_p, seed, .. } = ask.sampling;
        let mut body = json!({
            "model": self.model,
            "prompt": ask.prompt,
            "max_tokens": ask.max_tokens,
            "temperature": temperature,
            "ignore_eos": true,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        if *temperature > 0.0 {
            // All of them: servers differ in what they take for granted.
            for (name, value) in
                [("top_k", json!(top_k)), ("top_p", json!(top_p)), ("min_p", json!(min_p)), ("seed", json!(seed))]
            {
                body[name] = value;
            }
        }
        let mut post = self.agent.post(format!("{}/v1/completions", self.url));
        post = post.header("content-type", "application/json");
        if let Some(key) = &self.key {
            post = post.header("authorization", format!("Bearer {key}"));
        }
        post.send(body.to_string())
    }

    /// Asks and reads to the end.
    pub(super) fn complete(&self, ask: &Ask<'_>, start: Instant, due_s: f64) -> Sample {
        let now = || start.elapsed().as_secs_f64();
        let mut sample =
            Sample { due_s, first_token_s: None, gaps_s: Vec::new(), end_s: 0.0, tokens: 0, ended: Ended::Answered };
        sample.ended = match self.post(ask) {
            Ok(answer) if answer.status().as_u16() == 200 => {
                read(BufReader::new(answer.into_body().into_reader()), ask, &now, &mut sample)
            }
            Ok(answer) => Ended::Failed(Failure::Status(answer.status().as_u16())),
            Err(error) => Ended::Failed(failure(&error)),
        };
        sample.end_s = now();
        sample
    }
}

/// Reads a stream of events. What is left of it when its reader goes is never read: the connection is closed.
fn read(mut stream: impl BufRead, ask: &Ask<'_>, now: &dyn Fn() -> f64, sample: &mut Sample) -> Ended {
    let (mut line, mut last, mut pieces) = (Vec::new(), 0.0, 0);
    loop {
        line.clear();
        match (&mut stream).take(MOST_LINE).read_until(b'\n', &mut line) {
            Ok(0) => return Ended::Failed(Failure::Cut),
            Ok(_) if line.ends_with(b"\n") => {}
            Ok(_) => return Ended::Failed(Failure::Cut),
            Err(error) => return Ended::Failed(broken(&error)),
        }
        let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else { continue };
        if data == b"[DONE]" {
            return Ended::Answered;
        }
        let Ok(chunk) = serde_json::from_slice::<Chunk>(data) else { return Ended::Failed(Failure::InStream) };
        if chunk.error.is_some() {
            return Ended::Failed(Failure::InStream);
        }
        if let Some(usage) = chunk.usage {
            sample.tokens = usage.completion_tokens;
        }
        // A token may have no text (or not yet); an end without text is no token.
        if chunk.choices.iter().any(|choice| !choice.text.is_empty() || choice.finish_reason.is_none()) {
            let at = now();
            match sample.first_token_s {
                None => sample.first_token_s = Some(at),
                Some(_) => sample.gaps_s.push(at - last),
            }
            (last, pieces) = (at, pieces + 1);
            if ask.leave_after.is_some_and(|leave| pieces >= leave) {
                sample.tokens = pieces;
                return Ended::Left;
            }
        }
    }
}

fn failure(error: &ureq::Error) -> Failure {
    match error {
        ureq::Error::Timeout(_) => Failure::Timeout,
        ureq::Error::Io(error) => match error.kind() {
            std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::AddrNotAvailable => Failure::Refused,
            _ => broken(error),
        },
        ureq::Error::ConnectionFailed | ureq::Error::HostNotFound => Failure::Refused,
        _ => Failure::Cut,
    }
}

fn broken(error: &std::io::Error) -> Failure {
    // ureq hands its own errors through a reader inside those of the system.
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
    match inner {
        Some(ureq::Error::Timeout(_)) => Failure::Timeout,
        _ if error.kind() == std::io::ErrorKind::TimedOut => Failure::Timeout,
        _ => Failure::Cut,
    }
}
