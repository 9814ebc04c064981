//! The environment variables the program honours; nothing else reads the environment.
//!
//! | variable | what |
//! | --- | --- |
//! | `HF_HOME`, `HF_HUB_CACHE`, `XDG_CACHE_HOME`, `HOME` | where the model store lies |
//! | `XDG_CACHE_HOME`, `HOME` | where the bundled model is unpacked |
//! | `HF_ENDPOINT` | the hub to pull from, default `https://huggingface.co` |
//! | `HF_TOKEN`, `HF_TOKEN_PATH` | the token for private models |
//! | `HF_HUB_OFFLINE` | `1`: never go to the network |
//! | `NO_COLOR`, `TERM=dumb` | no colour |
//! | `ERNIE_LOG` | what the libraries log, e.g. `ernie_train=debug` |
//! | `OTEL_*` | with the feature `otel`: OpenTelemetry's own, read by its library; `OTEL_EXPORTER_OTLP_ENDPOINT` switches traces on |

use std::{env, path::PathBuf};

fn text(name: &str) -> Option<String> {
    env::var(name).ok().filter(|v| !v.trim().is_empty())
}

fn path(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// Whether colour is welcome; see <https://no-color.org>.
pub(crate) fn colour_wanted() -> bool {
    env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// What the libraries should log, if anything.
pub(crate) fn log_filter() -> Option<String> {
    text("ERNIE_LOG")
}

/// Whether there is a collector for traces.
#[cfg(feature = "otel")]
pub(crate) fn collector_named() -> bool {
    let off = text("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let none = text("OTEL_TRACES_EXPORTER").is_some_and(|v| v.eq_ignore_ascii_case("none"));
    let named = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]
        .into_iter()
        .any(|name| text(name).is_some());
    named && !off && !none
}

/// Whether the environment names the service that traces come from.
#[cfg(feature = "otel")]
pub(crate) fn service_named() -> bool {
    text("OTEL_SERVICE_NAME").is_some() || text("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|v| v.contains("service.name="))
}

/// Where the line history of `chat` is kept.
pub(crate) fn history_file() -> Option<PathBuf> {
    let base = path("XDG_STATE_HOME").or_else(|| Some(path("HOME")?.join(".local/state")))?;
    Some(base.join("ernie/chat_history"))
}

/// Where things are kept that can be made again.
pub(crate) fn cache() -> Option<PathBuf> {
    path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")))
}

/// The hub's settings, by the hub's own variables.
#[derive(Clone, Debug)]
pub(crate) struct Hub {
    /// The cache folder, in the hub's own layout.
    pub(crate) cache: PathBuf,
    /// Base address of the hub.
    pub(crate) endpoint: String,
    /// Access token, if there is one.
    pub(crate) token: Option<String>,
    /// Whether the network must be left alone.
    pub(crate) offline: bool,
}

/// Reads the hub's settings.
pub(crate) fn hub() -> Hub {
    let home =
        path("HF_HOME").unwrap_or_else(|| cache().unwrap_or_else(|| PathBuf::from(".cache")).join("huggingface"));
    let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
    let token = text("HF_TOKEN").or_else(|| {
        // An unreadable token file is as good as none: the hub will say when it wants one.
        ernie_files::read_text(&token_file, 4096).ok()
    });
    let offline =
        text("HF_HUB_OFFLINE").is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"));
    Hub {
        cache: path("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub")),
        endpoint: text("HF_ENDPOINT")
            .unwrap_or_else(|| "https://huggingface.co".to_owned())
            .trim_end_matches('/')
            .to_owned(),
        token: token.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()),
        offline,
    }
}
