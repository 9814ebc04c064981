//! `GET /openapi.json`: the routes and the fields they take, written from the table of routes.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::ROUTES;
use crate::http::guard::OPEN;
use crate::http::state::App;

/// Name, JSON type, meaning.
type Field = (&'static str, &'static str, &'static str);

const SAMPLING: &[Field] = &[
    ("model", "string", "The name of the model, or of one of its adapters; absent is the model"),
    ("stream", "boolean", "Answer by server-sent events"),
    ("stream_options", "object", "`include_usage`: end the stream with its usage"),
    ("n", "integer", "Answers to each prompt"),
    ("seed", "integer", "Keys the choice of tokens; the same request with the same seed has the same answer"),
    ("temperature", "number", "0 always takes the likeliest token; the default is 1"),
    ("top_p", "number", "Keep the likeliest tokens that together have this probability"),
    ("top_k", "integer", "Keep this many of the likeliest tokens; 0 or -1 keeps all"),
    ("min_p", "number", "Drop tokens less likely than this share of the likeliest"),
    ("repetition_penalty", "number", "Divides the logits of tokens in prompt and answer"),
    ("frequency_penalty", "number", "Is subtracted for each time a token stands in the answer"),
    ("presence_penalty", "number", "Is subtracted once a token stands in the answer"),
    ("logit_bias", "object", "From token ids to numbers from -100 to 100"),
    ("stop", "array", "A string or strings that end the answer"),
    ("stop_token_ids", "array", "Token ids that end the answer"),
    ("ignore_eos", "boolean", "Go on when the model says that it is done"),
];

const CHAT: &[Field] = &[
    ("messages", "array", "The conversation: `role` and `content` of each turn"),
    ("max_completion_tokens", "integer", "Tokens at most"),
    ("max_tokens", "integer", "The older name of the same"),
    ("response_format", "object", "`text`, `json_object`, `json_schema` with its schema, or `regex` with its pattern"),
    ("tools", "array", "Functions that may be called"),
    ("tool_choice", "object", "`none`, `auto`, `required`, or one by name"),
    ("parallel_tool_calls", "boolean", "Whether several calls may be made at once"),
    ("logprobs", "boolean", "Give the log-probability of each token"),
    ("top_logprobs", "integer", "And so many of the likeliest"),
];

const COMPLETION: &[Field] = &[
    ("prompt", "string", "Text, token ids, or a list of either"),
    ("max_tokens", "integer", "Tokens at most; 0 with `echo` only scores the prompt"),
    ("echo", "boolean", "Begin with the prompt"),
    ("logprobs", "integer", "Give log-probabilities, and so many of the likeliest tokens"),
    ("return_token_ids", "boolean", "Give the ids of the answer beside its text"),
];

const RESPONSES: &[Field] = &[
    ("input", "string", "Text, or a list of messages"),
    ("instructions", "string", "A system message before the input"),
    ("max_output_tokens", "integer", "Tokens at most"),
    ("text", "object", "`format`: as `response_format` of a chat"),
];

const EMBEDDINGS: &[Field] = &[
    ("model", "string", "The name of the model, or of one of its adapters; absent is the model"),
    ("input", "string", "Text, token ids, or a list of either"),
    ("encoding_format", "string", "`float` or `base64`"),
    ("pooling", "string", "`mean` over all tokens, or `last`"),
];

const TOKENIZE: &[Field] = &[
    ("prompt", "string", "A text"),
    ("messages", "array", "Or a conversation"),
    ("add_special_tokens", "boolean", "Put a beginning-of-text id in front where the tokenizer says so"),
    ("add_generation_prompt", "boolean", "End a conversation where the assistant begins to speak"),
    ("return_token_strs", "boolean", "Give the tokens' spellings too"),
];

const DETOKENIZE: &[Field] = &[("tokens", "array", "Token ids")];

/// The fields of a route's body.
fn fields(path: &str) -> Option<Vec<&'static Field>> {
    let parts: &[&[Field]] = match path {
        "/v1/chat/completions" => &[CHAT, SAMPLING],
        "/v1/completions" => &[COMPLETION, SAMPLING],
        "/v1/responses" => &[RESPONSES, SAMPLING],
        "/v1/embeddings" => &[EMBEDDINGS],
        "/tokenize" => &[TOKENIZE],
        "/detokenize" => &[DETOKENIZE],
        _ => return None,
    };
    Some(parts.iter().copied().flatten().collect())
}

/// The handler.
pub(super) async fn document(State(app): State<Arc<App>>) -> Response {
    super::json(&describe(&app.config.version))
}

fn describe(version: &str) -> Value {
    let mut paths = Map::new();
    for route in &ROUTES {
        let mut operation = json!({
            "summary": route.about,
            "responses": {
                "200": {"description": "Done"},
                "default": {"$ref": "#/components/responses/Error"},
            },
        });
        if let Some(fields) = fields(route.path) {
            let properties: Map<String, Value> = fields
                .into_iter()
                .map(|&(name, kind, about)| {
                    let mut schema = json!({"description": about});
                    // What may be one thing or a list of them is described in words.
                    if !matches!(name, "prompt" | "input" | "stop" | "tool_choice") {
                        schema["type"] = kind.into();
                    }
                    (name.to_owned(), schema)
                })
                .collect();
            let schema = json!({"type": "object", "properties": properties});
            operation["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": schema}}});
        }
        if route.path.contains("{model}") {
            let schema = json!({"type": "string"});
            operation["parameters"] = json!([{"name": "model", "in": "path", "required": true, "schema": schema}]);
        }
        if OPEN.contains(&route.path) {
            operation["security"] = json!([]);
        }
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.to_lowercase()] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {"title": "ernie", "version": version, "description": "The OpenAI API over an ERNIE-4.5 model"},
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "responses": {"Error": {
                "description": "A refusal or a failure",
                "content": {"application/json": {"schema": {
                    "type": "object",
                    "properties": {"error": {"type": "object", "properties": {
                        "message": {"type": "string"}, "type": {"type": "string"},
                        "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]},
                    }}},
                }}},
            }},
        },
    })
}
