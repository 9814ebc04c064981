//! `upcycle`: a dense model in, a mixture of experts that computes the same out.

use super::checkpoint::{as_stored, beside, new_folder, weight_files};
use crate::{
    cli::options::Json,
    exit::Exit,
    failure::Result,
    model::Model,
    printer::{self, Printer},
    progress::{Progress, Unit},
};
use ernie_model::WeightsAs;
use ernie_model::weights::{Upcycling, Weights, upcycle_into};
use serde_json::json;
use std::path::PathBuf;

/// Turn a dense model into a mixture of experts
///
/// Every expert is a copy of its layer's MLP, the router is drawn from the seed, and the rest stays: the new model gives what the old one gave, until it is
/// trained further (arXiv:2212.05055). `--fresh` draws a share of each expert's hidden units anew, so that they grow apart sooner
/// (arXiv:2502.19261); the model then is no longer what it was. DIR is a checkpoint in the published layout; it appears whole or not at all.
#[derive(Debug, clap::Args)]
#[command(before_help = "Example:\n  ernie upcycle HuggingFaceTB/SmolLM2-135M --experts 8 --out experts")]
pub(crate) struct Args {
    /// The dense model
    model: String,
    /// Experts of each layer
    #[arg(long, value_name = "E")]
    experts: usize,
    /// Experts a token
    #[arg(long, value_name = "K", default_value_t = 2)]
    top_k: usize,
    /// The first layer that becomes a mixture
    #[arg(long, value_name = "L", default_value_t = 1)]
    first_layer: usize,
    /// Share of each expert's hidden units that is drawn anew
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    fresh: f64,
    /// Seeds the routers and what is drawn anew
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// The new checkpoint's folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    json: Json,
}

/// Runs the command.
pub(crate) fn run(args: &Args, printer: &Printer) -> Result<Exit> {
    let model = Model::find(&args.model)?;
    let folder = new_folder(&args.out)?;
    let to = Upcycling {
        experts: args.experts,
        k: args.top_k,
        first_layer: args.first_layer,
        fresh: args.fresh,
        seed: args.seed,
    };
    let source = model.source(args.seed);
    let save_as = as_stored(&model, Weights::open(&source, WeightsAs::Native)?.config());
    let mut progress = Progress::new(*printer, "writing experts", None, Unit::Items);
    let (config, report) = upcycle_into(&source, folder.path(), &to, save_as, &mut |done, of| {
        progress.at_of(done, of);
    })?;
    progress.finish("");
    for note in &report.notes {
        printer.say(format!("note: {note}"));
    }
    beside(&model, folder.path())?;
    let bytes = weight_files(folder.path())?;
    folder.commit()?;

    let parameters = config.parameters();
    if args.json.json {
        printer.json(&json!({
            "out": args.out.display().to_string(),
            "params_total": parameters.total,
            "params_active": parameters.active,
            "bytes": bytes,
        }))?;
    } else {
        printer.line(format!(
            "{}: {} parameters, {} of them for each token, {}",
            args.out.display(),
            printer::count(parameters.total),
            printer::count(parameters.active),
            printer::bytes(bytes)
        ))?;
    }
    Ok(Exit::Done)
}
