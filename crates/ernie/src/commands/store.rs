//! `pull`, `list`, `remove`: the local model store, in the hub's own cache layout.

use crate::{
    cli::options::Json,
    environment,
    exit::Exit,
    failure::{Failure, Result},
    printer::{self, Printer},
    progress::{Progress, Unit},
};
use ernie_files::store::{self, PullOptions, Store};
use serde_json::json;

/// Fetch a model from the hub into the local store
///
/// Honours HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE. A broken pull is taken up where it
/// stopped; every file's hash is checked, and a file whose hash is wrong is deleted.
#[derive(Debug, clap::Args)]
#[command(before_help = "Example:\n  ernie pull baidu/ERNIE-4.5-0.3B-PT")]
pub(crate) struct PullArgs {
    /// The model, with a branch, tag or commit after @
    #[arg(value_name = "NAME[@rev]")]
    name: String,
    #[command(flatten)]
    json: Json,
}

/// List the models in the local store
#[derive(Debug, clap::Args)]
#[command(before_help = "Example:\n  ernie list")]
pub(crate) struct ListArgs {
    #[command(flatten)]
    json: Json,
}

/// Remove a model from the local store
#[derive(Debug, clap::Args)]
#[command(before_help = "Example:\n  ernie remove baidu/ERNIE-4.5-0.3B-PT")]
pub(crate) struct RemoveArgs {
    /// The model, with a revision after @ to remove that one only
    #[arg(value_name = "NAME[@rev]")]
    name: String,
    #[command(flatten)]
    json: Json,
}

/// Runs `pull`.
pub(crate) fn pull(args: &PullArgs, printer: &Printer) -> Result<Exit> {
    let hub = environment::hub();
    let (name, revision) = split(&args.name);
    let store = Store::new(&hub.cache);
    if hub.offline {
        return Err(
            Failure::environment("HF_HUB_OFFLINE is set, so nothing is fetched").hint("unset HF_HUB_OFFLINE to pull")
        );
    }
    let mut options = PullOptions::new(name);
    if let Some(revision) = revision {
        revision.clone_into(&mut options.revision);
    }
    options.endpoint = hub.endpoint;
    options.token = hub.token;
    let mut watch = Watch { printer: *printer, progress: None, done: 0 };
    let path = store.pull(&options, &mut watch)?;
    printer.say(format!("{} is at {}", args.name, path.display()));
    if args.json.json {
        printer.json(&json!({ "name": name, "path": path.display().to_string() }))?;
    }
    Ok(Exit::Done)
}

/// Runs `list`.
pub(crate) fn list(args: &ListArgs, printer: &Printer) -> Result<Exit> {
    let store = Store::new(environment::hub().cache);
    let models = store.list()?;
    if args.json.json {
        let models: Vec<_> = models
            .iter()
            .map(|m| {
                json!({
                    "name": m.name,
                    "revision": m.revision,
                    "refs": m.refs,
                    "files": m.files,
                    "bytes": m.bytes,
                    "path": m.path.display().to_string(),
                })
            })
            .collect();
        printer.json(&json!({ "store": store.cache_dir().display().to_string(), "models": models }))?;
        return Ok(Exit::Done);
    }
    if models.is_empty() {
        printer.say(format!("nothing in {}", store.cache_dir().display()));
    }
    let width = models.iter().map(|m| m.name.chars().count()).max().unwrap_or(0);
    for model in &models {
        let short: String = model.revision.chars().take(8).collect();
        printer.line(format!(
            "{:width$}  {short}  {:>9}  {}",
            model.name,
            printer::bytes(model.bytes),
            printer.faint(&model.refs.join(", "))
        ))?;
    }
    Ok(Exit::Done)
}

/// Runs `remove`.
pub(crate) fn remove(args: &RemoveArgs, printer: &Printer) -> Result<Exit> {
    let (name, revision) = split(&args.name);
    let freed = Store::new(environment::hub().cache).remove(name, revision)?;
    printer.say(format!("removed {}, {} freed", args.name, printer::bytes(freed)));
    if args.json.json {
        printer.json(&json!({ "name": name, "bytes_freed": freed }))?;
    }
    Ok(Exit::Done)
}

fn split(name: &str) -> (&str, Option<&str>) {
    match name.split_once('@') {
        Some((name, revision)) => (name, Some(revision)),
        None => (name, None),
    }
}

/// Shows a pull.
struct Watch {
    printer: Printer,
    progress: Option<Progress>,
    done: u64,
}

impl store::Progress for Watch {
    fn begin(&mut self, file: &str, total_bytes: u64, done_bytes: u64) {
        self.done = done_bytes;
        let mut progress = Progress::new(self.printer, file, Some(total_bytes), Unit::Bytes);
        progress.at(done_bytes, "");
        self.progress = Some(progress);
    }

    fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        if let Some(progress) = &mut self.progress {
            progress.at(self.done, "");
        }
    }

    fn retry(&mut self, file: &str, why: &str) {
        if let Some(progress) = &self.progress {
            progress.say(&format!("{file}: {why}; trying again"));
        }
    }

    fn checking(&mut self, _file: &str) {
        if let Some(progress) = &mut self.progress {
            progress.at(self.done, "checking the hash");
        }
    }

    fn end(&mut self, file: &str, fetched: bool) {
        if let Some(progress) = self.progress.take() {
            progress.finish("");
        }
        let how = if fetched { printer::bytes(self.done) } else { "here already".to_owned() };
        self.printer.say(format!("{file}  {how}"));
        self.done = 0;
    }
}
