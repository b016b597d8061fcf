//! Scores of answers to questions, as the scripts of SQuAD 1.1, SQuAD 2.0 and CMRC 2018 have them.
//! They print percentages; these are shares.

mod chinese;
mod squad;
mod words;

pub use chinese::cmrc;
pub use squad::{Judged, Threshold, best_threshold, normalize, squad, squad2, with_threshold};

use serde::Serialize;

/// How good an answer is, from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct AnswerScore {
    /// 1 if it equals a given answer, else 0.
    pub exact: f64,
    /// F1 of its words with those of the given answer that it fits best.
    pub f1: f64,
}

/// Mean of scores; zero of none.
pub fn mean(scores: &[AnswerScore]) -> AnswerScore {
    let n = scores.len().max(1) as f64;
    AnswerScore {
        exact: scores.iter().map(|s| s.exact).sum::<f64>() / n,
        f1: scores.iter().map(|s| s.f1).sum::<f64>() / n,
    }
}
