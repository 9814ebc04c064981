//! A run as one HTML page: no script, no outside asset, readable on a phone and on a desk.
//!
//! [`Report`] is plain data; [`render`] turns it into the page. Plots are inline SVG drawn twice,
//! for narrow and for wide screens, so that their text stays readable without a script. Whatever
//! comes from a model or a file is escaped.

mod bars;
mod curve;
mod heat;
mod html;
mod lines;
mod plot;
mod sweep;

use html::escape;
pub(crate) use lines::{Line, Lines};
use std::fmt::Write;

/// Everything the page shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// The heading, e.g. `quickstart`.
    pub(crate) title: String,
    /// One sentence under the heading: what was done.
    pub(crate) subtitle: String,
    /// One or two sentences: who is ahead, said plainly.
    pub(crate) verdict: String,
    /// The figures a reader wants first.
    pub(crate) tiles: Vec<Tile>,
    /// Training loss, nats a token, by step.
    pub(crate) train_loss: Vec<(u64, f64)>,
    /// Held-out loss, nats a token, by step.
    pub(crate) held_out_loss: Vec<(u64, f64)>,
    /// Held-out bits per byte, ours and the baselines'; the smaller the better.
    pub(crate) bits_per_byte: Vec<Bar>,
    /// Of each MoE layer, the share of choices each expert got; shares of a layer sum to 1.
    pub(crate) expert_load: Vec<LayerLoad>,
    /// Of what they are: `on the held-out text`.
    pub(crate) expert_load_of: String,
    /// Over the steps of a run: of each MoE layer, how unevenly it loads its experts.
    pub(crate) imbalance: Vec<LayerHistory>,
    /// Other quantities over the steps.
    pub(crate) lines: Vec<Lines>,
    /// Named figures, a column each for up to two runs.
    pub(crate) tables: Vec<Table>,
    /// Before and after 8 bits.
    pub(crate) sizes: Vec<SizeRow>,
    /// What was said about the 8-bit comparison.
    pub(crate) sizes_note: String,
    /// Speeds over something that was varied, beside what the machine allows.
    pub(crate) sweeps: Vec<Sweep>,
    /// Text the model wrote.
    pub(crate) samples: Vec<Sample>,
    /// The resolved recipe, TOML.
    pub(crate) recipe: String,
    /// Where it ran and how to run it again: name and value.
    pub(crate) machine: Vec<(String, String)>,
    /// Credits and limits, a sentence each.
    pub(crate) notes: Vec<String>,
}

/// One figure with its name.
#[derive(Clone, Debug)]
pub(crate) struct Tile {
    /// The figure, short: `2.21`.
    pub(crate) value: String,
    /// What it is: `held-out bits per byte`.
    pub(crate) name: String,
}

/// One bar of the comparison.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    /// Whose.
    pub(crate) name: String,
    /// How long.
    pub(crate) value: f64,
    /// Whether it is this run's model.
    pub(crate) ours: bool,
}

/// How one MoE layer spread its tokens.
#[derive(Clone, Debug)]
pub(crate) struct LayerLoad {
    /// Decoder layer.
    pub(crate) layer: usize,
    /// Share of the layer's choices, expert by expert.
    pub(crate) shares: Vec<f64>,
}

/// How one MoE layer loaded its busiest expert over the steps.
#[derive(Clone, Debug)]
pub(crate) struct LayerHistory {
    /// Decoder layer.
    pub(crate) layer: usize,
    /// Last step of each stretch of the run, and the busiest expert's load there as a multiple of an even one.
    pub(crate) stretches: Vec<(u64, f64)>,
}

/// Figures in rows, a column for each run.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    /// The heading.
    pub(crate) heading: String,
    /// What the figures are, a sentence.
    pub(crate) sentence: String,
    /// The columns' names, after that of the rows.
    pub(crate) columns: Vec<String>,
    /// A name and a figure for each column.
    pub(crate) rows: Vec<(String, Vec<String>)>,
}

/// One row of the table before and after 8 bits.
#[derive(Clone, Debug)]
pub(crate) struct SizeRow {
    /// What is compared.
    pub(crate) name: String,
    /// As trained.
    pub(crate) before: String,
    /// With 8-bit weights.
    pub(crate) after: String,
    /// The change, `−74 %`.
    pub(crate) change: String,
}

/// A figure at several values of one setting.
#[derive(Clone, Debug)]
pub(crate) struct Sweep {
    /// The heading: `Reading a prompt`.
    pub(crate) heading: String,
    /// What is drawn, a sentence.
    pub(crate) sentence: String,
    /// The setting that was varied: `prompt tokens`.
    pub(crate) axis: String,
    /// What is measured: `tokens/s`.
    pub(crate) unit: String,
    /// Whose figures they are: those measured, and those beside them.
    pub(crate) names: [String; 2],
    /// What a share is of: `of the limit`.
    pub(crate) compared: String,
    /// Its values, rising.
    pub(crate) points: Vec<SweepPoint>,
}

/// One value of the setting, and the figures there.
#[derive(Clone, Debug)]
pub(crate) struct SweepPoint {
    /// The setting's value.
    pub(crate) at: String,
    /// What was measured.
    pub(crate) measured: f64,
    /// What the machine allows, or another server does; if anything.
    pub(crate) limit: Option<f64>,
}

/// One text the model wrote.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// What it was given.
    pub(crate) prompt: String,
    /// What it wrote.
    pub(crate) text: String,
}

/// The page.
pub(crate) fn render(report: &Report) -> String {
    let mut body = String::with_capacity(64 * 1024);
    let r = report;
    // Writing to a `String` cannot fail.
    let _ = write!(
        body,
        "<header>\n<p class=\"brand\">ernie</p>\n<h1>{}</h1>\n<p class=\"lede\">{}</p>\n</header>\n",
        escape(&r.title),
        escape(&r.subtitle)
    );
    if !r.verdict.is_empty() {
        let _ = writeln!(body, "<p class=\"verdict\">{}</p>", escape(&r.verdict));
    }
    if !r.tiles.is_empty() {
        body.push_str("<dl class=\"tiles\">\n");
        for tile in &r.tiles {
            let _ = writeln!(body, "<div><dt>{}</dt><dd>{}</dd></div>", escape(&tile.name), escape(&tile.value));
        }
        body.push_str("</dl>\n");
    }
    if !r.train_loss.is_empty() {
        html::section(
            &mut body,
            "Loss",
            "Nats a token, lower is better. The faint line is each step's training loss, the firm one its running mean; points are the held-out text, which the model never trains on.",
            &curve::figure(&r.train_loss, &r.held_out_loss),
        );
    }
    if !r.bits_per_byte.is_empty() {
        html::section(
            &mut body,
            "Held-out bits per byte",
            "How many bits it takes to write one byte of the held-out text, lower is better. The baselines saw the same training text.",
            &bars::figure(&r.bits_per_byte),
        );
    }
    if !r.expert_load.is_empty() {
        html::section(
            &mut body,
            "Expert balance",
            &format!(
                "The share of each layer's routing choices that went to each expert {}. An even spread gives every expert the same share.",
                r.expert_load_of
            ),
            &heat::figure(&r.expert_load),
        );
    }
    if r.imbalance.iter().any(|layer| !layer.stretches.is_empty()) {
        html::section(
            &mut body,
            "Balance over the run",
            "The busiest expert of each layer, as a multiple of an even load, from the first step (left) to the last. 1 is even.",
            &heat::history(&r.imbalance),
        );
    }
    for plot in &r.lines {
        let figure = lines::figure(plot);
        if !figure.is_empty() {
            html::section(&mut body, &plot.heading, &plot.sentence, &figure);
        }
    }
    for table in r.tables.iter().filter(|table| !table.rows.is_empty()) {
        html::section(&mut body, &table.heading, &table.sentence, &figures_table(table));
    }
    if !r.sizes.is_empty() {
        html::section(&mut body, "Before and after 8 bits", &r.sizes_note, &sizes_table(&r.sizes));
    }
    for sweep in r.sweeps.iter().filter(|sweep| !sweep.points.is_empty()) {
        html::section(&mut body, &sweep.heading, &sweep.sentence, &sweep::figure(sweep));
    }
    if !r.samples.is_empty() {
        html::section(
            &mut body,
            "What it writes",
            "The prompt is bold; the rest is the model's. A model this small, trained for minutes, writes the style of its books, not their sense.",
            &samples(&r.samples),
        );
    }
    if !r.recipe.is_empty() {
        html::section(
            &mut body,
            "Recipe",
            "Every setting of the run, resolved.",
            &format!(
                "<details><summary>Show the recipe</summary>\n<pre tabindex=\"0\">{}</pre>\n</details>\n",
                escape(&r.recipe)
            ),
        );
    }
    if !r.machine.is_empty() {
        html::section(&mut body, "Where and how", "", &machine(&r.machine));
    }
    if !r.notes.is_empty() {
        body.push_str("<footer>\n");
        for note in &r.notes {
            let _ = writeln!(body, "<p>{}</p>", escape(note));
        }
        body.push_str("</footer>\n");
    }
    html::page(&format!("ernie · {}", r.title), &body)
}

fn figures_table(table: &Table) -> String {
    let mut out =
        String::from("<table class=\"wrap\">\n<thead><tr><th scope=\"col\"><span class=\"sr\">measure</span></th>");
    for column in &table.columns {
        let _ = write!(out, "<th scope=\"col\">{}</th>", escape(column));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for (name, figures) in &table.rows {
        let _ = write!(out, "<tr><th scope=\"row\">{}</th>", escape(name));
        for figure in figures {
            let _ = write!(out, "<td>{}</td>", escape(figure));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table>\n");
    out
}

fn sizes_table(rows: &[SizeRow]) -> String {
    let mut out = String::from(
        "<table>\n<thead><tr><th scope=\"col\"><span class=\"sr\">measure</span></th><th scope=\"col\">as trained</th><th scope=\"col\">8 bits</th><th scope=\"col\">change</th></tr></thead>\n<tbody>\n",
    );
    for row in rows {
        let _ = writeln!(
            out,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&row.name),
            escape(&row.before),
            escape(&row.after),
            escape(&row.change)
        );
    }
    out.push_str("</tbody>\n</table>\n");
    out
}

fn samples(samples: &[Sample]) -> String {
    samples.iter().fold(String::new(), |mut out, sample| {
        let _ =
            writeln!(out, "<blockquote><p><b>{}</b>{}</p></blockquote>", escape(&sample.prompt), escape(&sample.text));
        out
    })
}

fn machine(rows: &[(String, String)]) -> String {
    let mut out = String::from("<dl class=\"facts\">\n");
    for (name, value) in rows {
        let _ = writeln!(out, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
    }
    out.push_str("</dl>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Report {
        Report {
            title: "quick<start>".to_owned(),
            verdict: "a & b".to_owned(),
            tiles: vec![Tile { value: "2.1".to_owned(), name: "bits".to_owned() }],
            train_loss: (1..=300).map(|s| (s, 8.0 / (s as f64).sqrt() + 3.0)).collect(),
            held_out_loss: vec![(100, 4.1), (200, 3.9), (300, f64::NAN)],
            bits_per_byte: vec![
                Bar { name: "nano".to_owned(), value: 2.2, ours: true },
                Bar { name: "5-gram".to_owned(), value: 2.13, ours: false },
            ],
            expert_load: vec![LayerLoad { layer: 1, shares: vec![0.25; 4] }],
            imbalance: vec![LayerHistory { layer: 1, stretches: vec![(10, 2.5), (20, f64::NAN)] }],
            lines: vec![Lines {
                heading: "Rate".into(),
                sentence: String::new(),
                smooth: false,
                lines: vec![Line { name: "<a>".into(), points: vec![(1, 1e-3), (2, f64::INFINITY)] }],
            }],
            tables: vec![Table {
                heading: "Figures".into(),
                sentence: String::new(),
                columns: vec!["<run>".into()],
                rows: vec![("<loss>".into(), vec!["<1>".into()])],
            }],
            sizes: vec![SizeRow {
                name: "size".to_owned(),
                before: "40 MB".to_owned(),
                after: "11 MB".to_owned(),
                change: "−73 %".to_owned(),
            }],
            sweeps: vec![Sweep {
                heading: "Reading".to_owned(),
                sentence: String::new(),
                axis: "prompt tokens".to_owned(),
                unit: "tokens/s".into(),
                names: ["measured", "what this machine allows"].map(Into::into),
                compared: "of the limit".into(),
                points: vec![
                    SweepPoint { at: "16".into(), measured: 55.0, limit: Some(120.0) },
                    SweepPoint { at: "512".into(), measured: f64::NAN, limit: Some(130.0) },
                ],
            }],
            samples: vec![Sample { prompt: "Once".to_owned(), text: " <script>alert(1)</script>".to_owned() }],
            recipe: "seed = 1 # <b>".to_owned(),
            machine: vec![("cpu".to_owned(), "some \"cpu\"".to_owned())],
            ..Report::default()
        }
    }

    #[test]
    fn nothing_from_outside_reaches_the_page_unescaped_or_the_network() {
        let page = render(&example());
        assert!(!page.contains("<script"), "a script got in");
        assert!(page.contains("&lt;script&gt;alert(1)"));
        assert!(page.contains("quick&lt;start&gt;"));
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            let rest = page.replace("http://www.w3.org/2000/svg", "");
            assert!(!rest.contains(outside), "{outside}");
        }
        assert!(!page.contains("NaN"));
    }

    #[test]
    fn an_empty_run_still_has_a_page() {
        let page = render(&Report::default());
        assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    }

    #[test]
    fn every_plot_has_a_title() {
        let page = render(&example());
        let plots = page.matches("<svg").count();
        assert_eq!(plots, 12);
        assert_eq!(page.matches("role=\"img\" aria-label=").count(), plots);
    }
}
