//! A request's body: read within its limits, or refused.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::header;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::OwnedSemaphorePermit;

use super::error::{ApiError, ApiResult};
use super::fields::Fields;
use super::state::App;

/// A JSON body. It holds its share of the memory for bodies until it is dropped.
pub(super) struct JsonBody {
    pub(super) fields: Fields,
    _memory: OwnedSemaphorePermit,
}

impl FromRequest<Arc<App>> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> ApiResult<Self> {
        // A model that is not there makes reading a waste.
        app.model()?;
        let headers = request.headers();
        if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            return Err(ApiError::media_type("compressed bodies are not taken: send the JSON as it is"));
        }
        let json = |value: &header::HeaderValue| {
            let essence = value.as_bytes().split(|&b| b == b';').next().unwrap_or_default().trim_ascii();
            essence.eq_ignore_ascii_case(b"application/json")
        };
        // A web page of a stranger can send other types without asking, JSON it cannot.
        if !headers.get(header::CONTENT_TYPE).is_some_and(json) {
            return Err(ApiError::media_type("the body's type must be `content-type: application/json`"));
        }
        let limit = app.config.limits.body_bytes;
        let too_large = || ApiError::too_large(format!("the body is larger than {limit} bytes"));
        let declared = headers.get(header::CONTENT_LENGTH).map(|length| length.to_str().ok()?.parse::<u64>().ok());
        let expected = match declared {
            Some(length) => usize::try_from(length.unwrap_or(u64::MAX)).unwrap_or(usize::MAX),
            None => limit,
        };
        if expected > limit {
            return Err(too_large());
        }
        let memory = app.admit_body(expected)?;
        let read = Limited::new(request.into_body(), limit).collect();
        let body: Bytes = match tokio::time::timeout(app.config.limits.body_timeout, read).await {
            Err(_) => return Err(ApiError::slow_body()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_large()),
            Ok(Err(_)) => return Err(ApiError::input("the body broke off")),
            Ok(Ok(collected)) => collected.to_bytes(),
        };
        Ok(Self { fields: Fields::parse(&body)?, _memory: memory })
    }
}
