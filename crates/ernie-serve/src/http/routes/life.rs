//! Alive, ready, counted, and what is served.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::http::error::{ApiError, ApiResult};
use crate::http::state::{App, Asked};

/// `GET /health`: the process answers.
pub(super) async fn health() -> Response {
    super::json(&json!({"status": "ok"}))
}

/// `GET /ready`: 200 while requests are served, 503 before and after.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    match app.model() {
        Ok(_) => super::json(&json!({"status": "ready"})),
        Err(error) => error.into_response(),
    }
}

/// `GET /metrics`.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> ApiResult<Response> {
    let text = app.metrics.text().map_err(ApiError::internal)?;
    let mut response = text.into_response();
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// `GET /v1/models`.
pub(super) async fn models(State(app): State<Arc<App>>) -> Response {
    let cards: Vec<Value> = app.served().map(|one| card(&app, &one)).collect();
    super::json(&json!({"object": "list", "data": cards}))
}

/// `GET /v1/models/{model}`.
pub(super) async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> ApiResult<Response> {
    Ok(super::json(&card(&app, &app.asked(Some(&name))?)))
}

/// What is said of the model, or of an adapter, whose parent it is. How long its context is, is known once it is loaded.
///
/// The fields are vLLM's; its `root` is a path, which is nobody's business here: it is the model's name.
fn card(app: &App, one: &Asked) -> Value {
    let context = app.model().ok().map(|model| model.context_length);
    let model = &app.config.model;
    json!({
        "id": one.name, "object": "model", "created": app.created, "owned_by": "ernie",
        "root": model, "parent": one.adapter.map(|_| model), "max_model_len": context,
    })
}
