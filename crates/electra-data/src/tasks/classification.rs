//! What a network says of texts, to classes, labels and numbers, and their scores.

use serde::Serialize;

use super::metric::Metric;
use super::{LabelSet, TaskError};
use crate::metrics::Prf;
use crate::metrics::classification::{Confusion, MultiLabel, multi_label};
use crate::metrics::correlation::{mean_squared_error, pearson, spearman};

/// Scores by metric, in the order asked for.
pub type Scores = Vec<(Metric, f64)>;

/// A label and how sure the network is of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scored {
    /// The label.
    pub label: String,
    /// Its probability.
    pub score: f64,
}

/// Probabilities of one class of several.
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut out: Vec<f64> = logits
        .iter()
        .map(|&x| (f64::from(x) - f64::from(most)).exp())
        .collect();
    let sum: f64 = out.iter().sum();
    out.iter_mut().for_each(|x| *x /= sum);
    out
}

/// The probability that a label holds.
pub fn sigmoid(logit: f32) -> f64 {
    1.0 / (1.0 + (-f64::from(logit)).exp())
}

/// The place of the greatest value, the first of equals; 0 of none.
pub fn argmax(values: &[f32]) -> u32 {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = i;
        }
    }
    best as u32
}

/// The `top` likeliest classes, likeliest first. `logits: [labels]`.
pub fn classes(labels: &LabelSet, logits: &[f32], top: usize) -> Vec<Scored> {
    sorted(labels, softmax(logits), top)
}

/// The `top` likeliest labels, each by itself, likeliest first. `logits: [labels]`.
pub fn labels(labels: &LabelSet, logits: &[f32], top: usize) -> Vec<Scored> {
    sorted(labels, logits.iter().map(|&x| sigmoid(x)).collect(), top)
}

fn sorted(labels: &LabelSet, probabilities: Vec<f64>, top: usize) -> Vec<Scored> {
    let mut scored: Vec<Scored> = labels
        .names()
        .iter()
        .zip(probabilities)
        .map(|(label, score)| Scored {
            label: label.clone(),
            score,
        })
        .collect();
    scored.sort_by(|a, b| b.score.total_cmp(&a.score));
    scored.truncate(top);
    scored
}

/// Which labels hold: those of a logit above 0, a probability above one half.
pub fn holding(logits: &[f32]) -> Vec<bool> {
    logits.iter().map(|&x| x > 0.0).collect()
}

/// Scores of classes. Precision, recall and F1 are those of class 1 of two, else the mean over
/// the classes.
///
/// # Errors
/// A metric that classes do not have.
pub fn class_scores(confusion: &Confusion, metrics: &[Metric]) -> Result<Scores, TaskError> {
    let main = if confusion.classes() == 2 {
        confusion.class(1)
    } else {
        confusion.macro_average()
    };
    let averages = [confusion.micro_average(), confusion.macro_average()];
    collect(metrics, |metric| match metric {
        Metric::Accuracy => Some(confusion.accuracy()),
        Metric::Mcc => Some(confusion.mcc()),
        _ => of_average(metric, main, averages),
    })
}

/// Scores of labels of which any number holds; `gold[example][label]`. Precision, recall and F1
/// are those over all decisions, accuracy the share of examples that are right in every label.
///
/// # Errors
/// A metric that labels do not have.
pub fn label_scores(
    gold: &[Vec<bool>],
    predicted: &[Vec<bool>],
    metrics: &[Metric],
) -> Result<Scores, TaskError> {
    let MultiLabel {
        micro,
        macro_average,
        accuracy,
        ..
    } = multi_label(gold, predicted);
    collect(metrics, |metric| match metric {
        Metric::Accuracy => Some(accuracy),
        _ => of_average(metric, micro, [micro, macro_average]),
    })
}

/// Scores of numbers.
///
/// # Errors
/// A metric that numbers do not have.
pub fn value_scores(
    gold: &[f64],
    predicted: &[f64],
    metrics: &[Metric],
) -> Result<Scores, TaskError> {
    collect(metrics, |metric| {
        Some(match metric {
            Metric::Pearson => pearson(gold, predicted),
            Metric::Spearman => spearman(gold, predicted),
            Metric::Mse => mean_squared_error(gold, predicted),
            _ => return None,
        })
    })
}

/// Precision, recall or F1: `main` where the metric does not say which average.
pub(super) fn of_average(
    metric: Metric,
    main: Prf,
    [micro, macro_average]: [Prf; 2],
) -> Option<f64> {
    Some(match metric {
        Metric::Precision => main.precision,
        Metric::Recall => main.recall,
        Metric::F1 => main.f1,
        Metric::PrecisionMicro => micro.precision,
        Metric::RecallMicro => micro.recall,
        Metric::F1Micro => micro.f1,
        Metric::PrecisionMacro => macro_average.precision,
        Metric::RecallMacro => macro_average.recall,
        Metric::F1Macro => macro_average.f1,
        _ => return None,
    })
}

/// The asked-for metrics but for the loss, which is the network's own; `value` gives `None` for one that
/// does not exist here.
pub(super) fn collect(
    metrics: &[Metric],
    value: impl Fn(Metric) -> Option<f64>,
) -> Result<Scores, TaskError> {
    metrics
        .iter()
        .filter(|&&metric| metric != Metric::Loss)
        .map(|&metric| {
            let value = value(metric).ok_or_else(|| {
                TaskError::Options(format!(
                    "metric {} is not one of this kind of task",
                    metric.name()
                ))
            })?;
            Ok((metric, value))
        })
        .collect()
}
