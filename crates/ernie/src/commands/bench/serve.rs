//! `bench serve`: what readers of a server wait for, and how much it does, beside another server where there is one.

use super::{count, number, rounded, served_page, spread};
use crate::{
    cli::options::{Json, WeightsOption},
    commands::{COMMIT, VERSION, check_place},
    exit::Exit,
    failure::{Failure, Result},
    model::Model,
    printer::Printer,
    progress::{Progress, Unit},
};
use ernie_eval::load::{
    Policy, Workload,
    served::{self, Goal, Load, Pace, Quantiles, Sample, Summary, Target},
};
use ernie_serve::engine::{Engine, EngineOptions};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Put a server under load and measure what its readers see
///
/// Requests of seeded random tokens, drawn answers of a set length. With --rate or --saturation requests come at random (Poisson)
/// whether or not earlier ones are done; with --clients each reader asks again when it was answered. Latency counts from the
/// time that a request was due. Any server with OpenAI's /v1/completions will do; with --compare two take turns.
#[derive(Debug, clap::Args)]
#[command(before_help = "Example:\n  ernie bench serve http://127.0.0.1:8080 --clients 1,4,16\n  \
                         ernie bench serve http://127.0.0.1:8080 --compare http://127.0.0.1:8081 --saturation 0.5,0.7,0.9")]
pub(crate) struct Args {
    /// Where the server answers
    url: String,
    /// A second server, measured in turns with the first
    #[arg(long, value_name = "URL")]
    compare: Option<String>,
    /// The model's name there [default: the first of /v1/models]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// A file whose first line is the API key
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Readers with one request each at a time [default: 16]
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=4096))]
    clients: Vec<u32>,
    /// Requests a second that come at random
    #[arg(long, value_name = "R", value_delimiter = ',', value_parser = positive)]
    rate: Vec<f64>,
    /// The same, as shares of what the (slower) server bears with 32 readers
    #[arg(long, value_name = "SHARE", value_delimiter = ',', value_parser = share)]
    saturation: Vec<f64>,
    /// Requests of a run
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    requests: u32,
    /// Seconds after which a run makes no further requests
    #[arg(long, value_name = "S", value_parser = positive)]
    duration: Option<f64>,
    /// Median tokens of a prompt
    #[arg(long, value_name = "P", default_value_t = 128, value_parser = count())]
    prompt_tokens: u32,
    /// Median tokens of an answer
    #[arg(long, value_name = "G", default_value_t = 64, value_parser = count())]
    gen_tokens: u32,
    /// How much lengths differ: the standard deviation of their logarithm (0: all alike; none exceeds four times the median)
    #[arg(long, value_name = "X", default_value_t = 0.5, value_parser = spread)]
    spread: f64,
    /// Answers are drawn from the 40 likeliest tokens at this temperature; 0 takes the likeliest, which weights that mean
    /// little repeat so that a server that guesses ahead looks faster than it is
    #[arg(long, value_name = "T", default_value_t = 1.0, value_parser = temperature)]
    temperature: f32,
    /// Prompts are of ids below this one
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = count())]
    vocab: u32,
    /// Share of the readers that go away in the first half of their answer
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = portion)]
    cancel_share: f64,
    /// A request is good if its first token comes within so many milliseconds …
    #[arg(long, value_name = "MS", default_value_t = 1000.0, value_parser = positive)]
    slo_ttft_ms: f64,
    /// … and the others follow, in the mean, within so many each
    #[arg(long, value_name = "MS", default_value_t = 100.0, value_parser = positive)]
    slo_itl_ms: f64,
    /// Seconds that a request may take
    #[arg(long, value_name = "S", default_value_t = 300.0, value_parser = positive)]
    timeout: f64,
    /// Runs of each load, which are put together
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seeds lengths, tokens and times
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// The model that the (first) server has: --clients is also measured on the engine alone, in this process
    #[arg(long, value_name = "MODEL")]
    engine: Option<String>,
    #[command(flatten)]
    weights: WeightsOption,
    /// Draw it as one HTML page
    #[arg(long, value_name = "F.html")]
    report: Option<PathBuf>,
    #[command(flatten)]
    json: Json,
}

fn positive(text: &str) -> std::result::Result<f64, String> {
    number(text, |x| x > 0.0 && x <= 1e6, "a number above 0, at most a million")
}

fn share(text: &str) -> std::result::Result<f64, String> {
    number(text, |x| x > 0.0 && x <= 10.0, "a share above 0, such as 0.7")
}

fn portion(text: &str) -> std::result::Result<f64, String> {
    number(text, |x| (0.0..=1.0).contains(&x), "a share of 0 to 1")
}

fn temperature(text: &str) -> std::result::Result<f32, String> {
    number(text, |x| (0.0..=2.0).contains(&x), "a number of 0 to 2").map(|x| x as f32)
}

/// One load with what it did to each server.
pub(super) struct Level {
    pub(super) pace: Pace,
    /// Of what the slower server bears, where it was asked for so.
    pub(super) share: Option<f64>,
    pub(super) servers: Vec<Summary>,
}

impl Level {
    /// As people name it.
    pub(super) fn name(&self) -> String {
        match (self.pace, self.share) {
            (Pace::Clients(1), _) => "1 reader".into(),
            (Pace::Clients(n), _) => format!("{n} readers"),
            (Pace::RatePerS(rate), Some(share)) => format!("{share:.2} load, {rate:.2}/s"),
            (Pace::RatePerS(rate), None) => format!("{rate:.2}/s"),
        }
    }
}

/// What is measured, and of whom.
pub(super) struct Bench {
    pub(super) targets: Vec<Target>,
    pub(super) levels: Vec<Level>,
    /// Requests a second that each server bears, where shares of it were asked for.
    saturation: Vec<f64>,
    engine: Vec<Alone>,
}

/// The engine without a server around it, at the requests of so many readers.
struct Alone {
    clients: usize,
    tokens_per_s: f64,
    /// What is left of that through the first server.
    http_share: f64,
}

/// Whose turn it is.
enum Turn {
    /// The server of this number.
    Server(usize),
    /// The engine without a server.
    Engine,
}

/// Runs the command.
pub(super) fn run(args: &Args, printer: &Printer) -> Result<Exit> {
    if let Some(report) = &args.report {
        check_place(report)?;
    }
    let key = args.api_key_file.as_deref().map(key).transpose()?;
    let connect = |url: &String| Target::connect(url, args.model.as_deref(), key.as_deref(), args.timeout);
    let targets: Vec<Target> =
        std::iter::once(&args.url).chain(&args.compare).map(connect).collect::<std::result::Result<_, _>>()?;
    for target in &targets {
        target.check(&[args.vocab - 1])?;
    }
    let mut engine = args.engine.as_ref().map(|model| args.load_engine(model, printer)).transpose()?;
    let mut bench = Bench { targets, levels: Vec::new(), saturation: Vec::new(), engine: Vec::new() };
    let mut paces: Vec<(Pace, Option<f64>)> = args.clients.iter().map(|&n| (Pace::Clients(n as usize), None)).collect();
    paces.extend(args.rate.iter().map(|&rate| (Pace::RatePerS(rate), None)));
    if paces.is_empty() && args.saturation.is_empty() {
        paces.push((Pace::Clients(16), None));
    }
    let runs = (paces.len() + args.saturation.len()) * args.rounds as usize + usize::from(!args.saturation.is_empty());
    let mut progress = Progress::new(*printer, "load", Some((runs * bench.targets.len()) as u64), Unit::Items);
    let mut done = 0;
    let mut once = |target: &Target, pace: Pace, draw: u64| -> Result<(Vec<Sample>, f64)> {
        let outcome = served::run(target, &args.load(pace, draw))?;
        done += 1;
        progress.at(done, "");
        Ok(outcome)
    };
    if !args.saturation.is_empty() {
        for target in &bench.targets {
            let (samples, seconds) = once(target, Pace::Clients(32), 0)?;
            bench.saturation.push(Summary::of(&samples, seconds, &args.goal()).requests_per_s);
        }
        let least = bench.saturation.iter().copied().fold(f64::INFINITY, f64::min);
        if least <= 0.0 {
            return Err(Failure::environment("32 readers got no whole answer: there is nothing to take a share of"));
        }
        paces.extend(args.saturation.iter().map(|&share| (Pace::RatePerS(share * least), Some(share))));
    }
    for (level, (pace, share)) in paces.into_iter().enumerate() {
        // No server meets a prompt twice, which it might remember.
        let draw = |round: u64| (level as u64 + 1) << 32 | round;
        let mut all: Vec<(Vec<Sample>, f64)> = bench.targets.iter().map(|_| (Vec::new(), 0.0)).collect();
        let mut alone = match (pace, &mut engine) {
            (Pace::Clients(clients), Some(engine)) => Some((engine, clients, (0, 0.0))),
            _ => None,
        };
        for round in 0..u64::from(args.rounds) {
            // The engine alone has its turn beside the server that it is compared with. Who goes first changes, so that a
            // machine that grows slower is nobody's advantage.
            let mut order: Vec<Turn> = (0..bench.targets.len()).map(Turn::Server).collect();
            if alone.is_some() {
                order.insert(1, Turn::Engine);
            }
            if round % 2 == 1 {
                order.reverse();
            }
            for turn in order {
                match (turn, &mut alone) {
                    (Turn::Server(at), _) => {
                        let (samples, seconds) = once(&bench.targets[at], pace, draw(round))?;
                        all[at].0.extend(samples);
                        all[at].1 += seconds;
                    }
                    (Turn::Engine, Some((engine, clients, total))) => {
                        let (tokens, seconds) = args.alone(engine, *clients, draw(round))?;
                        *total = (total.0 + tokens, total.1 + seconds);
                    }
                    (Turn::Engine, None) => {}
                }
            }
        }
        let servers: Vec<Summary> =
            all.iter().map(|(samples, seconds)| Summary::of(samples, *seconds, &args.goal())).collect();
        if let (Some((_, clients, (tokens, seconds))), Some(ours)) = (alone, servers.first()) {
            let tokens_per_s = tokens as f64 / f64::max(seconds, f64::MIN_POSITIVE);
            bench.engine.push(Alone { clients, tokens_per_s, http_share: ours.tokens_per_s / tokens_per_s });
        }
        bench.levels.push(Level { pace, share, servers });
    }
    progress.finish("");
    if let Some(report) = &args.report {
        served_page::write(report, &bench, &args.words(), printer)?;
    }
    match args.json.json {
        true => printer.json(&json_of(args, &bench))?,
        false => show(args, &bench, printer)?,
    }
    Ok(Exit::Done)
}

impl Args {
    /// With places for as many requests as the most readers make at a time.
    fn load_engine(&self, model: &str, printer: &Printer) -> Result<Engine> {
        let loaded = Model::find(model)?.load(&self.weights, self.seed, printer)?;
        let most = self.clients.iter().copied().max().unwrap_or(16) as usize;
        Ok(Engine::new(loaded.decoder, EngineOptions { max_running: most.min(256), ..EngineOptions::default() })?)
    }

    /// Answer tokens of the engine and the seconds that they took: a request takes the place of one that ended, as with readers.
    fn alone(&self, engine: &mut Engine, clients: usize, draw: u64) -> Result<(usize, f64)> {
        let arrivals = self.load(Pace::Clients(clients), draw).arrivals()?;
        let outcome = ernie_eval::load::run(engine, Policy::Readers { most: clients }, &arrivals, &mut |s| s)?;
        Ok((outcome.answers.iter().map(Vec::len).sum(), outcome.total_s))
    }

    fn goal(&self) -> Goal {
        Goal { first_token_s: self.slo_ttft_ms / 1e3, between_tokens_s: self.slo_itl_ms / 1e3 }
    }

    fn load(&self, pace: Pace, draw: u64) -> Load {
        let workload = Workload {
            requests: self.requests as usize,
            prompt_tokens: f64::from(self.prompt_tokens),
            answer_tokens: f64::from(self.gen_tokens),
            spread: self.spread,
            most_tokens: 4 * self.prompt_tokens.max(self.gen_tokens) as usize,
            temperature: self.temperature,
            seed: self.seed.wrapping_add(draw.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        };
        Load {
            workload,
            pace,
            vocab: self.vocab,
            most_s: self.duration.unwrap_or(f64::INFINITY),
            leave_share: self.cancel_share,
        }
    }

    /// The work, in words.
    fn words(&self) -> String {
        let left = match self.cancel_share {
            0.0 => String::new(),
            share => format!(", {:.0} % of the readers leave", 100.0 * share),
        };
        let rounds = if self.rounds == 1 { String::new() } else { format!(", {} rounds", self.rounds) };
        format!(
            "{} requests a run{rounds}, prompts of about {} tokens, answers of about {} (spread {}, temperature {}){left}",
            self.requests, self.prompt_tokens, self.gen_tokens, self.spread, self.temperature
        )
    }
}

/// The first line of a file.
fn key(path: &Path) -> Result<String> {
    let text = ernie_files::read_text(path, 64 << 10)?;
    let key = text.lines().next().map(str::trim).filter(|key| !key.is_empty() && key.is_ascii());
    key.map(str::to_owned)
        .ok_or_else(|| Failure::input(format!("{}: expected a key in its first line", path.display())))
}

fn quantiles_json(quantiles: &Quantiles) -> Value {
    let ms = |seconds: f64| rounded(1e3 * seconds);
    json!({ "p50": ms(quantiles.p50_s), "p95": ms(quantiles.p95_s), "p99": ms(quantiles.p99_s) })
}

fn json_of(args: &Args, bench: &Bench) -> Value {
    let server = |(target, summary): (&Target, &Summary)| {
        json!({
            "url": target.url(),
            "model": target.model(),
            "requests": summary.requests,
            "answered": summary.answered,
            "left": summary.left,
            "errors": summary.errors,
            "seconds": rounded(summary.seconds),
            "requests_per_s": rounded(summary.requests_per_s),
            "tokens_per_s": rounded(summary.tokens_per_s),
            "ttft_ms": quantiles_json(&summary.first_token),
            "itl_ms": quantiles_json(&summary.between_tokens),
            "e2e_ms": quantiles_json(&summary.end_to_end),
            "goodput": rounded(summary.goodput),
        })
    };
    let level = |level: &Level| {
        let servers: Vec<Value> = bench.targets.iter().zip(&level.servers).map(server).collect();
        let (clients, rate) = match level.pace {
            Pace::Clients(clients) => (Some(clients), None),
            Pace::RatePerS(rate) => (None, Some(rounded(rate))),
        };
        let ratio = ratios(level).map(|ratios| {
            let of = |(name, ratio): (&str, f64)| (name.to_owned(), json!(rounded(ratio)));
            Value::Object(ratios.into_iter().map(of).collect())
        });
        json!({ "clients": clients, "rate_per_s": rate, "share": level.share, "servers": servers, "ratio": ratio })
    };
    json!({
        "requests": args.requests,
        "rounds": args.rounds,
        "prompt_tokens": args.prompt_tokens,
        "gen_tokens": args.gen_tokens,
        "spread": args.spread,
        "temperature": args.temperature,
        "cancel_share": args.cancel_share,
        "seed": args.seed,
        "saturation_requests_per_s": bench.saturation.iter().map(|&rate| rounded(rate)).collect::<Vec<_>>(),
        "engine": bench.engine.iter().map(|alone| json!({
            "clients": alone.clients,
            "tokens_per_s": rounded(alone.tokens_per_s),
            "http_share": rounded(alone.http_share),
        })).collect::<Vec<_>>(),
        "levels": bench.levels.iter().map(level).collect::<Vec<_>>(),
        "version": VERSION,
        "commit": COMMIT,
    })
}

/// The first server over the second, where there are two: of tokens more is better, of times less.
pub(super) fn ratios(level: &Level) -> Option<[(&'static str, f64); 4]> {
    let [ours, theirs] = level.servers.as_slice() else { return None };
    let of = |what: fn(&Summary) -> f64| if what(theirs) > 0.0 { what(ours) / what(theirs) } else { 0.0 };
    Some([
        ("tokens_per_s", of(|s| s.tokens_per_s)),
        ("ttft_p95", of(|s| s.first_token.p95_s)),
        ("itl_p95", of(|s| s.between_tokens.p95_s)),
        ("e2e_p95", of(|s| s.end_to_end.p95_s)),
    ])
}

fn show(args: &Args, bench: &Bench, printer: &Printer) -> Result<()> {
    for (at, target) in bench.targets.iter().enumerate() {
        let name = if bench.targets.len() > 1 { ["A  ", "B  "][at.min(1)] } else { "" };
        printer.line(printer.bold(&format!("{name}{}, model {}", target.url(), target.model())))?;
    }
    printer.line(printer.faint(&args.words()))?;
    let times = "first token, ms      between tokens, ms      whole answer, ms";
    printer.line(printer.faint(&format!("  {:26}{:>9}{:>10}   {times}", "", "", "")))?;
    let p = "p50     p95     p99";
    printer.line(
        printer.faint(&format!("  {:26}{:>9}{:>10}   {p}     {p}     {p}   good", "", "answers/s", "tokens/s")),
    )?;
    for level in &bench.levels {
        for (at, summary) in level.servers.iter().enumerate() {
            let name = match (bench.targets.len(), at) {
                (1, _) => level.name(),
                (_, 0) => format!("{} A", level.name()),
                _ => format!("{:>width$}", "B", width = level.name().chars().count() + 2),
            };
            let times = |q: &Quantiles| [q.p50_s, q.p95_s, q.p99_s].map(|s| format!("{:>8}", ms(s))).concat();
            let errors: Vec<String> = summary.errors.iter().map(|(kind, n)| format!("{kind} × {n}")).collect();
            let errors = if errors.is_empty() { String::new() } else { format!("   failed: {}", errors.join(", ")) };
            printer.line(format!(
                "  {name:26}{:>9.2}{:>10.1}{}{}{}{:>5.0} %{errors}",
                summary.requests_per_s,
                summary.tokens_per_s,
                times(&summary.first_token),
                times(&summary.between_tokens),
                times(&summary.end_to_end),
                100.0 * summary.goodput,
            ))?;
        }
        if let Some(ratios) = ratios(level) {
            let words: Vec<String> = ratios.iter().map(|(name, ratio)| format!("{name} {ratio:.2}")).collect();
            printer.line(printer.faint(&format!("  {:26}{}", "  A ÷ B", words.join("   "))))?;
        }
    }
    for Alone { clients, tokens_per_s, http_share } in &bench.engine {
        let share = 100.0 * http_share;
        printer.line(printer.faint(&format!(
            "the engine alone writes {tokens_per_s:.1} tokens/s for {clients}; {share:.1} % of it comes through the server"
        )))?;
    }
    if !bench.saturation.is_empty() {
        let bears: Vec<String> = bench.saturation.iter().map(|rate| format!("{rate:.2}")).collect();
        printer.line(printer.faint(&format!("32 readers get {} answers/s", bears.join(" and "))))?;
    }
    Ok(())
}

/// Milliseconds, as people read them.
fn ms(seconds: f64) -> String {
    let ms = 1e3 * seconds;
    if ms < 10.0 { format!("{ms:.1}") } else { format!("{ms:.0}") }
}
