//! What a MODEL argument names, and how it becomes a running model.
//!
//! A folder in the published layout, a `.gguf` file, a hub name in the local store, `preset:NAME`,
//! or a run folder (its newest complete checkpoint). Nothing here goes to the network.

use crate::{
    adapters::Adapter,
    bundled,
    cli::options::WeightsOption,
    environment,
    failure::{Failure, Result},
    printer::Printer,
};
use ernie_data::{chat::ChatTemplate, tokenizer::Tokenizer};
use ernie_files::{gguf::Gguf, store::Store};
use ernie_model::{Loaded, ModelConfig, ModelSource, weights::read_adapter};
use std::path::{Path, PathBuf};

/// A MODEL that was found.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    /// What was typed.
    pub(crate) name: String,
    /// Where it is.
    pub(crate) place: Place,
}

/// The three things a MODEL can be once it is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A folder in the published layout.
    Folder(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
    /// A shape with random weights.
    Preset(String),
}

impl Model {
    /// Finds a MODEL.
    ///
    /// # Errors
    /// Input (2) if it cannot be one, environment (3) if it is a hub name that is not in the store.
    pub(crate) fn find(name: &str) -> Result<Model> {
        let place = find(name)?;
        Ok(Model { name: name.to_owned(), place })
    }

    /// Finds a MODEL, or the bundled one where none was named.
    ///
    /// # Errors
    /// As [`Self::find`]; environment (3) where the bundled one cannot be unpacked.
    pub(crate) fn find_or_bundled(name: Option<&str>) -> Result<Model> {
        match name {
            Some(name) => Self::find(name),
            None => Ok(Model { name: bundled::NAME.to_owned(), place: Place::Folder(bundled::folder()?) }),
        }
    }

    /// Where the weights come from; presets draw theirs from `seed`.
    pub(crate) fn source(&self, seed: u64) -> ModelSource {
        match &self.place {
            Place::Folder(path) => ModelSource::Folder(path.clone()),
            Place::Gguf(path) => ModelSource::Gguf(path.clone()),
            Place::Preset(name) => ModelSource::Preset(name.clone(), seed),
        }
    }

    /// Loads the weights, and the one adapter that all goes through, passing on what the loader wants the user to know.
    pub(crate) fn load(&self, weights: &WeightsOption, seed: u64, printer: &Printer) -> Result<Loaded> {
        weights.one_adapter()?;
        self.load_all(weights, seed, printer)
    }

    /// As [`Self::load`], with any number of adapters, for requests to choose from.
    #[cfg(feature = "http")]
    pub(crate) fn load_to_serve(&self, weights: &WeightsOption, seed: u64, printer: &Printer) -> Result<Loaded> {
        let mut loaded = self.load_all(weights, seed, printer)?;
        loaded.decoder.offer_adapters();
        Ok(loaded)
    }

    fn load_all(&self, weights: &WeightsOption, seed: u64, printer: &Printer) -> Result<Loaded> {
        let mut loaded = ernie_model::load(&self.source(seed), weights.get()?)?;
        for Adapter { folder, name } in &weights.adapter {
            let adaptation = read_adapter(folder, &mut loaded.decoder)?;
            printer.say(format!("adapter {name}: rank {} times {}", adaptation.rank, adaptation.scale()));
        }
        loaded.decoder.pack_adapters()?;
        for note in &loaded.report.notes {
            printer.say(format!("note: {note}"));
        }
        Ok(loaded)
    }

    /// The tokenizer; `None` where a MODEL has none.
    ///
    /// # Errors
    /// A tokenizer that is there and broken is an error, not an absence.
    pub(crate) fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        match &self.place {
            Place::Folder(path) => {
                if !has_tokenizer(path) {
                    return Ok(None);
                }
                Ok(Some(Tokenizer::from_folder(path)?))
            }
            Place::Gguf(path) => {
                let gguf = Gguf::open(path)?;
                if !gguf.metadata().contains_key("tokenizer.ggml.tokens") {
                    return Ok(None);
                }
                Ok(Some(Tokenizer::from_gguf(&gguf)?))
            }
            Place::Preset(_) => Ok(None),
        }
    }

    /// The tokenizer, or the error that says what needs one.
    pub(crate) fn tokenizer_for(&self, what: &str) -> Result<Tokenizer> {
        self.tokenizer()?.ok_or_else(|| self.no_tokenizer(what))
    }

    fn no_tokenizer(&self, what: &str) -> Failure {
        Failure::input(format!("{}: no tokenizer, and {what} needs one", self.name)).hint(match self.place {
            Place::Preset(_) => "a preset has random weights and no tokenizer; token ids work: --ids 5,6,7",
            _ => "put tokenizer.json or tokenizer.model beside the weights, or use token ids: --ids 5,6,7",
        })
    }

    /// What talking needs: the weights, and at the same time the tokenizer and its chat template. `what` says who cannot do
    /// without a tokenizer.
    pub(crate) fn load_to_talk(
        &self,
        what: Option<&str>,
        weights: &WeightsOption,
        seed: u64,
        printer: &Printer,
    ) -> Result<(Loaded, Option<Tokenizer>, ChatTemplate)> {
        let none = match &self.place {
            Place::Folder(path) => !has_tokenizer(path),
            Place::Gguf(_) => false,
            Place::Preset(_) => true,
        };
        if let Some(what) = what.filter(|_| none) {
            return Err(self.no_tokenizer(what));
        }
        std::thread::scope(|scope| {
            let words = scope.spawn(|| -> Result<_> {
                let tokenizer = match what {
                    Some(what) => Some(self.tokenizer_for(what)?),
                    None => self.tokenizer()?,
                };
                let template = self.chat_template(tokenizer.as_ref())?;
                Ok((tokenizer, template))
            });
            let loaded = self.load(weights, seed, printer);
            let (tokenizer, template) = words.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok((loaded?, tokenizer, template))
        })
    }

    /// The checkpoint's own chat template, or the family's default.
    pub(crate) fn chat_template(&self, tokenizer: Option<&Tokenizer>) -> Result<ChatTemplate> {
        match tokenizer.and_then(Tokenizer::chat_template) {
            Some(source) => ChatTemplate::from_source(source).map_err(|e| Failure::from(e).context(&self.name)),
            None => Ok(ChatTemplate::default_ernie()),
        }
    }
}

fn has_tokenizer(folder: &Path) -> bool {
    ["tokenizer.json", "tokenizer.model"].iter().any(|file| folder.join(file).exists())
}

fn find(name: &str) -> Result<Place> {
    if let Some(preset) = name.strip_prefix("preset:") {
        ModelConfig::preset(preset)?;
        return Ok(Place::Preset(preset.to_owned()));
    }
    let path = Path::new(name);
    if path.is_dir() {
        return folder(path);
    }
    if path.exists() {
        return file(path);
    }
    if is_hub_name(name) {
        return stored(name);
    }
    let failure = Failure::input(format!("{name}: no such folder or file"));
    Err(if ModelConfig::preset(name).is_ok() {
        failure.hint(format!("`preset:{name}` is that shape with random weights"))
    } else {
        failure.hint("a MODEL is a folder, a .gguf file, a hub name such as baidu/ERNIE-4.5-0.3B-PT, preset:NAME, or a run folder")
    })
}

fn file(path: &Path) -> Result<Place> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    match extension {
        "gguf" => Ok(Place::Gguf(path.to_owned())),
        "bin" | "pt" | "pth" | "ckpt" | "pkl" => Err(Failure::input(format!(
            "{}: pickled weights are refused, because reading them runs the code inside",
            path.display()
        ))
        .hint("convert them to safetensors where they were made")),
        "safetensors" => Err(Failure::input(format!(
            "{}: weights alone are no MODEL, expected the folder with config.json beside them",
            path.display()
        ))),
        _ => Err(Failure::input(format!("{}: not a MODEL, expected a folder or a .gguf file", path.display()))),
    }
}

fn folder(path: &Path) -> Result<Place> {
    if path.join("config.json").exists() {
        return Ok(Place::Folder(path.to_owned()));
    }
    if let Some((_, checkpoint)) = ernie_train::checkpoint::newest(path)? {
        return whole(checkpoint);
    }
    Err(Failure::input(format!(
        "{}: not a MODEL, expected config.json, or a run folder with a complete checkpoint",
        path.display()
    )))
}

/// A checkpoint of a run, where it holds a model and not an adapter alone.
fn whole(checkpoint: PathBuf) -> Result<Place> {
    let adapter = checkpoint.join(ernie_train::checkpoint::ADAPTER_FOLDER);
    if checkpoint.join("config.json").exists() || !adapter.exists() {
        return Ok(Place::Folder(checkpoint));
    }
    let problem = format!("{}: an adapter that was trained beside integers, and no model", checkpoint.display());
    Err(Failure::input(problem)
        .hint(format!("name the model it was trained beside, with --adapter {}", adapter.display())))
}

/// Whether a name that is no path can be a hub name: `owner/name`, with `@revision` or without.
fn is_hub_name(name: &str) -> bool {
    let name = name.split_once('@').map_or(name, |(n, _)| n);
    let Some((owner, repo)) = name.split_once('/') else {
        return false;
    };
    let good = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-', '~'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    good(owner) && good(repo) && !repo.ends_with(".gguf") && !Path::new(owner).is_dir()
}

fn stored(name: &str) -> Result<Place> {
    match in_store(name) {
        Some(path) => folder(&path).map_err(|f| f.context(name)),
        None => Err(Failure::environment(format!("{name}: not in the store, and there is no folder of that name"))
            .hint(format!("ernie pull {name}"))),
    }
}

/// The folder of a hub name, if it was pulled.
pub(crate) fn in_store(name: &str) -> Option<PathBuf> {
    let (repo, revision) = match name.split_once('@') {
        Some((repo, revision)) => (repo, Some(revision)),
        None => (name, None),
    };
    Store::new(environment::hub().cache).resolve(repo, revision)
}

#[cfg(test)]
mod tests {
    use super::is_hub_name;

    #[test]
    fn hub_names_are_told_from_paths() {
        for good in ["baidu/ERNIE-4.5-0.3B-PT", "baidu/ERNIE-4.5-0.3B-PT@main", "a/b"] {
            assert!(is_hub_name(good), "{good}");
        }
        for bad in ["nano", "./a", "../b", "/a/b", "a/b/c", "a/", "~/m", "models/x.gguf", "src/none", "a b/c"] {
            assert!(!is_hub_name(bad), "{bad}");
        }
    }
}
