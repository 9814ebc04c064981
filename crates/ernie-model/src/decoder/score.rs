//! The head for labels: a number a label from the hidden state of a text's last token.
//!
//! It is that of `transformers` (`GenericForSequenceClassification`): `score.weight` `[labels, h]` without a bias, on the state after the final norm. It stays in
//! f32 whatever the model's matrices become; the head for words stays beside it.

use std::sync::Arc;

use ernie_nn::ops::{self, CrossEntropy};
use ernie_nn::{Linear, Parameter, Value, Weight};

use super::Decoder;
use crate::config::{SCORE, check_labels};
use crate::{Error, Result};

/// A head for labels by itself, for whoever gets hidden states from an engine.
#[derive(Clone)]
pub struct Classifier {
    labels: Vec<String>,
    score: Linear,
}

impl Classifier {
    /// The labels, by their ids.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The logit of each label, from the hidden state of a text's last token: `[h] → [labels]`.
    ///
    /// # Errors
    /// [`Error::Nn`] for a state of another width.
    pub fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        Ok(self.score.numbers(&Value::from_vec(hidden.to_vec(), &[1, hidden.len()])?)?)
    }
}

impl std::fmt::Debug for Classifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Classifier({:?})", self.labels)
    }
}

/// The id of the largest logit, the first of equals.
pub fn likeliest(logits: &[f32]) -> usize {
    let best = |best: usize, id: usize| if logits[id] > logits[best] { id } else { best };
    (0..logits.len()).fold(0, best)
}

impl Decoder {
    /// The head for labels; `None` where the model has none.
    pub fn classifier(&self) -> Option<Classifier> {
        self.score.as_ref().map(|score| Classifier { labels: self.config.labels.clone(), score: score.clone() })
    }

    /// The weight of the head for labels.
    pub fn score(&self) -> Option<&Arc<Parameter>> {
        self.score.as_ref().and_then(|score| score.weight().parameter())
    }

    /// `factor · Σ` of the cross-entropies of the labels `targets: [T]` at the rows of `hidden: [T, h]`, in nats; rows of [`super::IGNORED`] carry none.
    ///
    /// # Errors
    /// [`Error::Request`] where the model has no head for labels.
    pub fn label_loss(&self, hidden: &Value, targets: &[i64], factor: f64) -> Result<CrossEntropy> {
        let score = self.score_or_none()?;
        Ok(ops::head_cross_entropy(&ops::widen(hidden)?, score.weight(), targets, factor)?)
    }

    /// Logits of the labels at the chosen rows of `hidden: [T, h]`, without recording: `[rows.len(), labels]`, row-major.
    ///
    /// # Errors
    /// As [`Self::label_loss`]; [`Error::Nn`] for a row beyond the batch.
    pub fn label_logits(&self, hidden: &Value, rows: &[usize]) -> Result<Vec<f32>> {
        Ok(self.score_or_none()?.numbers(&hidden.rows(rows)?)?)
    }

    /// Says which of the two heads learns. What a loss never reaches would lose its weights to their decay: with labels that is a head for words of its own, without
    /// them the head for labels. Beside an adapter the head for labels learns with it.
    pub fn learn_labels(&self, labels: bool) {
        if let Some(score) = self.score() {
            score.set_trainable(labels);
        }
        if let Some(words) = self.lm_head.weight().parameter().filter(|_| labels && !self.config.tie_word_embeddings) {
            words.set_trainable(false);
        }
    }

    /// Puts a head for these labels on the model, or in the place of the one it has: `weight: [labels, h]`, row-major.
    ///
    /// # Errors
    /// [`Error::Request`] for what cannot be labels.
    pub(crate) fn set_score(&mut self, labels: Vec<String>, weight: Vec<f32>) -> Result<()> {
        check_labels(&labels).map_err(Error::Request)?;
        let parameter = Parameter::from_vec(SCORE, weight, &[labels.len(), self.config.hidden_size])?;
        self.score = Some(Linear::new(Weight::Parameter(parameter), None));
        self.config.labels = labels;
        Ok(())
    }

    fn score_or_none(&self) -> Result<&Linear> {
        self.score.as_ref().ok_or_else(|| Error::Request("the model has no head for labels".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equals_is_the_likeliest() {
        assert_eq!(likeliest(&[0.5, 2.0, 2.0, -1.0]), 1);
        assert_eq!(likeliest(&[f32::NAN, 1.0]), 0);
    }
}
