//! `POST /v1/embeddings`: the final hidden states of a text as one vector of length 1.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::completions::prompts;
use crate::engine::{FinishReason, Pooling, Request};
use crate::http::answer::{self, Limits};
use crate::http::body::JsonBody;
use crate::http::error::{ApiError, ApiResult};
use crate::http::guard::Deadline;
use crate::http::params::take_model;
use crate::http::state::App;
use crate::http::thread::Update;

/// The handler. `pooling` is this server's own field: `mean` (the default) or `last`.
pub(super) async fn embeddings(
    State(app): State<Arc<App>>,
    Extension(deadline): Extension<Deadline>,
    body: JsonBody,
) -> ApiResult<Response> {
    let model = app.model()?;
    let mut fields = body.fields;
    let asked = take_model(&mut fields, &app)?;
    let packed = match fields.text("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(ApiError::field("encoding_format", "another format", "\"float\" or \"base64\"")),
    };
    let pooling = match fields.text("pooling")?.as_deref() {
        None | Some("mean") => Pooling::Mean,
        Some("last") => Pooling::Last,
        Some(_) => return Err(ApiError::field("pooling", "another pooling", "\"mean\" or \"last\"")),
    };
    fields.refuse("dimensions", "is not honoured: vectors have the model's own size", |_| false)?;
    let input = fields.need("input", "text, token ids, or a list of either")?;
    let inputs = prompts(input, "input", &model, app.config.limits.batch)?;

    let _place = app.admit(inputs.len())?;
    let mut limits = Limits { deadline: deadline.0, phases: app.phases() };
    let encode = model.clone();
    let encoded = answer::aside(move || inputs.into_iter().map(|input| Ok(input.encode(&encode)?.1)).collect());
    let inputs: Vec<Vec<u32>> = limits.within(encoded).await??;
    for ids in &inputs {
        app.check_prompt(ids)?;
    }
    let (count, tokens) = (inputs.len(), inputs.iter().map(Vec::len).sum::<usize>());
    let requests = inputs.into_iter().map(|ids| Request::embed(ids, pooling).with_adapter(asked.adapter)).collect();
    let mut updates = limits.within(model.engine.submit(requests, 2 * count)).await??;
    let mut vectors: Vec<Vec<f32>> = vec![Vec::new(); count];
    let mut open = count;
    while open > 0 {
        let update = limits.within(updates.recv()).await?;
        match update.ok_or_else(|| ApiError::failed("the engine failed"))? {
            (index, Update::Embedded(vector)) => vectors[index] = of_length_one(vector),
            (_, Update::Finished { reason: FinishReason::Error(message), .. }) => {
                return Err(ApiError::failed(message));
            }
            (_, Update::Finished { .. }) => open -= 1,
            _ => {}
        }
    }
    let data = vectors
        .into_iter()
        .enumerate()
        .map(|(index, vector)| json!({"object": "embedding", "index": index, "embedding": written(&vector, packed)}));
    Ok(super::json(&json!({
        "object": "list", "data": data.collect::<Vec<_>>(), "model": asked.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    })))
}

/// Scales to an Euclidean length of 1; zeros stay.
fn of_length_one(vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if length == 0.0 {
        return vector;
    }
    vector.into_iter().map(|x| (f64::from(x) / length) as f32).collect()
}

/// Numbers, or their little-endian bytes in base 64.
fn written(vector: &[f32], packed: bool) -> Value {
    if packed {
        let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
        STANDARD.encode(bytes).into()
    } else {
        vector.to_vec().into()
    }
}
