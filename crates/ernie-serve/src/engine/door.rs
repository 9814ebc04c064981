//! The door: what a request must be before it is let in.

use super::{Engine, MAX_TOP_LOGPROBS, Request, Work};
use crate::{Error, Result};

impl Engine {
    /// Whether the request can run here at all.
    pub(super) fn check(&self, request: &Request) -> Result<()> {
        let tokens = request.prompt.len();
        if tokens == 0 {
            return Err(Error::EmptyPrompt);
        }
        let adapters = self.model.adapters();
        if let Some(adapter) = request.adapter.filter(|&adapter| adapter >= adapters) {
            return Err(Error::parameter(
                "adapter",
                adapter,
                format!("one of the {adapters} that the model has, from 0"),
            ));
        }
        let context_length = self.context_length;
        let too_long = |what, tokens, room| Err(Error::TooLong { what, tokens, context_length, room });
        match &request.work {
            Work::Generate(generate) => {
                if tokens >= context_length {
                    return too_long("the prompt", tokens, true);
                }
                if generate.max_tokens == 0 {
                    return Err(Error::parameter("max_tokens", 0, "at least 1"));
                }
                check_top("logprobs", generate.logprobs.unwrap_or(0))?;
                generate.sampling.check(self.vocab_size)?;
                self.check_ids("stop_ids", &generate.stop_ids)?;
            }
            Work::Score { continuation, top } => {
                if continuation.is_empty() {
                    return Err(Error::EmptyContinuation);
                }
                // The last id of a continuation is only looked up, never read.
                let tokens = tokens.saturating_add(continuation.len()) - 1;
                if tokens > context_length {
                    return too_long("prompt and continuation without its last token", tokens, false);
                }
                check_top("top", *top)?;
                self.check_ids("continuation", continuation)?;
            }
            Work::Logits | Work::Embed { .. } => {
                if tokens > context_length {
                    return too_long("the prompt", tokens, false);
                }
            }
        }
        self.check_ids("prompt", &request.prompt)
    }

    fn check_ids(&self, what: &'static str, ids: &[u32]) -> Result<()> {
        let vocab_size = self.vocab_size;
        match ids.iter().position(|&id| id as usize >= vocab_size) {
            Some(index) => Err(Error::UnknownId { what, id: ids[index], index, vocab_size }),
            None => Ok(()),
        }
    }
}

fn check_top(name: &'static str, n: usize) -> Result<()> {
    if n > MAX_TOP_LOGPROBS {
        return Err(Error::parameter(name, n, format!("at most {MAX_TOP_LOGPROBS}")));
    }
    Ok(())
}
