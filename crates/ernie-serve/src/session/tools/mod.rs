//! Tools: how they are given to a model, how it calls them, and how calls are found in what it says.
//!
//! [`Tools`] are definitions and a choice, checked at the door. They reach the model through its chat template; one that
//! shows no tools is helped by a text ([`Tools::prompt`]). A model writes calls in a form ([`CallForm`]), which
//! [`ToolParser`] finds in the text as it comes and which a grammar can demand ([`Tools::watcher`]).

mod definitions;
mod form;
mod parse;
mod prompt;
mod scan;

pub use definitions::{MAX_TOOL_BYTES, MAX_TOOLS, Tool, ToolChoice, Tools, check_messages};
pub use form::CallForm;
pub use parse::{Delta, ToolParser};
pub use prompt::ToolPrompt;
