//! What is measured of predictions.

use serde::{Deserialize, Serialize};

/// A score of predictions, as it is called in output. The larger the better, but for `mse`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of right predictions; of words in tagging.
    Accuracy,
    /// Precision: of the second class of two, the mean over more; of entities, or of all decisions
    /// where several labels may hold.
    Precision,
    /// Recall, as precision.
    Recall,
    /// F1, as precision; of the words of answers.
    F1,
    /// Precision over the decisions on all classes.
    PrecisionMicro,
    /// Mean of the classes' precision.
    PrecisionMacro,
    /// Recall over the decisions on all classes.
    RecallMicro,
    /// Mean of the classes' recall.
    RecallMacro,
    /// F1 over the decisions on all classes.
    F1Micro,
    /// Mean of the classes' F1.
    F1Macro,
    /// Matthews correlation coefficient.
    Mcc,
    /// Pearson correlation.
    Pearson,
    /// Spearman rank correlation.
    Spearman,
    /// Mean squared error.
    Mse,
    /// Mean loss, without weights of classes and smoothing.
    Loss,
    /// Entity F1 where an entity must be written as the scheme has it (`seqeval`'s strict mode).
    F1Strict,
    /// Share of answers equal to a given one.
    ExactMatch,
    /// Exact match at the threshold for "no answer" that suits the data best.
    BestExactMatch,
    /// F1 at the threshold for "no answer" that suits the data best.
    BestF1,
}

impl Metric {
    /// All, in order.
    pub const ALL: [Metric; 19] = [
        Metric::Accuracy,
        Metric::Precision,
        Metric::Recall,
        Metric::F1,
        Metric::PrecisionMicro,
        Metric::PrecisionMacro,
        Metric::RecallMicro,
        Metric::RecallMacro,
        Metric::F1Micro,
        Metric::F1Macro,
        Metric::Mcc,
        Metric::Pearson,
        Metric::Spearman,
        Metric::Mse,
        Metric::Loss,
        Metric::F1Strict,
        Metric::ExactMatch,
        Metric::BestExactMatch,
        Metric::BestF1,
    ];

    /// Its name in files and output.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Accuracy => "accuracy",
            Metric::Precision => "precision",
            Metric::Recall => "recall",
            Metric::F1 => "f1",
            Metric::PrecisionMicro => "precision_micro",
            Metric::PrecisionMacro => "precision_macro",
            Metric::RecallMicro => "recall_micro",
            Metric::RecallMacro => "recall_macro",
            Metric::F1Micro => "f1_micro",
            Metric::F1Macro => "f1_macro",
            Metric::Mcc => "mcc",
            Metric::Pearson => "pearson",
            Metric::Spearman => "spearman",
            Metric::Mse => "mse",
            Metric::Loss => "loss",
            Metric::F1Strict => "f1_strict",
            Metric::ExactMatch => "exact_match",
            Metric::BestExactMatch => "best_exact_match",
            Metric::BestF1 => "best_f1",
        }
    }

    /// The metric of a name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|m| m.name() == name)
    }

    /// Whether a larger value is better.
    pub fn larger_is_better(self) -> bool {
        !matches!(self, Metric::Mse | Metric::Loss)
    }
}
