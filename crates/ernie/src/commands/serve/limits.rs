//! The limits of a server, as they are typed. Every one has a default that suits a small machine.

use ernie_serve::http::Limits;
use std::time::Duration;

/// What a caller, a request and the server may use.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitOptions {
    /// Requests that run at the same time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) max_running: u16,
    /// Requests that wait beside them; one more is answered 429
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    max_queue: u32,
    /// Bytes of a request's body
    #[arg(long, value_name = "N", default_value_t = 4 << 20, value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    max_body_bytes: u32,
    /// Bytes of a request's headers
    #[arg(long, value_name = "N", default_value_t = 32 << 10, value_parser = clap::value_parser!(u32).range(8192..=1 << 24))]
    max_header_bytes: u32,
    /// Tokens of a prompt [default: what the context holds]
    #[arg(long, value_name = "N")]
    max_prompt_tokens: Option<u32>,
    /// Tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    max_output_tokens: u32,
    /// Answers to one prompt, `n`
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_n: u16,
    /// Prompts or texts of one request
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=4096))]
    max_batch: u16,
    /// Stop strings of one request
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(..=64))]
    max_stop: u16,
    /// Messages of one conversation
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_messages: u32,
    /// Open connections; one more takes the place of a silent one, or is closed
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_connections: u32,
    /// Requests a minute and key; 0 does not limit it
    #[arg(long, value_name = "N", default_value_t = 6000)]
    rate: u32,
    /// Requests of one key at the same time
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    concurrency: u32,
    /// Seconds from a request to the end of its answer
    #[arg(long, value_name = "S", default_value_t = 600, value_parser = seconds())]
    deadline: u32,
    /// Seconds that running answers have left after a signal to stop
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u32).range(..=86_400))]
    drain_grace: u32,
    /// Seconds for a request's headers, and for an idle connection
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = seconds())]
    header_timeout: u32,
    /// Seconds for a request's body
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = seconds())]
    body_timeout: u32,
    /// Seconds for a reader that takes nothing of its answer
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = seconds())]
    write_timeout: u32,
}

fn seconds() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=86_400)
}

impl LimitOptions {
    /// The limits as the server takes them.
    pub(crate) fn get(&self) -> Limits {
        let seconds = |n: u32| Duration::from_secs(u64::from(n));
        Limits {
            body_bytes: self.max_body_bytes as usize,
            header_bytes: self.max_header_bytes as usize,
            prompt_tokens: self.max_prompt_tokens.map(|n| n as usize),
            output_tokens: self.max_output_tokens as usize,
            choices: usize::from(self.max_n),
            batch: usize::from(self.max_batch),
            stop_strings: usize::from(self.max_stop),
            messages: self.max_messages as usize,
            queue: self.max_queue as usize,
            connections: self.max_connections as usize,
            rate_per_minute: self.rate,
            concurrency: self.concurrency as usize,
            deadline: seconds(self.deadline),
            drain_grace: seconds(self.drain_grace),
            header_timeout: seconds(self.header_timeout),
            body_timeout: seconds(self.body_timeout),
            write_timeout: seconds(self.write_timeout),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::LimitOptions;
    use clap::Parser;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        limits: LimitOptions,
    }

    #[test]
    fn the_defaults_typed_are_the_library_s_own() {
        assert_eq!(Typed::parse_from(["x"]).limits.get(), super::Limits::default());
    }
}
