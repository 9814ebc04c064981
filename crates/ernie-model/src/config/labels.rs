//! The labels of a classification head, as `transformers` spells them: `num_labels`, `id2label`, `label2id` and `problem_type`.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::json::Keys;
use crate::Result;

/// Most labels of a head: more are no labels but something else under their name.
pub const MOST_LABELS: usize = 1 << 16;

/// The one problem that is built: each text has one of the labels.
const PROBLEM: &str = "single_label_classification";

/// Whether these can be the labels of a head.
///
/// # Errors
/// What is wrong with them, and what was expected.
pub fn check_labels(labels: &[String]) -> std::result::Result<(), String> {
    if !(2..=MOST_LABELS).contains(&labels.len()) {
        return Err(format!("{} labels, expected 2 to {MOST_LABELS}", labels.len()));
    }
    let mut seen = HashSet::new();
    for label in labels {
        if label.is_empty() {
            return Err("a label is empty, expected a name".into());
        }
        if label.contains(char::is_control) {
            return Err(format!("the label {label:?} holds control characters, expected a name on one line"));
        }
        if !seen.insert(label) {
            return Err(format!("the label {label:?} stands twice"));
        }
    }
    Ok(())
}

/// The labels of a config that announces a head. What it does not name is called as `transformers` would.
pub(super) fn read(keys: &mut Keys<'_>) -> Result<Vec<String>> {
    if let Some(problem) = keys.text("problem_type")?
        && problem != PROBLEM
    {
        let problem: String = problem.chars().take(60).collect();
        return Err(keys.error("problem_type", format!("`{problem}` is not built; expected {PROBLEM}")));
    }
    let number = keys.count("num_labels", 2, MOST_LABELS)?;
    let labels = match keys.object("id2label")? {
        None => default_labels(number.unwrap_or(2)),
        Some(mut names) => {
            let count = names.names().len().min(MOST_LABELS + 1);
            (0..count).map(|id| names.required_text(&id.to_string())).collect::<Result<Vec<_>>>()?
        }
    };
    if let Some(number) = number.filter(|&number| number != labels.len()) {
        return Err(keys.error("num_labels", format!("{number}, but `id2label` names {}", labels.len())));
    }
    check_labels(&labels).map_err(|problem| keys.error("id2label", problem))?;
    // The way back follows from the way there.
    keys.take("label2id");
    Ok(labels)
}

/// What `transformers` calls `count` labels that nobody has named.
pub(crate) fn default_labels(count: usize) -> Vec<String> {
    (0..count).map(|id| format!("LABEL_{id}")).collect()
}

/// The keys of a head with these labels.
pub(super) fn write(labels: &[String], root: &mut Value) {
    let names = labels.iter().enumerate().map(|(id, label)| (id.to_string(), json!(label)));
    let ids = labels.iter().enumerate().map(|(id, label)| (label.clone(), json!(id)));
    root["num_labels"] = json!(labels.len());
    root["id2label"] = Value::Object(names.collect::<Map<_, _>>());
    root["label2id"] = Value::Object(ids.collect::<Map<_, _>>());
    root["problem_type"] = json!(PROBLEM);
}
