//! What an evaluation says: one document, the same for every task.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::Examples;

/// A value and, where it is defined, its standard error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    /// The value.
    pub value: f64,
    /// Its standard error over the examples.
    pub stderr: Option<f64>,
}

/// The result of one task on one model. Serialises as `{task, n, metrics: {name, name_stderr}, settings}`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvalReport {
    /// The task's name.
    pub task: String,
    /// Examples that were scored.
    pub n: usize,
    /// Each metric under its name, its standard error under `NAME_stderr`, in the task's order.
    pub metrics: Map<String, Value>,
    /// Everything that decides the numbers beside the model.
    pub settings: Map<String, Value>,
    /// What was found out about each example; not part of the document.
    #[serde(skip)]
    pub examples: Examples,
}

impl EvalReport {
    /// A report without metrics and settings.
    pub fn new(task: &str, n: usize) -> Self {
        Self { task: task.to_string(), n, metrics: Map::new(), settings: Map::new(), examples: Examples::default() }
    }

    /// Adds a metric. A value that is not finite is written as null, because JSON has no other way.
    pub fn metric(mut self, name: &str, metric: Metric) -> Self {
        self.metrics.insert(name.to_string(), metric.value.into());
        if let Some(stderr) = metric.stderr {
            self.metrics.insert(format!("{name}_stderr"), stderr.into());
        }
        self
    }

    /// Adds the examples.
    pub fn examples(mut self, examples: Examples) -> Self {
        self.examples = examples;
        self
    }

    /// Adds a setting.
    pub fn setting(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.settings.insert(name.to_string(), value.into());
        self
    }

    /// The value of a metric, if the report has it.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.metrics.get(name)?.as_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_serialises_as_the_contract_says() {
        let report = EvalReport::new("sst2", 2)
            .metric("acc", Metric { value: 0.5, stderr: Some(0.25) })
            .metric("word_perplexity", Metric { value: f64::INFINITY, stderr: None })
            .setting("shots", 5);
        assert_eq!(
            serde_json::to_string(&report).unwrap(),
            r#"{"task":"sst2","n":2,"metrics":{"acc":0.5,"acc_stderr":0.25,"word_perplexity":null},"settings":{"shots":5}}"#
        );
        assert_eq!(report.value("acc"), Some(0.5));
    }
}
