//! `/tokenize`, `/detokenize` and `/tokenizer_info`, in vLLM's shapes.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use ernie_data::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::http::answer;
use crate::http::body::JsonBody;
use crate::http::error::{ApiError, ApiResult};
use crate::http::fields::is_nothing;
use crate::http::messages::messages;
use crate::http::params::{take_model, token_ids};
use crate::http::state::{App, Model};

/// Encodes what was sent, once the model is at hand.
type Encode = Box<dyn FnOnce(&Model) -> ApiResult<Vec<u32>> + Send>;

/// `POST /tokenize`, of a `prompt` or of `messages`.
///
/// As everywhere, literals of control tokens inside a text are text. A prompt that is such a literal and nothing else
/// gives that token: this is how clients ask for the id of a token they read in `/tokenizer_info`.
pub(super) async fn tokenize(State(app): State<Arc<App>>, body: JsonBody) -> ApiResult<Response> {
    let model = app.model()?;
    let mut fields = body.fields;
    take_model(&mut fields, &app)?;
    let strings = fields.bool("return_token_strs")?.unwrap_or(false);
    let why = "is not taken from requests: the template is the checkpoint's own";
    fields.refuse("chat_template", why, is_nothing)?;
    fields.refuse("chat_template_kwargs", why, is_nothing)?;
    fields.refuse("continue_final_message", "is not honoured by this server", is_nothing)?;
    fields.refuse("tools", "is not honoured at this route", is_nothing)?;
    let work: Encode = match fields.list("messages")? {
        Some(list) => {
            let messages = messages(list, "messages", app.config.limits.messages)?;
            let prompt = fields.bool("add_generation_prompt")?.unwrap_or(true);
            Box::new(move |model| {
                let tokenizer = model.tokenizer_for("messages")?;
                Ok(model.template.render(&messages, prompt, tokenizer)?.encode(tokenizer)?)
            })
        }
        None => {
            let text = fields.text("prompt")?.ok_or_else(|| ApiError::field("prompt", "missing", "text"))?;
            let special = fields.bool("add_special_tokens")?.unwrap_or(true);
            Box::new(move |model| prompt_ids(model.tokenizer_for("prompt")?, &text, special))
        }
    };
    let render = model.clone();
    let ids = answer::aside(move || work(&render)).await?;
    let strings =
        model.tokenizer.as_ref().filter(|_| strings).map(|tokenizer| {
            ids.iter().map(|&id| tokenizer.token(id).unwrap_or_default().to_owned()).collect::<Vec<_>>()
        });
    Ok(super::json(&json!({
        "count": ids.len(), "max_model_len": model.context_length, "tokens": ids, "token_strs": strings,
    })))
}

fn prompt_ids(tokenizer: &Tokenizer, text: &str, special: bool) -> ApiResult<Vec<u32>> {
    if let Some(id) = tokenizer.id_of(text).filter(|&id| tokenizer.is_control(id)) {
        return Ok(vec![id]);
    }
    let bos = tokenizer.bos().filter(|_| special && tokenizer.adds_bos());
    Ok(bos.into_iter().chain(tokenizer.encode(text)?).collect())
}

/// `POST /detokenize`. Control tokens are written out.
pub(super) async fn detokenize(State(app): State<Arc<App>>, body: JsonBody) -> ApiResult<Response> {
    let model = app.model()?;
    let mut fields = body.fields;
    take_model(&mut fields, &app)?;
    let list = fields.list("tokens")?.ok_or_else(|| ApiError::field("tokens", "missing", "a list of token ids"))?;
    let ids = token_ids(&list, "tokens", model.vocab_size)?;
    let prompt = answer::aside(move || Ok(model.tokenizer_for("tokens")?.decode(&ids))).await?;
    Ok(super::json(&json!({"prompt": prompt})))
}

/// `GET /tokenizer_info`.
pub(super) async fn info(State(app): State<Arc<App>>) -> ApiResult<Response> {
    let model = app.model()?;
    let tokenizer = model.tokenizer_for("model")?;
    let mut info = json!({
        "tokenizer_class": "ernie", "name_or_path": app.config.model, "vocab_size": tokenizer.vocab_size(),
        "model_max_length": model.context_length, "chat_template": model.template.source(),
        "add_bos_token": tokenizer.adds_bos(), "add_eos_token": tokenizer.adds_eos(),
    });
    for (role, literal) in tokenizer.roles() {
        info[role] = Value::from(literal);
    }
    Ok(super::json(&info))
}
