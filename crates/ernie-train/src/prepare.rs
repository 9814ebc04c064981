//! What stands before the first step: folder, tokenizer, data, model, and the checkpoint to go on from.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};

use ernie_data::chat::ChatTemplate;
use ernie_data::conversation::{Lesson, Preference};
use ernie_data::labelled::{self, LabelledText};
use ernie_data::loader::MEMORY_BYTES;
use ernie_data::packing::Group;
use ernie_data::source::{Source, SourceConfig};
use ernie_data::tokenizer::{self, Tokenizer, TrainOptions};
use ernie_data::{HeldOut, Loader, LoaderConfig, Marks, Reading};
use ernie_files::gguf::Gguf;
use ernie_model::config::check_labels;
use ernie_model::weights::Weights;
use ernie_model::{Loaded, ModelConfig, ModelSource, WeightsAs};

use crate::average::Average;
use crate::checkpoint;
use crate::error::{Error, Result};
use crate::optimizer::Optimizer;
use crate::recipe::{BUNDLED, Data, ObjectiveKind, Recipe, TokenizerSource};
use crate::reference::{self, References};
use crate::run::{Options, Trainer};
use crate::schedule;
use crate::standing::Standing;

/// See [`Trainer::prepare`].
pub(crate) fn prepare(recipe: Recipe, options: &Options<'_>) -> Result<Trainer> {
    recipe.check("recipe")?;
    let out = &options.out;
    let newest = take_folder(out, options.resume)?;
    // From here on they stand in the recipe, which is saved and compared.
    let recipe = with_labels(recipe)?;
    if let Some((made, path)) = &newest {
        same_recipe(&checkpoint::read_recipe(path)?, &recipe, *made, path)?;
    }
    let newest = newest.map(|(_, path)| path);

    let tokenizer = match &newest {
        Some(path) => Tokenizer::from_folder(path)?,
        None => tokenizer_of(&recipe.data, options)?,
    };
    let (mut loader, mut held_out, cut) = data(&recipe, &tokenizer, out)?;
    let largest = held_out.as_ref().map_or(0, HeldOut::largest_id).max(loader.largest_id());

    let adaptation = recipe.adapter.adaptation();
    // A checkpoint of adapters holds the model with their change in it; what they change is the base.
    let source = newest.clone().filter(|_| adaptation.is_none()).map(ModelSource::Folder);
    let Loaded { mut decoder, report } = match source {
        Some(source) => trainable(&recipe, open(&recipe, &source, WeightsAs::F32)?)?,
        None => model(&recipe, &tokenizer, options)?,
    };
    if largest as usize >= decoder.config().vocab_size {
        let message = format!(
            "the tokenizer gives ids up to {largest}, expected ids below the model's vocabulary of {}",
            decoder.config().vocab_size
        );
        return Err(Error::Recipe { path: "recipe".into(), problems: vec![format!("data.tokenizer: {message}")] });
    }

    let (mut notes, mut base_crc32c) = (Vec::new(), None);
    if let Some(adaptation) = &adaptation {
        base_crc32c = Some(checkpoint::fingerprint(&decoder)?);
        decoder.adapt(adaptation, recipe.seed).map_err(|error| match error.kind() {
            ernie_model::ErrorKind::Input => {
                Error::Recipe { path: "recipe".into(), problems: vec![format!("adapter: {error}")] }
            }
            _ => error.into(),
        })?;
        if decoder.moe_layers().next().is_some() && !adaptation.experts {
            notes.push(
                "the routed experts have no adapters and stay as they are (adapter.experts = true gives them some)"
                    .to_owned(),
            );
        }
    }
    decoder.set_recompute(recipe.batch.recompute);
    decoder.learn_labels(recipe.objective.kind == ObjectiveKind::Classify);
    let references = match recipe.objective.asks_reference() {
        true => reference::references(out, &mut loader, held_out.as_mut(), options.asked, |ask| match &newest {
            // What was saved has learned; the reference is what it began with.
            Some(_) if adaptation.is_none() => ask(&model(&recipe, &tokenizer, options)?.decoder),
            _ => ask(&decoder),
        })?,
        false => References::default(),
    };
    let (ratio, is_b) = (recipe.adapter.b_lr_ratio, |name: &str| name.ends_with(".lora_B.weight"));
    let mut optimizer = Optimizer::new(&decoder.trained(), &recipe.optimizer)
        .in_width(recipe.precision.compute.into())
        .seeded(recipe.seed)
        .with_lr_share(|name| if is_b(name) { ratio } else { 1.0 });
    let mut average = match recipe.optimizer.ema {
        0.0 => None,
        decay => Some(Average::new(&decoder.trained(), decay)?),
    };
    let (mut step, mut tokens, mut standing) = (0, 0, Standing::default());
    if let Some(path) = &newest {
        let state = checkpoint::restore(path, &decoder, &mut optimizer, average.as_mut())?;
        if state.base_crc32c != base_crc32c {
            let name = recipe.model.weights.as_deref().unwrap_or_default();
            let message =
                format!("the weights of model.weights ({name}) are not those that the adapter was trained beside");
            return Err(Error::Resume { path: path.clone(), message });
        }
        loader.restore(&state.loader).map_err(|error| resume_error(error, path))?;
        (step, tokens, standing) = (state.step, state.tokens, state.standing);
    }
    if step > recipe.schedule.steps {
        let message =
            format!("{step} steps are made, schedule.steps is {}, expected at least as many", recipe.schedule.steps);
        return Err(Error::Resume { path: newest.unwrap_or_default(), message });
    }
    ernie_files::atomic::write(&out.join("recipe.toml"), recipe.to_toml()?.as_bytes())?;

    notes.extend(cut);
    notes.extend(loader.notes().iter().cloned());
    notes.extend(held_out.iter().flat_map(|held_out| held_out.notes().to_vec()));
    notes.extend(report.notes);
    let (positions, learned) = (decoder.config().max_position_embeddings, recipe.batch.seq_len);
    if recipe.model.weights.is_none() && learned < positions {
        notes.push(format!(
            "the model has room for {positions} positions and learns the first {learned} (batch.seq_len): longer texts are beyond it"
        ));
    }
    Ok(Trainer {
        recipe,
        out: out.clone(),
        commit: options.commit.clone(),
        decoder,
        kept: report.kept,
        tokenizer,
        loader,
        held_out,
        references,
        optimizer,
        average,
        standing,
        failures: 0,
        failed_at: 0,
        step,
        tokens,
        newest,
        saving: None,
        base_crc32c,
        notes,
    })
}

/// Makes sure that `out` is a folder we may write into; the newest complete checkpoint and its step if there is one to resume.
fn take_folder(out: &Path, resume: bool) -> Result<Option<(u64, PathBuf)>> {
    std::fs::create_dir_all(out).map_err(|error| Error::io(out, "cannot be created", error))?;
    let mut entries = std::fs::read_dir(out).map_err(|error| Error::io(out, "cannot be listed", error))?;
    if !resume {
        return match entries.next() {
            Some(_) => Err(Error::NotEmpty { path: out.to_owned() }),
            None => Ok(None),
        };
    }
    ernie_files::atomic::clean(out)?;
    checkpoint::newest(out)
}

/// A run goes on by the recipe it began with, but for what does not change the steps already made.
fn same_recipe(then: &Recipe, now: &Recipe, made: u64, path: &Path) -> Result<()> {
    let mut problems = Vec::new();
    // An earlier end is none too early while no step has been made whose learning rate knew of the end: the point of "wsd".
    let same_rate = |step| schedule::share(&then.schedule, step) == schedule::share(&now.schedule, step);
    if now.schedule.steps < then.schedule.steps && (now.schedule.steps < made || !(0..made).all(same_rate)) {
        problems.push(format!(
            "schedule.steps was {} and is {}, expected at least as many, or fewer before the learning rate falls and no fewer than the {made} that are made",
            then.schedule.steps, now.schedule.steps
        ));
    }
    let free = |recipe: &Recipe| {
        let mut recipe = recipe.clone();
        recipe.schedule.steps = 0;
        recipe.checkpoint = Default::default();
        recipe.evaluation = Default::default();
        // The same bits either way.
        (recipe.optimizer.in_backward, recipe.batch.recompute) = (false, false);
        // What the files hold is compared by the loader, whose word on it is better.
        recipe.data.train = Vec::new();
        recipe.data.held_out = Vec::new();
        recipe.data.mixture.iter_mut().for_each(|source| source.files = Vec::new());
        toml::Table::try_from(&recipe).map_err(|error| Error::Internal(format!("recipe cannot be written: {error}")))
    };
    differences("", &toml::Value::Table(free(then)?), &toml::Value::Table(free(now)?), &mut problems);
    if problems.is_empty() {
        return Ok(());
    }
    let message = format!("the recipe changed since the checkpoint: {}", problems.join("; "));
    Err(Error::Resume { path: path.to_owned(), message })
}

fn differences(key: &str, then: &toml::Value, now: &toml::Value, problems: &mut Vec<String>) {
    if let (toml::Value::Table(then), toml::Value::Table(now)) = (then, now) {
        let keys: std::collections::BTreeSet<&String> = then.keys().chain(now.keys()).collect();
        let absent = toml::Value::String("not set".into());
        for name in keys {
            let path = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            differences(&path, then.get(name).unwrap_or(&absent), now.get(name).unwrap_or(&absent), problems);
        }
    } else if then != now {
        problems.push(format!("{key} was {then} and is {now}"));
    }
}

fn resume_error(error: ernie_data::Error, path: &Path) -> Error {
    match error {
        ernie_data::Error::Resume(message) => Error::Resume { path: path.to_owned(), message },
        other => other.into(),
    }
}

/// The sources of a list of globs: the corpus inside the program under its own names, all else as written.
fn source(globs: &[String], bundled: &str, data: &Data) -> SourceConfig {
    let paths = globs.iter().map(|glob| if glob == BUNDLED { bundled.to_owned() } else { glob.clone() });
    SourceConfig {
        paths: paths.collect(),
        format: data.format,
        documents: data.documents,
        text_fields: data.text_fields.clone(),
        ..SourceConfig::default()
    }
}

/// What is trained on, with the rates at which rows are drawn.
fn train_sources(data: &Data) -> Vec<(SourceConfig, f64)> {
    let mixed = data.mixture.iter().map(|mixed| {
        let mut source = source(&mixed.files, "bundled:train", data);
        source.format = mixed.format.unwrap_or(source.format);
        source.documents = mixed.documents.unwrap_or(source.documents);
        source.text_fields = mixed.text_fields.clone().unwrap_or(source.text_fields);
        (source, mixed.weight)
    });
    std::iter::once((source(&data.train, "bundled:train", data), 1.0)).chain(mixed).collect()
}

/// What is held out; the bundled corpus alone brings its own.
fn held_out_source(data: &Data) -> Option<SourceConfig> {
    if !data.held_out.is_empty() {
        return Some(source(&data.held_out, "bundled:held_out", data));
    }
    (data.train == [BUNDLED]).then(|| source(&data.train, "bundled:held_out", data))
}

fn tokenizer_of(data: &Data, options: &Options<'_>) -> Result<Tokenizer> {
    let name = match &data.tokenizer {
        TokenizerSource::Train(train) => return train_tokenizer(data, train.train),
        TokenizerSource::Model(name) => name,
    };
    let path = model_path("data.tokenizer", name, options)?;
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
        return Ok(Tokenizer::from_gguf(&Gguf::open(&path)?)?);
    }
    // `tokenizer.json` and `tokenizer.model` are read with the files beside them.
    let folder = if path.is_file() { path.parent().unwrap_or(&path) } else { &path };
    Ok(Tokenizer::from_folder(folder)?)
}

/// A byte-level BPE from the training text, streamed.
fn train_tokenizer(data: &Data, vocab_size: usize) -> Result<Tokenizer> {
    let sources = train_sources(data).into_iter().map(|(source, _)| Source::open(&source, Path::new("/")));
    let sources = sources.collect::<ernie_data::Result<Vec<_>>>()?;
    let mut failure = None;
    let texts = sources.into_iter().flat_map(|mut source| std::iter::from_fn(move || source.next().transpose()));
    let texts = texts.map_while(|piece| piece.map_err(|error| failure = Some(error)).ok()).map(|piece| piece.text);
    let trained = tokenizer::train_bpe(texts, &TrainOptions::ernie(vocab_size));
    // A file that broke off half-way must not pass for a short one.
    Ok(failure.map_or(trained, Err)?)
}

/// The path of a MODEL: itself, the newest checkpoint of a run folder, or what the caller finds for the name.
fn model_path(key: &str, name: &str, options: &Options<'_>) -> Result<PathBuf> {
    let path = PathBuf::from(name);
    if path.is_dir() {
        return Ok(checkpoint::newest(&path)?.map_or(path, |(_, newest)| newest));
    }
    if path.exists() {
        return Ok(path);
    }
    (options.resolve)(name).ok_or_else(|| Error::Recipe {
        path: "recipe".into(),
        problems: vec![format!(
            "{key}: {name:?} is neither a path nor in the local store; expected a path, or `ernie pull {name}` first"
        )],
    })
}

/// The recipe with the labels of its training data, where it classifies and names none.
fn with_labels(mut recipe: Recipe) -> Result<Recipe> {
    if recipe.objective.kind != ObjectiveKind::Classify || !recipe.objective.labels.is_empty() {
        return Ok(recipe);
    }
    let sources: Vec<SourceConfig> = train_sources(&recipe.data).into_iter().map(|(source, _)| source).collect();
    let labels = labelled::collect(&sources, Path::new("/"))?;
    let problem = match &labels[..] {
        [] => "no text with a label, expected some of at least two labels".to_owned(),
        [one] => format!("all texts have the label {one:?}, expected at least two labels"),
        _ => match check_labels(&labels) {
            Err(problem) => problem,
            Ok(()) => {
                recipe.objective.labels = labels;
                return Ok(recipe);
            }
        },
    };
    Err(Error::Recipe { path: "recipe".into(), problems: vec![format!("data.train: {problem}")] })
}

/// Opens training and held-out data; with them a note about texts that lost their end.
fn data(recipe: &Recipe, tokenizer: &Tokenizer, out: &Path) -> Result<(Loader, Option<HeldOut>, Option<String>)> {
    let eos = tokenizer.eos().ok_or_else(|| Error::Recipe {
        path: "recipe".into(),
        problems: vec!["data.tokenizer: it has no end-of-text token, expected one to stand between documents".into()],
    })?;
    let marks = Marks::eos(eos);
    // The loader's callback cannot fail; the first failure is kept and told after it.
    let failure = RefCell::new(None);
    let encode = |text: &str| match tokenizer.encode(text) {
        Ok(ids) => ids,
        Err(error) => {
            failure.borrow_mut().get_or_insert(error);
            Vec::new()
        }
    };
    let template = ChatTemplate::for_tokenizer(tokenizer)?;
    let most = recipe.batch.seq_len;
    let lesson = |line: &str| -> std::result::Result<Vec<Group>, String> {
        let examples = Lesson::parse(line)?.examples(&template, tokenizer, most).map_err(|error| error.to_string())?;
        Ok(examples.into_iter().map(|example| vec![example]).collect())
    };
    let preference = |line: &str| -> std::result::Result<Vec<Group>, String> {
        let pair = Preference::parse(line)?.examples(&template, tokenizer, most).map_err(|error| error.to_string())?;
        Ok(vec![pair])
    };
    let cut = Cell::new(0_u64);
    let labelled = |line: &str| -> std::result::Result<Vec<Group>, String> {
        let text = LabelledText::parse(line)?;
        let label = text.find(&recipe.objective.labels)?;
        let (example, shortened) = text.example(label, tokenizer, most).map_err(|error| error.to_string())?;
        cut.set(cut.get() + u64::from(shortened));
        Ok(vec![vec![example]])
    };
    let reading = match recipe.objective.kind {
        ObjectiveKind::Lm => Reading::Text(&encode),
        ObjectiveKind::Sft => Reading::Examples(&lesson),
        ObjectiveKind::Dpo => Reading::Examples(&preference),
        ObjectiveKind::Classify => Reading::Examples(&labelled),
    };
    let (seq_len, rows) = (recipe.batch.seq_len, recipe.batch.rows);
    let config = LoaderConfig {
        sources: train_sources(&recipe.data),
        base_dir: PathBuf::from("/"),
        sampler: ernie_data::sampler::SamplerKind::Uniform,
        memory_bytes: MEMORY_BYTES,
        spill_dir: Some(out.to_owned()),
    };
    let opened = Loader::open(&config, reading, marks, seq_len, rows, recipe.seed);
    let loader = failure.take().map_or(opened, Err)?;
    let note = (cut.get() > 0).then(|| {
        format!("{} texts do not fit {most} tokens (batch.seq_len) with their label and lost their end", cut.get())
    });
    let held_out = match held_out_source(&recipe.data).filter(|_| recipe.evaluation.every > 0) {
        Some(source) => {
            let open = |max_bytes| {
                let opened = HeldOut::open(&source, "/", reading, marks, seq_len, rows, max_bytes);
                failure.take().map_or(opened, Err)
            };
            let all = open(u64::MAX)?;
            let wanted = recipe.evaluation.batches.saturating_mul(rows) as u64;
            let have = u64::from(all.rows());
            // Cut by bytes rather than by rows, so that bits per byte stay exact.
            match wanted > 0 && have > wanted {
                true => Some(open((u128::from(all.text_bytes()) * u128::from(wanted) / u128::from(have)) as u64)?),
                false => Some(all),
            }
        }
        None => None,
    };
    Ok((loader, held_out, note))
}

/// A model for a new run.
fn model(recipe: &Recipe, tokenizer: &Tokenizer, options: &Options<'_>) -> Result<Loaded> {
    let model = &recipe.model;
    if let Some(name) = &model.weights {
        let path = model_path("model.weights", name, options)?;
        let is_gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        let source = if is_gguf { ModelSource::Gguf(path) } else { ModelSource::Folder(path) };
        return match recipe.adapter.packed_base() {
            Some(form) => Ok(ernie_model::build(open(recipe, &source, form)?)?),
            None => trainable(recipe, open(recipe, &source, WeightsAs::F32)?),
        };
    }
    let mut config = match (&model.preset, &model.config) {
        (Some(name), _) => ModelConfig::preset(name)?,
        (None, Some(path)) => ModelConfig::from_json(&ernie_files::read_text(path, 1 << 20)?)?,
        (None, None) => return Err(Error::Internal("a checked recipe names a model".into())),
    };
    config.bos_token_id = tokenizer.bos();
    config.eos_token_ids = tokenizer.eos().into_iter().collect();
    config.pad_token_id = tokenizer.pad();
    let config = config.with_vocab_size(tokenizer.vocab_size())?;
    trainable(recipe, labelled_weights(recipe, Weights::random(config, recipe.seed, WeightsAs::F32)?)?)
}

/// The weights of a MODEL, with the head that the recipe's labels ask for.
fn open(recipe: &Recipe, source: &ModelSource, form: WeightsAs) -> Result<Weights> {
    labelled_weights(recipe, Weights::open(source, form)?)
}

fn labelled_weights(recipe: &Recipe, weights: Weights) -> Result<Weights> {
    match &recipe.objective.labels[..] {
        [] => Ok(weights),
        labels => Ok(weights.with_labels(labels, recipe.seed)?),
    }
}

/// The model of `weights` with its parameters to train, those of multi-token prediction too where the recipe trains it.
fn trainable(recipe: &Recipe, weights: Weights) -> Result<Loaded> {
    let modules = recipe.model.mtp_layers.unwrap_or(weights.mtp_modules());
    let trained = recipe.trains_mtp();
    let weights = if trained { weights.with_mtp(modules, recipe.seed) } else { weights };
    let mut loaded = ernie_model::build_trainable(weights, recipe.precision.compute.into())?;
    if trained || recipe.model.mtp_layers == Some(0) {
        // What the recipe's number leaves out.
        loaded.report.kept.clear();
    }
    Ok(loaded)
}
