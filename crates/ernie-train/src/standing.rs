//! Where a run stands among its own evaluations: the best so far, and how long ago it was.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Name of the file in a run folder that names the best checkpoint.
pub const BEST_FILE: &str = "best.json";

/// The best held-out loss so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// After which step.
    pub step: u64,
    /// The loss.
    pub val_loss: f64,
}

/// What evaluations have come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// The best so far.
    pub best: Option<Best>,
    /// Evaluations since then.
    pub since: u64,
}

impl Standing {
    /// Takes in an evaluation; whether it is the best so far.
    pub(crate) fn judge(&mut self, step: u64, val_loss: f64) -> bool {
        // What is no number is never the best, and could not be read back either.
        let better = val_loss.is_finite() && self.best.is_none_or(|best| val_loss < best.val_loss);
        match better {
            true => *self = Self { best: Some(Best { step, val_loss }), since: 0 },
            false => self.since += 1,
        }
        better
    }

    /// Whether `patience` evaluations have passed without a better one; never for a patience of 0.
    pub(crate) fn is_over(&self, patience: u64) -> bool {
        patience > 0 && self.since >= patience
    }

    /// Writes down which checkpoint is the best.
    pub(crate) fn write(&self, run: &Path) -> Result<()> {
        let Some(best) = self.best else { return Ok(()) };
        let named = serde_json::json!({ "step": best.step, "val_loss": best.val_loss, "checkpoint": format!("checkpoint-{}", best.step) });
        let text = format!("{named:#}\n");
        ernie_files::atomic::write(&run.join(BEST_FILE), text.as_bytes()).map_err(Error::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_is_the_best_and_what_is_no_number_is_not() {
        let mut standing = Standing::default();
        assert!(!standing.judge(1, f64::NAN) && standing.best.is_none());
        assert!(standing.judge(2, 3.0) && !standing.judge(3, 3.0) && !standing.judge(4, f64::INFINITY));
        assert_eq!((standing.best, standing.since), (Some(Best { step: 2, val_loss: 3.0 }), 2));
        assert!(standing.is_over(2) && !standing.is_over(3) && !standing.is_over(0));
        let text = serde_json::to_string(&standing).unwrap();
        assert_eq!(serde_json::from_str::<Standing>(&text).unwrap(), standing);
    }
}
