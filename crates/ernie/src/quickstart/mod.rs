//! `quickstart`: the main job in minutes, offline, on real text.
//!
//! Tokenizer, training, evaluation beside two baselines, 8 bits, samples, report. Everything is
//! made in a hidden folder beside the final one and takes its place at the end, so an interrupted
//! quickstart never harms an earlier one.

mod measure;
mod samples;
mod training;
mod write;

use crate::{
    cli::options::Json,
    exit::Exit,
    failure::{Failure, Result},
    printer::{self, Printer},
};
use std::{
    path::{Path, PathBuf},
    time::Instant,
};

/// Train, evaluate, compress and sample a small model, offline, in minutes
///
/// Trains a tokenizer and `nano` on the public-domain books inside the program, compares its held-out
/// bits per byte with LZMA and a byte 5-gram, quantises it to 8 bits and compares again, writes samples,
/// and leaves a checkpoint and report.html in the folder. The number of steps follows from the speed
/// measured first, so that everything fits into --minutes; the same --steps and --seed give the same
/// model. An earlier quickstart in the folder is replaced when, and only when, the new one is done.
#[derive(Debug, clap::Args)]
#[command(before_help = "Example:\n  ernie quickstart")]
pub(crate) struct Args {
    /// The folder to leave
    #[arg(long, value_name = "DIR", default_value = "runs/quickstart")]
    out: PathBuf,
    /// How long all of it may take
    #[arg(long, value_name = "M", default_value_t = 3.5, value_parser = minutes)]
    minutes: f64,
    /// Train this many steps instead of as many as fit
    #[arg(long, value_name = "N", conflicts_with = "minutes", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    steps: Option<u64>,
    /// Seeds weights, order of the data, and samples
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    json: Json,
}

fn minutes(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(m) if (0.5..=1440.0).contains(&m) => Ok(m),
        _ => Err("expected minutes from 0.5 to 1440".to_owned()),
    }
}

/// Seconds kept for what comes after training.
const AFTER_TRAINING_S: f64 = 30.0;

/// What has been found out, stage by stage.
struct Findings {
    steps: u64,
    tokens: u64,
    train_seconds: f64,
    params_total: u64,
    params_active: u64,
    vocab_size: usize,
    recipe_toml: String,
    curve: training::Curve,
    plain: measure::Quality,
    int8: measure::Quality,
    baselines: measure::Baselines,
    expert_load: Vec<crate::report::LayerLoad>,
    samples: Vec<crate::report::Sample>,
    seconds: f64,
    command: String,
}

/// Runs the command.
pub(crate) fn run(args: &Args, printer: &Printer) -> Result<Exit> {
    let began = Instant::now();
    ernie_kernels::memory::keep_what_is_freed();
    let place = write::Place::begin(&args.out)?;
    let stages = Stages { printer, at: std::cell::Cell::new(0) };
    printer.say(printer.bold_talk("ernie quickstart"));
    printer.say(printer.faint_talk(&format!(
        "offline, on {} of public-domain books inside the program",
        printer::bytes(ernie_data::bundled::corpus().len() as u64)
    )));

    stages.start("speed");
    let steps = match args.steps {
        Some(steps) => {
            printer.say(format!("  not measured: {steps} steps were asked for"));
            steps
        }
        None => {
            let left = args.minutes * 60.0 - AFTER_TRAINING_S - began.elapsed().as_secs_f64();
            training::steps_that_fit(&place.path().join("speed"), args.seed, left, printer)?
        }
    };

    stages.start("training");
    let trained = match training::train(place.run(), args.seed, steps, printer)? {
        Some(trained) => trained,
        None => {
            return Err(Failure::interrupted("interrupted; nothing was left behind and nothing was replaced"));
        }
    };

    stages.start("evaluation");
    let baselines = measure::baselines(printer)?;
    let plain = measure::quality(&trained.model, ernie_model::WeightsAs::Native, printer)?;
    let expert_load = measure::expert_load(&trained.model)?;

    stages.start("8 bits");
    let int8 = measure::quality(&trained.model, ernie_model::WeightsAs::Int8, printer)?;
    printer.say(format!(
        "  {} → {}, {:.3} → {:.3} bits per byte, {:.0} → {:.0} tokens/s",
        printer::bytes(plain.weight_bytes),
        printer::bytes(int8.weight_bytes),
        plain.bits_per_byte,
        int8.bits_per_byte,
        plain.decode_tokens_per_s,
        int8.decode_tokens_per_s
    ));

    stages.start("samples");
    let samples = samples::write(&trained.model, args.seed)?;
    for sample in &samples {
        printer.say(format!("  {}{}", printer.bold_talk(&sample.prompt), indent(&sample.text)));
    }

    let findings = Findings {
        steps,
        tokens: trained.tokens,
        train_seconds: trained.seconds,
        params_total: trained.params_total,
        params_active: trained.params_active,
        vocab_size: trained.vocab_size,
        recipe_toml: trained.recipe_toml,
        curve: trained.curve,
        plain,
        int8,
        baselines,
        expert_load,
        samples,
        seconds: began.elapsed().as_secs_f64(),
        command: command(args, steps),
    };
    write::report(place.run(), &findings)?;
    place.finish()?;
    say_done(args, printer, &findings)?;
    Ok(Exit::Done)
}

fn say_done(args: &Args, printer: &Printer, findings: &Findings) -> Result<()> {
    let out = args.out.display();
    printer.say("");
    printer.say(printer.bold_talk(&write::verdict(findings)));
    printer.say(format!("done in {}", printer::duration(findings.seconds)));
    printer.say(format!("  report     {}", args.out.join("report.html").display()));
    printer.say(format!("  talk to it ernie chat {out}"));
    printer.say(format!("  look at it ernie inspect {out}"));
    printer.say(format!("  again      {}", findings.command));
    if args.json.json {
        printer.json(&write::json(findings, &args.out))?;
    }
    Ok(())
}

/// The command that makes the same model again.
fn command(args: &Args, steps: u64) -> String {
    let mut command = format!("ernie quickstart --steps {steps} --seed {}", args.seed);
    if args.out != Path::new("runs/quickstart") {
        command += &format!(" --out {}", args.out.display());
    }
    command
}

fn indent(text: &str) -> String {
    text.trim_end().replace('\n', "\n  ")
}

/// Counts the stages aloud.
struct Stages<'a> {
    printer: &'a Printer,
    at: std::cell::Cell<usize>,
}

impl Stages<'_> {
    fn start(&self, name: &str) {
        self.at.set(self.at.get() + 1);
        let number = self.printer.faint_talk(&format!("{}/5", self.at.get()));
        self.printer.say(format!("{number} {}", self.printer.bold_talk(name)));
    }
}
