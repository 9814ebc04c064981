//! The routes: one table, from which the router, the tests that walk it and `/openapi.json` are made.

mod chat;
mod completions;
mod embeddings;
mod life;
mod openapi;
mod page;
mod responses;
mod tokenize;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};

use super::error::ApiError;
use super::state::App;

/// One route.
pub(super) struct Route {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) about: &'static str,
    handler: fn() -> MethodRouter<Arc<App>>,
}

/// All routes.
pub(super) const ROUTES: [Route; 16] = [
    route("GET", "/", "The chat page", || get(page::index)),
    route("GET", "/page.css", "Its looks", || get(page::css)),
    route("GET", "/page.js", "Its program", || get(page::js)),
    route("GET", "/health", "Whether the server is alive", || get(life::health)),
    route("GET", "/ready", "Whether the model is loaded and the server is not stopping", || get(life::ready)),
    route("GET", "/metrics", "Counts and times, for Prometheus", || get(life::metrics)),
    route("GET", "/openapi.json", "This description", || get(openapi::document)),
    route("GET", "/v1/models", "The model that is served, and its adapters", || get(life::models)),
    route("GET", "/v1/models/{model}", "One of them, by name", || get(life::model)),
    route("POST", "/v1/chat/completions", "Answers to a conversation", || post(chat::chat)),
    route("POST", "/v1/completions", "Continuations of prompts", || post(completions::completions)),
    route("POST", "/v1/responses", "An answer, in the newer shape; text only", || post(responses::responses)),
    route("POST", "/v1/embeddings", "Vectors that stand for texts", || post(embeddings::embeddings)),
    route("POST", "/tokenize", "Text to token ids", || post(tokenize::tokenize)),
    route("POST", "/detokenize", "Token ids to text", || post(tokenize::detokenize)),
    route("GET", "/tokenizer_info", "The tokenizer's special tokens and template", || get(tokenize::info)),
];

const fn route(
    method: &'static str,
    path: &'static str,
    about: &'static str,
    handler: fn() -> MethodRouter<Arc<App>>,
) -> Route {
    Route { method, path, about, handler }
}

/// The router over all routes, without its guard.
pub(super) fn router() -> Router<Arc<App>> {
    let router = ROUTES.iter().fold(Router::new(), |router, route| router.route(route.path, (route.handler)()));
    router
        .fallback(|request: Request| async move { ApiError::no_route(request.uri().path()) })
        .method_not_allowed_fallback(|| async { ApiError::method() })
}

/// A JSON answer.
fn json(value: &serde_json::Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
