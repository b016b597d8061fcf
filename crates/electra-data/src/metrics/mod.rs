//! Scores of predictions, each equal to the field's own tool: scikit-learn, scipy, seqeval, the
//! scripts of SQuAD and CMRC 2018. All in f64; `tests/check_metrics.py` compares them.

pub mod answers;
pub mod classification;
pub mod correlation;
pub mod entities;

use serde::Serialize;

/// Precision, recall and F1 of one class, or an average of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Prf {
    /// Of what was predicted, the share that is right; 0 if nothing was.
    pub precision: f64,
    /// Of what is there, the share that was predicted; 0 if nothing is.
    pub recall: f64,
    /// Their harmonic mean; 0 if both are.
    pub f1: f64,
    /// How many there are.
    pub support: u64,
}

impl Prf {
    /// From the numbers of right ones, predicted ones and true ones.
    pub fn new(right: u64, predicted: u64, gold: u64) -> Self {
        let over = |below: u64| match below {
            0 => 0.0,
            _ => right as f64 / below as f64,
        };
        Prf {
            precision: over(predicted),
            recall: over(gold),
            f1: match predicted + gold {
                0 => 0.0,
                both => 2.0 * right as f64 / both as f64,
            },
            support: gold,
        }
    }

    /// The unweighted mean of classes; zero of none.
    pub fn mean(classes: &[Prf]) -> Self {
        let n = classes.len().max(1) as f64;
        let mean = |of: fn(&Prf) -> f64| classes.iter().map(of).fold(0.0, |a, b| a + b) / n;
        Prf {
            precision: mean(|c| c.precision),
            recall: mean(|c| c.recall),
            f1: mean(|c| c.f1),
            support: classes.iter().map(|c| c.support).sum(),
        }
    }
}
