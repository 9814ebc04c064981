//! `serve`: the HTTP server.
//!
//! This file turns what was typed into plain values and hands them to the room; what is served and how stands in
//! `ernie_serve::http`.

mod limits;

use crate::{
    adapters::Adapter,
    cli::options::WeightsOption,
    commands::{VERSION, generate::cache_tokens},
    exit::{Exit, HOW_TO_GET_THREADS},
    failure::{Failure, Result},
    interrupt,
    model::Model,
    printer::Printer,
};
use ernie_serve::{
    engine::{Engine, EngineOptions},
    http::{self, Config, Keys, Served, Tls},
};
use limits::LimitOptions;
use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpListener, ToSocketAddrs},
    path::{Path, PathBuf},
    sync::Arc,
};

/// The largest key, certificate or key file.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Serve a model over HTTP, with the OpenAI API
///
/// Answers at once and is ready when the model is loaded; a chat page is at `/`. SIGTERM and Ctrl-C finish what runs and
/// leave; a second one leaves at once. Adapters are models of their own to callers, under their names.
/// docs/serving.md explains every route, limit and metric.
#[derive(Debug, clap::Args)]
#[command(before_help = "Example:\n  ernie serve runs/quickstart\n  \
    curl http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' \\\n    \
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'")]
pub(crate) struct Args {
    /// The model [default: the small one inside the program]
    model: Option<String>,
    /// Where to listen; other than loopback needs keys
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    listen: String,
    /// The model's name in requests [default: the last part of MODEL]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// API keys, one a line, plain or `sha256:HEX`
    #[arg(long, value_name = "F")]
    api_key_file: Option<PathBuf>,
    /// Serve everybody who can reach the address
    #[arg(long, conflicts_with = "api_key_file")]
    no_auth: bool,
    /// An origin whose pages may call, such as `https://example.org`; may be given many times
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<String>,
    /// The certificate chain, in PEM
    #[arg(long, value_name = "F", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, value_name = "F", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// How the log's lines are written
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// Seeds answers whose requests bring no seed, and the weights of a preset [default: different at each start]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    #[command(flatten)]
    weights: WeightsOption,
    #[command(flatten)]
    limits: LimitOptions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// An object a line
    Json,
}

impl Args {
    /// Whether each line of the log is a JSON object.
    pub(crate) fn logs_json(&self) -> bool {
        self.log_format == LogFormat::Json
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args, printer: &Printer) -> Result<Exit> {
    let model = Model::find_or_bundled(args.model.as_deref())?;
    let keys = keys(args)?;
    let tls = tls(args)?;
    let addresses = addresses(&args.listen)?;
    let loopback = addresses.iter().all(|address| address.ip().is_loopback());
    if !loopback && keys.is_empty() && !args.no_auth {
        return Err(Failure::input(format!(
            "{}: others can reach this address, and there are no API keys",
            args.listen
        ))
        .hint("--api-key-file F names them; --no-auth serves everybody"));
    }
    let name = args.name.clone().unwrap_or_else(|| last_part(&model.name));
    let config = Config {
        adapters: names(&args.weights.adapter, &name)?,
        model: name,
        version: VERSION.to_owned(),
        limits: args.limits.get(),
        loopback_names_only: loopback && keys.is_empty() && !args.no_auth,
        keys,
        cors_origins: args.cors_origin.clone(),
        tls,
        #[cfg(feature = "otel")]
        continue_trace: Some(crate::traces::continue_trace),
        #[cfg(not(feature = "otel"))]
        continue_trace: None,
    };
    let listener = TcpListener::bind(&addresses[..]).map_err(|e| cannot_listen(&args.listen, &e))?;
    let address = listener.local_addr().map_err(|e| cannot_listen(&args.listen, &e))?;
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    printer.say(format!("listening on {scheme}://{address}, loading {}", model.name));

    let guard = interrupt::graceful();
    let (weights, seed, printer) = (args.weights.clone(), args.seed, *printer);
    let (max_running, max_queue) = (usize::from(args.limits.max_running), config.limits.queue);
    let load = move || {
        let tokenizer = model.tokenizer()?;
        let template = model.chat_template(tokenizer.as_ref())?;
        let decoder = Arc::new(model.load_to_serve(&weights, seed.unwrap_or(0), &printer)?.decoder);
        let options = EngineOptions {
            max_running,
            // The server counts its own queue; the engine's must not be shorter.
            max_waiting: max_queue + max_running,
            cache_tokens: cache_tokens(&decoder),
            seed: seed.unwrap_or_else(now_ns),
            ..EngineOptions::default()
        };
        printer.say(format!("{} is ready: {scheme}://{address}", model.name));
        let make_engine = Box::new(move || Engine::new(decoder.clone(), options.clone()));
        Ok(Served { make_engine, tokenizer, template })
    };
    let outcome = http::serve(listener, config, load, interrupt::flag());
    drop(guard);
    match outcome {
        Ok(()) => Ok(Exit::Done),
        Err(http::Failure::Load(failure)) => Err(failure),
        // What the system refuses a server that has its port is a thread.
        Err(http::Failure::Serve(error @ ernie_serve::Error::System(_))) => {
            Err(Failure::from(error).hint(HOW_TO_GET_THREADS))
        }
        Err(http::Failure::Serve(error)) => Err(error.into()),
    }
}

/// The names of the adapters, which requests can tell from each other and from the model's.
fn names(adapters: &[Adapter], model: &str) -> Result<Vec<String>> {
    let mut taken = BTreeSet::from([model]);
    for Adapter { folder, name } in adapters {
        if !taken.insert(name) {
            let whose = if name == model { "the model's name" } else { "the name of another adapter" };
            return Err(Failure::input(format!("--adapter {}: {name} is {whose} already", folder.display()))
                .hint(format!("--adapter {}=NAME gives it a name of its own", folder.display())));
        }
    }
    Ok(adapters.iter().map(|adapter| adapter.name.clone()).collect())
}

/// The keys that open the server; none without a file.
fn keys(args: &Args) -> Result<Keys> {
    let Some(file) = &args.api_key_file else { return Ok(Keys::default()) };
    let text = ernie_files::read_text(file, MAX_FILE_BYTES)?;
    Keys::parse(&text).map_err(|e| Failure::from(e).context(file.display()))
}

fn tls(args: &Args) -> Result<Option<Tls>> {
    let (Some(cert), Some(key)) = (&args.tls_cert, &args.tls_key) else { return Ok(None) };
    let read = |file: &Path| ernie_files::read_bounded(file, MAX_FILE_BYTES);
    let tls = Tls::from_pem(&read(cert)?, &read(key)?);
    tls.map(Some).map_err(|e| Failure::from(e).context(format!("{}, {}", cert.display(), key.display())))
}

/// The addresses that `--listen` names, at least one.
fn addresses(listen: &str) -> Result<Vec<SocketAddr>> {
    let wrong = || {
        Failure::input(format!("--listen {listen}: expected an address and a port"))
            .hint("such as 127.0.0.1:8080, [::1]:8080 or 0.0.0.0:8080")
    };
    let addresses: Vec<SocketAddr> = listen.to_socket_addrs().map_err(|_| wrong())?.collect();
    if addresses.is_empty() { Err(wrong()) } else { Ok(addresses) }
}

fn cannot_listen(listen: &str, error: &std::io::Error) -> Failure {
    use std::io::ErrorKind as K;
    match error.kind() {
        K::AddrInUse => Failure::environment(format!("{listen}: another program listens there"))
            .hint("--listen ADDRESS:PORT chooses another port; port 0 takes a free one"),
        K::AddrNotAvailable => Failure::environment(format!("{listen}: this machine does not have that address")),
        _ => Failure::environment(format!("{listen}: cannot listen: {error}")),
    }
}

/// What a model is called where nobody gave it a name: paths of this machine are nobody's business.
fn last_part(model: &str) -> String {
    let trimmed = model.trim_end_matches('/');
    let is_path = Path::new(model).exists();
    let last = Path::new(trimmed).file_name().and_then(|name| name.to_str());
    last.filter(|_| is_path).unwrap_or(trimmed).to_owned()
}

/// Nanoseconds since 1970, to seed what nobody seeded.
fn now_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_nanos() as u64)
}
