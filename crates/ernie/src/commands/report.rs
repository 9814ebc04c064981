//! `report`: a run, or two side by side, as one HTML page.

use crate::{
    cli::options::Json,
    exit::Exit,
    failure::{Failure, Result},
    printer::{self, Printer},
    report::{LayerHistory, LayerLoad, Line, Lines, Report, Table, Tile, render},
};
use ernie_train::Recipe;
use ernie_train::observe::{MetricsLine, read_metrics};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Where a run's page lies.
pub(crate) const PAGE: &str = "report.html";

/// Results of tasks that were run on the way, a line each.
pub(crate) const EVALUATIONS: &str = "evaluations.jsonl";

/// Stretches of a run that the balance over it is drawn in.
const STRETCHES: usize = 80;

/// Draw a run, or compare two, as one HTML page
///
/// RUN is a folder that `ernie train` wrote; one that is still training will do. The page has the losses, the routers' balance over
/// the run, speed, learning rate and gradient, what was evaluated, and the recipe; with two runs it has both in every plot, what their recipes differ in, and
/// their figures side by side. It is one file without scripts or outside assets.
#[derive(Debug, clap::Args)]
#[command(before_help = "Example:\n  ernie report runs/nano\n  ernie report runs/nano runs/other --out compared.html")]
pub(crate) struct Args {
    /// The run
    run: PathBuf,
    /// A second run, to compare with
    other: Option<PathBuf>,
    /// The page [default: RUN/report.html; with two runs RUN/compared.html]
    #[arg(long, value_name = "F.html")]
    out: Option<PathBuf>,
    #[command(flatten)]
    json: Json,
}

/// Runs the command.
pub(crate) fn run(args: &Args, printer: &Printer) -> Result<Exit> {
    let first = Run::read(&args.run)?;
    let other = args.other.as_deref().map(Run::read).transpose()?;
    let name = if other.is_some() { "compared.html" } else { PAGE };
    let out = args.out.clone().unwrap_or_else(|| args.run.join(name));
    let runs: Vec<&Run> = std::iter::once(&first).chain(&other).collect();
    ernie_files::atomic::write(&out, render(&page(&runs)).as_bytes())?;
    if args.json.json {
        let figures = |run: &Run| run.figures().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let runs: Vec<Value> =
            runs.iter().map(|run| json!({ "run": run.name, "figures": Value::Object(figures(run)) })).collect();
        printer.json(&json!({ "out": out.display().to_string(), "runs": runs }))?;
    } else {
        printer.line(out.display().to_string())?;
    }
    Ok(Exit::Done)
}

/// Writes the page of one run beside it.
pub(crate) fn write(run: &Path) -> Result<PathBuf> {
    let out = run.join(PAGE);
    ernie_files::atomic::write(&out, render(&page(&[&Run::read(run)?])).as_bytes())?;
    Ok(out)
}

/// What lies in a run folder.
struct Run {
    name: String,
    metrics: Vec<MetricsLine>,
    recipe: Recipe,
    evaluations: Vec<Value>,
}

impl Run {
    fn read(folder: &Path) -> Result<Self> {
        let not_a_run = |failure: Failure| failure.hint("a RUN is a folder that `ernie train` wrote");
        let metrics = read_metrics(folder).map_err(|error| not_a_run(error.into()))?;
        if metrics.is_empty() {
            return Err(Failure::input(format!("{}: no step has been made yet", folder.display())));
        }
        let recipe =
            Recipe::load(&folder.join("recipe.toml"), &[], Path::new("/")).map_err(|error| not_a_run(error.into()))?;
        let evaluations = match ernie_files::read_text(&folder.join(EVALUATIONS), 1 << 26) {
            Ok(text) => text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect(),
            Err(_) => Vec::new(),
        };
        let name = folder
            .canonicalize()
            .ok()
            .and_then(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()));
        let name = name.unwrap_or_else(|| folder.display().to_string());
        Ok(Self { name, metrics, recipe, evaluations })
    }

    fn points(&self, of: impl Fn(&MetricsLine) -> Option<f64>) -> Vec<(u64, f64)> {
        self.metrics.iter().filter_map(|line| Some((line.step, of(line)?))).collect()
    }

    /// The figures of the table and of `--json`.
    fn figures(&self) -> Vec<(&'static str, Value)> {
        let last = &self.metrics[self.metrics.len() - 1];
        let lowest = self
            .metrics
            .iter()
            .filter_map(|line| Some((line.val_loss?, line.step)))
            .reduce(|a, b| if b.0 < a.0 { b } else { a });
        let last_measured = self.metrics.iter().rev().find(|line| line.val_loss.is_some());
        let mut speeds: Vec<f64> = self.metrics.iter().map(|line| line.tokens_per_s).collect();
        speeds.sort_by(f64::total_cmp);
        let tail = &self.metrics[self.metrics.len() - self.metrics.len().min(50)..];
        let mean = tail.iter().map(|line| line.loss).sum::<f64>() / tail.len() as f64;
        let mut figures = vec![
            ("steps", json!(last.step)),
            ("tokens", json!(last.tokens)),
            ("loss, mean of the last 50 steps", json!(mean)),
            ("tokens/s, median", json!(speeds[speeds.len() / 2])),
        ];
        if let Some((loss, step)) = lowest {
            figures.push(("lowest held-out loss", json!(loss)));
            figures.push(("at step", json!(step)));
        }
        if let Some(line) = last_measured {
            figures.push(("last held-out loss", json!(line.val_loss)));
            figures.extend(line.val_bits_per_byte.map(|bits| ("last held-out bits per byte", json!(bits))));
            figures.extend(line.val_accuracy.map(|share| (right(line), json!(share))));
            figures.extend(line.val_macro_f1.map(|f1| ("macro-F1 of the held-out texts", json!(f1))));
            figures.extend(
                line.val_likelier.map(|share| ("held-out pairs whose chosen answer is likelier", json!(share))),
            );
        }
        if !last.router.is_empty() {
            let busiest = tail.iter().flat_map(|line| &line.router).map(|layer| layer.max_vio + 1.0);
            let layers = tail.iter().map(|line| line.router.len()).sum::<usize>().max(1);
            figures.push((
                "busiest expert, times even, mean of the last 50 steps",
                json!(busiest.sum::<f64>() / layers as f64),
            ));
            let dead: usize = last.router.iter().map(|layer| layer.dead).sum();
            figures.push(("experts without a token in the last step", json!(dead)));
        }
        figures
    }

    fn balance(&self) -> (Vec<LayerLoad>, Vec<LayerHistory>) {
        let layers = self.metrics.last().map_or(&[][..], |line| &line.router);
        let tail = &self.metrics[self.metrics.len() - self.metrics.len().min(50)..];
        let group = self.metrics.len().div_ceil(STRETCHES).max(1);
        let of = |line: &MetricsLine, at: usize| line.router.get(at).map(|layer| layer.max_vio + 1.0);
        let each = layers.iter().enumerate().map(|(at, layer)| {
            let mut shares = vec![0.0; layer.load.len()];
            let seen: Vec<_> = tail
                .iter()
                .filter_map(|line| line.router.get(at))
                .filter(|seen| seen.load.len() == shares.len())
                .collect();
            for load in &seen {
                shares
                    .iter_mut()
                    .zip(&load.load)
                    .for_each(|(sum, &share)| *sum += f64::from(share) / seen.len() as f64);
            }
            let stretches = self.metrics.chunks(group).filter_map(|lines| {
                let values: Vec<f64> = lines.iter().filter_map(|line| of(line, at)).collect();
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                (!values.is_empty()).then(|| (lines[lines.len() - 1].step, mean))
            });
            (
                LayerLoad { layer: layer.layer, shares },
                LayerHistory { layer: layer.layer, stretches: stretches.collect() },
            )
        });
        each.unzip()
    }
}

/// The page of one run or two.
fn page(runs: &[&Run]) -> Report {
    let first = runs[0];
    let plot = |heading: &str, sentence: &str, smooth: bool, of: &dyn Fn(&MetricsLine) -> Option<f64>| Lines {
        heading: heading.into(),
        sentence: sentence.into(),
        smooth,
        lines: runs.iter().map(|run| Line { name: run.name.clone(), points: run.points(of) }).collect(),
    };
    let mut lines = Vec::new();
    if runs.len() > 1 {
        lines.push(plot("Training loss", "The running mean of each step's loss, lower is better.", true, &|line| {
            Some(line.loss)
        }));
        lines.push(plot("Held-out loss", "On text that is never trained on, lower is better.", false, &|line| {
            line.val_loss
        }));
    }
    lines.extend([
        plot("Held-out pairs", "Share of pairs of answers that stand right.", false, &|line| {
            line.val_accuracy.filter(|_| line.val_macro_f1.is_none())
        }),
        plot("Held-out texts", "Share of texts that are given their label.", false, &|line| {
            line.val_accuracy.filter(|_| line.val_macro_f1.is_some())
        }),
        plot("Held-out macro-F1", "Mean F1 of the labels.", false, &|line| line.val_macro_f1),
        plot("Learning rate", "", false, &|line| Some(line.lr)),
        plot("Gradient", "Global norm before clipping, running mean.", true, &|line| Some(line.grad_norm)),
        plot("Speed", "Positions a second, running mean; evaluations and checkpoints left out.", true, &|line| {
            Some(line.tokens_per_s)
        }),
        plot("Router entropy", "Mean over the layers: 1 is undecided, 0 is certain.", true, &|line| {
            let layers = line.router.len();
            (layers > 0).then(|| line.router.iter().map(|layer| layer.entropy).sum::<f64>() / layers as f64)
        }),
    ]);
    let columns: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
    let mut tables = vec![figures_table(runs, &columns)];
    tables.extend(evaluations_table(runs, &columns));
    let (expert_load, imbalance) = if runs.len() == 1 { first.balance() } else { Default::default() };
    let report = Report {
        title: columns.join(" and "),
        lines,
        recipe: if runs.len() == 1 { first.recipe.to_toml().unwrap_or_default() } else { String::new() },
        machine: vec![
            ("ernie".into(), format!("{} ({})", crate::commands::VERSION, crate::commands::COMMIT)),
            ("drawn".into(), crate::machine::now()),
        ],
        ..Report::default()
    };
    if runs.len() > 1 {
        tables.push(differences(runs[0], runs[1], &columns));
        return Report { subtitle: "Two runs side by side.".into(), tables, ..report };
    }
    let last = &first.metrics[first.metrics.len() - 1];
    let wanted = first.recipe.schedule.steps;
    let made = match last.step {
        step if step < wanted => format!("{} of {} steps made", printer::exact(step), printer::exact(wanted)),
        step => format!("{} steps", printer::exact(step)),
    };
    let tile = |value: String, name: &str| Tile { value, name: name.into() };
    let mut tiles = vec![tile(printer::count(last.tokens), "positions seen")];
    if let Some(line) = first.metrics.iter().rev().find(|line| line.val_loss.is_some()) {
        tiles.extend(line.val_loss.map(|loss| tile(format!("{loss:.3}"), "held-out loss")));
        tiles.extend(line.val_bits_per_byte.map(|bits| tile(format!("{bits:.3}"), "held-out bits per byte")));
        tiles.extend(line.val_accuracy.map(|share| tile(format!("{:.1} %", 100.0 * share), right(line))));
        tiles.extend(line.val_macro_f1.map(|f1| tile(format!("{f1:.3}"), "held-out macro-F1")));
    }
    Report {
        subtitle: format!("{made}, {}.", objective(&first.recipe)),
        tiles,
        train_loss: first.points(|line| Some(line.loss)),
        held_out_loss: first.points(|line| line.val_loss),
        expert_load,
        expert_load_of: "in the last 50 steps".into(),
        imbalance,
        tables,
        ..report
    }
}

/// What the held-out accuracy of a line is the share of.
fn right(line: &MetricsLine) -> &'static str {
    if line.val_macro_f1.is_some() { "held-out texts right" } else { "held-out pairs right" }
}

fn objective(recipe: &Recipe) -> String {
    use ernie_train::recipe::ObjectiveKind;
    let from = match (&recipe.model.weights, &recipe.model.preset, &recipe.model.config) {
        (Some(name), ..) => format!("from {name}"),
        (_, Some(name), _) => format!("{name} from nothing"),
        (.., config) => format!("{} from nothing", config.as_deref().unwrap_or(Path::new("a model")).display()),
    };
    let what = match recipe.objective.kind {
        ObjectiveKind::Lm => "next-token prediction",
        ObjectiveKind::Sft => "fine-tuning on conversations",
        ObjectiveKind::Dpo => "preferences between answers",
        ObjectiveKind::Classify => "labels of texts",
    };
    let beside =
        if recipe.adapter.rank > 0 { format!(", an adapter of rank {}", recipe.adapter.rank) } else { String::new() };
    format!("{what}{beside}, {from}")
}

fn figures_table(runs: &[&Run], columns: &[String]) -> Table {
    let all: Vec<Vec<(&str, Value)>> = runs.iter().map(|run| run.figures()).collect();
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in all.iter().flatten() {
        if !names.contains(name) {
            names.push(name);
        }
    }
    let rows = names.into_iter().map(|name| {
        let of = |figures: &Vec<(&str, Value)>| {
            figures.iter().find(|(other, _)| *other == name).map_or("–".to_owned(), |(_, value)| shown(value))
        };
        (name.to_owned(), all.iter().map(of).collect())
    });
    Table { heading: "Figures".into(), sentence: String::new(), columns: columns.to_vec(), rows: rows.collect() }
}

/// The newest result of each task.
fn evaluations_table(runs: &[&Run], columns: &[String]) -> Option<Table> {
    let newest = |run: &Run| -> Vec<(String, String)> {
        let mut found: Vec<(String, String)> = Vec::new();
        for line in &run.evaluations {
            let (Some(task), Some(metrics)) = (line["task"].as_str(), line["metrics"].as_object()) else { continue };
            for (name, value) in metrics.iter().filter(|(name, _)| !name.ends_with("_stderr")) {
                let error = metrics.get(&format!("{name}_stderr")).and_then(Value::as_f64);
                let error = error.map_or(String::new(), |error| format!(" ± {error:.4}"));
                let key = format!("{task}, {name}");
                let figure = format!("{}{error} at step {}", shown(value), line["step"]);
                match found.iter_mut().find(|(other, _)| *other == key) {
                    Some((_, old)) => *old = figure,
                    None => found.push((key, figure)),
                }
            }
        }
        found
    };
    let all: Vec<_> = runs.iter().map(|run| newest(run)).collect();
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    for (name, _) in all.iter().flatten() {
        if !rows.iter().any(|(other, _)| other == name) {
            let of = |found: &Vec<(String, String)>| {
                found.iter().find(|(other, _)| other == name).map_or("–".to_owned(), |(_, figure)| figure.clone())
            };
            rows.push((name.clone(), all.iter().map(of).collect()));
        }
    }
    let sentence = "The newest result of each task, with its standard error.".into();
    (!rows.is_empty()).then(|| Table { heading: "Tasks".into(), sentence, columns: columns.to_vec(), rows })
}

/// What two recipes differ in.
fn differences(a: &Run, b: &Run, columns: &[String]) -> Table {
    let flat = |run: &Run| {
        let mut found = Vec::new();
        if let Ok(Value::Object(tables)) = serde_json::to_value(&run.recipe) {
            flatten("", &Value::Object(tables), &mut found);
        }
        found
    };
    let (a, b) = (flat(a), flat(b));
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    for (key, _) in a.iter().chain(&b) {
        let of = |all: &[(String, String)]| {
            all.iter().find(|(other, _)| other == key).map_or("–".to_owned(), |(_, value)| value.clone())
        };
        let pair = [of(&a), of(&b)];
        if pair[0] != pair[1] && !rows.iter().any(|(other, _)| other == key) {
            rows.push((key.clone(), pair.to_vec()));
        }
    }
    let sentence = "Every key that is not the same in both recipes.".into();
    Table { heading: "What differs".into(), sentence, columns: columns.to_vec(), rows }
}

fn flatten(key: &str, value: &Value, found: &mut Vec<(String, String)>) {
    match value {
        Value::Object(table) => {
            for (name, value) in table {
                flatten(&if key.is_empty() { name.clone() } else { format!("{key}.{name}") }, value, found);
            }
        }
        value => found.push((key.to_owned(), value.to_string())),
    }
}

/// A figure as people read it.
fn shown(value: &Value) -> String {
    match (value.as_u64(), value.as_f64()) {
        (Some(count), _) => printer::exact(count),
        (None, Some(number)) if number.abs() >= 1000.0 => printer::exact(number.round() as u64),
        (None, Some(number)) => format!("{number:.4}"),
        _ => value.to_string(),
    }
}
