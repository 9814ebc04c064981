//! `metrics.jsonl`: a line a step, for scripts.
//!
//! The fields `step`, `tokens`, `loss`, `lr`, `grad_norm`, `tokens_per_s` and, on evaluation steps, `val_loss` are a promise;
//! the others may grow.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Classified, Observer, Preferred, Recovered, StepReport};
use crate::balance::RouterBalance;
use crate::error::{Error, Result};

/// Name of the file in a run folder.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricsLine {
    /// Which step, counted from 1.
    pub step: u64,
    /// Positions seen since the run began.
    pub tokens: u64,
    /// Mean loss of the step's unmasked tokens, in nats.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Positions a second.
    pub tokens_per_s: f64,
    /// Held-out loss in nats a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
    /// Held-out loss in bits a byte of text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_bits_per_byte: Option<f64>,
    /// What the router terms added to what was minimised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router_loss: Option<f64>,
    /// Mean loss of the modules of multi-token prediction, in nats and without its weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtp_loss: Option<f64>,
    /// Share of the step's pairs of answers that stood right before it, and their mean margin; or of its texts that were given their label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// See `accuracy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// Share of the held-out pairs that stand right, or of the held-out texts that are given their label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_accuracy: Option<f64>,
    /// Share of the held-out pairs whose chosen answer is the likelier one, whatever the reference says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_likelier: Option<f64>,
    /// The mean F1 of the labels of the held-out texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_macro_f1: Option<f64>,
    /// The routers' balance, a MoE layer each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub router: Vec<RouterBalance>,
}

impl From<&StepReport> for MetricsLine {
    fn from(report: &StepReport) -> Self {
        let held_out = report.evaluation.and_then(|evaluation| evaluation.preferred);
        let classified = report.evaluation.and_then(|evaluation| evaluation.classified);
        let accuracy = |pairs: Option<Preferred>, texts: Option<Classified>| {
            pairs.map(|pairs| pairs.accuracy()).or(texts.map(|texts| texts.accuracy()))
        };
        Self {
            step: report.step,
            tokens: report.tokens,
            loss: report.loss,
            lr: report.lr,
            grad_norm: report.grad_norm,
            tokens_per_s: report.tokens_per_s,
            val_loss: report.evaluation.map(|evaluation| evaluation.loss),
            val_bits_per_byte: report.evaluation.and_then(|evaluation| evaluation.bits_per_byte),
            accuracy: accuracy(report.preferred, report.classified),
            margin: report.preferred.map(|preferred| preferred.margin()),
            val_accuracy: accuracy(held_out, classified),
            val_likelier: held_out.map(|preferred| preferred.likelier_share()),
            val_macro_f1: classified.map(|classified| classified.macro_f1),
            router_loss: (!report.router.is_empty()).then_some(report.router_loss),
            mtp_loss: report.mtp_loss,
            router: report.router.clone(),
        }
    }
}

/// Appends a line a step.
pub struct MetricsWriter {
    path: PathBuf,
    file: File,
}

impl MetricsWriter {
    /// Opens `folder/metrics.jsonl` after cutting off every line beyond `step`, and a last line that was not finished.
    pub fn open(folder: &Path, step: u64) -> Result<Self> {
        let path = folder.join(METRICS_FILE);
        let file = open_lines(&path, step)?;
        Ok(Self { path, file })
    }
}

/// Opens a file of JSON lines with a `step` each to append to, made where there is none, after cutting off every line beyond `step` and a last line that
/// was not finished: what a run that is resumed writes again.
///
/// # Errors
/// From the disk.
pub fn open_lines(path: &Path, step: u64) -> Result<File> {
    let failed = |error| Error::io(path, "cannot write the metrics", error);
    let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).map_err(failed)?;
    let keep = bytes_up_to(&file, step).map_err(failed)?;
    file.set_len(keep).map_err(failed)?;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).map_err(failed)?;
    Ok(file)
}

impl Observer for MetricsWriter {
    fn recovered(&mut self, recovered: &Recovered) -> Result<()> {
        let folder = self.path.parent().unwrap_or(&self.path).to_owned();
        *self = Self::open(&folder, recovered.back_to)?;
        Ok(())
    }

    fn step(&mut self, report: &StepReport) -> Result<()> {
        let mut line = serde_json::to_vec(&MetricsLine::from(report))
            .map_err(|error| Error::Internal(format!("metrics cannot be written as JSON: {error}")))?;
        line.push(b'\n');
        // One write a line, so that whoever reads along never sees half of one.
        self.file.write_all(&line).map_err(|error| Error::io(&self.path, "cannot write the metrics", error))
    }
}

/// Length of the stretch of whole lines whose step is at most `step`.
fn bytes_up_to(file: &File, step: u64) -> std::io::Result<u64> {
    #[derive(Deserialize)]
    struct Step {
        step: u64,
    }
    let mut reader = BufReader::new(file);
    let mut keep = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line)?;
        let whole = line.last() == Some(&b'\n');
        match serde_json::from_slice::<Step>(&line) {
            Ok(read) if whole && read.step <= step => keep += length as u64,
            _ => return Ok(keep),
        }
    }
}

/// Reads the metrics of a run folder; a last line that was not finished is left out.
///
/// # Errors
/// `Io` if there are none, `State` naming the line that is not one.
pub fn read_metrics(folder: &Path) -> Result<Vec<MetricsLine>> {
    let path = folder.join(METRICS_FILE);
    let file = File::open(&path).map_err(|error| Error::io(&path, "cannot read the metrics", error))?;
    let mut reader = BufReader::new(file);
    let mut lines = Vec::new();
    let mut text = Vec::new();
    loop {
        text.clear();
        reader.read_until(b'\n', &mut text).map_err(|error| Error::io(&path, "cannot read the metrics", error))?;
        if text.last() != Some(&b'\n') {
            return Ok(lines);
        }
        let line = serde_json::from_slice(&text).map_err(|error| {
            Error::state(&path, format!("line {}: expected a line of metrics: {error}", lines.len() + 1))
        })?;
        lines.push(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Evaluation;

    fn report(step: u64) -> StepReport {
        let evaluation = step.is_multiple_of(2).then_some(Evaluation {
            loss: 2.5,
            bits_per_byte: Some(1.5),
            tokens: 9,
            text_bytes: 20,
            ..Evaluation::default()
        });
        StepReport {
            step,
            tokens: step * 10,
            loss: 3.0 / step as f64,
            lr: 1e-3,
            grad_norm: 0.5,
            evaluation,
            ..StepReport::default()
        }
    }

    #[test]
    fn lines_hold_the_promised_fields() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = MetricsWriter::open(folder.path(), 0).unwrap();
        (1..=2).for_each(|step| writer.step(&report(step)).unwrap());
        let text = std::fs::read_to_string(folder.path().join(METRICS_FILE)).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for field in ["step", "tokens", "loss", "lr", "grad_norm", "tokens_per_s"] {
            assert!(lines.iter().all(|line| line[field].is_number()), "{field}");
        }
        assert!(lines[0].get("val_loss").is_none());
        assert_eq!(lines[1]["val_loss"], 2.5);
        let expected: Vec<MetricsLine> = (1..=2).map(|step| (&report(step)).into()).collect();
        assert_eq!(read_metrics(folder.path()).unwrap(), expected);
    }

    #[test]
    fn opening_cuts_back_to_a_step_and_drops_half_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = MetricsWriter::open(folder.path(), 0).unwrap();
        (1..=5).for_each(|step| writer.step(&report(step)).unwrap());
        writer.file.write_all(b"{\"step\":6,\"tok").unwrap();
        let steps = |folder: &Path| read_metrics(folder).unwrap().iter().map(|line| line.step).collect::<Vec<_>>();
        assert_eq!(steps(folder.path()), [1, 2, 3, 4, 5]);
        let mut writer = MetricsWriter::open(folder.path(), 3).unwrap();
        writer.step(&report(4)).unwrap();
        assert_eq!(steps(folder.path()), [1, 2, 3, 4]);
        MetricsWriter::open(folder.path(), 0).unwrap();
        assert!(steps(folder.path()).is_empty());
    }

    #[test]
    fn what_is_not_metrics_is_an_error_that_names_the_line() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(METRICS_FILE), "{\"step\":1}\n").unwrap();
        let error = read_metrics(folder.path()).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("line 1"), "{error}");
    }
}
