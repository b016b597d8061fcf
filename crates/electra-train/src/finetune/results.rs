//! What came of a run's trials: each one's score, and how they spread.

use super::score::NamedScores;
use crate::metrics_log::nullable;
use serde::{Deserialize, Serialize};

/// One trial at its best evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Seed of its heads, order and dropout.
    pub seed: u64,
    /// Value of what the best model is chosen by; the mean over tasks. No number where the metric has
    /// none, as a correlation with predictions that are all the same.
    #[serde(with = "nullable")]
    pub score: f64,
    /// Every score at that evaluation.
    #[serde(with = "named")]
    pub scores: NamedScores,
    /// Epochs done then.
    pub epoch: f64,
    /// Whether it stuck to the majority class to its end.
    pub stuck: bool,
}

/// Scores with null for what is no number.
mod named {
    use super::NamedScores;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(scores: &NamedScores, to: S) -> Result<S::Ok, S::Error> {
        let scores = scores.iter();
        to.collect_seq(scores.map(|(name, value)| (name, value.is_finite().then_some(value))))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<NamedScores, D::Error> {
        let scores = Vec::<(String, Option<f64>)>::deserialize(from)?.into_iter();
        Ok(scores
            .map(|(name, value)| (name, value.unwrap_or(f64::NAN)))
            .collect())
    }
}

/// All trials, summed up; one whose score is no number is the worst. Median, best and spread stand apart: the best of many seeds is no
/// estimate of what one will give.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// The middle score; the mean of the two middle ones of an even number.
    pub median: f64,
    /// The best score.
    pub best: f64,
    /// The worst.
    pub worst: f64,
    /// Mean.
    pub mean: f64,
    /// Sample standard deviation; 0 of one trial.
    pub deviation: f64,
}

impl Summary {
    /// Of at least one trial. Where smaller is better, `larger_is_better` is false.
    pub fn of(trials: &[Trial], larger_is_better: bool) -> Self {
        // The worst first.
        let mut scores: Vec<f64> = trials.iter().map(|t| t.score).collect();
        scores.sort_by(|a, b| match (a.is_nan(), b.is_nan(), larger_is_better) {
            (false, false, true) => a.total_cmp(b),
            (false, false, false) => b.total_cmp(a),
            (a, b, _) => b.cmp(&a),
        });
        let (Some(&worst), Some(&best)) = (scores.first(), scores.last()) else {
            return Summary::default();
        };
        let n = scores.len();
        let mean = scores.iter().sum::<f64>() / n as f64;
        let squares: f64 = scores.iter().map(|s| (s - mean).powi(2)).sum();
        Summary {
            median: 0.5 * (scores[(n - 1) / 2] + scores[n / 2]),
            best,
            worst,
            mean,
            deviation: match n {
                1 => 0.0,
                n => (squares / (n - 1) as f64).sqrt(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_best_and_spread_stand_apart() {
        let trials = |scores: &[f64]| -> Vec<Trial> {
            scores
                .iter()
                .map(|&score| Trial {
                    seed: 0,
                    score,
                    scores: Vec::new(),
                    epoch: 1.0,
                    stuck: false,
                })
                .collect()
        };
        let of_four = Summary::of(&trials(&[0.4, 0.1, 0.2, 0.9]), true);
        assert!((of_four.median - 0.3).abs() < 1e-12);
        assert_eq!((of_four.best, of_four.worst), (0.9, 0.1));
        let sum: f64 = [0.0f64, -0.3, -0.2, 0.5].iter().map(|d| d * d).sum();
        assert!((of_four.deviation - (sum / 3.0).sqrt()).abs() < 1e-12);
        let errors = Summary::of(&trials(&[3.0, 1.0, 2.0]), false);
        assert_eq!((errors.median, errors.best, errors.worst), (2.0, 1.0, 3.0));
        assert_eq!(Summary::of(&trials(&[0.5]), true).deviation, 0.0);
        for larger in [true, false] {
            let lost = Summary::of(&trials(&[f64::NAN, 0.5, 0.5]), larger);
            assert_eq!((lost.best, lost.median), (0.5, 0.5));
            assert!(lost.worst.is_nan() && lost.mean.is_nan());
        }
    }

    #[test]
    fn a_score_that_is_no_number_can_be_read_back() {
        let trial = Trial {
            seed: 3,
            score: f64::NAN,
            scores: vec![("spearman".into(), f64::NAN), ("mse".into(), 0.1)],
            epoch: 1.0,
            stuck: false,
        };
        let read: Trial = serde_json::from_str(&serde_json::to_string(&trial).unwrap()).unwrap();
        assert!(read.score.is_nan() && read.scores[0].1.is_nan());
        assert_eq!(read.scores[1], trial.scores[1]);
    }
}
