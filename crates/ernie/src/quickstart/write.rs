//! What a quickstart leaves: the folder, put in place at the end, and the report in it.

use super::Findings;
use crate::{
    failure::{Failure, Result},
    machine, printer,
    report::{self, Bar, Report, SizeRow, Tile},
};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The folder a quickstart is made in, hidden beside the final one.
pub(super) struct Place {
    out: PathBuf,
    hidden: PathBuf,
    run: PathBuf,
    done: bool,
}

impl Place {
    /// Makes the hidden folder; what an interrupted quickstart left there goes.
    ///
    /// # Errors
    /// A folder at `out` that no quickstart made is refused: it would be replaced.
    pub(super) fn begin(out: &Path) -> Result<Self> {
        let io = |path: &Path, e: &std::io::Error| Failure::io(path.display(), e);
        let name = out.file_name().ok_or_else(|| Failure::input(format!("{}: not a folder name", out.display())))?;
        let occupied = out.exists()
            && !out.join("report.html").exists()
            && fs::read_dir(out).map_err(|e| io(out, &e))?.next().is_some();
        if occupied {
            return Err(Failure::input(format!(
                "{}: has something in it that no quickstart made, and would be replaced",
                out.display()
            ))
            .hint("choose another folder with --out DIR"));
        }
        let hidden = out.with_file_name(format!(".{}.unfinished", name.to_string_lossy()));
        if hidden.exists() {
            fs::remove_dir_all(&hidden).map_err(|e| io(&hidden, &e))?;
        }
        fs::create_dir_all(&hidden).map_err(|e| io(&hidden, &e))?;
        let run = hidden.join("run");
        Ok(Place { out: out.to_owned(), hidden, run, done: false })
    }

    /// The hidden folder.
    pub(super) fn path(&self) -> &Path {
        &self.hidden
    }

    /// The run folder in it, which takes the final place.
    pub(super) fn run(&self) -> &Path {
        &self.run
    }

    /// Puts the run in place of an earlier one.
    pub(super) fn finish(mut self) -> Result<()> {
        let io = |path: &Path, e: &std::io::Error| Failure::io(path.display(), e);
        let earlier = self.hidden.join("earlier");
        if self.out.exists() {
            fs::rename(&self.out, &earlier).map_err(|e| io(&self.out, &e))?;
        }
        if let Err(e) = fs::rename(&self.run, &self.out) {
            // The earlier one goes back before anything is said.
            let _ = fs::rename(&earlier, &self.out);
            return Err(io(&self.out, &e));
        }
        self.done = true;
        fs::remove_dir_all(&self.hidden).map_err(|e| io(&self.hidden, &e))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_dir_all(&self.hidden);
        }
    }
}

/// Who is ahead, said plainly.
pub(super) fn verdict(f: &Findings) -> String {
    let ours = f.plain.bits_per_byte;
    let lzma = f.baselines.lzma;
    let ngram = f.baselines.ngram;
    let first = if ours < ngram && ours < lzma {
        format!("nano is ahead with {ours:.3} bits per byte: the 5-gram needs {ngram:.3}, LZMA {lzma:.3}.")
    } else if ours < lzma {
        format!("The 5-gram is ahead with {ngram:.3} bits per byte; nano needs {ours:.3} and beats LZMA ({lzma:.3}).")
    } else {
        format!("Both baselines are ahead: the 5-gram needs {ngram:.3} bits per byte, LZMA {lzma:.3}, nano {ours:.3}.")
    };
    let share = 100.0 * f.int8.weight_bytes as f64 / f.plain.weight_bytes.max(1) as f64;
    format!("{first} With 8-bit weights, {share:.0} % of the size, nano needs {:.3}.", f.int8.bits_per_byte)
}

/// Writes `report.html` into the run folder.
pub(super) fn report(run: &Path, findings: &Findings) -> Result<()> {
    let page = report::render(&page(findings));
    Ok(ernie_files::atomic::write(&run.join("report.html"), page.as_bytes())?)
}

fn page(f: &Findings) -> Report {
    let tile = |value: String, name: &str| Tile { value, name: name.to_owned() };
    let bar = |name: &str, value: f64, ours: bool| Bar { name: name.to_owned(), value, ours };
    let mut machine = machine::describe();
    machine.extend([
        ("ernie".to_owned(), format!("{} ({})", crate::commands::VERSION, crate::commands::COMMIT)),
        ("again".to_owned(), f.command.clone()),
        ("took".to_owned(), format!("{} in all", printer::duration(f.seconds))),
        ("made".to_owned(), machine::now()),
    ]);
    Report {
        title: "quickstart".to_owned(),
        subtitle: format!(
            "nano, a mixture-of-experts model of {} parameters ({} active for each token), trained from nothing on five public-domain books in {}.",
            printer::count(f.params_total),
            printer::count(f.params_active),
            printer::duration(f.train_seconds)
        ),
        verdict: verdict(f),
        tiles: vec![
            tile(format!("{:.3}", f.plain.bits_per_byte), "held-out bits per byte"),
            tile(format!("{:.3}", f.plain.loss), "held-out loss, nats a token"),
            tile(printer::duration(f.train_seconds), &format!("training, {} steps", printer::exact(f.steps))),
            tile(printer::count(f.tokens), "tokens seen in training"),
            tile(printer::count((f.tokens as f64 / f.train_seconds.max(1e-9)) as u64), "tokens/s in training, evaluations included"),
            tile(printer::exact(f.vocab_size as u64), "tokens in the vocabulary"),
        ],
        train_loss: f.curve.train.clone(),
        held_out_loss: f.curve.held_out.clone(),
        bits_per_byte: vec![
            bar("nano, as trained", f.plain.bits_per_byte, true),
            bar("nano, 8 bits", f.int8.bits_per_byte, true),
            bar("Witten–Bell byte 5-gram", f.baselines.ngram, false),
            bar("LZMA", f.baselines.lzma, false),
        ],
        expert_load: f.expert_load.clone(),
        expert_load_of: "on the held-out text".to_owned(),
        sizes: sizes(f),
        sizes_note: sizes_note(f),
        samples: f.samples.clone(),
        recipe: f.recipe_toml.clone(),
        machine,
        notes: vec![
            "Text: Grimm’s Fairy Tales, Alice’s Adventures in Wonderland, The Wonderful Wizard of Oz, The Jungle Book and Treasure Island, public domain, from Project Gutenberg. The last 5 % are held out.".to_owned(),
            "LZMA: compressed size of training and held-out text together less that of the training text. 5-gram: interpolated Witten–Bell over bytes, counted on the training text.".to_owned(),
            "Every figure on this page was measured in this run.".to_owned(),
        ],
        ..Report::default()
    }
}

fn sizes(f: &Findings) -> Vec<SizeRow> {
    let (a, b) = (&f.plain, &f.int8);
    let row = |name: &str, before: String, after: String, change: String| SizeRow {
        name: name.to_owned(),
        before,
        after,
        change,
    };
    vec![
        row(
            "weights",
            printer::bytes(a.weight_bytes),
            printer::bytes(b.weight_bytes),
            change(a.weight_bytes as f64, b.weight_bytes as f64),
        ),
        row(
            "reading, tokens/s",
            printer::exact(a.prefill_tokens_per_s as u64),
            printer::exact(b.prefill_tokens_per_s as u64),
            change(a.prefill_tokens_per_s, b.prefill_tokens_per_s),
        ),
        row(
            "writing, tokens/s",
            printer::exact(a.decode_tokens_per_s as u64),
            printer::exact(b.decode_tokens_per_s as u64),
            change(a.decode_tokens_per_s, b.decode_tokens_per_s),
        ),
        row("held-out loss", format!("{:.4}", a.loss), format!("{:.4}", b.loss), change(a.loss, b.loss)),
        row(
            "bits per byte",
            format!("{:.4}", a.bits_per_byte),
            format!("{:.4}", b.bits_per_byte),
            change(a.bits_per_byte, b.bits_per_byte),
        ),
    ]
}

fn sizes_note(f: &Findings) -> String {
    let rounding = "Round to nearest, one scale a row; norms, router and biases stay as they are.";
    let (before, after) = (f.plain.decode_tokens_per_s, f.int8.decode_tokens_per_s);
    let speed = if after < 0.97 * before {
        "Writing is slower with 8 bits here: the kernels that compute on 8-bit weights directly are not built yet."
    } else if after > 1.03 * before {
        "Writing is faster with 8 bits here."
    } else {
        "Writing is as fast with 8 bits here."
    };
    format!("{rounding} {speed}")
}

/// `−73 %`, of the earlier value.
fn change(before: f64, after: f64) -> String {
    if before <= 0.0 || !before.is_finite() || !after.is_finite() {
        return "–".to_owned();
    }
    let percent = 100.0 * (after - before) / before;
    let digits = usize::from(percent.abs() < 10.0);
    if percent.abs() < 0.05 {
        return "none".to_owned();
    }
    let sign = if percent < 0.0 { "−" } else { "+" };
    format!("{sign}{:.digits$} %", percent.abs())
}

/// The summary of `--json`.
pub(super) fn json(f: &Findings, out: &Path) -> serde_json::Value {
    let quality = |q: &super::measure::Quality| {
        json!({
            "bits_per_byte": q.bits_per_byte,
            "loss": q.loss,
            "weight_bytes": q.weight_bytes,
            "prefill_tokens_per_s": q.prefill_tokens_per_s,
            "decode_tokens_per_s": q.decode_tokens_per_s,
        })
    };
    json!({
        "out": out.display().to_string(),
        "report": out.join("report.html").display().to_string(),
        "steps": f.steps,
        "tokens": f.tokens,
        "params_total": f.params_total,
        "params_active": f.params_active,
        "train_s": f.train_seconds,
        "total_s": f.seconds,
        "as_trained": quality(&f.plain),
        "int8": quality(&f.int8),
        "baselines": { "lzma_bits_per_byte": f.baselines.lzma, "ngram5_bits_per_byte": f.baselines.ngram },
        "verdict": verdict(f),
        "command": f.command,
    })
}

#[cfg(test)]
mod tests {
    use super::{Place, change};
    use std::fs;

    #[test]
    fn changes_read_well() {
        assert_eq!(change(40.0, 10.0), "−75 %");
        assert_eq!(change(2.0, 2.01), "+0.5 %");
        assert_eq!(change(0.0, 1.0), "–");
        assert_eq!(change(2.8312, 2.8311), "none");
    }

    #[test]
    fn an_earlier_one_stays_until_the_new_one_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("runs/quickstart");
        for content in ["first", "second"] {
            let place = Place::begin(&out).unwrap();
            fs::create_dir_all(place.run()).unwrap();
            fs::write(place.run().join("report.html"), content).unwrap();
            place.finish().unwrap();
            assert_eq!(fs::read_to_string(out.join("report.html")).unwrap(), content);
        }
        drop(Place::begin(&out).unwrap());
        assert_eq!(fs::read_to_string(out.join("report.html")).unwrap(), "second");
        assert_eq!(fs::read_dir(folder.path().join("runs")).unwrap().count(), 1);
    }

    #[test]
    fn strangers_are_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("thesis");
        fs::create_dir_all(&out).unwrap();
        fs::write(out.join("chapter-1.txt"), "x").unwrap();
        assert!(Place::begin(&out).is_err());
        assert!(out.join("chapter-1.txt").exists());
    }
}
