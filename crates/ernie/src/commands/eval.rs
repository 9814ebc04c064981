//! `eval`: benchmark tasks on a model.

use crate::{
    cli::options::{Json, WeightsOption},
    commands::{check_place, generate::engine},
    exit::Exit,
    failure::{Failure, Result},
    model::Model,
    printer::{self, Printer},
    progress::{Progress, Unit},
};
use ernie_data::tokenizer::Tokenizer;
use ernie_eval::{
    EvalOptions, EvalReport, Examples, Subject,
    tasks::{self, TASKS, Task},
};
use ernie_model::Decoder;
use std::path::PathBuf;

/// Requests that are scored together.
pub(crate) const TOGETHER: usize = 16;

/// Evaluate a model on a task
///
/// Each metric comes with its standard error where one is defined. `--list` names the tasks and the form of
/// their data. Two models are best told apart over the same examples: --examples of the one, then --against
/// of the other, which adds NAME_difference and its own, smaller, standard error.
#[derive(Debug, clap::Args)]
#[command(before_help = "Example:\n  ernie eval runs/quickstart --task perplexity")]
pub(crate) struct Args {
    /// The model
    #[arg(required_unless_present = "list")]
    model: Option<String>,
    /// The task
    #[arg(long, value_name = "NAME", required_unless_present = "list")]
    task: Option<String>,
    /// List the tasks
    #[arg(long, conflicts_with_all = ["model", "task"])]
    list: bool,
    /// The examples, in the task's form
    #[arg(long, value_name = "F")]
    data: Option<PathBuf>,
    /// Worked examples in front of each question
    #[arg(long, value_name = "K", default_value_t = 0)]
    shots: usize,
    /// Take the first N examples only
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Seeds the draw of worked examples
    #[arg(long, value_name = "N", default_value_t = 1234)]
    seed: u64,
    /// Write a line of JSON for each example that was scored
    #[arg(long, value_name = "F")]
    examples: Option<PathBuf>,
    /// Compare with another model example by example: the lines that its --examples left
    #[arg(long, value_name = "F")]
    against: Option<PathBuf>,
    #[command(flatten)]
    weights: WeightsOption,
    #[command(flatten)]
    json: Json,
}

/// Runs the command.
pub(crate) fn run(args: &Args, printer: &Printer) -> Result<Exit> {
    let (Some(model), Some(task), false) = (&args.model, &args.task, args.list) else {
        return list(args, printer);
    };
    // A task that does not exist is refused before a model is loaded.
    let task = tasks::find(task).map_err(|e| Failure::from(e).hint("ernie eval --list"))?;
    if let Some(path) = &args.examples {
        check_place(path)?;
    }
    let theirs = args.against.as_deref().map(Examples::read).transpose()?;
    let model = Model::find(model)?;
    let tokenizer = model.tokenizer_for("`eval`")?;
    let loaded = model.load(&args.weights, args.seed, printer)?;
    let options = EvalOptions {
        data: args.data.clone(),
        shots: args.shots,
        limit: args.limit,
        seed: args.seed,
        ..EvalOptions::default()
    };
    let mut report = ask(loaded.decoder, &tokenizer, task, &options, printer)?;
    if let Some(path) = &args.examples {
        ernie_files::atomic::write(path, report.examples.to_jsonl().as_bytes())?;
    }
    if let (Some(path), Some(theirs)) = (&args.against, &theirs) {
        for (name, difference) in report.examples.difference(theirs)? {
            report = report.metric(&format!("{name}_difference"), difference);
        }
        report = report.setting("against", path.display().to_string());
    }
    if args.json.json {
        let value = serde_json::to_value(&report).map_err(|e| Failure::defect(format!("writing JSON: {e}")))?;
        printer.json(&value)?;
    } else {
        show(&report, printer)?;
    }
    Ok(Exit::Done)
}

/// Runs `task` on a model.
pub(crate) fn ask(
    decoder: Decoder,
    tokenizer: &Tokenizer,
    task: &dyn Task,
    options: &EvalOptions,
    printer: &Printer,
) -> Result<EvalReport> {
    let classifier = decoder.classifier();
    let mut engine = engine(decoder, TOGETHER)?;
    let mut progress = Progress::new(*printer, task.name(), None, Unit::Items);
    let mut known = false;
    let mut subject = Subject { engine: &mut engine, tokenizer, classifier };
    let report = task.run(&mut subject, options, &mut |done, total| {
        if !known {
            progress.set_total(total as u64);
            known = true;
        }
        progress.at(done as u64, "");
    })?;
    progress.finish("");
    Ok(report)
}

fn list(args: &Args, printer: &Printer) -> Result<Exit> {
    if args.json.json {
        let tasks: Vec<_> = TASKS
            .iter()
            .map(|t| serde_json::json!({ "task": t.name(), "about": t.about(), "data": t.data() }))
            .collect();
        printer.json(&serde_json::json!({ "tasks": tasks }))?;
        return Ok(Exit::Done);
    }
    for task in TASKS {
        printer.line(format!("{}  {}", printer.bold(task.name()), task.about()))?;
        printer.line(format!("    {}", printer.faint(task.data())))?;
    }
    Ok(Exit::Done)
}

fn show(report: &EvalReport, printer: &Printer) -> Result<()> {
    printer.line(printer.bold(&format!("{}, {} examples", report.task, printer::exact(report.n as u64))))?;
    let plain = |name: &&String| !name.ends_with("_stderr");
    let width = report.metrics.keys().filter(plain).map(String::len).max().unwrap_or(0);
    for name in report.metrics.keys().filter(plain) {
        let value = report.value(name).map_or_else(|| "not finite".to_owned(), |v| format!("{v:.4}"));
        let error =
            report.value(&format!("{name}_stderr")).map_or_else(String::new, |e| printer.faint(&format!("  ± {e:.4}")));
        printer.line(format!("  {name:width$}  {value}{error}"))?;
    }
    Ok(())
}
